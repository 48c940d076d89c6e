"""MQTT messages as values: those that the broker delivers, and those that the gateway publishes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

MAX_TEXT_BYTES = 65_535  # MQTT 5 §1.5.4: a string carries its length in two bytes

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message that the broker delivered. mid: the packet id.

    is_duplicate: the DUP flag, the broker may have sent the message before. topic: "" if it is not UTF-8. expiry_s: the
    rest of its lifetime when the broker sent it; None: unlimited. user: the user properties.
    """

    topic: str
    payload: bytes
    qos: int
    mid: int
    is_duplicate: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None
    user: Pairs = ()


def message_of(got: MQTTMessage) -> Message:
    """Convert paho's message."""
    try:
        topic = got.topic
    except UnicodeDecodeError:
        topic = ""
    properties = got.properties
    return Message(
        topic=topic,
        payload=bytes(got.payload),
        qos=got.qos,
        mid=got.mid,
        is_duplicate=got.dup,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        content_type=getattr(properties, "ContentType", None),
        expiry_s=getattr(properties, "MessageExpiryInterval", None),
        user=tuple(getattr(properties, "UserProperty", ())),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    correlation: bytes | None = None
    content_type: str | None = None
    user: Pairs = ()

    @property
    def size(self) -> int:
        """Approximate size in bytes, in a packet or in memory."""
        user_bytes = sum(len(name) + len(value) + 5 for name, value in self.user)
        return 64 + len(self.payload) + len(self.topic) + len(self.correlation or b"") + user_bytes

    def properties(self) -> Properties:
        """The MQTT 5 properties in paho's form."""
        packed = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if self.correlation is not None:
            packed.CorrelationData = self.correlation
        if self.content_type is not None:
            packed.ContentType = self.content_type
        if self.user:
            packed.UserProperty = list(self.user)
        return packed


def clean_pairs(pairs: Iterable[tuple[str, str]]) -> Pairs:
    """Make pairs valid as user properties: UTF-8, without NUL, not longer than their length field allows."""
    return tuple((clean_text(name), clean_text(value)) for name, value in pairs)


def clean_text(text: str) -> str:
    """Make text valid in MQTT (MQTT 5 §1.5.4: no lone surrogates, no NUL)."""
    return text.replace("\0", "").encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
