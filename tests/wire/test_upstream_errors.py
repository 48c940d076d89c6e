"""Errors of an upstream, as the client receives them."""

from __future__ import annotations

import json
import ssl
from typing import Any

import pytest
import trustme

from support.error_envelope import check_error
from support.raw import answered, post
from support.upstream import answer, by_path, cut
from support.wiring import ADD, relaying

# ── upstream errors ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_upstream_4xx_is_passed_through_with_status_and_body(status: int) -> None:
    said = {"detail": "invalid argument"}
    async with relaying(answer(status=status, json=said), TASKS=ADD) as (gateway, _):
        found = await answered(gateway.url, post("/v1/tasks/add", b"{}"))
        line = await gateway.line()
    assert (found.status, found.json) == (status, said)
    assert found.headers["x-gateway-backend"] == "cloud"
    assert (line["status"], line["outcome"], line["attempts"]) == (status, "refused", 1)


@pytest.mark.parametrize(
    ("theirs", "status", "code"),
    [
        (
            answer(status=429, json={"error": {"message": "slow down"}}, headers=[("Retry-After", "7")]),
            429,
            "rate_limited",
        ),
        (answer(status=500, json={"error": {"message": "oops"}}), 500, "upstream_bad_response"),
        (answer(status=503, json={}), 503, "upstream_bad_response"),
        (answer(status=401, json={}), 502, "upstream_auth"),
        (answer(status=403, json={}), 502, "upstream_auth"),
        (answer(status=302, headers=[("Location", "http://169.254.169.254/")]), 502, "upstream_bad_response"),
        (answer(b"<html>", content_type="text/html"), 502, "upstream_bad_response"),
        (answer(b'{"a":', content_type="application/json"), 502, "upstream_bad_response"),
        (cut(), 503, "unavailable"),
    ],
    ids=["429", "500", "503", "401", "403", "redirect", "web page", "truncated JSON", "hangs up"],
)
async def test_upstream_failure_keeps_a_meaningful_status_in_our_error_envelope(
    theirs: Any, status: int, code: str
) -> None:
    async with relaying(by_path({"/add": theirs}), TASKS=ADD) as (gateway, _):
        found = await answered(gateway.url, post("/v1/tasks/add", b'{"a":1}'))
        check_error(found, code, attempts=1, status=status)
        line = await gateway.line()
    assert (line["status"], line["backend"], line["site"]) == (status, "cloud", "cloud")
    if status == 429:
        assert (found.headers["retry-after"], found.headers["retry-after-ms"]) == ("7", "7000")


async def test_invalid_upstream_certificate_is_502_and_the_error_states_why() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with relaying(answer(json={}), tls=context, TASKS=ADD) as (gateway, upstream):
        found = await answered(gateway.url, post("/v1/tasks/add", b"{}"))
    assert "CA_FILE" in found.json["error"]["message"]
    assert (found.status, found.json["error"]["code"]) == (502, "upstream_tls_error")
    assert upstream.requests == []


async def test_only_allowed_client_headers_are_forwarded_upstream() -> None:
    async with relaying(answer(json={"ok": 1}), TASKS=ADD) as (gateway, upstream):
        secrets = ("Authorization: Bearer s3cret", "x-api-key: s3cret", "api-key: s3cret", "Cookie: s3cret")
        trace = "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        found = await answered(
            gateway.url, post("/v1/tasks/add", b"{}", *secrets, trace, "X-Forwarded-For: s3cret", "Via: 1.1 s3cret")
        )
        line = await gateway.line()
    asked = upstream.requests[-1]
    assert found.json == {"ok": 1}
    assert "s3cret" not in json.dumps(dict(asked.headers))
    assert asked.headers["traceparent"] == trace.partition(": ")[2]
    assert line["trace_id"] == "a" * 32
