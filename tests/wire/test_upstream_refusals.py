"""Upstream refusals with a body that clients cannot parse."""

from __future__ import annotations

import json

import pytest

from support.error_envelope import MEMBERS
from support.raw import answered, post
from support.upstream import answer
from support.wiring import relaying


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "bad_request"), (404, "not_found"), (409, "bad_request"), (413, "body_too_large"), (422, "bad_request")],
)
async def test_upstream_refusal_that_is_not_json_becomes_our_error_envelope(
    status: int, code: str, stream: bool
) -> None:
    page = answer(b"<html>an internal host</html>", status=status, content_type="text/html")
    asked = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "x"}]}).encode()
    async with relaying(page, MODELS="m") as (gateway, _):
        found = await answered(gateway.url, post("/v1/chat/completions", asked))
        assert found.status == status
        error = found.json["error"]
        assert set(error) == MEMBERS
        assert (error["code"], error["type"], error["param"]) == (code, "invalid_request_error", None)
        assert error["request_id"] == found.headers["x-request-id"]
        assert error["retryable"] is False
        assert f"status {status}" in error["message"]
        assert "internal host" not in error["message"]
        line = await gateway.line(request_id=found.headers["x-request-id"])
    assert (line["status"], line["outcome"], line["attempts"]) == (status, "refused", 1)
