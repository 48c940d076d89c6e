"""Backpressure between attempts and their receiver: a bounded channel, and the timer that ends a silent wait."""

from __future__ import annotations

import asyncio
import time

from gateway.dispatch.attempt import Attempt, Item
from gateway.dispatch.collect import size_of
from gateway.plugin import Part

CHANNEL_PARTS, CHANNEL_BYTES = 32, 1 << 18  # how far a backend may be ahead of a slow client
CLOCK_S = 0.001  # a timer may fire this early

Message = tuple[Attempt, Item]


class BoundedChannel:
    """A queue from attempts to the receiver, bounded in number and in bytes: a slow reader slows the backend."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._bytes = 0
        self._has_space = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether `get` would wait."""
        return self._messages.empty()

    async def put(self, message: Message) -> None:
        """Send a message as soon as there is space."""
        while self._messages.qsize() >= CHANNEL_PARTS or self._bytes >= CHANNEL_BYTES:
            self._has_space.clear()
            await self._has_space.wait()
        self._bytes += _size_of(message[1])
        self._messages.put_nowait(message)

    async def get(self) -> Message | None:
        """Return the next message; None after a timeout."""
        message = await self._messages.get()
        if message is not None:
            self._bytes -= _size_of(message[1])
            self._has_space.set()
        return message

    def time_out(self) -> None:
        """Make the receiver's `get` return None."""
        self._messages.put_nowait(None)


def _size_of(item: Item) -> int:
    return size_of(item) if isinstance(item, Part) else 0


class ReceiveTimer:
    """Times out an empty channel. One loop timer serves many waits: a later instant does not make a new one."""

    def __init__(self, channel: BoundedChannel) -> None:
        self._channel = channel
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, until: float) -> None:
        """Time out at `until`, in seconds on the monotonic clock."""
        self._until = until
        if self._timer is None or self._timer.when() > until:
            self.close()
            self._until = until
            self._timer = asyncio.get_running_loop().call_at(until, self._on_timer)

    def unset(self) -> None:
        """Do not time out until `set` again."""
        self._until = None

    def close(self) -> None:
        """Cancel the loop timer."""
        self._until = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._until is None or not self._channel.is_empty:
            return
        if self._until > time.monotonic() + CLOCK_S:
            self.set(self._until)
        else:
            self._channel.time_out()
