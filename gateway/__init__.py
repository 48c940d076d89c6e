"""edge-gateway: routes each AI request to the backend, on the site or in the cloud, that is predicted to be best."""

__version__ = "0.1.0"
