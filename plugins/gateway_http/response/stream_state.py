"""The rule that says of a stream whether it ended, was cut, or reports an error.

To both OpenAI SDKs a stream that just stops is a complete answer (research: they report success with
truncated text). So every stream has a proper end here, and one without it is a failure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.plugin import PlainChunk, SseEvent, Task

from ..transport.exceptions import bad_response
from .expected_count import MAX_CHOICES, choices, listed_choices
from .upstream_errors import (
    NULL,
    Error,
    ErrorFields,
    UpstreamRejected,
    begins,
    code_of,
    error_as,
    error_in,
    is_answer,
    is_empty,
    is_text,
    message_of,
)

# Streams of one typed event after the other end in one of these; pictures in one for each.
LAST_EVENTS = frozenset(
    {
        "image_edit.completed", "image_generation.completed", "message_stop", "response.completed",
        "response.failed", "response.incomplete", "speech.audio.done", "transcript.text.done",
    }
)  # fmt: skip
TYPED = ("content_block_", "image_edit.", "image_generation.", "message_", "response.", "speech.audio.", "transcript.")
PICTURES = ("image_edit.", "image_generation.")
HEARTBEATS = frozenset({b"heartbeat", b"keep-alive", b"keepalive", b"ping"})


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


class _Failed(msgspec.Struct):
    error: msgspec.Raw = NULL


class Progress:
    """What a stream has shown so far. `is_done`: [DONE] was seen; `has_ended`: it may end here.

    A choice is finished by a `finish_reason` that is not empty: some servers send "" until then.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._by_choice = task.kind in ("chat", "completion")
        self._unfinished: dict[int, bool] = {}
        self._calls: set[int] = set()  # choices that began to call a tool
        self._has_said = False
        self._is_typed = False
        self._last = ""
        self.is_done = False

    @property
    def has_ended(self) -> bool:
        """Whether the stream is complete if nothing more comes."""
        is_finished = self._all_finished and len(self._unfinished) >= choices(self._task)
        return self.is_done or bool(self._last) or is_finished

    @property
    def is_over(self) -> bool:
        """Whether nothing that matters can follow."""
        return self.is_done or (bool(self._last) and not self._last.startswith(PICTURES))

    @property
    def lacks_done(self) -> bool:
        """Whether [DONE] is due and has not come."""
        return self._by_choice and not self.is_done

    @property
    def _all_finished(self) -> bool:
        return bool(self._unfinished) and not any(self._unfinished.values())

    def note(self, event: SseEvent) -> bool:
        """Take account of an event; whether it is worth passing on. Raises where it is an error, or malformed."""
        if self._by_choice and not event.name and len(event.data) <= PLAIN_BYTES and self._note_plain(event.data):
            return True
        if event.data.strip() == b"[DONE]":
            self._check_done()
            self.is_done = True
            return True
        if not event.data.strip() or self._is_heartbeat(event):
            return False
        if self._task.kind == "task" and not event.data.startswith(b"{"):
            _decoded(_text(event.data), msgspec.Raw)  # any JSON is a part
            return True
        chunk = _decoded(_text(event.data), _Chunk)
        self._check_no_error(event, chunk)
        if self._by_choice:
            self._note_choices(chunk.choices)
        else:
            self._note_type(chunk)
        return True

    def _note_plain(self, data: bytes) -> bool:
        """Take account of a chunk that only says a text, or why it ended; False for any other, which is looked at."""
        try:
            plain = _PLAIN.decode(_text(data)).choices
        except (msgspec.DecodeError, RecursionError):
            return False
        if len(plain) != 1:
            return False
        (choice,) = plain
        if choice.index not in self._unfinished and self._unfinished:
            return False
        is_open = self._unfinished.get(choice.index, True)
        self._unfinished[choice.index] = is_open and not choice.finish_reason
        self._has_said = self._has_said or bool(choice.text or choice.delta.content)
        return True

    def _is_heartbeat(self, event: SseEvent) -> bool:
        return event.name in HEARTBEATS and (self._by_choice or not event.data.startswith(b"{"))

    # ── by choice ────────────────────────────────────────────────────────────────────────────────

    def _note_choices(self, raw: msgspec.Raw) -> None:
        if is_empty(raw):
            return
        try:
            found = listed_choices(self._task, raw)
        except msgspec.ValidationError as exc:
            raise bad_response(f"sent a malformed event: {exc}") from exc
        for choice in found:
            self._note_choice(_decoded(choice, _Choice))
        if len(self._unfinished) > max(MAX_CHOICES, choices(self._task)):
            raise bad_response("sends more choices than anybody asked for")

    def _note_choice(self, choice: _Choice) -> None:
        index = choice.index or 0
        self._unfinished[index] = self._unfinished.get(index, True) and is_empty(choice.finish_reason)
        delta = _members(choice.delta)
        if delta.keys() & {"tool_calls", "function_call"}:
            self._calls.add(index)
        self._has_said = self._has_said or not is_empty(choice.text) or bool(delta)

    def _check_done(self) -> None:
        """[DONE] is believed: from servers that know no `n`, and from those that know no finish_reason, after text."""
        if not self._by_choice:
            if self._is_typed and not self._last:
                raise bad_response("ended its stream before its last event")
            return
        if not self._unfinished:
            raise bad_response("ended its stream before it had begun the answer")
        if any(self._unfinished[index] for index in self._calls):
            raise bad_response("ended its stream before its tool call was complete")
        if self._all_finished:
            return
        if not all(self._unfinished.values()):
            raise bad_response("ended its stream before each of its choices was finished")
        if not self._has_said:
            raise bad_response("ended its stream before it had said anything")

    # ── one typed event after the other ──────────────────────────────────────────────────────────

    def _note_type(self, chunk: _Chunk) -> None:
        name = _name(chunk.type)
        if name == "response.failed" and not self._has_said:
            error = error_in(_decoded(chunk.response, _Failed)) if not is_empty(chunk.response) else None
            raise _reported(error or {})
        self._is_typed = self._is_typed or name.startswith(TYPED)
        self._has_said = self._has_said or "delta" in name
        if name in LAST_EVENTS:
            self._last = name

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def _check_no_error(self, event: SseEvent, chunk: _Chunk) -> None:
        if (error := error_in(chunk)) is not None:
            raise _reported(error)
        if self._is_error(event, chunk):
            raise _reported(error_as(chunk))

    def _is_error(self, event: SseEvent, chunk: _Chunk) -> bool:
        """Whether the event itself is an error: vLLM, FastChat, FastAPI, Anthropic and Responses have such."""
        if event.name == b"error" or is_text(chunk.type, b"error"):
            return True
        if self._task.kind == "task":  # its own events may be anything else
            return False
        if not is_empty(chunk.choices) or not (self._by_choice or is_empty(chunk.type)):
            return is_text(chunk.object, b"error")
        if not begins(chunk.error, b"null"):  # an empty one beside choices says that there is none
            return True
        signs = (chunk.error_code, chunk.detail, *((chunk.message,) if self._by_choice else ()))
        return is_text(chunk.object, b"error") or not all(map(is_empty, signs))


def _reported(error: Error) -> Exception:
    if is_answer(error):
        return UpstreamRejected(error)
    return bad_response(f"ended its stream with an error{code_of(error)}", said=message_of(error))


def _text(data: bytes) -> bytes:
    """The same, which is UTF-8: what looks at JSON without building it does not check that."""
    try:
        data.isascii() or data.decode()
    except UnicodeDecodeError as exc:
        raise bad_response(f"sent a malformed event: {exc.reason}") from exc
    return data


def _decoded(data: Any, of: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=of)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise bad_response(f"sent a malformed event: {exc}") from exc


def _members(delta: msgspec.Raw) -> dict[str, msgspec.Raw]:
    """What a delta says, but for the role."""
    if not begins(delta, b"{"):
        return {}
    members: dict[str, msgspec.Raw] = _decoded(delta, dict[str, msgspec.Raw])
    return {name: raw for name, raw in members.items() if name != "role" and not is_empty(raw)}


def _name(raw: msgspec.Raw) -> str:
    return bytes(raw).decode("utf-8", "replace")[1:-1]
