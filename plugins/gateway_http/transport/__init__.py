"""Connections to the upstream: name resolution, session, one exchange, exceptions."""
