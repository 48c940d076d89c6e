"""Vectors in the encoding the client asked for, whatever the backend returned.

Both OpenAI SDKs ask for base64 unless told otherwise, and openai-node turns a list of floats it did not
expect into an empty vector; others cannot read base64. Base64 is of little-endian 32-bit floats.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import sys
from array import array
from typing import Any

import msgspec

from gateway.api.sse import Stamp, decode_object, encode_json
from gateway.api.vectors import Cut
from gateway.plugin import Result

AT_ONCE_BYTES = 4 << 20  # decoded in one go, 1.7 ms a megabyte on a slow core; longer answers are cut first
PAUSE_BYTES = 256 << 10  # of vectors looked at, and turned round, without a pause
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FLOATS = msgspec.json.Decoder(list[float])
_TEXT = msgspec.json.Decoder(str)


def to_base64(vector: list[float]) -> str:
    """The vector as base64 of 32-bit floats. Raises OverflowError, TypeError for what is no vector of these."""
    packed = array("f", vector)
    if math.inf in packed or -math.inf in packed:
        raise OverflowError("a number is too large for 32 bits")
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def to_floats(encoded: str) -> list[float]:
    """The vector exactly as it was packed. Raises ValueError when it was not base64 of finite 32-bit floats."""
    packed = array("f")
    packed.frombytes(base64.b64decode(encoded, validate=True))
    if sys.byteorder == "big":
        packed.byteswap()
    vector = packed.tolist()
    if not all(map(math.isfinite, vector)):
        raise ValueError("a number is infinite, or none at all")
    return vector


async def embeddings_answer(stamp: Stamp, result: Result, *, items: int, as_base64: bool) -> bytes:
    """The body of a good answer: an upstream's, or one made from vectors. Raises BackendUnavailable."""
    if result.body is not None:
        body = result.body
    elif isinstance(result.json, dict):
        body = encode_json(result.json)
    else:
        body = encode_json(_from_vectors(stamp, result.json, items))
    return await _in_encoding(stamp, body, items, as_base64=as_base64)


def _from_vectors(stamp: Stamp, value: Any, items: int) -> dict[str, Any]:
    # OpenAI's schema requires `usage` here, unlike in chat, and strictly typed clients fail without it.
    vectors = _listed(value)
    if len(vectors) != items:
        raise stamp.failure(f"gave {len(vectors)} vectors for {items} inputs")
    if not all(_is_vector(vector) for vector in vectors):
        raise stamp.failure("gave embeddings that are not lists of numbers")
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "data": data, "model": stamp.model, "usage": usage}


def _listed(value: Any) -> list[Any]:
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


async def _in_encoding(stamp: Stamp, body: bytes, items: int, *, as_base64: bool) -> bytes:
    try:
        members, data = await _read(stamp, body)
        changed = await _in_turn(data, as_base64=as_base64)
    except (msgspec.DecodeError, KeyError, binascii.Error, ValueError, TypeError, OverflowError) as exc:
        raise stamp.failure(f"gave embeddings that cannot be read: {exc!r}") from exc
    if len(data) != items:
        raise stamp.failure(f"gave {len(data)} vectors for {items} inputs")
    if not _rewrite_name(stamp, members) and not changed:
        return body
    rest = msgspec.json.encode(members)[:-1]
    pieces = [piece for item in data for piece in (b",", item)]
    return b"".join([rest, b',"data":[' if members else b'"data":[', *pieces[1:], b"]}"])


async def _read(stamp: Stamp, body: bytes) -> tuple[dict[str, msgspec.Raw], list[Any]]:
    """The answer without its `data`, and the bytes of each item of that."""
    cut = await Cut.made(body, "data") if len(body) > AT_ONCE_BYTES else None
    if cut is not None:
        members = decode_object(cut.rest, stamp)
        del members["data"]
        return members, list(cut.members())
    members = decode_object(body, stamp)
    return members, list(_ITEMS.decode(members.pop("data")))


def _rewrite_name(stamp: Stamp, members: dict[str, msgspec.Raw]) -> bool:
    ours = msgspec.json.encode(stamp.model)
    if stamp.served_as == stamp.model or bytes(members.get("model", ours)) == ours:
        return False
    members["model"] = msgspec.Raw(ours)
    return True


async def _in_turn(data: list[Any], *, as_base64: bool) -> bool:
    """Turn those vectors around that are not as they were asked for; True where there were any."""
    right = b'"' if as_base64 else b"["
    changed, done_bytes = False, 0
    for number, raw in enumerate(data):
        item = _ITEM.decode(raw)
        if not bytes(item["embedding"]).startswith(right):
            changed = True
            item["embedding"] = msgspec.Raw(msgspec.json.encode(_turned(item["embedding"], as_base64=as_base64)))
            data[number] = msgspec.json.encode(item)
        done_bytes += len(item["embedding"])
        if done_bytes > PAUSE_BYTES:
            done_bytes = 0
            await asyncio.sleep(0)  # thousands of them must not keep others waiting
    return changed


def _turned(raw: msgspec.Raw, *, as_base64: bool) -> str | list[float]:
    return to_base64(_FLOATS.decode(raw)) if as_base64 else to_floats(_TEXT.decode(raw))
