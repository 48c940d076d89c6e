"""Exact conversion of embeddings from the backend's to the requested encoding."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import embeddings
from gateway.api.embeddings import SplitObject, to_base64, to_floats
from gateway.api.operation import ParsedRequest
from gateway.api.operations import OPERATIONS
from gateway.api.render import ResponseRenderer
from gateway.plugin import BackendUnavailable, Result

VECTOR = [0.5, -1.25, 3.0]
PACKED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rendered(result: Result, *, asked: Any = None, items: int = 1, served_as: str | None = "m") -> bytes:
    draft = ParsedRequest(
        operation=OPERATIONS["embeddings"],
        name="m",
        path="/v1/embeddings",
        body=b"",
        content_type="application/json",
        items=items,
        encoding_format=asked,
    )
    return asyncio.run(ResponseRenderer(draft, "r", "the backend", served_as).whole(result)).body or b""


def relayed(*vectors: Any) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": v, "extra": i} for i, v in enumerate(vectors)]
    return json.dumps({"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 7}}).encode()


@given(st.lists(finite))
def test_floats_survive_base64_exactly(vector: list[float]) -> None:
    assert to_floats(to_base64(vector)) == vector
    assert base64.b64decode(to_base64(vector)) == struct.pack(f"<{len(vector)}f", *vector)


@given(st.binary().filter(lambda packed: len(packed) % 4 == 0))
def test_base64_survives_floats_when_it_contains_no_nan(packed: bytes) -> None:
    numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
    if all(number == number for number in numbers):
        assert to_base64(to_floats(base64.b64encode(packed).decode())) == base64.b64encode(packed).decode()


@pytest.mark.parametrize(("asked", "given_"), [("float", VECTOR), (None, VECTOR), ("base64", PACKED)])
def test_relayed_response_in_the_requested_encoding_is_unchanged(asked: Any, given_: Any) -> None:
    body = relayed(given_, given_)
    assert rendered(Result(body=body), asked=asked, items=2) is body


@pytest.mark.parametrize(
    ("asked", "given_", "expected"), [("float", PACKED, VECTOR), (None, PACKED, VECTOR), ("base64", VECTOR, PACKED)]
)
def test_relayed_response_in_the_other_encoding_is_converted(asked: Any, given_: Any, expected: Any) -> None:
    answer = json.loads(rendered(Result(body=relayed(given_, given_)), asked=asked, items=2))
    assert answer == json.loads(relayed(expected, expected))


def test_only_vectors_in_the_other_encoding_are_converted() -> None:
    answer = json.loads(rendered(Result(body=relayed(VECTOR, PACKED)), asked="base64", items=2))
    assert [one["embedding"] for one in answer["data"]] == [PACKED, PACKED]


@pytest.mark.parametrize(("asked", "expected"), [("float", VECTOR), ("base64", PACKED)])
def test_vectors_of_a_plugin_become_an_openai_response(asked: Any, expected: Any) -> None:
    answer = json.loads(rendered(Result(json=[VECTOR, VECTOR]), asked=asked, items=2))
    assert answer["object"] == "list"
    assert answer["model"] == "m"
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert [one["embedding"] for one in answer["data"]] == [expected, expected]


def test_flat_vector_is_accepted_for_one_input() -> None:
    assert len(json.loads(rendered(Result(json=VECTOR)))["data"]) == 1


def test_requested_model_name_is_restored() -> None:
    body = relayed(VECTOR).replace(b'"m"', b'"text-embed:latest"')
    assert json.loads(rendered(Result(body=body), served_as="text-embed"))["model"] == "m"


@pytest.mark.parametrize(
    "result",
    [
        Result(json=[VECTOR, VECTOR]),
        Result(json=[]),
        Result(json="text"),
        Result(json=[["a"]]),
        Result(json=[["a"], ["b"]]),
        Result(body=b"not json"),
        Result(body=b"[]"),
        Result(body=b"{}"),
        Result(body=b'{"data":[{}]}'),
        Result(body=relayed(VECTOR, VECTOR)),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("asked", ["base64", "float"])
def test_result_of_the_wrong_shape_raises_backend_unavailable(result: Result, asked: str) -> None:
    with pytest.raises(BackendUnavailable) as failed:
        rendered(result, asked=asked)
    assert failed.value.code == "upstream_bad_response"


@pytest.mark.parametrize(
    ("asked", "vector"),
    [
        ("float", "not base64!"),
        ("float", "AAA="),
        ("base64", ["a"]),
        ("base64", {}),
        ("base64", None),
        ("float", None),
        ("float", {}),
    ],
)
def test_vector_that_cannot_be_converted_raises_backend_unavailable(asked: str, vector: Any) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be read"):
        rendered(Result(body=relayed(vector)), asked=asked)


def test_non_finite_and_oversized_floats_raise_backend_unavailable() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(BackendUnavailable, match="infinite, or none"):
            rendered(Result(body=relayed(base64.b64encode(struct.pack("<f", number)).decode())), asked="float")
    with pytest.raises(BackendUnavailable, match="too large"):
        rendered(Result(body=relayed([1e39])), asked="base64")


def _cut(body: bytes) -> SplitObject | None:
    return asyncio.run(SplitObject.split(body, "data"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\[]{},:\u00e9'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "a", '"', "\\"]), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3)), values, values, st.booleans())
def test_cut_finds_the_same_members_as_decoding_for_any_json(
    data: list[Any], before: Any, after: Any, indented: bool
) -> None:
    told = {"before": before, "data": data, "after": after}
    cut = _cut(json.dumps(told, indent=1 if indented else None).encode())
    assert cut is not None
    assert [json.loads(bytes(member)) for member in cut.members()] == data
    assert json.loads(cut.rest) == told | {"data": []}


@pytest.mark.parametrize("body", [b"{}", b'{"data":{}}', b'{"d\\u0061ta":[{}]}', b'[{"data":[]}]', b'{"data":[{}'])
def test_body_without_a_top_level_list_is_not_cut(body: bytes) -> None:
    assert _cut(body) is None


@pytest.mark.parametrize("body", [b'{"data":[1,2]}', b'{"data":[{}{}]}', b'{"data":[{},]}', b'{"data":[{},1,{}]}'])
def test_members_not_separated_by_single_commas_are_refused(body: bytes) -> None:
    cut = _cut(body)
    assert cut is not None
    with pytest.raises(ValueError, match="something else"):
        cut.members()


@pytest.mark.parametrize("asked", ["float", "base64"])
def test_long_response_renders_like_a_short_one_and_yields_to_other_tasks(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = relayed(*[VECTOR, PACKED] * 2000)
    short = rendered(Result(body=body), asked=asked, items=4000)
    monkeypatch.setattr(embeddings, "MAX_DECODED_BYTES", 0)
    turns: list[None] = []
    pause = asyncio.sleep

    async def counted(seconds: float) -> None:
        turns.append(None)
        await pause(seconds)

    monkeypatch.setattr(asyncio, "sleep", counted)
    assert rendered(Result(body=body), asked=asked, items=4000) == short
    assert len(turns) >= len(body) // 65_536


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [(b'"usage": {', b'"usage": ['), (b'"extra": 1', b'"extra": 01'), (b'"embedding": [0.5', b'"embedding": [,0.5')],
)
def test_long_response_that_is_not_json_raises_backend_unavailable(
    sound: bytes, damaged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "MAX_DECODED_BYTES", 0)
    body = relayed(VECTOR, VECTOR).replace(sound, damaged)
    with pytest.raises(BackendUnavailable):
        rendered(Result(body=body), asked="float", items=2)
