"""Every row of the error table, as a client on a socket meets it: status, envelope, headers, one log line."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from gateway.ingress import http as http_door
from gateway.ingress.errors import ERRORS
from gateway.testing import RunningGateway, running_gateway
from support.polling import wait_until
from support.raw import Answer, answered, connected, post, read_answer, read_to_end
from support.stub_backend import StubBackend
from support.upstream import answer, by_path, cut
from support.wiring import ADD, OFF_SITE_STUB, STUB, relaying

OURS = ("x-request-id", "x-gateway-backend", "x-gateway-site", "x-gateway-reason", "x-gateway-attempts")
MEMBERS = {"message", "type", "code", "param", "request_id", "retryable"}
CHAT = b'{"model":"clerk","messages":[{"role":"user","content":"x"}]}'
LIMIT = {"GATEWAY_MAX_BODY_BYTES": "1000"}


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    pieces = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data for head, data in parts]
    return b"\r\n".join(pieces) + f"\r\n--{boundary}--\r\n".encode()


FORM = "Content-Type: multipart/form-data; boundary=b"
NO_UPLOAD = form(('name="model"', b"clerk"))


@dataclass
class Case:
    """What is sent, and what must come back. says: words of the message. attempts: backends asked."""

    name: str
    sent: bytes
    code: str
    says: str
    attempts: int = 0
    param: str | None = None
    environ: dict[str, str] = field(default_factory=lambda: STUB)
    more: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def chunked(path: str, *pieces: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


CASES = [
    Case("not JSON", post("/v1/tasks/say", b"{"), "bad_request", "not valid JSON"),
    Case("NaN", post("/v1/tasks/say", b'{"a":NaN}'), "bad_request", "not valid JSON"),
    Case("a depth bomb", post("/v1/tasks/say", b"[" * 100_000), "bad_request", "nested too deeply"),
    Case("a depth bomb in an object", post("/v1/tasks/say", b'{"a":' * 100_000), "bad_request", "nested too deeply"),
    Case("a closed depth bomb", post("/v1/tasks/say", b"[" * 100_000 + b"]" * 100_000), "bad_request", "too deeply"),
    Case("a lone surrogate", post("/v1/tasks/say", b'{"a":"\\ud800"}'), "bad_request", "stands alone"),
    Case("bytes that are not UTF-8", post("/v1/tasks/say", b'{"a":"\xff"}'), "bad_request", "UTF-8"),
    Case("chat without a body", post("/v1/chat/completions"), "bad_request", "empty"),
    Case("chat that is no object", post("/v1/chat/completions", b"[]"), "bad_request", "does not fit"),
    Case("chat without messages", post("/v1/chat/completions", b'{"model":"clerk"}'), "bad_request", "messages",
         param="messages"),
    Case(
        "a locality nobody knows",
        post("/v1/tasks/say", b"{}", "x-gateway-locality: mars"),
        "bad_request",
        "edge-only",
        param="x-gateway-locality",
    ),
    Case(
        "a deadline that is no number",
        post("/v1/tasks/say", b"{}", "x-gateway-deadline-ms: soon"),
        "bad_request",
        "milliseconds",
        param="x-gateway-deadline-ms",
    ),
    *(
        Case(f"a deadline that float() alone takes for a number: {text}",
             post("/v1/tasks/say", b"{}", f"x-gateway-deadline-ms: {text}"),
             "bad_request", "milliseconds", param="x-gateway-deadline-ms")
        for text in ("\u0661\u0662".encode().decode("latin-1"), "1_000", "nan", "+5", "0x10")
    ),
    Case("what the plugin calls invalid", post("/v1/tasks/invalid"), "bad_request", "colour", 1, "colour"),
    Case("no upload", post("/v1/audio/transcriptions", NO_UPLOAD, FORM), "bad_request", "no file", param="file"),
    Case("an upload that is cut", post("/v1/audio/transcriptions", NO_UPLOAD[:-4], FORM), "bad_request", "boundary"),
    Case("no form at all", post("/v1/audio/transcriptions", b"{}"), "bad_request", "multipart"),
    Case("an unknown path", post("/v1/task/say"), "not_found", "/v1/tasks/{task}"),
    Case("an unknown task", post("/v1/tasks/sai"), "not_found", "'say'"),
    Case("an unknown model", post("/v1/chat/completions", CHAT.replace(b"clerk", b"clark")), "model_not_found",
         "'clerk'", param="model"),
    Case("a pin to a model it has not", post("/v1/chat/completions", CHAT.replace(b"clerk", b"desk/x")),
         "model_not_found", "desk/clerk", param="model"),
    Case("a method that does not fit", post("/v1/models", b"{}"), "method_not_allowed", "GET",
         more={"allow": "GET, HEAD"}),
    Case("a declared body over the limit", post("/v1/tasks/say", b"", length=1001), "body_too_large", "1000 bytes",
         environ=STUB | LIMIT),
    Case("a chunked body over the limit", chunked("/v1/tasks/say", b" " * 600, b" " * 600), "body_too_large",
         "1000 bytes", environ=STUB | LIMIT),
    Case("a compressed body", post("/v1/tasks/say", b"{}", "Content-Encoding: gzip"), "unsupported_encoding", "gzip"),
    Case("another's name", post("/v1/tasks/say", b"{}", host="evil.example"), "misdirected_request", "evil.example"),
    Case("a Host that is no name", post("/v1/tasks/say", b"{}", host="a/#@b"), "bad_request", "not a host name"),
    Case("a page of another origin", post("/v1/tasks/say", b"{}", "Origin: http://evil.example"), "forbidden", "evil"),
    Case("a plugin that raises", post("/v1/tasks/boom"), "plugin_error", "desk raised RuntimeError", 1),
    Case("a plugin that gives nonsense", post("/v1/tasks/shapeless"), "plugin_error", "TypeError", 1),
    Case("a backend that fails", post("/v1/tasks/fail"), "plugin_error", "cannot do this", 1),
    Case("a backend that is down", post("/v1/tasks/down"), "unavailable", "closed for today", 1),
    Case("a backend that is busy", post("/v1/tasks/refuse"), "overloaded", "busy", 1,
         more={"retry-after": "3", "retry-after-ms": "2500"}),
    Case("what may not leave, served only far away", post("/v1/tasks/say", b"{}", "x-gateway-locality: edge-only"),
         "no_backend", "far: edge-only", environ=OFF_SITE_STUB),
    Case("the client's deadline", post("/v1/tasks/wait", b"{}", "x-gateway-deadline-ms: 50"), "deadline_exceeded",
         "nothing came from desk", 1),
    Case("the operator's deadline", post("/v1/tasks/wait"), "deadline_exceeded", "nothing came from desk", 1,
         environ=STUB | {"GATEWAY_DEADLINE_S": "0.05"}),
    Case("the client library's patience", post("/v1/tasks/wait", b"", "x-stainless-read-timeout: 0.05"),
         "deadline_exceeded", "nothing came from desk", 1),
]  # fmt: skip

TOLD_ELSEWHERE = {
    "request_timeout",
    "rate_limited",
    "unauthorized",
    "upstream_bad_response",
    "upstream_auth",
    "upstream_tls_error",
}


def check(found: Answer, code: str, *, attempts: int = 0, param: str | None = None, status: int | None = None) -> str:
    """That an answer is an error as the contract has it; returns its message."""
    assert found.status == (status or ERRORS[code].status), found
    error = found.json["error"]
    assert set(found.json) == {"error"}
    assert set(error) == MEMBERS
    assert (error["code"], error["type"], error["param"]) == (code, ERRORS[code].type, param)
    assert error["retryable"] is ERRORS[code].retryable
    assert error["request_id"] == found.headers["x-request-id"]
    assert found.headers["content-type"] == "application/json"
    assert "Traceback" not in error["message"]
    assert all(name in found.headers for name in OURS), found.headers
    assert found.headers["x-gateway-attempts"] == str(attempts)
    assert found.headers.get("x-should-retry") == ("false" if attempts else None)
    assert re.fullmatch(r"(\w+;dur=[\d.e-]+, )*total;dur=[\d.e-]+", found.headers["server-timing"])
    message: str = error["message"]
    return message


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_an_error_has_its_status_its_envelope_its_headers_and_its_line(case: Case, unhandled: list[Any]) -> None:
    async with running_gateway(**case.environ) as gateway:
        found = await answered(gateway.url, case.sent)
        message = check(found, case.code, attempts=case.attempts, param=case.param)
        assert case.says in message
        assert "secret" not in message
        assert {name: found.headers.get(name) for name in case.more} == case.more
        line = await gateway.line(request_id=found.headers["x-request-id"])
    assert (line["status"], line["reason"]) == (found.status, case.code)
    assert message.startswith(line["error"])  # what quotes the request is for the client alone
    assert (line["backend"], line["site"]) == (found.headers["x-gateway-backend"], found.headers["x-gateway-site"])
    assert (line["backend"] == "none") == (case.attempts == 0)
    assert len(gateway.lines.of("request.finished")) == 1
    assert unhandled == []


def test_every_code_of_the_table_is_produced_by_some_test() -> None:
    assert {case.code for case in CASES} | TOLD_ELSEWHERE == set(ERRORS)


# ── bytes that are no request ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/tasks/say HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        post("/v1/tasks/say", b"0\r\n\r\n", "Transfer-Encoding: chunked"),
        b"POST /v1/tasks/say HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad\x00Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    ],
    ids=["TLS", "no path", "length no number", "two lengths", "length and chunked", "coding", "NUL", "long", "no host",
         "two hosts"],
)  # fmt: skip
async def test_malformed_http_is_told_so_in_the_envelope_and_the_connection_goes(
    desk: RunningGateway, sent: bytes, unhandled: list[Any]
) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(sent)
        found = await read_answer(reader)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        rest = await read_to_end(reader)
    assert found.status == 400
    assert found.json["error"]["code"] == "bad_request"
    assert found.json["error"]["request_id"] == found.headers["x-request-id"]
    assert b"200 OK" not in rest
    assert desk.lines.of("request.finished") == []
    assert len(desk.lines.of("http.rejected")) == 1
    assert unhandled == []


async def test_a_flood_of_malformed_bytes_writes_few_lines(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "_rejected", http_door.Limited("http.rejected", per_s=0.0, burst=3))
    for _ in range(20):
        assert (await answered(desk.url, b"nonsense\r\n\r\n")).status == 400
    assert len(desk.lines.of("http.rejected")) == 3
    assert desk.lines.of("library.logged") == []


# ── too slow ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_body_that_does_not_come_is_408_and_the_connection_goes(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http_door, "LINGER_S", 0.05)
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"{", length=100))
        found = await read_answer(reader)
        assert "too slowly: 1 bytes" in check(found, "request_timeout")
        assert await read_to_end(reader) == b""
    line = await desk.line()
    assert (line["outcome"], line["status"], line["bytes_in"]) == ("timed_out", 408, 0)
    assert line["t_read_ms"] >= 40


async def test_a_body_that_keeps_coming_is_given_a_second_for_each_kilobyte(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http_door, "BODY_S_PER_BYTE", 10.0)
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"{", length=2))
        await asyncio.sleep(0.1)  # a slow client, slower than any client may be that has sent nothing
        writer.write(b"}")
        assert (await read_answer(reader)).json == {"result": {}}


async def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "HEAD_TIMEOUT_S", 0.05)
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(b"POST /v1/tasks/say HTTP/1.1\r\nHost: loc")
        assert b"200" not in await read_to_end(reader)


# ── what waits for 100 Continue, and what follows an answer ──────────────────────────────────────


async def test_who_expects_100_continue_is_told_to_go_on(desk: RunningGateway) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"", "Expect: 100-continue", length=2))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"{}")
        assert (await read_answer(reader)).json == {"result": {}}


async def test_who_expects_100_continue_with_too_much_is_refused_before_it_is_sent() -> None:
    async with running_gateway(**STUB, **LIMIT) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"", "Expect: 100-continue", length=5000))
        assert "1000 bytes" in check(await read_answer(reader), "body_too_large")


async def test_a_connection_is_kept_after_an_error_whose_body_was_read(desk: RunningGateway) -> None:
    async with connected(desk.url) as (reader, writer):
        for sent, status in ((b"{", 400), (b"{}", 200), (b"[1", 400), (b"1", 200)):
            writer.write(post("/v1/tasks/say", sent))
            assert (await read_answer(reader)).status == status


async def test_a_body_nobody_read_is_never_taken_for_the_next_request(desk: RunningGateway) -> None:
    smuggled = b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", smuggled, "Content-Encoding: gzip"))
        check(await read_answer(reader), "unsupported_encoding")
        assert b"HTTP/1.1 200" not in await read_to_end(reader)
    assert len(desk.lines.of("request.finished")) == 1


async def test_every_get_of_the_table_answers_head_without_a_body(desk: RunningGateway) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/v1/models", "/v1/models/clerk", "/v1/tasks", "/openapi.json"):
        async with connected(desk.url) as (reader, writer):
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await read_to_end(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), path
        assert body == b""


async def test_an_absolute_target_must_name_the_host_it_is_sent_to(desk: RunningGateway) -> None:
    sent = b"GET http://%s/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await answered(desk.url, sent % b"localhost")).status == 200
    assert (await answered(desk.url, sent % b"evil.example")).json["error"]["code"] == "misdirected_request"


async def test_a_browser_of_an_allowed_origin_may_ask_and_read_the_answer() -> None:
    origin = "http://app.example"
    async with running_gateway(**STUB, GATEWAY_ALLOWED_ORIGINS=origin) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"1", f"Origin: {origin}"))
        assert (found.json, found.headers["access-control-allow-origin"]) == ({"result": 1}, origin)
        assert "x-gateway-backend" in found.headers["access-control-expose-headers"]
        assert found.headers["vary"] == "Origin"  # or a cache gives one page what another was answered
        wanted = "authorization,x-stainless-read-timeout,traceparent"  # an SDK adds its own
        asks = (
            f"OPTIONS /v1/tasks/say HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n"
            f"Access-Control-Request-Headers: {wanted}\r\n\r\n"
        )
        async with connected(gateway.url) as (reader, writer):
            writer.write(asks.encode())
            preflight = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert preflight.startswith("http/1.1 204")
        assert f"access-control-allow-origin: {origin}" in preflight
        assert f"access-control-allow-headers: {wanted}" in preflight


async def test_who_finds_every_place_taken_is_told_to_come_back_and_that_nobody_was_asked() -> None:
    few = STUB | {"GATEWAY_BACKENDS__DESK__SLOTS": "1", "GATEWAY_BACKENDS__DESK__QUEUE": "1"}
    async with (
        running_gateway(**few) as gateway,
        connected(gateway.url) as (_, one),
        connected(gateway.url) as (_, two),
    ):
        one.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        two.write(post("/v1/tasks/wait", b"{}"))
        await wait_until(lambda: gateway.service.lanes.waiting()["desk"] == 1)
        found = await answered(gateway.url, post("/v1/tasks/say", b"1"))
    check(found, "overloaded", attempts=0)
    assert int(found.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize("line", ["X_API_KEY: a", "api-key: a\r\napi-key: b"])
async def test_a_header_that_others_may_read_otherwise_is_refused_with_a_line_like_any_request(line: str) -> None:
    async with running_gateway(**STUB) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"1", line))
        check(found, "bad_request")
        assert found.headers["connection"] == "close"
        assert (await gateway.line())["status"] == 400


async def test_two_codings_of_a_body_are_no_less_than_one() -> None:
    async with running_gateway(**STUB) as gateway:
        asked = post("/v1/tasks/say", b"1", "Content-Encoding: gzip", "Content-Encoding: identity")
        check(await answered(gateway.url, asked), "unsupported_encoding")


async def test_a_client_elsewhere_is_not_told_where_the_time_went(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "is_local", lambda _: False)
    found = await answered(desk.url, post("/v1/tasks/fail"))
    assert found.status == 500
    assert "server-timing" not in found.headers


# ── load, and what is not known yet ──────────────────────────────────────────────────────────────


async def test_who_finds_the_line_full_is_told_when_to_come_back() -> None:
    environ = STUB | {"GATEWAY_BACKENDS__DESK__SLOTS": "1", "GATEWAY_BACKENDS__DESK__QUEUE": "0"}
    async with running_gateway(**environ) as gateway, gateway.session() as http:
        first = asyncio.create_task(http.post(f"{gateway.url}/v1/tasks/wait"))
        await StubBackend.waiting.wait()
        found = await answered(gateway.url, post("/v1/tasks/say"))
        assert "0 are waiting" in found.json["error"]["message"]
        assert (found.status, found.json["error"]["code"]) == (503, "overloaded")
        assert int(found.headers["retry-after"]) >= 1
        assert int(found.headers["retry-after-ms"]) >= 1
        StubBackend.open.set()
        async with await first as served:
            assert served.status == 200


async def test_a_backend_whose_health_check_fails_is_asked_where_nobody_else_is_left() -> None:
    script = by_path({"/add": answer(json={"sum": 3})}, answer(status=500, json={}))
    async with relaying(script, TASKS=ADD) as (gateway, _):
        await gateway.line("backend.unwell")
        assert (await answered(gateway.url, post("/v1/tasks/add", b"{}"))).json == {"sum": 3}


async def test_a_list_that_is_not_known_yet_is_503_and_never_404() -> None:
    async with relaying(answer(status=503, json={})) as (gateway, _):
        for sent in (post("/v1/tasks/add"), post("/v1/chat/completions", CHAT)):
            found = await answered(gateway.url, sent)
            assert "not known yet" in check(found, "unavailable")
            assert found.headers["retry-after"] == "1"
        found = await answered(gateway.url, b"GET /v1/models/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found.status == 503


async def test_an_edge_only_request_is_503_no_backend_though_the_far_one_is_down_too() -> None:
    environ = OFF_SITE_STUB | {"GATEWAY_BACKENDS__FAR__REFUSES_TO_OPEN": "true"}
    async with running_gateway(**environ) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"{}"))
        assert "not known yet" not in found.json["error"]["message"]
        assert (found.status, "locked" in found.json["error"]["message"]) == (503, True)


# ── an upstream's errors ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_an_upstreams_refusal_passes_with_its_status_and_its_body(status: int) -> None:
    said = {"detail": "as I say"}
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
    ids=["429", "500", "503", "401", "403", "redirect", "web page", "half of JSON", "hangs up"],
)
async def test_an_upstreams_failure_keeps_its_status_where_that_says_something_and_gets_our_envelope(
    theirs: Any, status: int, code: str
) -> None:
    async with relaying(by_path({"/add": theirs}), TASKS=ADD) as (gateway, _):
        found = await answered(gateway.url, post("/v1/tasks/add", b'{"a":1}'))
        check(found, code, attempts=1, status=status)
        line = await gateway.line()
    assert (line["status"], line["backend"], line["site"]) == (status, "cloud", "cloud")
    if status == 429:
        assert (found.headers["retry-after"], found.headers["retry-after-ms"]) == ("7", "7000")


async def test_a_certificate_that_does_not_hold_is_502_and_says_why() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with relaying(answer(json={}), tls=context, TASKS=ADD) as (gateway, upstream):
        found = await answered(gateway.url, post("/v1/tasks/add", b"{}"))
    assert "CA_FILE" in found.json["error"]["message"]
    assert (found.status, found.json["error"]["code"]) == (502, "upstream_tls_error")
    assert upstream.requests == []


async def test_no_client_header_but_those_that_may_travel_reaches_an_upstream() -> None:
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
