"""The incremental JSON check: any chunking, early rejection."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.response.json_scan import OBJECT, JsonScanner, replace_not_finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def is_json(pieces: list[bytes], walk: JsonScanner | None = None) -> bool:
    walk = walk or JsonScanner()
    return all(walk.feed(piece) for piece in pieces) and walk.is_complete


def cut_at(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in pairwise(edges)]


@given(VALUES, st.booleans(), st.lists(st.integers(0, 2000), max_size=20))
def test_json_is_accepted_in_any_chunking(value: Any, ascii_only: bool, places: list[int]) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    assert is_json(cut_at(body, places))


@given(st.dictionaries(st.text(min_size=1), VALUES, min_size=1), st.integers(0, 10_000))
def test_truncated_object_is_rejected(value: Any, place: int) -> None:
    body = json.dumps(value).encode()
    assert not is_json([body[: place % len(body)]])


NONE = [
    b"", b" ", b"{\0\0", b'{"a":"\0"}', b'{"a":"\xff"}', b'{"a":"\xc3', b'{"a":?}', b"{]", b"}", b"[}", b'{"a":"\\"}',
    b"[" * 2000 + b"]" * 2000, b"<html>", b"{'a':1}", b"\xef\xbb\xbf\xef\xbb\xbf{}", b'"\xef\xbb\xbf"x',
]  # fmt: skip


@pytest.mark.parametrize("body", NONE)
@pytest.mark.parametrize("by_byte", [True, False])
def test_invalid_json_is_rejected(body: bytes, by_byte: bool) -> None:
    assert not is_json([bytes([byte]) for byte in body] if by_byte else [body])


def test_numbers_that_are_not_finite_are_found_and_replaced_outside_of_strings() -> None:
    body = b'{"a":-Infinity,"b":[NaN,Infinity,1],"c":"NaN \\" -Infinity"}'
    scanner = JsonScanner()
    assert is_json([body[at : at + 2] for at in range(0, len(body), 2)], scanner)
    assert scanner.has_not_finite
    assert replace_not_finite(body) == b'{"a":-9999.0,"b":[null,null,1],"c":"NaN \\" -Infinity"}'
    other = JsonScanner()
    assert is_json([b'{"a":"NaN","b":[true,null]}'], other)
    assert not other.has_not_finite


def test_byte_order_mark_is_accepted_and_the_required_type_is_enforced() -> None:
    assert is_json([b"\xef\xbb\xbf {}"])
    assert is_json([b"[1]"])
    assert not is_json([b"[1]"], JsonScanner(OBJECT))


PIECES = [
    b'"",' * 11000,
    b"[],{}," * 5500,
    b"[" * 500 + b"]" * 500,
    b'"' + b"\\n" * 16000 + b'",',
    b'"\xc3\xa9",' * 6000,
]


@pytest.mark.parametrize("piece", PIECES)
def test_scan_time_is_linear_in_the_length(piece: bytes) -> None:
    def once(times: int) -> float:
        began = time.thread_time()  # processor time: other processes do not count
        assert JsonScanner().feed(b"[" + piece * times)
        return time.thread_time() - began

    assert min(once(8) for _ in range(5)) < 16 * min(once(1) for _ in range(5))
