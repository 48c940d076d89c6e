"""What goes to the broker and what comes from it, as values; the only words of MQTT the other rooms need."""

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
    """A message the broker handed over. is_again: the broker says that it may have sent it before (DUP).

    topic: "" where it is not UTF-8. expiry_s: what was left of its life when the broker sent it; None: no end.
    """

    topic: str
    payload: bytes
    qos: int
    mid: int
    is_again: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None
    user: Pairs = ()


def message_of(got: MQTTMessage) -> Message:
    """paho's message as ours."""
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
        is_again=got.dup,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
        content_type=getattr(properties, "ContentType", None),
        expiry_s=getattr(properties, "MessageExpiryInterval", None),
        user=tuple(getattr(properties, "UserProperty", ())),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message for the broker."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    correlation: bytes | None = None
    content_type: str | None = None
    user: Pairs = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes, in a packet or in memory."""
        said = sum(len(name) + len(value) + 5 for name, value in self.user)
        return 64 + len(self.payload) + len(self.topic) + len(self.correlation or b"") + said

    def properties(self) -> Properties:
        """Its properties, as paho packs them."""
        packed = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if self.correlation is not None:
            packed.CorrelationData = self.correlation
        if self.content_type is not None:
            packed.ContentType = self.content_type
        if self.user:
            packed.UserProperty = list(self.user)
        return packed


def clean_pairs(pairs: Iterable[tuple[str, str]]) -> Pairs:
    """Pairs that may stand in user properties: UTF-8, no NUL, not too long for their length field."""
    return tuple((clean_text(name), clean_text(value)) for name, value in pairs)


def clean_text(text: str) -> str:
    """The text as MQTT can carry it (MQTT 5 §1.5.4: no lone surrogates, no NUL)."""
    return text.replace("\0", "").encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
