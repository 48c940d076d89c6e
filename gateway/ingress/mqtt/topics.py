"""Which topics are ours, and what a message on one of them asks for. Pure.

    PREFIX/req/v1/tasks/add              POST /v1/tasks/add, answered on the message's own response topic
    PREFIX/call/CLIENT/ID/v1/tasks/add   the same, answered on PREFIX/reply/CLIENT/ID

The first needs MQTT 5, the second nothing: a client says where it listens by where it asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.ingress.mqtt.properties import MAX_TEXT_BYTES, Message


class Rejected(Exception):
    """A message that is no request, or could not be answered without doing harm; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a message asks for. answer_to: None where nobody wants the answer. in_parts: a stream may come in parts."""

    target: str
    answer_to: str | None
    in_parts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The topics of one gateway, called `host`, in the group `group`."""

    prefix: str = "edge-gateway"
    group: str = "edge-gateway"
    host: str

    @property
    def client_id(self) -> str:
        """The name the broker keeps our session under."""
        return f"edge-gateway-{self.host}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What we listen to; the broker gives each message to one member of the group."""
        return tuple(f"$share/{self.group}/{self.prefix}/{kind}/#" for kind in ("req", "call"))

    @property
    def status(self) -> str:
        """Where it stands, retained, whether we are there."""
        return f"{self.prefix}/status/{self.host}"

    @property
    def telemetry(self) -> str:
        """Where we say how we are."""
        return f"{self.prefix}/telemetry/{self.host}"

    def read(self, message: Message) -> Address:
        """What the message asks for. Raises Rejected."""
        if not message.topic:
            raise Rejected("its topic is not UTF-8")
        kind, _, rest = message.topic.removeprefix(f"{self.prefix}/").partition("/")
        if kind == "req":
            return Address(target=f"/{rest}", answer_to=self._checked(message.response_topic), in_parts=True)
        if kind == "call":
            return self._call(rest)
        raise Rejected(f"its topic is neither under {self.prefix}/req nor under {self.prefix}/call")

    def _call(self, rest: str) -> Address:
        client, _, rest = rest.partition("/")
        call_id, _, path = rest.partition("/")
        if not client or not call_id:
            raise Rejected(f"a call's topic is {self.prefix}/call/CLIENT/ID/v1/..., with no level left empty")
        return Address(target=f"/{path}", answer_to=f"{self.prefix}/reply/{client}/{call_id}", in_parts=False)

    def _checked(self, topic: str | None) -> str | None:
        """A client's response topic. Raises Rejected for one we must not publish on."""
        if topic is None:
            return None
        if not topic or len(topic.encode("utf-8", "replace")) > MAX_TEXT_BYTES or "\0" in topic:
            raise Rejected("its response topic is no topic")
        if "+" in topic or "#" in topic:
            raise Rejected("its response topic has wildcards")
        if topic.startswith("$"):
            raise Rejected("its response topic begins with $, which is the broker's")
        for kind in ("req", "call", "status", "telemetry"):
            if f"{topic}/".startswith(f"{self.prefix}/{kind}/"):
                raise Rejected(f"its response topic is under {self.prefix}/{kind}, which is the gateways'")
        return topic
