"""Embeddings: `POST /v1/embeddings`, in the encoding the client requested.

Both OpenAI SDKs request base64 by default, and openai-node turns an unexpected list of floats into an empty vector;
other clients cannot read base64. Base64 is of little-endian 32-bit floats.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import sys
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from gateway.api.operation import Operation, ParsedRequest
from gateway.api.parse import checked_name, read_json_with_model
from gateway.api.response_json import JSON, ResponseContext, decode_object, encode_json
from gateway.api.routes import Match
from gateway.api.schemas import EmbeddingsRequest, schema_ref
from gateway.plugin import Result, TaskInvalid

MAX_DECODED_BYTES = 4 << 20  # decoded at once, 1.7 ms per megabyte on a slow core; a longer response is split first
PAUSE_BYTES = 256 << 10  # of vectors checked and converted between two pauses
_SLICE_BYTES = 65_536  # searched between two pauses
_REQUEST = msgspec.json.Decoder(EmbeddingsRequest)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FLOATS = msgspec.json.Decoder(list[float])
_TEXT = msgspec.json.Decoder(str)
_MARK = re.compile(rb'["\\\[\]{}]')
_QUOTE, _BACKSLASH, _LIST = b'"\\['
_OPENING, _CLOSING, _SPACE = b"[{", b"]}", b" \t\r\n"


class EmbeddingsOperation(Operation):
    """Turn texts or tokens into vectors. Has no streams."""

    kind = "embeddings"
    request_content: ClassVar[Mapping[str, Any]] = {"application/json": schema_ref("EmbeddingsRequest")}
    response_content: ClassVar[Mapping[str, Any]] = {"application/json": schema_ref("Embeddings")}

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        fields = read_json_with_model(_REQUEST, body)
        return ParsedRequest(
            operation=self,
            name=checked_name(fields.model),
            path=match.path,
            body=body,
            content_type=JSON,
            items=_count_inputs(fields.input),
            encoding_format=fields.encoding_format,
        )

    async def render(self, request: ParsedRequest, context: ResponseContext, result: Result) -> tuple[str, bytes]:
        if result.body is not None:
            body = result.body
        elif isinstance(result.json, dict):
            body = encode_json(result.json)
        else:
            body = encode_json(_from_vectors(context, result.json, request.items))
        return JSON, await _encoded(context, body, request.items, as_base64=request.encoding_format == "base64")


def _count_inputs(inputs: str | list[str | int | list[int]]) -> int:
    """Return the number of inputs: a text or a list of tokens is a single input.

    Raises TaskInvalid for a mixture.
    """
    if not inputs:
        raise TaskInvalid("`input` is empty; send a text, or a list of at least one", param="input")
    kinds = {type(each) for each in inputs}
    if len(kinds) > 1:
        raise TaskInvalid("`input` mixes texts and tokens; send a list of one kind", param="input")
    return 1 if isinstance(inputs, str) or kinds == {int} else len(inputs)


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def to_base64(vector: list[float]) -> str:
    """Pack a vector as base64 of 32-bit floats.

    Raises OverflowError or TypeError if it cannot be packed.
    """
    packed = array("f", vector)
    if math.inf in packed or -math.inf in packed:
        raise OverflowError("a number is too large for 32 bits")
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def to_floats(encoded: str) -> list[float]:
    """Unpack a vector, exactly.

    Raises ValueError if it is not base64 of finite 32-bit floats.
    """
    packed = array("f")
    packed.frombytes(base64.b64decode(encoded, validate=True))
    if sys.byteorder == "big":
        packed.byteswap()
    vector = packed.tolist()
    if not all(map(math.isfinite, vector)):
        raise ValueError("a number is infinite, or none at all")
    return vector


def _from_vectors(context: ResponseContext, value: Any, items: int) -> dict[str, Any]:
    # OpenAI's schema requires `usage` here, unlike in chat, and strictly typed clients fail without it.
    vectors = _as_list(value)
    if len(vectors) != items:
        raise context.failure(f"gave {len(vectors)} vectors for {items} inputs")
    if not all(_is_vector(vector) for vector in vectors):
        raise context.failure("gave embeddings that are not lists of numbers")
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "data": data, "model": context.model, "usage": usage}


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        return []
    return [value] if value and _is_vector(value) else list(value)


def _is_vector(value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        array("d", value)
    except (TypeError, OverflowError):
        return False
    return True


async def _encoded(context: ResponseContext, body: bytes, items: int, *, as_base64: bool) -> bytes:
    try:
        members, data = await _read(context, body)
        changed = await _convert(data, as_base64=as_base64)
    except (msgspec.DecodeError, KeyError, binascii.Error, ValueError, TypeError, OverflowError) as exc:
        raise context.failure(f"gave embeddings that cannot be read: {exc!r}") from exc
    if len(data) != items:
        raise context.failure(f"gave {len(data)} vectors for {items} inputs")
    if not _restore_model(context, members) and not changed:
        return body
    rest = msgspec.json.encode(members)[:-1]
    pieces = [piece for item in data for piece in (b",", item)]
    return b"".join([rest, b',"data":[' if members else b'"data":[', *pieces[1:], b"]}"])


async def _read(context: ResponseContext, body: bytes) -> tuple[dict[str, msgspec.Raw], list[Any]]:
    """Return the response without its `data`, and the bytes of each item of `data`."""
    split = await SplitObject.split(body, "data") if len(body) > MAX_DECODED_BYTES else None
    if split is not None:
        members = decode_object(split.rest, context)
        del members["data"]
        return members, list(split.members())
    members = decode_object(body, context)
    return members, list(_ITEMS.decode(members.pop("data")))


def _restore_model(context: ResponseContext, members: dict[str, msgspec.Raw]) -> bool:
    ours = msgspec.json.encode(context.model)
    if context.served_as == context.model or bytes(members.get("model", ours)) == ours:
        return False
    members["model"] = msgspec.Raw(ours)
    return True


async def _convert(data: list[Any], *, as_base64: bool) -> bool:
    """Convert the vectors in `data` that are in the other encoding.

    Returns whether there were any.
    """
    opening = b'"' if as_base64 else b"["
    changed, done_bytes = False, 0
    for number, raw in enumerate(data):
        item = _ITEM.decode(raw)
        if not bytes(item["embedding"]).startswith(opening):
            changed = True
            item["embedding"] = msgspec.Raw(msgspec.json.encode(_converted(item["embedding"], as_base64=as_base64)))
            data[number] = msgspec.json.encode(item)
        done_bytes += len(item["embedding"])
        if done_bytes > PAUSE_BYTES:
            done_bytes = 0
            await asyncio.sleep(0)  # thousands of vectors must not block the event loop
    return changed


def _converted(raw: msgspec.Raw, *, as_base64: bool) -> str | list[float]:
    return to_base64(_FLOATS.decode(raw)) if as_base64 else to_floats(_TEXT.decode(raw))


# ── splitting a long response ────────────────────────────────────────────────────────────────────


class SplitObject:
    """A JSON object, split at the members of its list `name` without decoding it.

    Made by `split`.

    Decoding tens of megabytes at once would block the event loop. Only brackets and quotes are looked at: decoding the
    members, and the rest of the object, shows whether they are JSON.
    """

    def __init__(self, body: bytes, name: str) -> None:
        self._body, self._name = body, f'"{name}"'.encode()
        self._depth = 0
        self._quote = self._escaped = self._from = self._begin = self._end = -1
        self._string = b""  # the last string at the top level, which may be the list's name
        self._spans: list[tuple[int, int]] = []

    @classmethod
    async def split(cls, body: bytes, name: str) -> SplitObject | None:
        """Split `body`; None if the list is not found in its usual spelling."""
        found = cls(body, name)
        for start in range(0, len(body), _SLICE_BYTES):
            for mark in _MARK.finditer(body, start, min(start + _SLICE_BYTES, len(body))):
                found._mark(mark.start())
            await asyncio.sleep(0)
        return found if found._end >= 0 else None

    @property
    def rest(self) -> bytes:
        """The object, with an empty list in place of `name`."""
        return self._body[: self._begin] + self._body[self._end :]

    def members(self) -> list[memoryview]:
        """Return the members' bytes.

        Raises ValueError if anything but a comma separates them.
        """
        view, at = memoryview(self._body), self._begin
        for number, (start, end) in enumerate(self._spans):
            if self._body[at:start].strip(_SPACE) != (b"," if number else b""):
                raise ValueError("a list of something else than objects")
            at = end
        if self._body[at : self._end].strip(_SPACE):
            raise ValueError("a list of something else than objects")
        return [view[start:end] for start, end in self._spans]

    def _mark(self, at: int) -> None:
        char = self._body[at]
        if self._quote >= 0:
            if at == self._escaped:
                return
            if char == _BACKSLASH:
                self._escaped = at + 1
            elif char == _QUOTE:
                self._string, self._quote = (self._body[self._quote : at + 1] if self._depth == 1 else b""), -1
        elif char == _QUOTE:
            self._quote = at
        elif char in _OPENING:
            self._open(at, char)
        elif char in _CLOSING:
            self._close(at)

    def _open(self, at: int, char: int) -> None:
        self._depth += 1
        if self._depth == 2 and char == _LIST and self._string == self._name:
            # Of several members of that name the last counts, as in any JSON decoder.
            self._begin, self._end, self._spans = at + 1, -1, []
        elif self._depth == 3:
            self._from = at

    def _close(self, at: int) -> None:
        if self._begin >= 0 and self._end < 0:
            if self._depth == 3:
                self._spans.append((self._from, at + 1))
            elif self._depth == 2:
                self._end = at
        self._depth -= 1
