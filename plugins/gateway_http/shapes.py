"""What a whole answer must look like to be one: anything else under status 200 is a failure, and another is asked.

No stricter than the servers there are: what must be there is what no client can do without, and it is looked at
without being built. JSON is walked through once; of the list that is the answer, once more.
"""

from __future__ import annotations

import asyncio
import binascii
from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, Task

from .counted import inputs
from .faults import bad_response
from .streams import code_of, message_of
from .walk import OBJECT, Walk

MAX_BYTES = 12 << 20  # no JSON that is meant is longer, but for what `max_bytes` names
MAX_BIG_BYTES = 64 << 20
MAX_VECTOR_BYTES = 256 << 10  # 8,192 numbers in full length
STEP_BYTES = 4 << 20  # searched in one go (2 ms)
MAX_DECODED_BYTES = 16 << 20  # decoded in one go (11 ms); of longer ones is known what `walk` tells

JSON_FORMATS = frozenset({"", "json", "verbose_json", "diarized_json"})
IMAGES_PATH = "/v1/images/"
SPEECH_PATH = "/v1/audio/speech"
OBJECT_PATHS = ("/v1/responses", "/v1/messages", IMAGES_PATH)  # relayed; what they answer is an object
BESIDE_AN_ERROR = frozenset({"code", "error", "message", "object", "request_id", "status", "success", "type"})
OF_NUMBERS = b"0123456789+-.eE, \t\r\n"

Members = dict[str, msgspec.Raw]


class _Chat(msgspec.Struct):
    message: Members


class _Text(msgspec.Struct):
    text: str


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw


def check_media(task: Task, content_type: str) -> None:
    """Before a byte of it is read. Raises BackendUnavailable where such a content type is no answer to the task."""
    media = _media(content_type)
    if _wants_object(task) and media and not _names_json(media):
        raise bad_response(f"answered with {media[:60]} instead of JSON")
    if media == "text/html" and task.kind != "task":
        raise bad_response("answered with a web page; is a login page or a proxy in between?")


def checked(task: Task, body: bytes, content_type: str) -> str:
    """The content type to pass on, once the body has proved to be what was asked for. Raises BackendUnavailable."""
    media = _media(content_type)
    if task.kind == "task":  # a plain service may label its JSON any way it likes
        if not is_json(body):
            raise not_json(task, content_type)
        return "application/json"
    if _wants_object(task):
        _check_object(task, body)
        return content_type or "application/json"
    if not body and _is_speech(task):
        raise bad_response("answered with nothing")
    if _names_json(media) and not is_json(body):
        raise not_json(task, content_type)
    return content_type or "application/octet-stream"


def max_bytes(task: Task) -> int:
    """How long an answer may be, whether or not it says so: as long as what was asked for ever gets."""
    if task.kind == "embeddings":
        return min(MAX_BIG_BYTES, max(MAX_BYTES, inputs(task) * MAX_VECTOR_BYTES))
    is_big = task.kind == "task" or _is_speech(task) or task.path.startswith(IMAGES_PATH)
    return MAX_BIG_BYTES if is_big else MAX_BYTES


def walk_for(task: Task, content_type: str) -> Walk | None:
    """What looks at the body while it arrives, where that is to be JSON."""
    if _wants_object(task):
        return Walk(OBJECT)
    return Walk() if task.kind == "task" or _names_json(_media(content_type)) else None


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


def _check_object(task: Task, body: bytes) -> None:
    if len(body) > MAX_DECODED_BYTES:
        return
    members = _members(body)
    if members is None:
        raise not_json(task, "")
    if "error" in members and members.keys() <= BESIDE_AN_ERROR:
        _check_error(members)
    _check_members(task, members)


async def check_giant(task: Task, body: bytes) -> None:
    """Of vectors too long to be decoded, that they are as many as was asked for. Raises BackendUnavailable."""
    if task.kind != "embeddings" or len(body) <= MAX_DECODED_BYTES:
        return
    found = 0
    for start in range(0, len(body), STEP_BYTES):
        for key in (b'"embedding":', b'"embedding" :'):
            found += body.count(key, start, start + STEP_BYTES + len(key) - 1)
        await asyncio.sleep(0)
    _check_count(found, inputs(task))


def _check_error(members: Members) -> None:
    """Some upstreams answer 200 and report an error nevertheless."""
    if error := msgspec.json.decode(members["error"]):
        raise bad_response(f"answered with an error{code_of(error)}", said=message_of(error))


def _check_members(task: Task, members: Members) -> None:
    """An object without what was asked for is some other service's answer, and none to the client."""
    match task.kind:
        case "chat":
            _listed(members, "choices", _Chat, "message")
        case "completion":
            _listed(members, "choices", _Text, "text")
        case "embeddings":
            _check_vectors(_listed(members, "data", _Vector, "embedding"), inputs(task))
        case "transcription":
            _check_text(members)
        case _ if not members:
            raise bad_response("answered with an object that has no members")


def _check_text(members: Members) -> None:
    if not bytes(members.get("text", b"")).startswith(b'"'):
        raise bad_response("answered with an object that has no `text`")


def _listed(members: Members, name: str, of: type[Any], inside: str) -> list[Any]:
    """The list of that name, which is not empty, decoded. Raises BackendUnavailable."""
    try:
        found: list[Any] = msgspec.json.decode(members.get(name, msgspec.Raw(b"null")), type=list[msgspec.Raw])
    except msgspec.ValidationError:
        found = []
    if not found:
        raise bad_response(f"answered with an object that has no `{name}`")
    try:
        return [msgspec.json.decode(one, type=of) for one in found]
    except msgspec.ValidationError:
        raise bad_response(f"answered with `{name}` that hold no `{inside}`") from None


def _check_vectors(vectors: list[_Vector], items: int) -> None:
    _check_count(len(vectors), items)
    if not all(_is_vector(bytes(vector.embedding)) for vector in vectors):
        raise bad_response("answered with embeddings that are neither lists of numbers nor base64 of them")


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
    return len(body) > MAX_DECODED_BYTES or _walked(body, msgspec.Raw) is not None


def _members(body: bytes) -> Members | None:
    found: Members | None = _walked(body, Members)
    return found


def _walked(body: bytes, of: Any) -> Any:
    """The body decoded so far, or None where it is not JSON in UTF-8, or not `of` this."""
    try:
        if not body.isascii():
            body.decode()
        return msgspec.json.decode(body, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
