"""The socket between the gateway and a worker, as a channel for frames.

A frame is sent as a header and a msgpack map. The header holds, big-endian, the length of the map, the process id of
the sender, and the number of the task that the frame is about (0: no task). By the process id the gateway recognises
frames of a child process that a plugin forked, which shares the socket.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from gateway.plugin import BackendFailed
from gateway.workers.frames import Frame

MAX_FRAME_BYTES = 64 * 1024 * 1024
_WRITE_BUFFER_BYTES = 16 * 1024  # written before the writer waits, in addition to the kernel's socket buffer
_HEADER = struct.Struct("!IIQ")


def encode_frame(frame: Frame, number: int = 0) -> bytes:
    """Return `frame` as this process sends it for task `number`.

    Raises BackendFailed if it is too long or cannot be encoded.
    """
    try:
        payload = msgspec.msgpack.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise BackendFailed(f"a {type(frame).__name__} cannot be sent between processes: {exc}") from exc
    if len(payload) > MAX_FRAME_BYTES:
        raise BackendFailed(
            f"{len(payload)} bytes are too long to go between processes at once (at most {MAX_FRAME_BYTES}); "
            "use shorter values, or yield them in parts"
        )
    return _HEADER.pack(len(payload), os.getpid(), number) + payload


class FrameChannel(asyncio.Protocol):
    """One end of the socket.

    accepts: the union of the frame types to decode. on_frame: called with each frame, the process id of its sender and
    the number of its task. on_lost: called once, when the connection is closed.
    """

    def __init__(self, accepts: Any, on_frame: Callable[[Any, int, int], None], on_lost: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(accepts)
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Decode the complete frames in the buffer; close the connection if the peer breaks the framing."""
        self._buffer += data
        start = 0
        while (body := start + _HEADER.size) <= len(self._buffer):
            length, pid, number = _HEADER.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                return self.close()
            if len(self._buffer) < body + length:
                break
            start = body + length
            self._decode(self._buffer[body:start], pid, number)
        del self._buffer[:start]

    def _decode(self, payload: bytearray, pid: int, number: int) -> None:
        try:
            frame = self._decoder.decode(payload)
        except msgspec.DecodeError:
            return self.close()
        self._on_frame(frame, pid, number)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._writable.set()
        self._on_lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def send(self, frame: Frame, number: int = 0) -> None:
        """Write `frame`, which is about task `number`, without waiting; drop it if the connection is closed.

        Raises BackendFailed if the frame is too long or cannot be encoded.
        """
        data = encode_frame(frame, number)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent."""
        await self._writable.wait()

    def pause_reading(self) -> None:
        """Leave frames in the kernel's buffer, so that the peer has to wait."""
        if self._transport is not None and not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what is left in the write buffer, then close the socket."""
        if self._transport is not None:
            self._transport.close()
