"""From what a backend gave to what this client asked for; the one place that knows which kind is shaped how.

The rule: an upstream's bytes go out as they came in, unless the client asked for something else.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Sequence
from typing import Any

import msgspec

from gateway.ingress.chunks import Chunk, Shape, chunk_of, merge
from gateway.ingress.content import has_content
from gateway.ingress.drafts import Draft
from gateway.ingress.embeddings import embeddings_answer
from gateway.ingress.framing import JSON, Rendered, Stamp, encode_json, events_of, renamed, renamed_within
from gateway.ingress.openai import chat_answer, completion_answer
from gateway.ingress.streams import (
    ChunkStream,
    CompletionStream,
    Streamed,
    TaskStream,
    TranscriptStream,
)
from gateway.ingress.transcripts import as_transcript, transcript_answer
from gateway.plugin import Kind, Part, Result

__all__ = ["Rendered", "Streamed", "collect", "has_content", "render", "streamed"]

_STREAMS: dict[Kind, type[Streamed]] = {
    "chat": ChunkStream,
    "completion": CompletionStream,
    "transcription": TranscriptStream,
    "task": TaskStream,
}


def render(
    draft: Draft,
    result: Result,
    *,
    request_id: str,
    backend: str = "the backend",
    served_as: str | None = None,
) -> Rendered:
    """A whole answer. `served_as`: the model's name at the backend, where it is known.

    A refusal of the backend (status 400 and up) passes untouched. Raises BackendFailed for a good status
    with an answer that cannot be passed on.
    """
    stamp = Stamp(request_id=request_id, model=draft.name, backend=backend, served_as=served_as)
    if result.status >= 400:
        content_type, body = result.content_type, _as_it_is(result)
    else:
        content_type, body = _shaped(draft, stamp, result)
    return Rendered(status=result.status, content_type=content_type, body=body)


def _as_it_is(result: Result) -> bytes:
    return encode_json(result.json) if result.body is None else result.body


def _shaped(draft: Draft, stamp: Stamp, result: Result) -> tuple[str, bytes]:
    if draft.kind == "embeddings":
        as_base64 = draft.encoding_format == "base64"
        return JSON, embeddings_answer(stamp, result, items=draft.items, as_base64=as_base64)
    if result.body is not None:
        return result.content_type, _named(draft, stamp, result.content_type, result.body)
    match draft.kind:
        case "chat":
            return JSON, encode_json(chat_answer(stamp, result.json))
        case "completion":
            return JSON, encode_json(completion_answer(stamp, result.json))
        case "transcription":
            return transcript_answer(stamp, result.json, draft.response_format)
        case _:
            return result.content_type, encode_json(result.json)


def _named(draft: Draft, stamp: Stamp, content_type: str, body: bytes) -> bytes:
    """An upstream's body with the client's name of the model, where one stands in it."""
    if draft.kind in ("chat", "completion"):
        return renamed(body, stamp)
    return renamed_within(body, stamp) if draft.kind == "other" and "json" in content_type else body


def streamed(draft: Draft, *, request_id: str, served_as: str | None = None) -> Streamed:
    """The stream this client asked for, or that a task's generator makes."""
    stamp = Stamp(request_id=request_id, model=draft.name, served_as=served_as)
    return _STREAMS.get(draft.kind, Streamed)(draft, stamp)


# ── parts where the client wants a whole ─────────────────────────────────────────────────────────


async def collect(draft: Draft, parts: AsyncIterable[Part]) -> Result:
    """One answer from the parts of a backend that streams to a client that did not ask for it."""
    return collected(draft, [part async for part in parts])


def collected(draft: Draft, parts: Sequence[Part]) -> Result:
    """One answer from all its parts. Raises BackendFailed for parts that do not make one."""
    stamp = Stamp(request_id="", model=draft.name)
    match draft.kind:
        case "chat":
            return Result(json=merge(stamp, _chunks(stamp, parts, "chat"), "chat"))
        case "completion":
            return Result(json=merge(stamp, _chunks(stamp, parts, "completion"), "completion"))
        case "transcription":
            return Result(json={"text": _text_of(stamp, list(_values(stamp, parts)))})
        case "other" if any(part.raw is not None for part in parts):
            return Result(body=b"".join(part.raw or b"" for part in parts), content_type="text/event-stream")
        case _:
            return Result(json={"result": list(_values(stamp, parts))})


def _chunks(stamp: Stamp, parts: Sequence[Part], shape: Shape) -> Iterator[Chunk]:
    for value in _values(stamp, parts):
        yield chunk_of(stamp, value, shape)


def _values(stamp: Stamp, parts: Sequence[Part]) -> Iterator[Any]:
    for part in parts:
        if part.raw is None:
            yield part.data
            continue
        for _, data in events_of(part.raw):
            if data.strip() != b"[DONE]":
                yield _decoded(stamp, data)


def _decoded(stamp: Stamp, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise stamp.failure(f"sent an event that is not JSON: {exc}") from exc


def _text_of(stamp: Stamp, heard: Sequence[Any]) -> str:
    """The transcript's text: of its last event if that has it all, else what was heard piece by piece."""
    for piece in heard:
        if isinstance(piece, dict) and piece.get("type") == "transcript.text.done":
            return str(as_transcript(stamp, piece)["text"])
    return "".join(_piece(stamp, piece) for piece in heard)


def _piece(stamp: Stamp, piece: Any) -> str:
    is_delta = isinstance(piece, dict) and isinstance(piece.get("delta"), str)
    return str(piece["delta"] if is_delta else as_transcript(stamp, piece)["text"])
