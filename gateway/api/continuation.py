"""A conversation or a continued text that broke off: what the client has of it, and how another backend goes on.

The client must not notice: the rest comes under the first backend's id and model, no text comes twice, no role
is said again, and usage is told once, by whoever finished. Only one choice of plain text can go on so; tool
calls, several choices, and reasoning that the client has seen, cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.api.answers import chat_answer, completion_answer
from gateway.api.chunks import Chunk, Shape, chunk_of, chunks_of
from gateway.api.logprobs import first_offset, of_the_rest
from gateway.api.parse import ParsedRequest
from gateway.api.sse import Stamp, encode_json, events_of
from gateway.dispatch import Continuation, ResumeMode
from gateway.plugin import BackendUnavailable, GatewayError, Part, Result, Task

MAX_TEXT_CHARS = 1 << 20  # of longer answers nothing is kept
MAX_NOTED_BYTES = 65_536  # with events larger than that nobody goes on
REPEATED_CHARS = 6  # a continuation that begins with at least so much of what was said is a repetition

_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


_NOTHING = frozenset({b"null", b'""', b"[]", b"{}", b"false", b"0"})
_THOUGHTS = frozenset({"reasoning", "reasoning_content"})


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None

    def _said(self) -> dict[str, msgspec.Raw]:
        return {name: raw for name, raw in (self.delta or {}).items() if name != "role" and bytes(raw) not in _NOTHING}

    def text_of(self, shape: Shape) -> str | None:
        """What it says; None where it says something that is no text."""
        if shape == "completion":
            return self.text or ""
        said = self._said()
        text = msgspec.json.decode(said.pop("content", msgspec.Raw(b'""')))
        return text if isinstance(text, str) and not said else None

    @property
    def is_thought(self) -> bool:
        """Whether it only tells what the model thinks before it speaks."""
        said = self._said().keys()
        return bool(said) and said <= _THOUGHTS


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)


class _PlainDelta(msgspec.Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    refusal: None = None


class _PlainChoice(msgspec.Struct):
    delta: _PlainDelta
    index: int = 0
    finish_reason: str | None = None


class _PlainChunk(msgspec.Struct):
    """What nearly every chunk is, read in one go: a text."""

    choices: list[_PlainChoice]


_PLAIN = msgspec.json.Decoder(_PlainChunk)


_CHUNK = msgspec.json.Decoder(_Chunk)
_CHOICE = msgspec.json.Decoder(_Choice)


def continuation(draft: ParsedRequest) -> Continuation | None:
    """What to keep of the answer to this; None where nobody could go on with it."""
    if draft.kind not in ("chat", "completion") or draft.choices > 1:
        return None
    return ChatContinuation(draft, "chat" if draft.kind == "chat" else "completion")


class ChatContinuation:
    """Implements `gateway.dispatch.Continuation`."""

    def __init__(self, draft: ParsedRequest, shape: Shape) -> None:
        self._stamp = Stamp(request_id="", model=draft.name)
        self._shape: Shape = shape
        self._text = bytearray()  # UTF-8; a list of tokens takes twenty times the memory
        self._chars = self._pieces = 0
        self._first_offset: int | None = None  # where a continued text begins, as its first backend counts
        self._head: dict[str, Any] | None = None
        self._is_plain = True
        self._unfinished: dict[int, bool] = {}
        self._overlap = Overlap("", how="restart")

    @property
    def is_complete(self) -> bool:
        """Whether every choice has said why it ended."""
        return bool(self._unfinished) and not any(self._unfinished.values())

    # ── what the client has ──────────────────────────────────────────────────────────────────────

    def record(self, part: Part) -> None:
        """Note a part that goes to the client as it is."""
        try:
            if part.raw is None:
                self._note(_CHUNK.decode(encode_json(self._chunk(part.data))))
                return
            for _, data in events_of(part.raw):
                if data.strip() != b"[DONE]":
                    self._note_event(data)
        except (GatewayError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._is_plain = False  # whoever renders it says what is wrong with it

    def _note_event(self, data: bytes) -> None:
        if len(data) > MAX_NOTED_BYTES:  # may be a tree of anything
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
        try:
            choices = _PLAIN.decode(data).choices
        except msgspec.DecodeError:
            return False
        if self._shape != "chat" or len(choices) != 1 or choices[0].index:
            return False
        (choice,) = choices
        self._unfinished[0] = self._unfinished.get(0, True) and not choice.finish_reason
        self._keep(choice.delta.content or "")
        return True

    def _note(self, chunk: _Chunk) -> None:
        for choice in chunk.choices:
            self._note_end(choice)
            text = choice.text_of(self._shape)
            if choice.index != 0 or text is None:
                self._is_plain = False
            else:
                self._keep(text)

    def _note_end(self, choice: _Choice) -> None:
        is_open = self._unfinished.get(choice.index, True)
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

    # ── who goes on ──────────────────────────────────────────────────────────────────────────────

    def resumed(self, task: Task, how: ResumeMode) -> Task | None:
        """The task with the text so far in it, or as it was; None where it cannot be done that way."""
        if not self._is_plain:
            return None
        text = self._text.decode()
        self._overlap = Overlap(text, how=how)
        if how == "restart":
            return task
        begun = _begun(task.body, text, self._shape, self._pieces) if text else None
        if begun is None:
            return None
        if self._shape == "chat":
            own = _text_in(begun["messages"][-1]["content"]) or ""
            self._overlap = Overlap(own, how=how)  # with what the client itself began
        members = _RAW_OBJECT.decode(task.body)
        members |= {name: msgspec.Raw(msgspec.json.encode(new)) for name, new in begun.items()}
        return task.replace(body=msgspec.json.encode(members))

    def joined(self, part: Part) -> Iterator[Part]:
        """What the client lacks of a part. Raises BackendUnavailable where the answer goes another way.

        Event by event: what has been noted as said is on its way to the client when a later one cannot be read.
        """
        try:
            for value in self._values(part):
                if (chunk := self._missing(self._chunk(value))) is not None:
                    yield Part(chunk)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as exc:
            raise _differs("has a chunk that cannot be read") from exc

    def ended(self) -> Iterator[Part]:
        """What was held back, as the last part."""
        if rest := self._overlap.end():
            self._keep(rest)
            yield Part(rest)

    def parts_of(self, result: Result) -> Iterator[Part]:
        """A whole answer as parts."""
        finished = chat_answer if self._shape == "chat" else completion_answer
        for chunk in chunks_of(finished(self._stamp, result.value()), self._shape):
            yield Part(chunk)

    def _values(self, part: Part) -> Iterator[Any]:
        if part.raw is None:
            yield part.data
            return
        for _, data in events_of(part.raw):
            if data.strip() != b"[DONE]":
                yield msgspec.json.decode(data)

    def _chunk(self, value: Any) -> Chunk:
        return chunk_of(self._stamp, value, self._shape)

    def _missing(self, chunk: Chunk) -> Chunk | None:
        choices = [choice for choice in chunk["choices"] if self._fit(choice)]
        usage = {"usage": chunk["usage"]} if chunk.get("usage") else {}
        return (self._head or {}) | {"choices": choices} | usage if choices or usage else None

    def _fit(self, choice: dict[str, Any]) -> bool:
        """Leave in the choice what the client lacks; whether that is anything."""
        heard = _CHOICE.decode(encode_json(choice))
        if heard.is_thought and self._overlap.is_waited_for:
            return False  # the client has the beginning of what comes after it
        text = heard.text_of(self._shape)
        new = self._overlap.interrupted() if text is None else self._overlap.new(text)
        if heard.finish_reason:
            new += self._overlap.end()
        if choice.get("logprobs"):
            begins_at = (self._first_offset or 0) + self._chars
            choice["logprobs"] = of_the_rest(choice["logprobs"], text or "", new, self._shape, begins_at=begins_at)
        self._note_end(heard)
        self._keep(new)
        if self._shape == "completion":
            choice["text"] = new
        else:
            choice["delta"] = _delta(choice.get("delta") or {}, new)
        return bool(new or heard.finish_reason or choice.get("delta"))


def _delta(delta: dict[str, Any], text: str) -> dict[str, Any]:
    rest = {name: value for name, value in delta.items() if value and name not in ("role", "content")}
    return rest | {"content": text} if text else rest


def _begun(body: bytes, text: str, shape: Shape, pieces: int) -> dict[str, Any] | None:
    """What changes in the request for the rest of an answer that has said `text` in so many pieces.

    Pieces are tokens, nearly always: as many are taken off what it may still say.
    """
    members = _RAW_OBJECT.decode(body)
    begun = _begun_text(members, text) if shape == "completion" else _begun_turn(members, text)
    if begun is None:
        return None
    for name in ("max_tokens", "max_completion_tokens"):
        most = msgspec.json.decode(members.get(name, b"null"))
        if isinstance(most, int):
            begun[name] = max(1, most - pieces)
    return begun


def _begun_text(members: dict[str, msgspec.Raw], text: str) -> dict[str, Any] | None:
    asked = msgspec.json.decode(members["prompt"])
    prompt = asked[0] if isinstance(asked, list) and len(asked) == 1 else asked
    if not isinstance(prompt, str):
        return None
    if not msgspec.json.decode(members.get("echo", b"false")):
        return {"prompt": prompt + text}
    return {"prompt": text, "echo": False} if text.startswith(prompt) else None


def _begun_turn(members: dict[str, msgspec.Raw], text: str) -> dict[str, Any] | None:
    messages = msgspec.json.decode(members["messages"])
    last = messages[-1]
    if last.get("role") != "assistant":
        return {"messages": [*messages, {"role": "assistant", "content": text}]}
    begun = _begun_content(last.get("content"), text)  # the client's own beginning; nobody takes two turns in a row
    return None if begun is None else {"messages": [*messages[:-1], last | {"content": begun}]}


def _begun_content(content: Any, text: str) -> Any:
    own = _text_in(content)
    if own is None:
        return None
    whole = text if text.startswith(own) else own + text
    if isinstance(content, str):
        return whole
    return [*content[:-1], content[-1] | {"text": content[-1]["text"] + whole[len(own) :]}]


def _text_in(content: Any) -> str | None:
    """The text of a turn, which may be in parts; None where there is none, or something else in it."""
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content if part.get("type") == "text"] if content else []
    return "".join(texts) if texts and len(texts) == len(content) else None


def _differs(how: str) -> BackendUnavailable:
    message = f"its answer {how}, so it cannot go on with the one that broke off"
    return BackendUnavailable(message, code="upstream_bad_response", again=False)


class Overlap:
    """Takes off a new text what the client has of it already.

    After a restart the new text must begin with all of the old one. A continuation need not, but may: some
    servers begin with the turn they were given. What could be either is held back until it is known.
    """

    def __init__(self, old: str, *, how: ResumeMode) -> None:
        self._old = old if how == "restart" or len(old) >= REPEATED_CHARS else ""
        self._must = how == "restart"
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Whether every further text is new."""
        return not self._old

    @property
    def is_waited_for(self) -> bool:
        """Whether the old text must still come."""
        return self._must and not self.is_over

    def new(self, text: str) -> str:
        """What of the text is new, as far as is known yet. Raises BackendUnavailable where it does not fit."""
        if self.is_over:
            return text
        self._held += text
        shared = min(len(self._held), len(self._old))
        if self._held[:shared] != self._old[:shared]:
            if self._must:
                raise _differs("begins differently")
            return self._let_go(self._held)
        return self._let_go(self._held[shared:]) if shared == len(self._old) else ""

    def end(self) -> str:
        """No more text comes; what was held back, if it is new. Raises as `new` does."""
        if self.is_over:
            return ""
        if self._must:
            raise _differs("is shorter")
        return self._let_go(self._held)

    def interrupted(self) -> str:
        """Something else than text comes; what was held back, if it is new. Raises as `new` does."""
        if self.is_waited_for:
            raise _differs("begins with something else than text")
        return self._let_go(self._held)

    def _let_go(self, rest: str) -> str:
        self._old = self._held = ""
        return rest
