"""The request in a message: its topic, headers and body. No I/O.

    PREFIX/req/CLIENT/v1/tasks/add       POST /v1/tasks/add, answered on the message's response topic, which must be
                                         under PREFIX/reply/CLIENT
    PREFIX/call/CLIENT/ID/v1/tasks/add   the same, answered on PREFIX/reply/CLIENT/ID
    PREFIX/req/v1/tasks/add              the same, answered on any response topic that the operator allows

`req` needs MQTT 5; `call` works with every version, because the topic of the request determines that of the response.

In the first two forms the broker's ACL proves the sender: CLIENT is its own name. Otherwise a client could have the
gateway publish on topics on which the client itself may not (confused deputy).
"""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.client import topic_matches_sub

from gateway.ingress.header_names import check_header_names
from gateway.ingress.mqtt.messages import MAX_TEXT_BYTES, Message
from gateway.ingress.task import NUMBER
from gateway.plugin import GatewayError, TaskInvalid, TaskRefused

DEADLINE = "x-gateway-deadline-ms"
HEADERS = frozenset({"traceparent", "x-gateway-locality", DEADLINE})  # all other user properties are ignored


class Rejected(Exception):
    """The message is not a request, or its response could do harm; the text gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The path a message requests, and the topic of its response.

    response_topic: None if the client wants no response. takes_parts: a stream may be sent as several messages.
    """

    target: str
    response_topic: str | None
    takes_parts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics:
    """The topics of the gateway `host` in the group `group`.

    response_topics: topic filters; a request whose topic does not prove its sender is answered only on these.
    """

    prefix: str = "edge-gateway"
    group: str = "edge-gateway"
    host: str
    response_topics: tuple[str, ...] = ("#",)

    @property
    def client_id(self) -> str:
        """The MQTT client id, under which the broker keeps the session."""
        return f"edge-gateway-{self.host}"

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Shared subscriptions: the broker gives each message to one gateway of the group."""
        return tuple(f"$share/{self.group}/{self.prefix}/{kind}/#" for kind in ("req", "call"))

    @property
    def status(self) -> str:
        """The topic of the retained message `online` or `offline`."""
        return f"{self.prefix}/status/{self.host}"

    @property
    def telemetry(self) -> str:
        return f"{self.prefix}/telemetry/{self.host}"

    def parse(self, message: Message) -> Address:
        """Parse the topics of a message. Raises Rejected."""
        if not message.topic:
            raise Rejected("its topic is not UTF-8")
        kind, _, rest = message.topic.removeprefix(f"{self.prefix}/").partition("/")
        if kind == "req":
            return self._parse_req(rest, message.response_topic)
        if kind == "call":
            return self._parse_call(rest)
        raise Rejected(f"its topic is neither under {self.prefix}/req nor under {self.prefix}/call")

    def _parse_req(self, rest: str, response_topic: str | None) -> Address:
        client, _, path = rest.partition("/")
        if not client or client == "v1" or not path.startswith("v1/"):
            return Address(target=f"/{rest}", response_topic=self._allowed(response_topic), takes_parts=True)
        if response_topic is not None:
            _check_syntax(response_topic)
            if not response_topic.startswith(f"{self.prefix}/reply/{client}/"):
                raise Rejected(f"its response topic is not under {self.prefix}/reply/{client[:80]}/, the sender's own")
        return Address(target=f"/{path}", response_topic=response_topic, takes_parts=True)

    def _parse_call(self, rest: str) -> Address:
        client, _, rest = rest.partition("/")
        call_id, _, path = rest.partition("/")
        if not client or not call_id:
            raise Rejected(f"the topic of a call is {self.prefix}/call/CLIENT/ID/v1/..., with no empty level")
        response_topic = f"{self.prefix}/reply/{client}/{call_id}"
        return Address(target=f"/{path}", response_topic=response_topic, takes_parts=False)

    def _allowed(self, topic: str | None) -> str | None:
        """The response topic of a client that the request's topic does not name. Raises Rejected."""
        if topic is None:
            return None
        _check_syntax(topic)
        if f"{topic}/".startswith(f"{self.prefix}/"):  # a forged request, status or reply
            kind = topic.removeprefix(f"{self.prefix}/").partition("/")[0]
            advice = f"; send the request to {self.prefix}/req/CLIENT/v1/..." if kind == "reply" else ""
            raise Rejected(f"its response topic is under {self.prefix}/{kind[:80]}, which is reserved{advice}")
        if not any(topic_matches_sub(allowed, topic) for allowed in self.response_topics):
            raise Rejected("its response topic is none of GATEWAY_MQTT__RESPONSE_TOPICS")
        return topic


def _check_syntax(topic: str) -> None:
    """Raise Rejected for a topic on which no client may publish."""
    if not topic or len(topic.encode("utf-8", "replace")) > MAX_TEXT_BYTES or "\0" in topic:
        raise Rejected("its response topic is not a valid topic")
    if "+" in topic or "#" in topic:
        raise Rejected("its response topic has wildcards")
    if topic.startswith("$"):
        raise Rejected("its response topic begins with $, which is reserved for the broker")


def check_properties(message: Message) -> None:
    """Raise TaskInvalid for a user property that is almost a header of the gateway, and for one that is given twice."""
    check_header_names(name for name, _ in message.user)
    names = [lower for name, _ in message.user if (lower := name.lower()) in HEADERS]
    for name in set(names):
        if names.count(name) > 1:
            raise TaskInvalid(f"the user property {name} is given twice; send it once", param=name)


def headers_of(message: Message, waited_s: float = 0.0) -> dict[str, str]:
    """The message's properties as HTTP headers. Its expiry becomes a deadline, less the seconds it has waited."""
    headers = {name.lower(): value for name, value in message.user if name.lower() in HEADERS}
    if message.content_type is not None:
        headers["content-type"] = message.content_type
    if message.expiry_s is not None:
        headers[DEADLINE] = _sooner(headers.get(DEADLINE), max(1, round((message.expiry_s - waited_s) * 1000)))
    return headers


def _sooner(deadline_ms: str | None, expiry_ms: int) -> str:
    """The smaller of both. A deadline that is not a number is returned as it is: the handler refuses it."""
    if deadline_ms is not None and NUMBER.fullmatch(deadline_ms) is None:
        return deadline_ms
    return deadline_ms if deadline_ms is not None and not float(deadline_ms) > expiry_ms else str(expiry_ms)


def body_of(message: Message, limit: int, *, is_too_many: bool) -> bytes:
    """The body. Raises GatewayError if it exceeds `limit` bytes, or if too many requests are open."""
    if is_too_many:
        raise TaskRefused(
            "too many QoS 0 messages at once; try again later, or use QoS 1, for which the broker waits",
            retry_after_s=1.0,
        )
    if len(message.payload) > limit:
        raise GatewayError(
            f"the body is larger than {limit} bytes; send less, or raise GATEWAY_MAX_BODY_BYTES", code="body_too_large"
        )
    return message.payload
