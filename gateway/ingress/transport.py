"""What a door is given, and how it answers: HTTP and MQTT bring an `IncomingRequest` and a `ResponseWriter`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingRequest:
    """A request as a door received it. `headers` are lower-cased; `read` gives the body, at most so many bytes.

    is_trusted: the client is on this host, or known to the door; like one with a key, it may see where the time went.
    check: raises GatewayError for a client that may not ask at all. preflight: the headers that answer a browser
    which asks whether its page may ask; None for any other request. key_id: the API key whose rules apply, where
    the door knows it; else the headers must bring one, or `certified` does: the names in the client's certificate.
    topic: of an MQTT message.
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
    certified: tuple[str, ...] = ()


class ResponseWriter(Protocol):
    """How a door answers. Exactly one of `whole` or `begin` is called, once."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer in one piece."""
        ...

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin a stream; `write`, and `end` or `abort`, follow."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a piece, once who reads has taken the ones before."""
        ...

    async def end(self) -> None:
        """End the stream properly: it is complete."""
        ...

    async def abort(self, data: bytes) -> None:
        """Write `data`, and break the connection so that nobody takes the stream for complete."""
        ...
