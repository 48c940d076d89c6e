"""What a whole answer must look like to be one: anything else under status 200 is a failure, and another is asked.

No stricter than the servers there are: what must be there is what no client can do without, and it is looked at
without being built. JSON is walked through once; of the list that is the answer, once more.
"""

from __future__ import annotations

import binascii
from typing import Any

import msgspec

from gateway.plugin import Task

from .counted import inputs
from .faults import bad_response
from .streams import code_of, message_of

MAX_CHECKED_BYTES = 16 << 20  # JSON is walked through up to here (11 ms)

JSON_FORMATS = frozenset({"", "json", "verbose_json", "diarized_json"})
OBJECT_PATHS = ("/v1/responses", "/v1/messages", "/v1/images/")  # relayed; what they answer is an object
SPEECH_PATH = "/v1/audio/speech"
BINARY_MEDIA = ("audio/", "video/", "application/octet-stream")
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
            raise bad_response(f"answered the task with something that is not JSON ({media or 'no content type'})")
        return "application/json"
    if _wants_object(task):
        _check_object(task, body)
        return content_type or "application/json"
    _check_relayed(task, body, media)
    return content_type or "application/octet-stream"


def may_be_binary(task: Task, content_type: str) -> bool:
    """Whether sound is asked for, and this may be some."""
    return _is_speech(task) and _media(content_type).startswith(BINARY_MEDIA)


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


def _check_relayed(task: Task, body: bytes, media: str) -> None:
    """Little is known of what is relayed: nothing is no sound, and what is called JSON is all there."""
    if not body and _is_speech(task):
        raise bad_response("answered with nothing")
    if _names_json(media) and not is_json(body):
        raise bad_response("answered with something that is not JSON, though it says so")


def _check_object(task: Task, body: bytes) -> None:
    if len(body) > MAX_CHECKED_BYTES:
        if not is_json(body) or not body.lstrip().startswith(b"{"):
            raise bad_response("answered with something that is not a JSON object")
        return
    members = _members(body)
    if members is None:
        raise bad_response("answered with something that is not a JSON object")
    if "error" in members and members.keys() <= BESIDE_AN_ERROR:
        _check_error(members)
    _check_members(task, members)


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
    if len(vectors) != items:
        raise bad_response(f"answered with {len(vectors)} embeddings for {items} inputs")
    if not all(_is_vector(bytes(vector.embedding)) for vector in vectors):
        raise bad_response("answered with embeddings that are neither lists of numbers nor base64 of them")


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
    """Whether the body is JSON, walked through without building it; of a giant only both ends are looked at."""
    if len(body) > MAX_CHECKED_BYTES:
        return body[:64].lstrip()[:1] in (b"{", b"[") and body[-64:].rstrip()[-1:] in (b"}", b"]")
    return _walked(body, msgspec.Raw) is not None


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
