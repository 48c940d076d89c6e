"""The contract between the handler and a transport: `IncomingRequest` in, `ResponseWriter` out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingRequest:
    """A request as a transport received it.

    door: the transport's name in the log and in the metrics.
    headers: names in lower case.
    read: returns the body; its argument is the maximum size in bytes.
    is_trusted: the client is on this host, or the transport has authenticated it. Like a client with an API key, it
    gets `Server-Timing`.
    check: raises GatewayError if the transport refuses the client.
    preflight: the response headers for a CORS preflight request; None for any other request.
    key_id: the API key that sets the limits, if the transport knows it. Otherwise the key comes from the headers, or
    from `certificate_names`, the names in the client's TLS certificate.
    topic: the topic of an MQTT message.
    is_redelivered: the transport delivers the request again if it gets no response (MQTT). When the gateway stops,
    such a request is cancelled without a response. A client cannot cancel it.
    takes_pieces: the transport can send a body in pieces, before its length is known.
    """

    door: str
    method: str
    target: str
    headers: Mapping[str, str]
    read: Callable[[int], Awaitable[bytes]]
    is_trusted: bool
    check: Callable[[], None] = lambda: None
    preflight: Mapping[str, str] | None = None
    key_id: str | None = None
    topic: str | None = None
    certificate_names: tuple[str, ...] = ()
    is_redelivered: bool = False
    takes_pieces: bool = True


_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def is_developer(request: IncomingRequest) -> bool:
    """Whether the client is a program on this host: it connects over loopback, and no proxy forwards for another."""
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    return request.door == "http" and request.is_trusted and not is_forwarded


class ResponseWriter(Protocol):
    """Writes one response to the client: either `send`, or `begin`, `write`… and `end` or `abort`.

    Every method raises ConnectionError if the client is gone.
    """

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole response."""
        ...

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of a stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a piece of the stream. Waits while the client does not read (backpressure)."""
        ...

    async def end(self) -> None:
        """End the stream. The client sees that it is complete."""
        ...

    async def abort(self, data: bytes) -> None:
        """Send `data`, then end the stream so that the client sees that it is incomplete."""
        ...
