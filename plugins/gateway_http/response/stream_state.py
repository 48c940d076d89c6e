"""Decide of a stream whether it has ended, was cut, or reports an error.

Both OpenAI SDKs take a stream that just stops for a complete response (research: they report success with truncated
text). So every stream has a proper end here, and a stream without it is a failure:

| stream | ends |
|---|---|
| chat, completion | when every expected choice has a `finish_reason` that is not empty, or with [DONE] after text |
| the same, after a tool call without `finish_reason` | with [DONE] or the body, if the call's arguments are whole |
| typed events (`response.…`, `message_…`, `transcript.…`) | with one of LAST_EVENTS |
| other events | with [DONE] or the body |
| task | with [DONE] |

A body ends a stream only if its framing shows its end: the last chunk, or the declared length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, PlainChunk, SseEvent

from .tool_calls import ToolCalls
from .upstream_errors import (
    NULL,
    ErrorFields,
    begins,
    error_from,
    error_in,
    exception_for,
    is_empty,
    is_string,
)
from .validate import ResponseValidator

# The event that ends a stream of typed events. A stream of several pictures holds one for each.
LAST_EVENTS = frozenset(
    {
        "image_edit.completed", "image_generation.completed", "message_stop", "response.cancelled",
        "response.completed", "response.done", "response.failed", "response.incomplete", "speech.audio.done",
        "transcript.text.done",
    }
)  # fmt: skip
TYPED = ("content_block_", "image_edit.", "image_generation.", "message_", "response.", "speech.audio.", "transcript.")
PICTURES = ("image_edit.", "image_generation.")
HEARTBEATS = frozenset({b"heartbeat", b"keep-alive", b"keepalive", b"ping"})

CALLS = frozenset({"function_call", "tool_calls"})
HEAD = ("id", "object", "created", "model")  # what the chunks of one response have in common
AUDIO_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations")

MAX_CHOICES = 128  # OpenAI's own bound of `n`
FEW_BYTES = 4096
_BoundedChoices = msgspec.defstruct(
    "_BoundedChoices",
    [(f"choice_{at}", msgspec.Raw, msgspec.Raw(b"")) for at in range(MAX_CHOICES)],
    array_like=True,
    forbid_unknown_fields=True,  # the decode stops at the first surplus choice
)


class _Choice(msgspec.Struct):
    index: int | None = 0
    finish_reason: msgspec.Raw = NULL
    delta: msgspec.Raw = NULL
    text: msgspec.Raw = NULL


class _Chunk(ErrorFields):
    choices: msgspec.Raw = NULL
    created: msgspec.Raw = NULL
    id: msgspec.Raw = NULL
    model: msgspec.Raw = NULL
    response: msgspec.Raw = NULL


PLAIN_BYTES = 64 << 10  # larger events are scanned without building objects
_PLAIN = msgspec.json.Decoder(PlainChunk)


class _FailedResponse(msgspec.Struct):
    error: msgspec.Raw = NULL


class StreamState(ABC):
    """The state of one stream.

    is_done: [DONE] was received. is_over: no event that matters can follow.
    has_ended: the stream is complete if it ends here. lacks_done: [DONE] is due and has not been received.
    has_finished_early: content has followed a finish, so that a finish does not show the end of this stream.
    """

    has_finished_early = False

    def __init__(self, validator: ResponseValidator) -> None:
        self.validator = validator
        self.is_done = False
        self.is_over = False

    @property
    def has_ended(self) -> bool:
        return self.is_done

    @property
    def lacks_done(self) -> bool:
        return False

    def closing_events(self) -> Iterator[bytes]:
        """Yield the events, before [DONE], that a complete stream lacks."""
        yield from ()

    def on_body_end(self) -> None:  # noqa: B027 - most streams do not need it
        """Record that the body has ended as its framing declares."""

    def on_event(self, event: SseEvent) -> bool:
        """Record an event; return whether to pass it on.

        Raises BackendUnavailable for an error or a malformed event, UpstreamRejected for an error that rejects the
        request.
        """
        data = event.data.strip()
        if data == b"[DONE]":
            self._on_done()
            self.is_done = self.is_over = True
            return True
        if not data or self._is_heartbeat(event):
            return False
        self._check_utf8(event.data)
        self._on_data(event)
        return True

    @abstractmethod
    def _on_done(self) -> None: ...

    def _on_data(self, event: SseEvent) -> None:
        chunk: _Chunk = self._decode(event.data, _Chunk)
        if (error := error_in(chunk)) is not None:
            raise exception_for(error, "ended its stream with an error")
        if event.name == b"error" or is_string(chunk.type, b"error") or self._is_error(chunk):
            raise exception_for(error_from(chunk), "ended its stream with an error")
        self._on_chunk(chunk)

    @abstractmethod
    def _on_chunk(self, chunk: _Chunk) -> None: ...

    def _is_heartbeat(self, event: SseEvent) -> bool:
        return event.name in HEARTBEATS and not event.data.startswith(b"{")

    @abstractmethod
    def _is_error(self, chunk: _Chunk) -> bool:
        """Return whether the event itself is an error.

        vLLM, FastChat, FastAPI, Anthropic and Responses send such events.
        """

    def _check_utf8(self, data: bytes) -> None:
        """Raise BackendUnavailable for bytes that are not UTF-8.

        msgspec does not check strings that it skips.
        """
        try:
            data.isascii() or data.decode()
        except UnicodeDecodeError as exc:
            raise self._malformed(exc.reason) from exc

    def _decode(self, data: Any, of: type[Any]) -> Any:
        try:
            return msgspec.json.decode(data, type=of)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise self._malformed(exc) from exc

    def _malformed(self, reason: object) -> BackendUnavailable:
        return self.validator.bad_response(f"sent a malformed event: {reason}")

    def _ended_before(self, event: str) -> BackendUnavailable:
        return self.validator.bad_response(f"ended its stream before {event}")


class ChoiceStreamState(StreamState):
    """A stream of chat or completion chunks.

    A choice is finished by a `finish_reason` that is not empty: some servers send "" in every chunk before.
    """

    def __init__(self, validator: ResponseValidator) -> None:
        super().__init__(validator)
        self._unfinished: dict[int, bool] = {}  # by the index of the choice
        self._calls: dict[int, ToolCalls] = {}  # by the index of the choice
        self._finished_calls: list[int] = []  # choices that lack a `finish_reason`, though their calls are whole
        self._head: dict[str, msgspec.Raw] = {}
        self._has_content = False

    @property
    def has_ended(self) -> bool:
        return self.is_done or (self._all_finished and len(self._unfinished) >= self.validator.expected_choices)

    @property
    def lacks_done(self) -> bool:
        return not self.is_done

    @property
    def _all_finished(self) -> bool:
        return bool(self._unfinished) and not any(self._unfinished.values())

    def closing_events(self) -> Iterator[bytes]:
        for index in self._finished_calls:
            choice = {"index": index, "delta": {}, "finish_reason": "tool_calls"}
            yield b"data: " + msgspec.json.encode(self._head | {"choices": [choice]}) + b"\n\n"

    def on_body_end(self) -> None:
        if self._calls:
            self._finish_calls()

    def on_event(self, event: SseEvent) -> bool:
        if not event.name and len(event.data) <= PLAIN_BYTES and self._on_plain_chunk(event.data):
            return True
        return super().on_event(event)

    def _on_plain_chunk(self, data: bytes) -> bool:
        """Record a chunk that holds only a text or a finish reason.

        Returns False for any other chunk, which stays unrecorded.
        """
        if not data.isascii():
            self._check_utf8(data)
        try:
            plain = _PLAIN.decode(data).choices
        except (msgspec.DecodeError, RecursionError):
            return False
        if len(plain) != 1:
            return False
        (choice,) = plain
        if choice.index not in self._unfinished and self._unfinished:
            return False
        has_content = bool(choice.text or choice.delta.content)
        if not (is_open := self._unfinished.get(choice.index, True)) and has_content:
            self.has_finished_early = True
        self._unfinished[choice.index] = is_open and not choice.finish_reason
        self._has_content = self._has_content or has_content
        return True

    def _on_chunk(self, chunk: _Chunk) -> None:
        if is_empty(chunk.choices):
            return
        expected = self.validator.expected_choices
        for choice in self._split_choices(chunk.choices, expected):
            self._on_choice(self._decode(choice, _Choice), chunk)
        if len(self._unfinished) > max(MAX_CHOICES, expected):
            raise self.validator.bad_response(f"sent more than {max(MAX_CHOICES, expected)} choices")

    def _split_choices(self, raw: msgspec.Raw, expected: int) -> list[msgspec.Raw]:
        """Return the entries of the list of choices.

        Raises BackendUnavailable if `raw` is not a list, or holds far more than expected.
        """
        if len(memoryview(raw)) <= FEW_BYTES or expected > MAX_CHOICES:
            entries: list[msgspec.Raw] = self._decode(raw, list[msgspec.Raw])
            return entries
        found = msgspec.structs.astuple(self._decode(raw, _BoundedChoices))
        return [choice for choice in found if bytes(choice)]

    def _on_choice(self, choice: _Choice, chunk: _Chunk) -> None:
        index = choice.index or 0
        is_open = self._unfinished.get(index, True)
        self._unfinished[index] = is_open and is_empty(choice.finish_reason)
        delta: dict[str, msgspec.Raw] = (
            self._decode(choice.delta, dict[str, msgspec.Raw]) if begins(choice.delta, b"{") else {}
        )
        content = {name for name, raw in delta.items() if name != "role" and not is_empty(raw)}
        for name in content & CALLS:
            self._calls.setdefault(index, ToolCalls()).add(name, delta[name])
            self._head = {
                member: getattr(chunk, member).copy() for member in HEAD if not is_empty(getattr(chunk, member))
            }
        has_content = not is_empty(choice.text) or bool(content)
        self.has_finished_early = self.has_finished_early or (has_content and not is_open)
        self._has_content = self._has_content or has_content

    def _finish_calls(self) -> None:
        """Finish the choices whose tool calls are whole."""
        for index, calls in self._calls.items():
            if self._unfinished[index] and calls.are_whole:
                self._unfinished[index] = False
                self._finished_calls.append(index)

    def _on_done(self) -> None:
        """Accept [DONE] after text.

        Some servers ignore `n`, and some never send a `finish_reason`.
        """
        if not self._unfinished:
            raise self._ended_before("its first choice")
        self._finish_calls()
        if any(self._unfinished[index] for index in self._calls):
            raise self._ended_before("its tool call was complete")
        if self._all_finished:
            return
        if not all(self._unfinished.values()):
            raise self._ended_before("each of its choices was finished")
        if not self._has_content:
            raise self._ended_before("any content")

    def _is_heartbeat(self, event: SseEvent) -> bool:
        return event.name in HEARTBEATS

    def _is_error(self, chunk: _Chunk) -> bool:
        if is_string(chunk.object, b"error"):
            return True
        if not is_empty(chunk.choices):
            return False
        # Many servers send an empty `error` beside choices; without choices it is an error.
        signs = (chunk.error_code, chunk.detail, chunk.message)
        return not begins(chunk.error, b"null") or not all(map(is_empty, signs))


class TypedStreamState(StreamState):
    """A stream of typed events, or of events that are only relayed."""

    def __init__(self, validator: ResponseValidator) -> None:
        super().__init__(validator)
        self._has_delta = False
        self._is_typed = False
        self._has_events = False  # other than pings
        self._last = ""
        self._has_body_ended = False

    @property
    def has_ended(self) -> bool:
        return self.is_done or bool(self._last) or self._has_body_ended

    def on_body_end(self) -> None:
        self._has_body_ended = self._has_events and not self._is_typed

    def _on_data(self, event: SseEvent) -> None:
        if not event.data.startswith(b"{") and self.validator.path in AUDIO_PATHS:  # speaches: a segment's text
            self._has_events = True
        else:
            super()._on_data(event)

    def _on_chunk(self, chunk: _Chunk) -> None:
        name = bytes(chunk.type).decode("utf-8", "replace")[1:-1]
        if name == "response.failed" and not self._has_delta:
            error = None if is_empty(chunk.response) else error_in(self._decode(chunk.response, _FailedResponse))
            raise exception_for(error or {}, "ended its stream with an error")
        self._is_typed = self._is_typed or name.startswith(TYPED)
        self._has_events = self._has_events or name != "ping"
        self._has_delta = self._has_delta or "delta" in name
        if name in LAST_EVENTS:
            self._last = name
            self.is_over = not name.startswith(PICTURES)

    def _on_done(self) -> None:
        if self._is_typed and not self._last:
            raise self._ended_before("its last event")

    def _is_error(self, chunk: _Chunk) -> bool:
        if is_string(chunk.object, b"error"):
            return True
        if not is_empty(chunk.choices) or not is_empty(chunk.type):
            return False
        return not begins(chunk.error, b"null") or not all(map(is_empty, (chunk.error_code, chunk.detail)))


class TaskStreamState(TypedStreamState):
    """A stream of a task: any JSON is a part, except an explicit error.

    It needs [DONE]: a function that raises often ends the body like one that returns.
    """

    def on_body_end(self) -> None:
        pass

    def _on_data(self, event: SseEvent) -> None:
        if event.data.startswith(b"{"):
            super()._on_data(event)
        else:
            self._decode(event.data, msgspec.Raw)

    def _is_error(self, chunk: _Chunk) -> bool:
        return False
