"""Reads what an upstream returns: whole bodies, event streams, errors."""
