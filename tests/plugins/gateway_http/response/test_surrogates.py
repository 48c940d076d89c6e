r"""Lone surrogates in a whole answer: `\ud83d` without `\ude00`.

Python accepts them; stricter parsers reject them.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.response.surrogates import MAX_WHOLE_BYTES, replace_lone_surrogates
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

texts = st.text(st.sampled_from('\ud83d\ude00\ud800\udfff\\"ué😀x'), max_size=12)


@given(texts)
def test_only_lone_surrogates_are_replaced(text: str) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(replace_lone_surrogates(json.dumps(text).encode())) == whole


def test_body_without_lone_surrogates_is_unchanged() -> None:
    for body in (b'{"a":"\\ud83d\\ude00 \\u00fc"}', b'{"a":"\\\\ud83d"}', b'"x"'):
        assert replace_lone_surrogates(body) == body
    large = b'"\\ud83d' + b"x" * MAX_WHOLE_BYTES + b'"'
    assert replace_lone_surrogates(large) is large


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00"])
async def test_answer_with_a_lone_surrogate_is_accepted(half: str) -> None:
    completion: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi HALF"}}]}
    body = json.dumps(completion).replace("HALF", half).encode()
    async with Upstream(answer(body)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert got.body == body.replace(half.encode(), b"\\ufffd")
