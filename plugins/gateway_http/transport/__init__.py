"""Connections to the upstream: session, name resolution, one exchange, exceptions."""
