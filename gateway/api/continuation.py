"""Continue a broken-off chat or text completion on another backend.

`ChatContinuation` records the response as the client has it, and changes the request and the next backend's stream so
that the client notices nothing: the rest comes under the first backend's id and model, no text is repeated, the role is
sent once, and the last backend reports usage. Only a single choice of plain text can be continued: not tool calls, not
several choices, and not reasoning that the client has received.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.api.chunks import Chunk, ChunkChoice, ChunkFormat
from gateway.api.logprobs import first_offset
from gateway.api.response_json import ResponseContext, encode_json
from gateway.api.sse_framing import split_events
from gateway.dispatch import ResumeMode
from gateway.plugin import BackendUnavailable, GatewayError, Part, PlainChoice, PlainChunk, Result, Task

MAX_TEXT_CHARS = 1 << 20  # a longer response is not recorded
MAX_EVENT_BYTES = 65_536  # a response with a larger event is not continued
REPEATED_CHARS = 6  # a continuation that begins with at least so much of the text repeats it

_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_REASONING = frozenset({"reasoning", "reasoning_content"})


class _Chunk(msgspec.Struct):
    choices: list[ChunkChoice] = msgspec.field(default_factory=list)


class _PlainChoice(PlainChoice, forbid_unknown_fields=False):
    """Accepts a server's own members, such as vLLM's `token_ids`."""


class _PlainChunk(PlainChunk):
    choices: list[_PlainChoice]


_PLAIN = msgspec.json.Decoder(_PlainChunk)
_CHUNK = msgspec.json.Decoder(_Chunk)
_CHOICE = msgspec.json.Decoder(ChunkChoice)
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ChatContinuation:
    """Implements `gateway.dispatch.Continuation`. model: the client's name for it."""

    def __init__(self, model: str, chunk_format: ChunkFormat) -> None:
        self._context = ResponseContext(request_id="", model=model)
        self._format = chunk_format
        self._text = bytearray()  # UTF-8; a list of tokens takes twenty times the memory
        self._chars = self._pieces = 0
        self._first_offset: int | None = None  # of a text completion, as its first backend counts
        self._head: dict[str, Any] | None = None
        self._is_plain = True
        self._unfinished: dict[int, bool] = {}
        self._has_finished_early = False
        self._overlap = Overlap("", how="restart")

    @property
    def is_complete(self) -> bool:
        """Whether every choice has a finish reason, and no content has followed one.

        Some servers send a finish reason in every chunk: it then does not show the end.
        """
        return bool(self._unfinished) and not any(self._unfinished.values()) and not self._has_finished_early

    # ── what the client has ──────────────────────────────────────────────────────────────────────

    def record(self, part: Part) -> None:
        """Record a part that goes to the client unchanged."""
        try:
            if part.raw is None:
                self._note(_CHUNK.decode(encode_json(self._chunk(part.data))))
                return
            for _, data in split_events(part.raw):
                if data.strip() != b"[DONE]":
                    self._note_event(data)
        except (GatewayError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._is_plain = False  # the stream encoder reports the error

    def _note_event(self, data: bytes) -> None:
        if len(data) > MAX_EVENT_BYTES:  # building its objects could take much time and memory
            self._is_plain = False
            self._unfinished.setdefault(0, True)
            return
        if self._head is not None and self._note_plain(data):
            return
        chunk = _CHUNK.decode(data)
        if self._first_offset is None and (offset := first_offset(data)) is not None:
            self._first_offset = offset - self._chars
        if self._head is None and chunk.choices:
            members = _RAW_OBJECT.decode(data)
            self._head = {name: members[name] for name in _HEAD if name in members}
        self._note(chunk)

    def _note_plain(self, data: bytes) -> bool:
        """Record a chunk of plain text; False for any other chunk."""
        try:
            choices = _PLAIN.decode(data).choices
        except msgspec.DecodeError:
            return False
        if len(choices) != 1 or choices[0].index:
            return False
        (choice,) = choices
        text = (choice.delta.content if self._format.uses_deltas else choice.text) or ""
        if not (is_open := self._unfinished.get(0, True)) and text:
            self._has_finished_early = True
        self._unfinished[0] = is_open and not choice.finish_reason
        self._keep(text)
        return True

    def _note(self, chunk: _Chunk) -> None:
        for choice in chunk.choices:
            self._note_end(choice)
            text = self._format.text_in(choice)
            if choice.index != 0 or text is None:
                self._is_plain = False
            else:
                self._keep(text)

    def _note_end(self, choice: ChunkChoice) -> None:
        is_open = self._unfinished.get(choice.index, True)
        if not is_open and (choice.text or choice.delta_content()):
            self._has_finished_early = True
        self._unfinished[choice.index] = is_open and not choice.finish_reason

    def _keep(self, text: str) -> None:
        if not text or not self._is_plain:
            return
        self._text += text.encode()
        self._pieces += 1
        self._chars += len(text)
        if self._chars > MAX_TEXT_CHARS:
            self._is_plain = False
            self._text.clear()

    # ── the next backend ─────────────────────────────────────────────────────────────────────────

    def resumed(self, task: Task, how: ResumeMode) -> Task | None:
        """Return the task with the text so far, or unchanged for a restart.

        None if that is impossible.
        """
        if not self._is_plain:
            return None
        text = self._text.decode()
        self._overlap = Overlap(text, how=how)
        if how == "restart":
            return task
        if not text:
            return None
        members = _RAW_OBJECT.decode(task.body)
        continued = self._continued(members, text)
        if continued is None:
            return None
        self._overlap = Overlap(self._format.prefix_of(continued, text), how=how)
        members |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in continued.items()}
        return task.replace(body=msgspec.json.encode(members))

    def _continued(self, members: dict[str, msgspec.Raw], text: str) -> dict[str, Any] | None:
        """Return the members of the request that change.

        A piece is nearly always a token: the token limit is lowered by the number of pieces.
        """
        continued = self._format.continued_request(members, text)
        if continued is None:
            return None
        for name in ("max_tokens", "max_completion_tokens"):
            limit = msgspec.json.decode(members.get(name, b"null"))
            if isinstance(limit, int):
                continued[name] = max(1, limit - self._pieces)
        return continued

    def joined(self, part: Part) -> Iterator[Part]:
        """Yield the content of a part that the client lacks.

        Raises BackendUnavailable if the response differs.

        Works event by event: if a later event cannot be read, the earlier ones are recorded and on their way.
        """
        try:
            for value in self._values(part):
                if (chunk := self._missing(self._chunk(value))) is not None:
                    yield Part(chunk)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as exc:
            raise _differs("has a chunk that cannot be read") from exc

    def ended(self) -> Iterator[Part]:
        """Yield the text that was held back, as the last part."""
        if rest := self._overlap.end():
            self._keep(rest)
            yield Part(rest)

    def parts_of(self, result: Result) -> Iterator[Part]:
        """Yield a whole response as parts."""
        for chunk in self._format.chunks_of(self._format.answer(self._context, result.value())):
            yield Part(chunk)

    def _values(self, part: Part) -> Iterator[Any]:
        if part.raw is None:
            yield part.data
            return
        for _, data in split_events(part.raw):
            if data.strip() != b"[DONE]":
                yield msgspec.json.decode(data)

    def _chunk(self, value: Any) -> Chunk:
        return self._format.chunk_of(self._context, value)

    def _missing(self, chunk: Chunk) -> Chunk | None:
        choices = [choice for choice in chunk["choices"] if self._fit(choice)]
        usage = {"usage": chunk["usage"]} if chunk.get("usage") else {}
        return (self._head or {}) | {"choices": choices} | usage if choices or usage else None

    def _fit(self, choice: dict[str, Any]) -> bool:
        """Remove from the choice the text the client has.

        Returns whether anything is left.
        """
        read = _CHOICE.decode(encode_json(choice))
        if self._overlap.is_waited_for and _is_reasoning(read):
            return False  # the client already has the beginning of the text that follows it
        text = self._format.text_in(read)
        new = self._overlap.interrupted() if text is None else self._overlap.new(text)
        if read.finish_reason:
            new += self._overlap.end()
        if choice.get("logprobs"):
            begins_at = (self._first_offset or 0) + self._chars
            choice["logprobs"] = self._format.logprobs_of_rest(choice["logprobs"], text or "", new, begins_at=begins_at)
        self._note_end(read)
        self._keep(new)
        choice.update(self._format.with_text(choice, new))
        return bool(new or read.finish_reason or choice.get("delta"))


def _is_reasoning(choice: ChunkChoice) -> bool:
    members = choice.delta_content().keys()
    return bool(members) and members <= _REASONING


def _differs(problem: str) -> BackendUnavailable:
    message = f"its response {problem}, so it cannot continue the interrupted one"
    return BackendUnavailable(message, code="upstream_bad_response", again=False)


class Overlap:
    """Removes from a new text the part that the client already has.

    After a restart the new text must begin with all of the old text. A continuation may begin with it: some servers
    repeat the turn they were sent. Text that could be either is held back until that is known.
    """

    def __init__(self, old: str, *, how: ResumeMode) -> None:
        self._old = old if how == "restart" or len(old) >= REPEATED_CHARS else ""
        self._is_required = how == "restart"
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Whether all further text is new."""
        return not self._old

    @property
    def is_waited_for(self) -> bool:
        """Whether the old text must still come."""
        return self._is_required and not self.is_over

    def new(self, text: str) -> str:
        """Return the text that is known to be new.

        Raises BackendUnavailable if the text does not fit.
        """
        if self.is_over:
            return text
        self._held += text
        shared = min(len(self._held), len(self._old))
        if self._held[:shared] != self._old[:shared]:
            if self._is_required:
                raise _differs("begins differently")
            return self._release(self._held)
        return self._release(self._held[shared:]) if shared == len(self._old) else ""

    def end(self) -> str:
        """The text is complete: return the text held back, if it is new.

        Raises as `new` does.
        """
        if self.is_over:
            return ""
        if self._is_required:
            raise _differs("is shorter")
        return self._release(self._held)

    def interrupted(self) -> str:
        """Something other than text follows: return the text held back, if it is new.

        Raises as `new` does.
        """
        if self.is_waited_for:
            raise _differs("begins with something other than text")
        return self._release(self._held)

    def _release(self, text: str) -> str:
        self._old = self._held = ""
        return text
