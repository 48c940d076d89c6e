"""Conversion between the objects of `gateway.plugin` and the frames that carry them."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from gateway.plugin import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    NotServed,
    Part,
    Result,
    Task,
    TaskInvalid,
    TaskRefused,
)
from gateway.plugin.errors import PluginRaised, debug_text, message_of
from gateway.workers.frames import (
    ErrorFrame,
    FromWorker,
    PartFrame,
    ResultFrame,
    SubtaskResponse,
    TaskFrame,
)

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


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


def encode_task(task: Task) -> TaskFrame:
    """Return the frame for `task`; a multipart body is left out, because its parts travel."""
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


def decode_task(frame: TaskFrame) -> Task:
    return Task(**{name: getattr(frame, name) for name in TaskFrame.__struct_fields__})


# ── parts and results ────────────────────────────────────────────────────────────────────────────


def encode_part(part: Part) -> PartFrame:
    """Return the frame for `part`. Raises BackendFailed if its data cannot be encoded as JSON."""
    if part.raw is not None:
        return PartFrame(raw=part.raw)
    if isinstance(part.data, bytes | bytearray | memoryview):
        return PartFrame(data=bytes(part.data), content_type=part.content_type)
    return PartFrame(json=_encode_json(part.data))


def decode_part(frame: PartFrame) -> Part:
    if frame.json is not None:
        return Part(msgspec.json.decode(frame.json))
    return Part(frame.data, frame.raw, frame.content_type)


def content_bytes(frame: FromWorker) -> int:
    """Return the number of content bytes in a part; 0 for other frames."""
    return len(frame.json or frame.data or frame.raw or b"") if isinstance(frame, PartFrame) else 0


def encode_result(result: Result) -> ResultFrame:
    """Return the frame for `result`. Raises BackendFailed if its value cannot be encoded as JSON."""
    return ResultFrame(
        _encode_json(result.json) if result.body is None else None,
        result.body,
        result.status,
        result.content_type,
        dict(result.headers),
        result.confidence,
    )


def decode_result(frame: ResultFrame) -> Result:
    return Result(
        json=None if frame.json is None else msgspec.json.decode(frame.json),
        body=frame.body,
        status=frame.status,
        content_type=frame.content_type,
        headers=frame.headers,
        confidence=frame.confidence,
    )


def _encode_json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise BackendFailed(f"the answer is not JSON: {exc}") from exc


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def encode_error(exc: BaseException, source: str, *, is_own_code: bool = True) -> ErrorFrame:
    """Return the frame for `exc`, raised by `source`; other exceptions than GatewayError become PluginRaised.

    is_own_code: the receiver's own code raised `exc`. For any other receiver a PluginRaised becomes a
    BackendUnavailable, without the type and the text of the exception.
    """
    if not isinstance(exc, GatewayError):
        raised = type(exc).__name__
        error = PluginRaised(f"{source} raised {raised}", raised=raised, text=message_of(exc))
        error.debug = debug_text(exc) if is_own_code else ""
        exc = error
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
        raised=exc.raised if isinstance(exc, PluginRaised) and is_own_code else None,
        text=exc.text if isinstance(exc, PluginRaised) and is_own_code else "",
        is_of_subtask=exc.is_of_subtask,
        debug=exc.debug if is_own_code else "",
    )


def decode_error(frame: ErrorFrame) -> GatewayError:
    """Return the error in `frame`, with its original class."""
    error = _new_error(frame)
    error.is_of_subtask, error.debug = frame.is_of_subtask, frame.debug
    return error


def _new_error(frame: ErrorFrame) -> GatewayError:
    if frame.raised is not None:
        return PluginRaised(frame.message, raised=frame.raised, text=frame.text)
    return ERRORS.get(frame.kind, BackendFailed)(
        frame.message,
        code=frame.code,
        param=frame.param,
        status=frame.status,
        retry_after_s=frame.retry_after_s,
        detail=frame.detail,
        began=frame.began,
        again=frame.again,
    )


# ── subtasks ─────────────────────────────────────────────────────────────────────────────────────


def encode_subtask_response(number: int, outcome: Result | Exception) -> SubtaskResponse:
    """Return the frame for the outcome of subtask `number`.

    A bug of the plugin that ran the subtask reaches the caller as BackendUnavailable, not as PluginRaised: it is not a
    bug of the caller.
    """
    if isinstance(outcome, Result):
        return SubtaskResponse(number, encode_result(outcome), backend=outcome.backend, site=outcome.site)
    return SubtaskResponse(number, error=encode_error(outcome, "the gateway", is_own_code=False))


def decode_subtask_response(frame: SubtaskResponse) -> Result:
    """Return the result of a subtask. Raises its error if it failed."""
    if frame.result is None:
        raise decode_error(frame.error) if frame.error is not None else BackendFailed("a subtask got no answer")
    return dataclasses.replace(decode_result(frame.result), backend=frame.backend, site=frame.site)
