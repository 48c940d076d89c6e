"""The doors: bytes from a client become a Task, a Result or Parts become bytes for the client."""
