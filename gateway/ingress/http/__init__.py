"""The HTTP transport: listeners, request checks, bodies, responses."""
