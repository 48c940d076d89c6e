"""What a request's body asks for, as far as the gateway must know before it decides.

A body is peeked, once, and goes on to the backend untouched: the structs of `requests` name only the
fields that route or shape an answer, msgspec skips the others without building them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from gateway.api import multipart
from gateway.api.routes import Match
from gateway.api.schemas import (
    MAX_NAME_CHARS,
    TRANSCRIPT_FORMATS,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    EncodingFormat,
    OtherRequest,
    TranscriptFormat,
)
from gateway.plugin import Kind, TaskInvalid, Upload

_CREDENTIAL = re.compile(
    r"^(?:key|api[_-]?key|(?:access[_-]?)?token|auth|authorization|password|secret)=|egw_", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_ESCAPED_LETTER = re.compile(rb"\\u00[46][45cdfCDF]")  # of `model`, in either case
SPEECH = "/v1/audio/speech"  # its `stream` asks for sound while it is made, not for events
MAX_KEYS = 10_000  # of an object that is looked at closely, which costs 2 µs a key
_FIELD = re.compile(r"(?:.*`\$\.|.*field `)(\w+)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A request understood, not yet authenticated, named or timed; what a Task is made of.

    name: the model or task as the client wrote it, "" where it named none. stream: it asked for events.
    items: units of work, at least 1. choices: how many answers a chat or completion will hold. fields, files: of a
    multipart body (None and {} for any other). include_usage: a stream is to end with its usage. encoding_format:
    of embeddings; None: not said. response_format: of a transcription. path: with `/v1`, and for what is relayed
    with the query. body, content_type: for the backend.
    """

    kind: Kind
    name: str
    path: str
    body: bytes
    content_type: str
    stream: bool = False
    items: int = 1
    choices: int = 1
    fields: Mapping[str, Any] | None = None
    files: Mapping[str, Upload] = field(default_factory=dict)
    include_usage: bool = False
    encoding_format: EncodingFormat | None = None
    response_format: TranscriptFormat = "json"


class _Key:
    """A key of an object, different from any other."""


class _TaskPeek(msgspec.Struct):
    items: msgspec.Raw = msgspec.Raw(b"null")


_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)
_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsRequest)
_OTHER = msgspec.json.Decoder(OtherRequest)
_TASK = msgspec.json.Decoder(_TaskPeek)
_ANY = msgspec.json.Decoder(msgspec.Raw)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def parse_request(match: Match, content_type: str, body: bytes) -> ParsedRequest:
    """Understand a request's body. `content_type` may be empty or wrong where the body is JSON.

    Raises TaskInvalid saying what is wrong and where, with `param` where one field is at fault.
    """
    match match.route.kind:
        case "chat":
            asked = _peek_named(_CHAT, body)
            return _read_chat(match, asked, body, choices=asked.n or 1)
        case "completion":
            text = _peek_named(_COMPLETION, body)
            return _read_chat(match, text, body, choices=(text.n or 1) * _count_prompts(text.prompt))
        case "embeddings":
            return _read_embeddings(match, _peek_named(_EMBEDDINGS, body), body)
        case "transcription":
            return _read_transcription(match, content_type, body)
        case "task":
            return _read_task(match, content_type, body)
        case _:
            return _read_other(match, content_type, body)


def _read_chat(match: Match, asked: ChatRequest | CompletionRequest, body: bytes, choices: int) -> ParsedRequest:
    options = asked.stream_options
    return ParsedRequest(
        kind=match.route.kind,
        name=checked_name(asked.model),
        path=match.path,
        body=body,
        content_type="application/json",
        stream=bool(asked.stream),
        choices=choices,
        include_usage=bool(options and options.include_usage),
    )


def _read_embeddings(match: Match, asked: EmbeddingsRequest, body: bytes) -> ParsedRequest:
    return ParsedRequest(
        kind="embeddings",
        name=checked_name(asked.model),
        path=match.path,
        body=body,
        content_type="application/json",
        items=_count_inputs(asked.input),
        encoding_format=asked.encoding_format,
    )


def _count_prompts(prompt: str | list[str | int | list[int]]) -> int:
    return 1 if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else len(prompt)


def _count_inputs(inputs: str | list[str | int | list[int]]) -> int:
    """How many inputs to embed: a text is one, a list of tokens is one. Raises TaskInvalid for a mixture."""
    if not inputs:
        raise TaskInvalid("`input` is empty; send a text, or a list of at least one", param="input")
    kinds = {type(one) for one in inputs}
    if len(kinds) > 1:
        raise TaskInvalid("`input` mixes texts and tokens; send a list of one kind", param="input")
    return 1 if isinstance(inputs, str) or kinds == {int} else len(inputs)


def _read_transcription(match: Match, content_type: str, body: bytes) -> ParsedRequest:
    if not multipart.is_multipart(content_type, body):
        raise TaskInvalid("a transcription is a multipart/form-data body with the parts `file` and `model`")
    form = multipart.collect(multipart.parse(content_type, body))
    _check_spelling(form.fields)
    name = form.fields.get("model")
    if not isinstance(name, str) or not name:
        raise TaskInvalid("the form has no field `model`; name a model of /v1/models, or `auto`", param="model")
    if "file" not in form.files:
        problem = "the form has no file `file`; upload the recording (curl: -F file=@speech.wav)"
        raise TaskInvalid(problem, param="file")
    return ParsedRequest(
        kind="transcription",
        name=checked_name(name),
        path=match.path,
        body=body,
        content_type=content_type,
        stream=_form_flag(form.fields, "stream"),
        fields=form.fields,
        files=form.files,
        response_format=_transcript_format(form.fields.get("response_format", "json")),
    )


def _form_flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, "false")
    if value not in ("true", "false", "True", "False", "1", "0"):
        raise TaskInvalid(f"the form field `{name}` must be `true` or `false`", param=name)
    return value in ("true", "True", "1")


def _transcript_format(value: Any) -> TranscriptFormat:
    for known in TRANSCRIPT_FORMATS:
        if value == known:
            return known
    known_ones = ", ".join(TRANSCRIPT_FORMATS)
    raise TaskInvalid(f"the form field `response_format` must be one of {known_ones}", param="response_format")


def _read_task(match: Match, content_type: str, body: bytes) -> ParsedRequest:
    draft = ParsedRequest(
        kind="task",
        name=checked_name(match.params["task"], param="task"),
        path=match.path,
        body=body or b"{}",
        content_type="application/json",
    )
    if multipart.is_multipart(content_type, body):
        form = multipart.collect(multipart.parse(content_type, body))
        return replace(draft, content_type=content_type, fields=form.fields, files=form.files)
    return replace(draft, items=_count_items(draft.body))


def _count_items(body: bytes) -> int:
    """How many units of work: the length of the list under `items`, if the body is an object with one."""
    if not body.lstrip().startswith(b"{"):
        _peek(_ANY, body)
        return 1
    items = _peek(_TASK, body).items
    return max(1, len(_LIST.decode(items))) if bytes(items).startswith(b"[") else 1


def _read_other(match: Match, content_type: str, body: bytes) -> ParsedRequest:
    if multipart.is_multipart(content_type, body):
        fields = [part for part in multipart.parse(content_type, body) if not part.is_file]
        _check_spelling(part.name for part in fields)
        parts = {part.name: part.data for part in fields}
        name, stream = parts.get("model", b"").decode(errors="replace"), parts.get("stream") == b"true"
    else:
        asked = _peek_named(_OTHER, body)
        name, stream, content_type = asked.model or "", bool(asked.stream), "application/json"
    query = _without_credentials(match.query)
    return ParsedRequest(
        kind=match.route.kind,
        name=checked_name(name),
        path=f"{match.path}?{query}" if query else match.path,
        body=body,
        content_type=content_type,
        stream=stream and match.path != SPEECH,
    )


def _without_credentials(query: str) -> str:
    """A query as it may travel on. Raises TaskInvalid where it is not ASCII."""
    if not query.isascii():
        raise TaskInvalid("the query has characters that are not ASCII; percent-encode them")
    return "&".join(pair for pair in query.split("&") if not _CREDENTIAL.search(pair))


def checked_name(name: str, *, param: str = "model") -> str:
    """The name, if it can stand in a log line and a header. Raises TaskInvalid."""
    if len(name) > MAX_NAME_CHARS or _CONTROL.search(name):
        problem = f"`{param}` must have at most {MAX_NAME_CHARS} characters, none of them control characters"
        raise TaskInvalid(problem, param=param)
    return name


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


def _peek(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode what is peeked at; the whole body is checked to be JSON. Raises TaskInvalid."""
    if not body:
        raise TaskInvalid("the body is empty; send JSON")
    try:
        if not body.isascii():
            body.decode()  # msgspec skips what no struct names, without a look at its encoding
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        found = _FIELD.search(str(exc))
        raise TaskInvalid(f"the body does not fit: {exc}", param=found and found[1]) from exc
    except UnicodeDecodeError as exc:
        raise TaskInvalid(f"the body is not UTF-8 (byte {exc.start})") from exc
    except RecursionError:
        raise TaskInvalid("the body is nested too deeply") from None
    except msgspec.DecodeError as exc:
        raise TaskInvalid(f"the body is not valid JSON: {_why(exc, body)}") from exc


def _peek_named(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """As `_peek`, for a body that names a model: once, and by no other spelling of `model`. Raises TaskInvalid."""
    peeked = _peek(decoder, body)
    exactly = body.count(b'"model"')
    if exactly > 1 or body.lower().count(b'"model"') > exactly or _ESCAPED_LETTER.search(body):
        _check_spelling(_keys_of(body))
    return peeked


def _keys_of(body: bytes) -> Iterator[str]:
    """The keys of a JSON object itself, each as often as it stands there, one that is escaped as what it says."""
    keys: list[str] = []

    def note(_: type, key: str) -> _Key:
        keys.append(key)
        if len(keys) > MAX_KEYS:
            raise TaskInvalid(
                f"the body has more than {MAX_KEYS} keys, and it cannot be told whether one is `model` twice"
            )
        return _Key()

    msgspec.json.decode(body, type=dict[_Key, msgspec.Raw], dec_hook=note)
    yield from keys


def _check_spelling(keys: Iterable[str]) -> None:
    """What a rule was held against must be what everybody reads: the first, the last, or whatever the case."""
    found = [key for key in keys if key.casefold() == "model"]
    if found not in ([], ["model"]):
        shown = ", ".join(f"`{key}`" for key in found[:3])
        raise TaskInvalid(f"the body names its model by {shown}; write `model`, once", param="model")


def _why(exc: msgspec.DecodeError, body: bytes) -> str:
    """msgspec's message, or a better one where it calls a lone surrogate a truncation."""
    if "truncated" in str(exc) and _LONE_SURROGATE.search(body):
        return r"a \ud800–\udfff escape stands alone; write the character itself, or both halves"
    return str(exc)
