"""Where plugins are made, tried and listed: `edge-gateway plugins new`, `plugins test`, `plugins list`."""
