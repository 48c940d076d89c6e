"""edge-gateway: gives each AI request to the backend, here or far away, that will finish it best."""

__version__ = "0.1.0"
