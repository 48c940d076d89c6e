"""The messages between the gateway and a worker process.

The gateway sends `Start` once. For each task it sends a `TaskFrame` and, if the task is cancelled, a `Cancel`. A closed
socket stops the worker. The worker sends `Ready` once it accepts tasks. For each task it sends any number of
`PartFrame`s and exactly one final frame: `ResultFrame`, `ErrorFrame` or `EndFrame`. It may send a `LogLine` at any
time. A worker runs one task at a time. Each frame travels with its sender's process id and the number of its task
(`frame_channel.py`): a late `Cancel` has no effect, and a worker that sends a frame for another task is killed.

During a task the worker may send numbered `SubtaskRequest`s. The gateway answers each with a `SubtaskResponse`, unless
a `SubtaskCancel` arrives first. The gateway sends a `HealthRequest` to an idle worker at intervals; the worker answers
with a `HealthResponse`.

JSON values travel as JSON text, so the client sees exactly the value that the backend returned, integers of any size
included. A task travels without its `terms`. A multipart request travels as its parts, without its body.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from gateway.plugin import Kind, Site, Upload

LogLevel = Literal["debug", "info", "warning", "error"]


# ── values that travel in both directions ────────────────────────────────────────────────────────


class TaskFrame(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """A task to run; the fields are those of `gateway.plugin.Task`."""

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


class ResultFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Result`, which ends its task."""

    json: bytes | None
    body: bytes | None
    status: int
    content_type: str
    headers: dict[str, str]
    confidence: float | None


class ErrorFrame(msgspec.Struct, tag=True, frozen=True):
    """A `GatewayError`, which ends its task.

    kind: the name of its class. raised: the type of the plugin's exception if the error is a bug of the plugin, else
    None; text: the text of that exception. debug: its traceback. is_of_subtask: the error comes from a
    subtask that the backend dispatched.
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
    text: str = ""
    is_of_subtask: bool = False
    debug: str = ""


# ── from the gateway to the worker ───────────────────────────────────────────────────────────────


class Start(msgspec.Struct, tag=True, frozen=True):
    """Open this backend. path: `module:qualname` of its class."""

    path: str
    settings: dict[str, Any]
    backend: str


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Cancel the task."""


class SubtaskResponse(msgspec.Struct, tag=True, frozen=True):
    """The result or the error of the subtask with this number. backend, site: the backend that served it."""

    number: int
    result: ResultFrame | None = None
    error: ErrorFrame | None = None
    backend: str | None = None
    site: Site | None = None


class HealthRequest(msgspec.Struct, tag=True, frozen=True):
    """Run the backend's health check; sent to idle workers only."""


# ── from the worker to the gateway ───────────────────────────────────────────────────────────────


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The backend is open. models, tasks: None while the backend does not know them."""

    models: dict[str, str] | None
    tasks: dict[str, str] | None
    kinds: list[Kind]
    problems: list[str] = []


class PartFrame(msgspec.Struct, tag=True, frozen=True):
    """A `Part`; exactly one of `json`, `data` and `raw` is set."""

    json: bytes | None = None
    data: bytes | None = None
    raw: bytes | None = None
    content_type: str | None = None


class EndFrame(msgspec.Struct, tag=True, frozen=True):
    """The stream is complete, or the task was cancelled."""


class SubtaskRequest(msgspec.Struct, tag=True, frozen=True):
    """Dispatch this subtask of the current task; the answer is a `SubtaskResponse` with the same number."""

    number: int
    task: TaskFrame


class SubtaskCancel(msgspec.Struct, tag=True, frozen=True):
    """Cancel the subtask with this number."""

    number: int


class HealthResponse(msgspec.Struct, tag=True, frozen=True):
    """The result of the health check. error: None if the backend is healthy."""

    error: str | None


class LogLine(msgspec.Struct, tag=True, frozen=True):
    """An event for the gateway's log."""

    level: LogLevel
    event: str
    keys: dict[str, Any]


ToWorker: TypeAlias = Start | TaskFrame | Cancel | SubtaskResponse | HealthRequest
FromWorker: TypeAlias = (
    Ready | PartFrame | ResultFrame | ErrorFrame | EndFrame | SubtaskRequest | SubtaskCancel | HealthResponse | LogLine
)
Frame: TypeAlias = ToWorker | FromWorker

FINAL_FRAMES = (ResultFrame, ErrorFrame, EndFrame)
ANSWER_FRAMES = (PartFrame, *FINAL_FRAMES)
