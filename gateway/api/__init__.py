"""Wire formats: parse a request, render its response. No sockets, no clocks."""
