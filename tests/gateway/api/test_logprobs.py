"""Log probabilities when a client gets only the rest of a text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.logprobs import first_offset, rest_of_entries, rest_of_lists

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
    got = rest_of_entries(entries(*before, *after), text, rest)
    assert got == entries(*after)
    got = rest_of_lists(lists(*before, *after, begin=7), text, rest, begins_at=begins_at)
    assert got == lists(*after, begin=begins_at)


def test_logprobs_are_dropped_when_the_rest_starts_within_a_token() -> None:
    assert rest_of_entries(entries("wide "), "wide ", "de ") is None
    assert rest_of_lists(lists("wide "), "wide ", "de ", begins_at=0) is None


@pytest.mark.parametrize("rest", ["", "on", "held and on"])
def test_logprobs_that_do_not_match_the_text_are_dropped(rest: str) -> None:
    assert rest_of_entries(entries("go ", "oN"), "go on", rest) is None
    assert rest_of_lists(lists("go ", "oN"), "go on", rest, begins_at=0) is None


@pytest.mark.parametrize("odd", [{}, {"content": None}, {"content": [3]}, {"content": [{}]}, {"tokens": [3]}, [1], "x"])
def test_logprobs_of_an_unknown_shape_are_dropped(odd: Any) -> None:
    assert rest_of_entries(odd, "go on", "on") is None
    assert rest_of_lists(odd, "go on", "on", begins_at=0) is None


def test_logprobs_of_an_entirely_new_chunk_are_kept() -> None:
    odd = {"content": [{"token": "\ufffd"}]}
    assert rest_of_entries(odd, "x", "x") is odd
    assert rest_of_lists(lists("a", begin=0), "a", "a", begins_at=5) == lists("a", begin=5)


@pytest.mark.parametrize(
    ("choice", "offset"),
    [({"logprobs": lists("a", begin=4)}, 4), ({"logprobs": None}, None), ({"logprobs": {"text_offset": []}}, None),
     ({"logprobs": {"text_offset": "x"}}, None), ({"text": '"text_offset"'}, None)],
)  # fmt: skip
def test_first_offset_is_read_from_the_first_token(choice: dict[str, Any], offset: int | None) -> None:
    assert first_offset(json.dumps({"choices": [choice]}).encode()) == offset
