"""The MQTT transport: requests and responses as messages of a broker.

`MqttTransport` passes each message to `gateway.ingress.handler.RequestHandler` and publishes the response. A QoS 1
request is acknowledged after the broker has the response. docs/mqtt.md describes the transport for users.
"""

from gateway.ingress.mqtt.adapter import MqttTransport
from gateway.ingress.mqtt.connection import Broker
from gateway.ingress.mqtt.request import Topics

__all__ = ["Broker", "MqttTransport", "Topics"]
