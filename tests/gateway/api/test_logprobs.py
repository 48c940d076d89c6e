"""Log probabilities when a client gets only the rest of a text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.logprobs import first_offset, of_the_rest

tokens = st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), min_size=1, max_size=8)


def entries(*said: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.1} for token in said], "refusal": None}


def lists(*said: str, begin: int = 0) -> dict[str, Any]:
    offsets = [begin + len("".join(said[:i])) for i in range(len(said))]
    return {"tokens": [*said], "token_logprobs": [-0.1] * len(said), "top_logprobs": None, "text_offset": offsets}


@given(before=tokens, after=tokens, begins_at=st.integers(0, 99))
def test_logprobs_of_the_rest_are_returned_when_it_starts_between_tokens(
    before: list[str], after: list[str], begins_at: int
) -> None:
    text, rest = "".join(before + after), "".join(after)
    got = of_the_rest(entries(*before, *after), text, rest, "chat", begins_at=begins_at)
    assert got == entries(*after)
    got = of_the_rest(lists(*before, *after, begin=7), text, rest, "completion", begins_at=begins_at)
    assert got == lists(*after, begin=begins_at)


def test_logprobs_are_dropped_when_the_rest_starts_within_a_token() -> None:
    assert of_the_rest(entries("wide "), "wide ", "de ", "chat", begins_at=0) is None
    assert of_the_rest(lists("wide "), "wide ", "de ", "completion", begins_at=0) is None


@pytest.mark.parametrize("rest", ["", "on", "held and on"])
def test_logprobs_that_do_not_match_the_text_are_dropped(rest: str) -> None:
    assert of_the_rest(entries("go ", "oN"), "go on", rest, "chat", begins_at=0) is None
    assert of_the_rest(lists("go ", "oN"), "go on", rest, "completion", begins_at=0) is None


@pytest.mark.parametrize("odd", [{}, {"content": None}, {"content": [3]}, {"content": [{}]}, {"tokens": [3]}, [1], "x"])
def test_logprobs_of_an_unknown_shape_are_dropped(odd: Any) -> None:
    assert of_the_rest(odd, "go on", "on", "chat", begins_at=0) is None
    assert of_the_rest(odd, "go on", "on", "completion", begins_at=0) is None


def test_logprobs_of_an_entirely_new_chunk_are_kept() -> None:
    odd = {"content": [{"token": "\ufffd"}]}
    assert of_the_rest(odd, "x", "x", "chat", begins_at=0) is odd
    assert of_the_rest(lists("a", begin=0), "a", "a", "completion", begins_at=5) == lists("a", begin=5)


@pytest.mark.parametrize(
    ("choice", "offset"),
    [({"logprobs": lists("a", begin=4)}, 4), ({"logprobs": None}, None), ({"logprobs": {"text_offset": []}}, None),
     ({"logprobs": {"text_offset": "x"}}, None), ({"text": '"text_offset"'}, None)],
)  # fmt: skip
def test_first_offset_is_read_from_the_first_token(choice: dict[str, Any], offset: int | None) -> None:
    assert first_offset(json.dumps({"choices": [choice]}).encode()) == offset
