"""Transports (HTTP, MQTT) and the request handler: turn bytes into a task and its result into bytes."""
