"""The larger commands of `edge-gateway`: doctor, explain, keys, and plugins list, new and test."""
