"""From what a backend gave to what this client asked for; the one place that knows which kind is shaped how.

The rule: an upstream's bytes go out as they came in, unless the client asked for something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from gateway.api.answers import chat_answer, completion_answer
from gateway.api.chunks import Shape, chunk_of
from gateway.api.content import has_content
from gateway.api.embeddings import embeddings_answer
from gateway.api.errors import with_error_body
from gateway.api.merge_chunks import ChunkMerger
from gateway.api.parse import ParsedRequest
from gateway.api.sse import JSON, Stamp, encode_json, events_of, renamed, renamed_within
from gateway.api.streams import ChunkStream, CompletionStream, StreamEncoder, TaskStream, TranscriptStream
from gateway.api.transcripts import as_transcript, transcript_answer
from gateway.plugin import BackendFailed, Kind, Part, Result

__all__ = ["ResponseRenderer", "StreamEncoder", "has_content", "streamed", "wants_whole"]

_STREAMS: dict[Kind, type[StreamEncoder]] = {
    "chat": ChunkStream,
    "completion": CompletionStream,
    "transcription": TranscriptStream,
    "task": TaskStream,
}


class ResponseRenderer:
    """One backend's answer, made into what this client asked for. Implements `gateway.dispatch.Renderer`.

    `served_as`: the model's name at the backend, where it is known.
    """

    def __init__(self, draft: ParsedRequest, request_id: str, backend: str, served_as: str | None) -> None:
        self._draft = draft
        self._stamp = Stamp(request_id=request_id, model=draft.name, backend=backend, served_as=served_as)
        gathered = _Response if _streams_if_asked(draft) else _GATHERED.get(draft.kind, PartCollector)
        self._gathered = gathered(self._stamp)

    def add(self, part: Part) -> None:
        """The next part of a backend that streams, for a client that wants a whole. Raises BackendUnavailable."""
        with _readable(self._stamp):
            self._gathered.add(part)

    async def whole(self, result: Result | None) -> Result:
        """The answer: `result`, or what the parts make. Raises BackendUnavailable for what is none.

        A refusal of the backend (status 400 and up) passes untouched, unless it says nothing. For a client that
        wants a stream, an answer is only looked at: whether it can be made into one.
        """
        with _readable(self._stamp):
            found = self._gathered.result() if result is None else result
            found = with_error_body(found, self._stamp.backend, self._stamp.request_id)
            if self._draft.stream:
                self._check(found)
                return found
            return await self._rendered(found)

    def _check(self, result: Result) -> None:
        if result.status >= 400:
            return
        if _streams_if_asked(self._draft):
            raise self._stamp.failure("gave a whole answer, though a stream was asked for")
        if self._draft.kind != "other":
            streamed(self._draft, request_id="", served_as=self._stamp.served_as).whole(result)

    async def _rendered(self, result: Result) -> Result:
        if result.status >= 400:
            return dataclasses.replace(result, json=None, body=_as_it_is(result))
        content_type, body = await _shaped(self._draft, self._stamp, result)
        return dataclasses.replace(result, json=None, body=body, content_type=content_type)


@contextmanager
def _readable(stamp: Stamp) -> Iterator[None]:
    """What is not of the shape that its kind has, is the backend's failure, not ours."""
    try:
        yield
    except BackendFailed as exc:
        if exc.code != "upstream_bad_response":
            raise
        raise stamp.failure("gave an answer that cannot be read", said=exc.message) from exc
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise stamp.failure(f"gave an answer that cannot be read ({type(exc).__name__})", said=str(exc)) from exc


def _as_it_is(result: Result) -> bytes:
    return encode_json(result.json) if result.body is None else result.body


async def _shaped(draft: ParsedRequest, stamp: Stamp, result: Result) -> tuple[str, bytes]:
    if draft.kind == "embeddings":
        as_base64 = draft.encoding_format == "base64"
        return JSON, await embeddings_answer(stamp, result, items=draft.items, as_base64=as_base64)
    if result.body is not None and not _is_another_format(draft, result):
        return result.content_type, _named(draft, stamp, result.content_type, result.body)
    match draft.kind:
        case "chat":
            return JSON, encode_json(chat_answer(stamp, result.json))
        case "completion":
            return JSON, encode_json(completion_answer(stamp, result.json))
        case "transcription":
            return transcript_answer(stamp, result.value(), draft.response_format)
        case _:
            return result.content_type, encode_json(result.json)


def _is_another_format(draft: ParsedRequest, result: Result) -> bool:
    """Whether a recogniser that knows JSON only was asked for a text or subtitles."""
    wants_text = draft.kind == "transcription" and draft.response_format in ("text", "srt", "vtt")
    return wants_text and "json" in result.content_type


def _named(draft: ParsedRequest, stamp: Stamp, content_type: str, body: bytes) -> bytes:
    """An upstream's body with the client's name of the model, where one stands in it."""
    if draft.kind in ("chat", "completion"):
        return renamed(body, stamp)
    return renamed_within(body, stamp) if draft.kind == "other" and "json" in content_type else body


def streamed(draft: ParsedRequest, *, request_id: str, served_as: str | None = None) -> StreamEncoder:
    """The stream this client asked for, or that a task's generator makes."""
    stamp = Stamp(request_id=request_id, model=draft.name, served_as=served_as)
    return _STREAMS.get(draft.kind, StreamEncoder)(draft, stamp)


# ── parts where the client wants a whole ─────────────────────────────────────────────────────────


def wants_whole(draft: ParsedRequest, first: Part, *, takes_pieces: bool = True) -> bool:
    """Whether an answer that begins with this part is to be put together: the client did not ask for parts.

    The events of what is only relayed go on as they are, where a client may have asked for them in ways not known here.
    takes_pieces: whether it takes a body in pieces.
    """
    if first.content_type is not None:
        return not takes_pieces
    if draft.stream or draft.kind == "task":
        return False
    return draft.kind != "other" or first.raw is None or _streams_if_asked(draft)


def _streams_if_asked(draft: ParsedRequest) -> bool:
    """Whether it is relayed, and `stream` alone says in which form the answer is due."""
    return draft.kind == "other" and draft.path.partition("?")[0] in ("/v1/responses", "/v1/messages")


class PartCollector:
    """One answer from the parts of a backend that streams. Here: a list of what it yielded."""

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.values: list[Any] = []

    def add(self, part: Part) -> None:
        """The next part. Raises BackendUnavailable for one that cannot be read."""
        if part.raw is None:
            self.take(part.data)
            return
        for _, data in events_of(part.raw):
            if data.strip() != b"[DONE]":
                self.hear(data)

    def hear(self, data: bytes) -> None:
        """The next event of an upstream's."""
        self.take(_decoded(self.stamp, data))

    def take(self, value: Any) -> None:
        """The next value."""
        self.values.append(value)

    def result(self) -> Result:
        """All of it. Raises BackendUnavailable where it makes no answer."""
        return Result(json={"result": self.values})


class _Chunks(PartCollector):
    shape: Shape = "chat"

    def __init__(self, stamp: Stamp) -> None:
        super().__init__(stamp)
        self.merger = ChunkMerger(stamp, self.shape)

    def hear(self, data: bytes) -> None:
        self.merger.add(data)

    def take(self, value: Any) -> None:
        self.merger.add(encode_json(chunk_of(self.stamp, value, self.shape)))

    def result(self) -> Result:
        answer = self.merger.answer()
        if not answer["choices"]:
            raise self.stamp.failure("ended its answer before it had begun")
        return Result(json=answer)


class _Texts(_Chunks):
    shape: Shape = "completion"


class _Transcript(PartCollector):
    """The transcript's text: of its last event if that has it all, else what was heard piece by piece."""

    text: str | None = None

    def take(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("type") == "transcript.text.done":
            self.text = str(as_transcript(self.stamp, value)["text"])
        else:
            self.values.append(_piece(self.stamp, value))

    def result(self) -> Result:
        return Result(json={"text": "".join(self.values) if self.text is None else self.text})


class _Response(PartCollector):
    """Events that nobody asked for: the last one of a Responses stream holds the whole."""

    def take(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("type") in _WITH_WHOLE and isinstance(value.get("response"), dict):
            self.values = [value["response"]]

    def result(self) -> Result:
        if not self.values:
            raise self.stamp.failure("answered with a stream, though none was asked for")
        return Result(body=encode_json(self.values[0]), content_type=JSON)


class _Relayed(PartCollector):
    """What is relayed: a body's pieces, or values."""

    def __init__(self, stamp: Stamp) -> None:
        super().__init__(stamp)
        self.content_type: str | None = None

    def add(self, part: Part) -> None:
        if part.content_type is None:
            super().add(part)
        else:
            self.content_type = part.content_type
            self.values.append(part.data)

    def result(self) -> Result:
        if self.content_type is None:
            return super().result()
        return Result(body=b"".join(self.values), content_type=self.content_type)


_WITH_WHOLE = frozenset({"response.completed", "response.failed", "response.incomplete"})
_GATHERED: dict[Kind, type[PartCollector]] = {
    "chat": _Chunks,
    "completion": _Texts,
    "transcription": _Transcript,
    "other": _Relayed,
}


def _decoded(stamp: Stamp, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise stamp.failure(f"sent an event that is not JSON: {exc}") from exc


def _piece(stamp: Stamp, piece: Any) -> str:
    is_delta = isinstance(piece, dict) and isinstance(piece.get("delta"), str)
    return str(piece["delta"] if is_delta else as_transcript(stamp, piece)["text"])
