"""What the attempts at a request say, on its way to who listens; and the alarm that rings when they say nothing."""

from __future__ import annotations

import asyncio
import time

from gateway.dispatch.attempt import Attempt, Item
from gateway.dispatch.collect import size_of
from gateway.plugin import Part

CHANNEL_PARTS, CHANNEL_BYTES = 32, 1 << 18  # what a backend may be ahead of a slow client
CLOCK_S = 0.001  # a timer may fire this early

Heard = tuple[Attempt, Item]


class Channel:
    """From the attempts to who listens. Bounded in number and in bytes, so that a slow reader slows the backend."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[Heard | None] = asyncio.Queue()
        self._bytes = 0
        self._has_room = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be heard."""
        return self._heard.empty()

    async def put(self, heard: Heard) -> None:
        """Say it, once there is room."""
        while self._heard.qsize() >= CHANNEL_PARTS or self._bytes >= CHANNEL_BYTES:
            self._has_room.clear()
            await self._has_room.wait()
        self._bytes += _size(heard[1])
        self._heard.put_nowait(heard)

    async def get(self) -> Heard | None:
        """The next; None where the alarm has rung."""
        heard = await self._heard.get()
        if heard is not None:
            self._bytes -= _size(heard[1])
            self._has_room.set()
        return heard

    def ring(self) -> None:
        """Nothing was said in time."""
        self._heard.put_nowait(None)


def _size(item: Item) -> int:
    return size_of(item) if isinstance(item, Part) else 0


class Alarm:
    """Rings on an empty channel at the time set. One timer serves many waits: set later, it is not made anew."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, until: float) -> None:
        """Ring at `until`, on the monotonic clock in seconds."""
        self._until = until
        if self._timer is None or self._timer.when() > until:
            self.close()
            self._until = until
            self._timer = asyncio.get_running_loop().call_at(until, self._ring)

    def unset(self) -> None:
        """Do not ring."""
        self._until = None

    def close(self) -> None:
        """Never ring again."""
        self._until = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._until is None or not self._channel.is_empty:
            return
        if self._until > time.monotonic() + CLOCK_S:
            self.set(self._until)
        else:
            self._channel.ring()
