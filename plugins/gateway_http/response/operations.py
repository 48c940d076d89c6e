"""The operations of an upstream, in one table by the task's kind.

Each has a validator of whole responses and a state for streams.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import msgspec

from gateway.plugin import BackendUnavailable, Kind, Task

from ..transport.connection import Response
from .json_scan import MAX_DECODED_BYTES, JsonScanner, is_json
from .stream_state import MAX_CHOICES, ChoiceStreamState, StreamState, TaskStreamState, TypedStreamState
from .upstream_errors import NULL, ErrorFields, begins, is_empty, is_string
from .validate import (
    MAX_BYTES,
    MAX_LARGE_BYTES,
    Envelope,
    ResponseValidator,
    is_json_type,
    media_type,
    struct_with,
)

NO_ITEMS = re.compile(rb"\[\s*+\]")
MAX_EMPTY_ANSWER_BYTES = 64 << 10
NO_MEMBERS = re.compile(rb"\s*+\{\s*+\}")


class _Requested(msgspec.Struct):
    n: Any = None
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"")


def _requested(task: Task) -> _Requested:
    """Return the members of the request that decide how many results it asks for."""
    try:
        return msgspec.json.decode(task.body, type=_Requested)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Requested()  # not an object: the upstream rejects it


def _texts_in(raw: msgspec.Raw) -> int:
    """Return the number of texts.

    A text or a list of tokens counts as 1; a list of these counts as its length.
    """
    if not bytes(raw).startswith(b"["):
        return 1
    items = msgspec.json.decode(raw, type=list[msgspec.Raw])
    return len(items) if items and bytes(items[0])[:1] in (b'"', b"[") else 1


# ── chat and completions ─────────────────────────────────────────────────────────────────────────


def _at_most(count: int, of: Any) -> Any:
    """Return a type for a list of at most `count` entries.

    The decode stops at the first surplus entry.
    """
    fields = [(f"choice_{at}", of | msgspec.UnsetType, msgspec.UNSET) for at in range(count)]
    return msgspec.defstruct("_AtMost", fields, array_like=True, forbid_unknown_fields=True)


class _Object(msgspec.Struct):
    """Any object."""


class _ChatChoice(msgspec.Struct):
    message: _Object | None = None
    finish_reason: msgspec.Raw = NULL


class _TextChoice(msgspec.Struct):
    text: msgspec.Raw = NULL
    finish_reason: msgspec.Raw = NULL


class _WithoutChoices(ErrorFields, kw_only=True):
    """A response of no choices: the other members show that it is one."""

    choices: msgspec.Raw
    id: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL

    @property
    def is_empty_answer(self) -> bool:
        is_error = not is_empty(self.error) or is_string(self.object, b"error")
        has_others = not all(map(is_empty, (self.id, self.object, self.usage)))
        return is_empty(self.choices) and has_others and not is_error


class ChatValidator(ResponseValidator):
    """A chat response has `choices`, each with a `message` object.

    A model's empty answer is one too: no choices, or a choice with a `finish_reason` only, as of a content filter.
    """

    member = "message"  # required in each choice
    empty: ClassVar[Any] = {"role": "assistant", "content": None, "refusal": None}  # the member of an empty answer
    bounded: ClassVar[Any] = struct_with("choices", _at_most(MAX_CHOICES, _ChatChoice))
    unbounded: ClassVar[Any] = struct_with("choices", list[_ChatChoice])

    @cached_property
    def expected_choices(self) -> int:
        return self._expected_per_prompt(_requested(self.task))

    def _expected_per_prompt(self, requested: _Requested) -> int:
        return max(requested.n, 1) if type(requested.n) is int else 1

    def _check_members(self, body: bytes) -> None:
        of = self.bounded if self.expected_choices <= MAX_CHOICES else self.unbounded
        try:
            choices = msgspec.json.decode(body, type=of).choices
        except msgspec.ValidationError:
            choices = []
        except (msgspec.DecodeError, RecursionError):
            raise self.not_json("") from None
        if not isinstance(choices, list):
            choices = [choice for choice in msgspec.structs.astuple(choices) if choice is not msgspec.UNSET]
        if choices and all(map(self._is_whole, choices)):
            return
        if not self._is_empty_answer(body, choices):
            raise self._mismatch(body)
        self.needs_repair = True

    def _is_whole(self, choice: Any) -> bool:
        return choice.message is not None

    def _is_empty_answer(self, body: bytes, choices: list[Any]) -> bool:
        if choices:
            return all(self._is_whole(choice) or not is_empty(choice.finish_reason) for choice in choices)
        if len(body) > MAX_EMPTY_ANSWER_BYTES:
            return False
        try:
            return msgspec.json.decode(body, type=_WithoutChoices).is_empty_answer
        except (msgspec.DecodeError, RecursionError):
            return False

    def repaired(self, body: bytes) -> bytes:
        """Return the body with the members that an empty answer lacks."""
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        choices = msgspec.json.decode(members["choices"], type=list[dict[str, msgspec.Raw]] | None) or []
        for choice in choices:
            if is_empty(choice.get(self.member, NULL)):
                choice[self.member] = msgspec.Raw(msgspec.json.encode(self.empty))
        return msgspec.json.encode(members | {"choices": choices})

    def _missing_member(self, envelope: Envelope) -> BackendUnavailable:
        return _missing_in_list(self, "choices", envelope.choices, self.member)


class CompletionValidator(ChatValidator):
    """A completion has `choices`, each with a `text`; `n` of them for each prompt."""

    member = "text"
    empty = ""
    bounded = struct_with("choices", _at_most(MAX_CHOICES, _TextChoice))
    unbounded = struct_with("choices", list[_TextChoice])

    def _expected_per_prompt(self, requested: _Requested) -> int:
        return super()._expected_per_prompt(requested) * _texts_in(requested.prompt)

    def _is_whole(self, choice: _TextChoice) -> bool:
        return begins(choice.text, b'"')


def _missing_in_list(validator: ResponseValidator, name: str, entries: msgspec.Raw, member: str) -> BackendUnavailable:
    if not begins(entries, b"[") or NO_ITEMS.match(memoryview(entries)):
        return validator.bad_response(f"returned an object that has no `{name}`")
    return validator.bad_response(f"returned `{name}` of which an entry has no `{member}`, or far too many entries")


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────

MAX_VECTOR_BYTES = 256 << 10  # 8,192 numbers in full length
STEP_BYTES = 4 << 20  # searched in one call (2 ms)
KEYS_PER_VECTOR = 4  # `"embedding"` may occur in an entry as its key, its object, its type
NUMBER_BYTES = b"0123456789+-.eE, \t\r\n"


class _VectorEntry(msgspec.Struct):
    embedding: msgspec.Raw


_Vectors = struct_with("data", list[_VectorEntry])


class EmbeddingsValidator(ResponseValidator):
    """Embeddings have as many vectors in `data` as the request has inputs.

    They are never a stream.
    """

    may_stream = False

    @cached_property
    def expected_vectors(self) -> int:
        """The inputs in the body, or the task's `items` if the body has none.

        The body comes first: a subtask's `items` may be 1 for several inputs.
        """
        raw = _requested(self.task).input
        return _texts_in(raw) if bytes(raw) else self.task.items

    @property
    def max_bytes(self) -> int:
        return min(MAX_LARGE_BYTES, max(MAX_BYTES, self.expected_vectors * MAX_VECTOR_BYTES))

    async def _check_object(self, body: bytes) -> None:
        if len(body) > MAX_DECODED_BYTES:
            self._check_count(await _count_keys(body))
            return
        expected = self.expected_vectors
        if (keys := body.count(b'"embedding"')) > KEYS_PER_VECTOR * (expected + 4):
            raise self.bad_response(f"returned more than {keys // KEYS_PER_VECTOR} embeddings for {expected} inputs")
        vectors: list[_VectorEntry] = self._decode(body, _Vectors).data
        if not vectors:
            raise self._mismatch(body)
        self._check_count(len(vectors))
        for at, vector in enumerate(vectors):
            if not _is_vector(bytes(vector.embedding)):
                raise self.bad_response("returned an `embedding` that is neither a list of numbers nor base64 of them")
            if at % 64 == 63:
                await asyncio.sleep(0)

    def _check_count(self, found: int) -> None:
        if found != self.expected_vectors:
            raise self.bad_response(f"returned {found} embeddings for {self.expected_vectors} inputs")

    def _missing_member(self, envelope: Envelope) -> BackendUnavailable:
        return _missing_in_list(self, "data", envelope.data, "embedding")


async def _count_keys(body: bytes) -> int:
    """Count the vectors of a body that is too long to be decoded."""
    found = 0
    for start in range(0, len(body), STEP_BYTES):
        for key in (b'"embedding":', b'"embedding" :'):
            found += body.count(key, start, start + STEP_BYTES + len(key) - 1)
        await asyncio.sleep(0)
    return found


def _is_vector(raw: bytes) -> bool:
    """Return whether this JSON value is a vector of at least one number.

    A vector is a list of numbers, or base64 of 32-bit floats.
    """
    if raw.startswith(b"["):
        inside = raw[1:-1].strip()
        return bool(inside) and not inside.translate(None, NUMBER_BYTES)  # the decode has proved it to be JSON
    try:
        packed = binascii.a2b_base64(msgspec.json.decode(raw, type=str), strict_mode=True)
    except (msgspec.ValidationError, ValueError):
        return False
    return bool(packed) and len(packed) % 4 == 0


# ── transcriptions ───────────────────────────────────────────────────────────────────────────────

JSON_FORMATS = frozenset({"", "json", "verbose_json", "diarized_json"})


class TranscriptionValidator(ResponseValidator):
    """A transcript in a JSON format has a `text`.

    In other formats it is any text but an error object.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.is_object = ((task.fields or {}).get("response_format") or "") in JSON_FORMATS

    def _check_members(self, body: bytes) -> None:
        envelope: Envelope = self._decode(body, Envelope)
        if (error := self._reported_error(body, envelope)) is not None:
            raise error
        if not begins(envelope.text, b'"'):
            raise self.bad_response("returned an object that has no `text`")

    def _has_failed(self, envelope: Envelope) -> bool:
        return super()._has_failed(envelope) or is_empty(envelope.text)


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


class TaskValidator(ResponseValidator):
    """A task returns any JSON, under any content type.

    Plain services label their JSON in many ways.
    """

    is_object = False

    @property
    def max_bytes(self) -> int:
        return MAX_LARGE_BYTES

    def check_content_type(self, content_type: str) -> None:
        pass

    def scanner(self, content_type: str) -> JsonScanner:
        return JsonScanner()

    def not_json(self, content_type: str) -> BackendUnavailable:
        media = media_type(content_type) or "none"
        return self.bad_response(f"returned a task result that is not JSON (Content-Type: {media[:60]})")

    async def validate(self, body: bytes, content_type: str) -> str:
        if not is_json(body):
            raise self.not_json(content_type)
        return "application/json"


# ── relayed paths ────────────────────────────────────────────────────────────────────────────────

MAX_PICTURE_EVENT_BYTES = 8 << 20
IMAGES_PATH = "/v1/images/"
SPEECH_PATH = "/v1/audio/speech"
OBJECT_PATHS = ("/v1/responses", "/v1/messages", IMAGES_PATH)


class RelayedValidator(ResponseValidator):
    """A relayed response.

    It is an object with members for OBJECT_PATHS, sound for SPEECH_PATH, and any body but an error for other paths.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.is_object = self.path.startswith(OBJECT_PATHS)
        self.is_speech = self.path == SPEECH_PATH
        self.is_images = self.path.startswith(IMAGES_PATH)

    @property
    def needs_content(self) -> bool:
        return self.is_object or self.is_speech

    @property
    def max_bytes(self) -> int:
        return MAX_LARGE_BYTES if self.is_speech or self.is_images else MAX_BYTES

    @property
    def max_event_bytes(self) -> int:
        return MAX_PICTURE_EVENT_BYTES if self.is_images else super().max_event_bytes

    def check_content_type(self, content_type: str) -> None:
        media = media_type(content_type)
        if self.is_speech and (is_json_type(media) or media.startswith("text/")):
            raise self.bad_response(f"returned {media[:60]} instead of sound")
        super().check_content_type(content_type)

    def relays_pieces(self, response: Response) -> bool:
        """Return whether the body is sound, or similar, of unknown length.

        The upstream is then still generating it.
        """
        task = self.task
        if task.stream or task.parent_id is not None or response.content_length is not None or self.is_object:
            return False
        media = media_type(response.content_type)
        is_success = 200 <= response.status < 300 and response.status != 204
        return is_success and not is_json_type(media) and not media.startswith("text/")

    def _check_members(self, body: bytes) -> None:
        if (error := self._reported_error(body, self._decode(body, Envelope))) is not None:
            raise error
        if NO_MEMBERS.match(body):
            raise self.bad_response("returned an object that has no members")

    def _check_other(self, body: bytes) -> None:
        if not body and self.is_speech:
            raise self.bad_response("returned an empty response instead of sound")
        super()._check_other(body)


# ── the table ────────────────────────────────────────────────────────────────────────────────────


class Operation(NamedTuple):
    """How the response to one kind of request is checked: as a whole, and as a stream."""

    validator: type[ResponseValidator]
    stream_state: type[StreamState]


OPERATIONS: Mapping[Kind, Operation] = {
    "chat": Operation(ChatValidator, ChoiceStreamState),
    "completion": Operation(CompletionValidator, ChoiceStreamState),
    "embeddings": Operation(EmbeddingsValidator, TypedStreamState),
    "transcription": Operation(TranscriptionValidator, TypedStreamState),
    "task": Operation(TaskValidator, TaskStreamState),
    "models": Operation(RelayedValidator, TypedStreamState),
    "other": Operation(RelayedValidator, TypedStreamState),
}
