"""How likely the tokens were, where a client is told only the rest of a text."""

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
def test_between_two_tokens_those_of_the_rest_are_told(before: list[str], after: list[str], begins_at: int) -> None:
    text, rest = "".join(before + after), "".join(after)
    got = rest_of_entries(entries(*before, *after), text, rest)
    assert got == entries(*after)
    got = rest_of_lists(lists(*before, *after, begin=7), text, rest, begins_at=begins_at)
    assert got == lists(*after, begin=begins_at)


def test_within_a_token_none_are_told() -> None:
    assert rest_of_entries(entries("wide "), "wide ", "de ") is None
    assert rest_of_lists(lists("wide "), "wide ", "de ", begins_at=0) is None


@pytest.mark.parametrize("rest", ["", "on", "held and on"])
def test_what_does_not_fit_the_text_is_not_told(rest: str) -> None:
    assert rest_of_entries(entries("go ", "oN"), "go on", rest) is None
    assert rest_of_lists(lists("go ", "oN"), "go on", rest, begins_at=0) is None


@pytest.mark.parametrize("odd", [{}, {"content": None}, {"content": [3]}, {"content": [{}]}, {"tokens": [3]}, [1], "x"])
def test_what_is_of_no_shape_that_is_known_is_not_told(odd: Any) -> None:
    assert rest_of_entries(odd, "go on", "on") is None
    assert rest_of_lists(odd, "go on", "on", begins_at=0) is None


def test_a_chunk_that_is_all_new_keeps_what_it_says() -> None:
    odd = {"content": [{"token": "\ufffd"}]}
    assert rest_of_entries(odd, "x", "x") is odd
    assert rest_of_lists(lists("a", begin=0), "a", "a", begins_at=5) == lists("a", begin=5)


@pytest.mark.parametrize(
    ("choice", "offset"),
    [({"logprobs": lists("a", begin=4)}, 4), ({"logprobs": None}, None), ({"logprobs": {"text_offset": []}}, None),
     ({"logprobs": {"text_offset": "x"}}, None), ({"text": '"text_offset"'}, None)],
)  # fmt: skip
def test_where_a_text_begins_is_read_off_its_first_token(choice: dict[str, Any], offset: int | None) -> None:
    assert first_offset(json.dumps({"choices": [choice]}).encode()) == offset
