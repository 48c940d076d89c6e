"""Converts settings to the arguments of each package. Only this package and the commands know the settings tree."""

from __future__ import annotations

import socket
import ssl

from gateway.dispatch import Limits
from gateway.ingress.handler import RequestHandler
from gateway.ingress.mqtt import Broker, MqttTransport, Topics
from gateway.ingress.task import RequestLimits
from gateway.policy import Policy
from gateway.settings import Settings, Tls
from gateway.settings.tree import Mqtt
from gateway.tls import client_context, server_context


def policy_of(settings: Settings) -> Policy:
    return Policy(**{name: getattr(settings.policy, name) for name in Policy.__dataclass_fields__})


def request_limits_of(settings: Settings) -> RequestLimits:
    return RequestLimits(
        deadline_s=settings.deadline_s,
        max_body_bytes=settings.max_body_bytes,
        debug=settings.debug,
        max_items=settings.max_items,
        stream_limits=Limits(first_byte_s=settings.first_byte_s, stall_s=settings.stall_s),
    )


def mqtt_transport(handler: RequestHandler, settings: Mqtt) -> MqttTransport | None:
    """The MQTT transport, or None without a broker. Raises TlsInvalid."""
    if settings.url is None:
        return None
    tls = client_context(settings.ca_file, settings.cert_file, settings.key_file) if settings.url.is_tls else None
    password = None if settings.password is None else settings.password.get_secret_value()
    host, port = settings.url.host, settings.url.port
    broker = Broker(host=host, port=port, username=settings.username, password=password, tls=tls)
    topics = Topics(
        prefix=settings.prefix,
        group=settings.group,
        host=socket.gethostname(),
        response_topics=settings.response_topics,
    )
    is_trusted = settings.username is not None or settings.cert_file is not None or settings.url.is_local
    return MqttTransport(
        handler, broker, topics, telemetry_s=settings.telemetry_s, is_trusted=is_trusted, key_id=settings.key
    )


def tls_context_of(settings: Tls) -> ssl.SSLContext | None:
    """The TLS context of the data listeners, or None without a certificate. Raises TlsInvalid."""
    if settings.cert_file is None:
        return None
    return server_context(settings.cert_file, settings.key_file, settings.client_ca_file)
