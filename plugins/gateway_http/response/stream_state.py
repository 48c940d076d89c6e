"""Decide of a stream whether it has ended, was cut, or reports an error.

Both OpenAI SDKs take a stream that just stops for a complete response (research: they report success with truncated
text). So every stream has a proper end here, and a stream without it is a failure:

| stream | ends |
|---|---|
| chat, completion | when every expected choice has a `finish_reason` that is not empty, or with [DONE] after text |
| typed events (`response.…`, `message_…`, `transcript.…`) | with one of LAST_EVENTS |
| task, and other events | with [DONE] |
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, PlainChunk, SseEvent

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
        "image_edit.completed", "image_generation.completed", "message_stop", "response.completed",
        "response.failed", "response.incomplete", "speech.audio.done", "transcript.text.done",
    }
)  # fmt: skip
TYPED = ("content_block_", "image_edit.", "image_generation.", "message_", "response.", "speech.audio.", "transcript.")
PICTURES = ("image_edit.", "image_generation.")
HEARTBEATS = frozenset({b"heartbeat", b"keep-alive", b"keepalive", b"ping"})

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
    response: msgspec.Raw = NULL


PLAIN_BYTES = 64 << 10  # what is larger is looked at without being built
_PLAIN = msgspec.json.Decoder(PlainChunk)


class _FailedResponse(msgspec.Struct):
    error: msgspec.Raw = NULL


class StreamState:
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

    def _on_done(self) -> None:
        raise NotImplementedError

    def _on_data(self, event: SseEvent) -> None:
        chunk: _Chunk = self._decode(event.data, _Chunk)
        if (error := error_in(chunk)) is not None:
            raise exception_for(error, "ended its stream with an error")
        if event.name == b"error" or is_string(chunk.type, b"error") or self._is_error(chunk):
            raise exception_for(error_from(chunk), "ended its stream with an error")
        self._on_chunk(chunk)

    def _on_chunk(self, chunk: _Chunk) -> None:
        raise NotImplementedError

    def _is_heartbeat(self, event: SseEvent) -> bool:
        return event.name in HEARTBEATS and not event.data.startswith(b"{")

    def _is_error(self, chunk: _Chunk) -> bool:
        """Return whether the event itself is an error.

        vLLM, FastChat, FastAPI, Anthropic and Responses send such events.
        """
        raise NotImplementedError

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
        self._calls: set[int] = set()  # choices that began to call a tool
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
            self._on_choice(self._decode(choice, _Choice))
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

    def _on_choice(self, choice: _Choice) -> None:
        index = choice.index or 0
        is_open = self._unfinished.get(index, True)
        self._unfinished[index] = is_open and is_empty(choice.finish_reason)
        delta: dict[str, msgspec.Raw] = (
            self._decode(choice.delta, dict[str, msgspec.Raw]) if begins(choice.delta, b"{") else {}
        )
        content = {name for name, raw in delta.items() if name != "role" and not is_empty(raw)}
        if content & {"tool_calls", "function_call"}:
            self._calls.add(index)
        has_content = not is_empty(choice.text) or bool(content)
        self.has_finished_early = self.has_finished_early or (has_content and not is_open)
        self._has_content = self._has_content or has_content

    def _on_done(self) -> None:
        """Accept [DONE] after text.

        Some servers ignore `n`, and some never send a `finish_reason`.
        """
        if not self._unfinished:
            raise self._ended_before("its first choice")
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
        self._last = ""

    @property
    def has_ended(self) -> bool:
        return self.is_done or bool(self._last)

    def _on_chunk(self, chunk: _Chunk) -> None:
        name = bytes(chunk.type).decode("utf-8", "replace")[1:-1]
        if name == "response.failed" and not self._has_delta:
            error = None if is_empty(chunk.response) else error_in(self._decode(chunk.response, _FailedResponse))
            raise exception_for(error or {}, "ended its stream with an error")
        self._is_typed = self._is_typed or name.startswith(TYPED)
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
    """A stream of a task: any JSON is a part, except an explicit error."""

    def _on_data(self, event: SseEvent) -> None:
        if event.data.startswith(b"{"):
            super()._on_data(event)
        else:
            self._decode(event.data, msgspec.Raw)

    def _is_error(self, chunk: _Chunk) -> bool:
        return False
