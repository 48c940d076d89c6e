"""A message as the request it stands for: its headers, its time, and its body or why that is refused. Pure."""

from __future__ import annotations

from gateway.ingress.mqtt.properties import Message
from gateway.ingress.task import NUMBER
from gateway.plugin import GatewayError, TaskRefused

# The request headers of the contract that mean something here; other user properties are nobody's business.
TAKEN = frozenset({"traceparent", "x-gateway-locality", "x-gateway-deadline-ms"})
DEADLINE = "x-gateway-deadline-ms"


def headers_of(message: Message, waited_s: float = 0.0) -> dict[str, str]:
    """The message's properties as the headers HTTP would have had. A message's expiry is a deadline."""
    headers = {name.lower(): value for name, value in message.user if name.lower() in TAKEN}
    if message.content_type is not None:
        headers["content-type"] = message.content_type
    if message.expiry_s is not None:
        headers[DEADLINE] = _sooner(headers.get(DEADLINE), max(1, round((message.expiry_s - waited_s) * 1000)))
    return headers


def _sooner(asked: str | None, expiry_ms: int) -> str:
    """The smaller of both; what is no number stays, for the door to refuse."""
    if asked is not None and NUMBER.fullmatch(asked) is None:
        return asked
    return asked if asked is not None and not float(asked) > expiry_ms else str(expiry_ms)


def body_of(message: Message, limit: int, *, is_too_many: bool) -> bytes:
    """The body. Raises GatewayError where it is larger than `limit`, or too many are being served."""
    if is_too_many:
        raise TaskRefused("too many QoS 0 messages at once; ask again, or with QoS 1, which waits", retry_after_s=1.0)
    if len(message.payload) > limit:
        raise GatewayError(
            f"the body is larger than {limit} bytes; send less, or raise GATEWAY_MAX_BODY_BYTES", code="body_too_large"
        )
    return message.payload
