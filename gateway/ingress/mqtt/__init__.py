"""The MQTT door: requests as messages, answers as messages, by a broker.

`MqttTransport` takes what the broker hands over, has `gateway.ingress.handler.Door` serve it, and publishes the
answer; a QoS 1 request is acknowledged when the broker has that answer, not before. docs/mqtt.md is the
user's view of it.
"""

from gateway.ingress.mqtt.adapter import MqttTransport
from gateway.ingress.mqtt.connection import Broker
from gateway.ingress.mqtt.topics import Topics

__all__ = ["Broker", "MqttTransport", "Topics"]
