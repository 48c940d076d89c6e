"""What a whole answer must look like to be one: anything else under status 200 is a failure, and another is asked.

No stricter than the servers there are: what must be there is what no client can do without, and it is looked at
without being built, in one go that ends where more comes than was asked for.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from functools import cache
from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, Task

from ..transport.exceptions import bad_response
from .expected_count import MAX_CHOICES, choices, inputs
from .json_scan import OBJECT, JsonScanner
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

MAX_BYTES = 12 << 20  # no JSON that is meant is longer, but for what `max_bytes` names
MAX_BIG_BYTES = 64 << 20
MAX_VECTOR_BYTES = 256 << 10  # 8,192 numbers in full length
STEP_BYTES = 4 << 20  # searched in one go (2 ms)
MAX_DECODED_BYTES = 16 << 20  # decoded in one go (11 ms); of longer ones is known what `walk` tells
MAX_ERROR_BYTES = 64 << 10
VECTOR_KEYS = 4  # `"embedding"` may stand in an entry as its key, its object, its type

JSON_FORMATS = frozenset({"", "json", "verbose_json", "diarized_json"})
IMAGES_PATH = "/v1/images/"
SPEECH_PATH = "/v1/audio/speech"
OBJECT_PATHS = ("/v1/responses", "/v1/messages", IMAGES_PATH)  # relayed; what they answer is an object
OF_NUMBERS = b"0123456789+-.eE, \t\r\n"
NO_ITEMS = re.compile(rb"\[\s*+\]")
NO_MEMBERS = re.compile(rb"\s*+\{\s*+\}")


class _Object(msgspec.Struct):
    """Any object."""


class _Chat(msgspec.Struct):
    message: _Object


class _Text(msgspec.Struct):
    text: msgspec.Raw


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw


class _Answer(ErrorFields):
    choices: msgspec.Raw = NULL
    data: msgspec.Raw = NULL
    status: msgspec.Raw = NULL


class _OnlyError(ErrorFields, forbid_unknown_fields=True):
    """An error and what stands beside one: nothing that could be an answer."""

    param: msgspec.Raw = NULL
    request_id: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    success: msgspec.Raw = NULL


@cache
def _several(of: Any) -> Any:
    """As many as may be asked for; the first one too many ends it."""
    fields = [(f"choice_{at}", of | msgspec.UnsetType, msgspec.UNSET) for at in range(MAX_CHOICES)]
    return msgspec.defstruct("_Several", fields, array_like=True, forbid_unknown_fields=True)


# ── before and while it is read ──────────────────────────────────────────────────────────────────


def check_media(task: Task, content_type: str) -> None:
    """Before a byte of it is read. Raises BackendUnavailable where such a content type is no answer to the task."""
    media = _media(content_type)
    if _wants_object(task) and media and not _names_json(media):
        raise bad_response(f"answered with {media[:60]} instead of JSON")
    if _is_speech(task) and (_names_json(media) or media.startswith("text/")):
        raise bad_response(f"answered with {media[:60]} instead of sound")
    if media == "text/html" and task.kind != "task":
        raise bad_response("answered with a web page; is a login page or a proxy in between?")


def is_opaque(task: Task, content_type: str) -> bool:
    """Whether such an answer is neither JSON nor a text: sound, say."""
    media = _media(content_type)
    return not (_wants_object(task) or _names_json(media) or media.startswith("text/"))


def may_be_error(start: bytes) -> bool:
    """Whether a body that begins so may turn out to be an error and no more, whatever it is sent as."""
    return len(start) <= MAX_ERROR_BYTES and start.lstrip()[:1] in (b"", b"{")


def max_bytes(task: Task) -> int:
    """How long an answer may be, whether or not it says so: as long as what was asked for ever gets."""
    if task.kind == "embeddings":
        return min(MAX_BIG_BYTES, max(MAX_BYTES, inputs(task) * MAX_VECTOR_BYTES))
    is_big = task.kind == "task" or _is_speech(task) or task.path.startswith(IMAGES_PATH)
    return MAX_BIG_BYTES if is_big else MAX_BYTES


def walk_for(task: Task, content_type: str) -> JsonScanner | None:
    """What looks at the body while it arrives, where that is to be JSON."""
    if _wants_object(task):
        return JsonScanner(OBJECT)
    return JsonScanner() if task.kind == "task" or _names_json(_media(content_type)) else None


def not_json(task: Task, content_type: str) -> BackendUnavailable:
    """The body is not the JSON that is due."""
    if task.kind == "task":
        named = _media(content_type) or "no content type"
        return bad_response(f"answered the task with something that is not JSON ({named})")
    if _wants_object(task):
        return bad_response("answered with something that is not a JSON object")
    return bad_response("answered with something that is not JSON, though it says so")


def needs_content(task: Task) -> bool:
    """Whether an answer without a body (status 204) is none."""
    return _wants_object(task) or _is_speech(task)


def _is_speech(task: Task) -> bool:
    return task.path.partition("?")[0] == SPEECH_PATH


def _wants_object(task: Task) -> bool:
    if task.kind == "transcription":
        wanted = (task.fields or {}).get("response_format") or ""
        return wanted in JSON_FORMATS
    if task.kind == "other":
        return task.path.startswith(OBJECT_PATHS)
    return task.kind in ("chat", "completion", "embeddings")


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _names_json(media: str) -> bool:
    return media == "application/json" or media.endswith(("+json", "/json"))


# ── once it is there, in UTF-8, as `walk_for` has seen to it where it is to be JSON ──────────────


async def checked(task: Task, body: bytes, content_type: str) -> str:
    """The content type to pass on, once the body has proved to be what was asked for.

    Raises BackendUnavailable, and Refused where it is an error that is an answer.
    """
    is_object = _wants_object(task)
    if is_object:
        await _check_object(task, body)
    elif (task.kind == "task" or _names_json(_media(content_type))) and not is_json(body):
        raise not_json(task, content_type)
    elif task.kind != "task":
        _check_relayed(task, body)
    if task.kind == "task":  # a plain service may label its JSON any way it likes
        return "application/json"
    return content_type or ("application/json" if is_object else "application/octet-stream")


def _check_relayed(task: Task, body: bytes) -> None:
    """Little is known of what is relayed: nothing is no sound, and what is an error and no more is nothing else."""
    if not body and _is_speech(task):
        raise bad_response("answered with nothing")
    only = _only_error(body) if len(body) <= MAX_ERROR_BYTES and body.lstrip().startswith(b"{") else None
    if only is not None and (error := error_in(only) or _error_itself(only)):
        raise _reported(error)


async def _check_object(task: Task, body: bytes) -> None:
    if len(body) > MAX_DECODED_BYTES:
        await _check_giant(task, body)
    elif task.kind in ("chat", "completion"):
        _check_choices(task, body)
    elif task.kind == "embeddings":
        await _check_vectors(task, body)
    else:
        _check_other(task, body)


def _check_choices(task: Task, body: bytes) -> None:
    each: Any = _Chat if task.kind == "chat" else _Text
    many: Any = _several(each) if choices(task) <= MAX_CHOICES else list[each]
    found = _decoded(task, body, _holding(many, "choices")).choices
    if not isinstance(found, list):
        found = [choice for choice in msgspec.structs.astuple(found) if choice is not msgspec.UNSET]
    texts = [choice.text for choice in found if isinstance(choice, _Text)]
    if not found or not all(begins(text, b'"') for text in texts):
        raise _missing(task, body)


async def _check_vectors(task: Task, body: bytes) -> None:
    items = inputs(task)
    if (keys := body.count(b'"embedding"')) > VECTOR_KEYS * (items + 4):
        raise bad_response(f"answered with {keys // VECTOR_KEYS} embeddings and more for {items} inputs")
    vectors: list[_Vector] = _decoded(task, body, _holding(list[_Vector], "data")).data
    if not vectors:
        raise _missing(task, body)
    _check_count(len(vectors), items)
    for at, vector in enumerate(vectors):
        if not _is_vector(bytes(vector.embedding)):
            raise bad_response("answered with embeddings that are neither lists of numbers nor base64 of them")
        if at % 64 == 63:
            await asyncio.sleep(0)


async def _check_giant(task: Task, body: bytes) -> None:
    """Of vectors too long to be decoded, that they are as many as was asked for."""
    if task.kind != "embeddings":
        return
    found = 0
    for start in range(0, len(body), STEP_BYTES):
        for key in (b'"embedding":', b'"embedding" :'):
            found += body.count(key, start, start + STEP_BYTES + len(key) - 1)
        await asyncio.sleep(0)
    _check_count(found, inputs(task))


def _check_other(task: Task, body: bytes) -> None:
    answer: _Answer = _decoded(task, body, _Answer)
    if (error := _error_of(task, body, answer)) is not None:
        raise _reported(error)
    if task.kind == "transcription":
        if not begins(answer.text, b'"'):
            raise bad_response("answered with an object that has no `text`")
    elif NO_MEMBERS.match(body):
        raise bad_response("answered with an object that has no members")


@cache
def _holding(of: Any, name: str) -> Any:
    return msgspec.defstruct("_Holding", [(name, of)])


def _decoded(task: Task, body: bytes, of: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=of)
    except msgspec.ValidationError:
        raise _missing(task, body) from None
    except (msgspec.DecodeError, RecursionError):
        raise not_json(task, "") from None


# ── errors under status 200 ──────────────────────────────────────────────────────────────────────


def _missing(task: Task, body: bytes) -> Exception:
    """Why an object is not what was asked for."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.DecodeError, RecursionError):
        return not_json(task, "")
    if (error := _error_of(task, body, answer)) is not None:
        return _reported(error)
    name, inside = {"chat": ("choices", "message"), "completion": ("choices", "text")}.get(
        task.kind, ("data", "embedding")
    )
    listed = answer.data if name == "data" else answer.choices
    if not begins(listed, b"[") or NO_ITEMS.match(memoryview(listed)):
        return bad_response(f"answered with an object that has no `{name}`")
    return bad_response(f"answered with `{name}` that hold no `{inside}`, or with far too many")


def _error_of(task: Task, body: bytes, answer: _Answer) -> Error | None:
    """The error it reports instead of an answer."""
    only = _only_error(body)
    is_failed = is_text(answer.status, b"failed") or (task.kind == "transcription" and is_empty(answer.text))
    if (only is not None or is_failed) and (error := error_in(answer)) is not None:
        return error
    return _error_itself(answer if only is None else only, is_only=only is not None)


def _error_itself(said: ErrorFields, *, is_only: bool = True) -> Error | None:
    """The error that the object is, as vLLM, Anthropic and FastAPI have them."""
    is_one = is_text(said.object, b"error") or is_text(said.type, b"error")
    is_told = is_only and not all(map(is_empty, (said.detail, said.error_code)))
    return error_as(said) if is_one or is_told else None


def _only_error(body: bytes) -> _OnlyError | None:
    try:
        found = msgspec.json.decode(body, type=_OnlyError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if is_empty(found.text) else None


def _reported(error: Error) -> Exception:
    if is_answer(error):
        return UpstreamRejected(error)
    return bad_response(f"answered with an error{code_of(error)}", said=message_of(error))


# ── vectors, and JSON as such ────────────────────────────────────────────────────────────────────


def _check_count(found: int, items: int) -> None:
    if found != items:
        raise bad_response(f"answered with {found} embeddings for {items} inputs")


def _is_vector(raw: bytes) -> bool:
    """Whether this JSON value is a list of numbers, or base64 of 32-bit floats; at least one."""
    if raw.startswith(b"["):
        inside = raw[1:-1].strip()
        return bool(inside) and not inside.translate(None, OF_NUMBERS)  # it is known to be JSON
    try:
        packed = binascii.a2b_base64(msgspec.json.decode(raw, type=str), strict_mode=True)
    except (msgspec.ValidationError, ValueError):
        return False
    return bool(packed) and len(packed) % 4 == 0


def is_json(body: bytes) -> bool:
    """Whether the body is JSON, without building it; a longer one was walked through as it came."""
    if len(body) > MAX_DECODED_BYTES:
        return True
    try:
        body.isascii() or body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
