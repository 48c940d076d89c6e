"""The simulated world of bench/routing.py: links, arrivals, an edge box, a cloud, and routing policies."""
