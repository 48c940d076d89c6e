"""What a gateway and its worker say to each other, and how it is framed.

A frame is four bytes of length, big-endian, and a msgpack map. The gateway sends `Start` once, then for each task
one `TaskFrame` and perhaps a `Cancel`; a closed socket means stop. The worker sends `Ready` once it can work, then for
each task any number of `PartFrame`s and exactly one of `ResultFrame`, `ErrorFrame`, `End`; `LogLine`s at any time.
A worker runs one task at a time, so these frames need no numbers: a late `Cancel` finds nothing to cancel. During
a task the worker may send numbered `SubtaskRequest`s; the gateway answers each with a `SubtaskResponse`, unless it
receives a `SubtaskCancel`. The gateway sends `AskHealth` to an idle worker now and then; the worker answers with a
`Health`.

JSON values travel as JSON: what arrives is what the client would see, integers of any size included. A task
travels without its `terms`, and without the body of a multipart request, whose parts travel instead.
"""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import msgspec

from gateway.plugin import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    Kind,
    NotServed,
    Part,
    Result,
    Site,
    Task,
    TaskInvalid,
    TaskRefused,
    Upload,
)
from gateway.plugin.errors import PluginRaised, words_of

MAX_FRAME_BYTES = 64 * 1024 * 1024
_AHEAD_BYTES = 16 * 1024  # written before the writer waits, beside what the kernel holds
_LENGTH = struct.Struct("!I")

LogLevel = Literal["debug", "info", "warning", "error"]

ERRORS: dict[str, type[GatewayError]] = {
    error.__name__: error
    for error in (
        GatewayError,
        TaskInvalid,
        TaskRefused,
        BackendUnavailable,
        NotServed,
        BackendFailed,
        DeadlineExceeded,
    )
}


# ── frames to the worker ─────────────────────────────────────────────────────────────────────────


class Start(msgspec.Struct, tag=True, frozen=True):
    """Open this backend. path: `module:qualname` of its class."""

    path: str
    settings: dict[str, Any]
    backend: str


class TaskFrame(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Run this task; `gateway.plugin.Task` says what the fields mean."""

    kind: Kind
    name: str
    deadline: float
    id: str
    path: str
    body: bytes
    content_type: str
    headers: dict[str, str]
    fields: dict[str, Any] | None
    files: dict[str, Upload]
    items: int
    stream: bool
    may_leave: bool
    parent_id: str | None
    pin: str | None
    depth: int
    stream_deadline: float | None


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for the task any more."""


class AskHealth(msgspec.Struct, tag=True, frozen=True):
    """How is the backend? Asked of an idle worker."""


# ── frames from the worker ───────────────────────────────────────────────────────────────────────


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The backend is open. models, tasks: None while it does not know them."""

    models: dict[str, str] | None
    tasks: dict[str, str] | None
    kinds: list[Kind]


class PartFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Part`; one of the first three is set."""

    json: bytes | None = None
    data: bytes | None = None
    raw: bytes | None = None
    content_type: str | None = None


class ResultFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Result`."""

    json: bytes | None
    body: bytes | None
    status: int
    content_type: str
    headers: dict[str, str]
    confidence: float | None


class ErrorFrame(msgspec.Struct, tag=True, frozen=True):
    """A `GatewayError`; kind: its class's name; raised, words: the type's name and the text of what was none, a bug.

    is_of_subtask: it is passed on by who dispatched the subtask that ended in it.
    """

    kind: str
    message: str
    code: str
    param: str | None = None
    status: int | None = None
    retry_after_s: float | None = None
    detail: str = ""
    began: bool = True
    again: bool = True
    raised: str | None = None
    words: str = ""
    is_of_subtask: bool = False


class SubtaskResponse(msgspec.Struct, tag=True, frozen=True):
    """To the worker: how the subtask of that number ended. backend, site: who answered."""

    number: int
    answer: ResultFrame | None = None
    failure: ErrorFrame | None = None
    backend: str | None = None
    site: Site | None = None


class SubtaskRequest(msgspec.Struct, tag=True, frozen=True):
    """Serve this subtask of the task at hand; the answer is a `SubtaskResponse` of this number."""

    number: int
    task: TaskFrame


class SubtaskCancel(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for the subtask of that number any more."""

    number: int


class End(msgspec.Struct, tag=True, frozen=True):
    """The stream is complete, or the task was cancelled."""


class Health(msgspec.Struct, tag=True, frozen=True):
    """How the backend is: None when well, else what is wrong."""

    said: str | None


class LogLine(msgspec.Struct, tag=True, frozen=True):
    """An event for the gateway's log."""

    level: LogLevel
    event: str
    keys: dict[str, Any]


ToWorker: TypeAlias = Start | TaskFrame | Cancel | SubtaskResponse | AskHealth
FromWorker: TypeAlias = (
    Ready | PartFrame | ResultFrame | ErrorFrame | End | SubtaskRequest | SubtaskCancel | Health | LogLine
)
Frame: TypeAlias = ToWorker | FromWorker

LAST_FRAMES = (ResultFrame, ErrorFrame, End)


# ── between frames and what a plugin sees ────────────────────────────────────────────────────────


def frame_task(task: Task) -> TaskFrame:
    """The frame for `task`."""
    is_multipart = task.fields is not None
    return TaskFrame(
        kind=task.kind,
        name=task.name,
        deadline=task.deadline,
        id=task.id,
        path=task.path,
        body=b"" if is_multipart else task.body,
        content_type=task.content_type,
        headers=dict(task.headers),
        fields=dict(task.fields) if task.fields is not None else None,
        files=dict(task.files),
        items=task.items,
        stream=task.stream,
        may_leave=task.may_leave,
        parent_id=task.parent_id,
        pin=task.pin,
        depth=task.depth,
        stream_deadline=task.stream_deadline,
    )


def task_of(frame: TaskFrame) -> Task:
    """The task in `frame`."""
    return Task(**{name: getattr(frame, name) for name in TaskFrame.__struct_fields__})


def frame_part(part: Part) -> PartFrame:
    """The frame for `part`. Raises BackendFailed where its data is not JSON."""
    if part.raw is not None:
        return PartFrame(raw=part.raw)
    if isinstance(part.data, bytes | bytearray | memoryview):
        return PartFrame(data=bytes(part.data), content_type=part.content_type)
    return PartFrame(json=_json(part.data))


def part_of(frame: PartFrame) -> Part:
    """The part in `frame`."""
    if frame.json is not None:
        return Part(msgspec.json.decode(frame.json))
    return Part(frame.data, frame.raw, frame.content_type)


def size_of(frame: FromWorker) -> int:
    """How many bytes of content are in it, where it is a part."""
    return len(frame.json or frame.data or frame.raw or b"") if isinstance(frame, PartFrame) else 0


def frame_result(result: Result) -> ResultFrame:
    """The frame for `result`. Raises BackendFailed where it is not JSON."""
    return ResultFrame(
        _json(result.json) if result.body is None else None,
        result.body,
        result.status,
        result.content_type,
        dict(result.headers),
        result.confidence,
    )


def result_of(frame: ResultFrame) -> Result:
    """The result in `frame`."""
    return Result(
        json=None if frame.json is None else msgspec.json.decode(frame.json),
        body=frame.body,
        status=frame.status,
        content_type=frame.content_type,
        headers=frame.headers,
        confidence=frame.confidence,
    )


def outcome_of(frame: SubtaskResponse) -> Result:
    """What came of a subtask. Raises what it ended in."""
    if frame.answer is None:
        raise error_of(frame.failure) if frame.failure is not None else BackendFailed("a subtask got no answer")
    return dataclasses.replace(result_of(frame.answer), backend=frame.backend, site=frame.site)


def frame_error(exc: BaseException, who: str, *, is_own: bool = True) -> ErrorFrame:
    """The frame for `exc`, raised by `who`; what is no GatewayError becomes a PluginRaised of its type.

    is_own: whether it is for the one whose code that was; to anybody else a PluginRaised is a BackendUnavailable.
    """
    if not isinstance(exc, GatewayError):
        what = type(exc).__name__
        exc = PluginRaised(f"{who} raised {what}", raised=what, words=words_of(exc))
    return ErrorFrame(
        kind=next(base.__name__ for base in type(exc).__mro__ if base.__name__ in ERRORS),
        message=exc.message,
        code=exc.code,
        param=exc.param,
        status=exc.status,
        retry_after_s=exc.retry_after_s,
        detail=exc.detail,
        began=exc.began,
        again=exc.again,
        raised=exc.raised if isinstance(exc, PluginRaised) and is_own else None,
        words=exc.words if isinstance(exc, PluginRaised) and is_own else "",
        is_of_subtask=exc.is_of_subtask,
    )


def error_of(frame: ErrorFrame) -> GatewayError:
    """The error in `frame`, of the class it was."""
    if frame.raised is not None:
        return PluginRaised(frame.message, raised=frame.raised, words=frame.words)
    error = ERRORS.get(frame.kind, BackendFailed)(
        frame.message,
        code=frame.code,
        param=frame.param,
        status=frame.status,
        retry_after_s=frame.retry_after_s,
        detail=frame.detail,
        began=frame.began,
        again=frame.again,
    )
    error.is_of_subtask = frame.is_of_subtask
    return error


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise BackendFailed(f"the answer is not JSON: {exc}") from exc


# ── the channel ──────────────────────────────────────────────────────────────────────────────────


def encode(frame: Frame) -> bytes:
    """`frame` as it goes over the socket. Raises BackendFailed where it is too long, or cannot be encoded."""
    try:
        payload = msgspec.msgpack.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise BackendFailed(f"a {type(frame).__name__} cannot go between processes: {exc}") from exc
    if len(payload) > MAX_FRAME_BYTES:
        raise BackendFailed(
            f"{len(payload)} bytes are too long to go between processes at once (at most {MAX_FRAME_BYTES}); "
            "use shorter values, or yield them in parts"
        )
    return _LENGTH.pack(len(payload)) + payload


class Channel(asyncio.Protocol):
    """Either end of the socket. `received` gets each frame, `lost` is called once, when the other end is gone."""

    def __init__(self, accepts: Any, received: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._decoder = msgspec.msgpack.Decoder(accepts)
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_AHEAD_BYTES)

    def data_received(self, data: bytes) -> None:
        """Cut frames out of the bytes and hand them on; a peer that breaks the framing is cut off."""
        self._buffer += data
        start = 0
        while (body := start + _LENGTH.size) <= len(self._buffer):
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                return self.close()
            if len(self._buffer) < body + length:
                break
            start = body + length
            self._hand_on(self._buffer[body:start])
        del self._buffer[:start]

    def _hand_on(self, payload: bytearray) -> None:
        try:
            frame = self._decoder.decode(payload)
        except msgspec.DecodeError:
            return self.close()
        self._received(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release who waits to write, and tell."""
        self._writable.set()
        self._lost()

    def pause_writing(self) -> None:
        """The other end reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The other end reads again."""
        self._writable.set()

    def send(self, frame: Frame) -> None:
        """Write `frame`, without waiting. Raises BackendFailed where it is too long; nothing where nobody reads."""
        data = encode(frame)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the other end has read most of what was sent."""
        await self._writable.wait()

    def read_on(self, on: bool) -> None:
        """Take frames in, or leave them to the kernel so that the other end has to wait."""
        if self._transport is None or self._transport.is_closing():
            return
        if on and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not on and self._transport.is_reading():
            self._transport.pause_reading()

    def close(self) -> None:
        """Send what is left, and close."""
        if self._transport is not None:
            self._transport.close()
