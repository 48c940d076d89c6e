"""Every row of the error table: status, envelope, headers and one log line."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.api.errors import ERRORS
from gateway.ingress.http import adapter, body, server
from gateway.testing import RunningGateway, running_gateway
from support.error_envelope import check_error
from support.polling import wait_until
from support.raw import answered, connected, post, read_answer, read_to_end
from support.stub_backend import StubBackend
from support.upstream import answer, by_path
from support.wiring import ADD, OFF_SITE_STUB, STUB, relaying

CHAT = b'{"model":"clerk","messages":[{"role":"user","content":"x"}]}'
LIMIT = {"GATEWAY_MAX_BODY_BYTES": "1000"}


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    pieces = [f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data for head, data in parts]
    return b"\r\n".join(pieces) + f"\r\n--{boundary}--\r\n".encode()


FORM = "Content-Type: multipart/form-data; boundary=b"
NO_UPLOAD = form(('name="model"', b"clerk"))


@dataclass
class Case:
    """A request and the expected error.

    `says` is part of the error message; `attempts` counts the backends tried.
    """

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
    Case("chat that is not an object", post("/v1/chat/completions", b"[]"), "bad_request", "does not fit"),
    Case("chat without messages", post("/v1/chat/completions", b'{"model":"clerk"}'), "bad_request", "messages",
         param="messages"),
    Case(
        "an unknown locality",
        post("/v1/tasks/say", b"{}", "x-gateway-locality: mars"),
        "bad_request",
        "edge-only",
        param="x-gateway-locality",
    ),
    Case(
        "a deadline that is not a number",
        post("/v1/tasks/say", b"{}", "x-gateway-deadline-ms: soon"),
        "bad_request",
        "milliseconds",
        param="x-gateway-deadline-ms",
    ),
    *(
        Case(f"a deadline that only float() accepts: {text}",
             post("/v1/tasks/say", b"{}", f"x-gateway-deadline-ms: {text}"),
             "bad_request", "milliseconds", param="x-gateway-deadline-ms")
        for text in ("\u0661\u0662".encode().decode("latin-1"), "1_000", "nan", "+5", "0x10")
    ),
    Case("input the plugin rejects", post("/v1/tasks/invalid"), "bad_request", "colour", 1, "colour"),
    Case("no upload", post("/v1/audio/transcriptions", NO_UPLOAD, FORM), "bad_request", "no file", param="file"),
    Case("a truncated upload", post("/v1/audio/transcriptions", NO_UPLOAD[:-4], FORM), "bad_request", "boundary"),
    Case("a body that is not a form", post("/v1/audio/transcriptions", b"{}"), "bad_request", "multipart"),
    Case("an unknown path", post("/v1/task/say"), "not_found", "/v1/tasks/{task}"),
    Case("an unknown task", post("/v1/tasks/sai"), "not_found", "'say'"),
    Case("an unknown model", post("/v1/chat/completions", CHAT.replace(b"clerk", b"clark")), "model_not_found",
         "'clerk'", param="model"),
    Case("a pin to an absent model", post("/v1/chat/completions", CHAT.replace(b"clerk", b"desk/x")),
         "model_not_found", "desk/clerk", param="model"),
    Case("a method that is not allowed", post("/v1/models", b"{}"), "method_not_allowed", "GET",
         more={"allow": "GET, HEAD"}),
    Case("a declared body over the limit", post("/v1/tasks/say", b"", length=1001), "body_too_large", "1000 bytes",
         environ=STUB | LIMIT),
    Case("a chunked body over the limit", chunked("/v1/tasks/say", b" " * 600, b" " * 600), "body_too_large",
         "1000 bytes", environ=STUB | LIMIT),
    Case("a compressed body", post("/v1/tasks/say", b"{}", "Content-Encoding: gzip"), "unsupported_encoding", "gzip"),
    Case("another host", post("/v1/tasks/say", b"{}", host="evil.example"), "misdirected_request", "evil.example"),
    Case("a Host that is not a name", post("/v1/tasks/say", b"{}", host="a/#@b"), "bad_request", "not a host name"),
    Case("a page of another origin", post("/v1/tasks/say", b"{}", "Origin: http://evil.example"), "forbidden", "evil"),
    Case("a plugin that raises", post("/v1/tasks/boom"), "plugin_error", "desk raised RuntimeError", 1),
    Case("a plugin with an invalid result", post("/v1/tasks/shapeless"), "plugin_error", "TypeError", 1),
    Case("a backend that fails", post("/v1/tasks/fail"), "plugin_error", "cannot do this", 1),
    Case("a backend that is down", post("/v1/tasks/down"), "unavailable", "closed for today", 1),
    Case("a backend that is busy", post("/v1/tasks/refuse"), "overloaded", "busy", 1,
         more={"retry-after": "3", "retry-after-ms": "2500"}),
    Case("edge-only, with a cloud backend only", post("/v1/tasks/say", b"{}", "x-gateway-locality: edge-only"),
         "no_backend", "far: edge-only", environ=OFF_SITE_STUB),
    Case("the client's deadline", post("/v1/tasks/wait", b"{}", "x-gateway-deadline-ms: 50"), "deadline_exceeded",
         "no response from desk", 1),
    Case("the operator's deadline", post("/v1/tasks/wait"), "deadline_exceeded", "no response from desk", 1,
         environ=STUB | {"GATEWAY_DEADLINE_S": "0.05"}),
    Case("the read timeout of the client library", post("/v1/tasks/wait", b"", "x-stainless-read-timeout: 0.05"),
         "deadline_exceeded", "no response from desk", 1),
]  # fmt: skip

TOLD_ELSEWHERE = {
    "request_timeout",
    "rate_limited",
    "unauthorized",
    "upstream_bad_response",
    "upstream_auth",
    "upstream_quota",
    "upstream_tls_error",
}


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_error_response_has_status_envelope_headers_and_log_line(case: Case, unhandled: list[Any]) -> None:
    async with running_gateway(**case.environ) as gateway:
        found = await answered(gateway.url, case.sent)
        message = check_error(found, case.code, attempts=case.attempts, param=case.param)
        assert case.says in message
        assert "secret" not in message
        assert {name: found.headers.get(name) for name in case.more} == case.more
        line = await gateway.line(request_id=found.headers["x-request-id"])
    assert (line["status"], line["reason"]) == (found.status, case.code)
    assert message.startswith(line["error"])  # parts that quote the request are sent to the client and not logged
    assert (line["backend"], line["site"]) == (found.headers["x-gateway-backend"], found.headers["x-gateway-site"])
    assert (line["backend"] == "none") == (case.attempts == 0)
    assert len(gateway.lines.of("request.finished")) == 1
    assert unhandled == []


def test_every_error_code_is_covered_by_a_test() -> None:
    assert {case.code for case in CASES} | TOLD_ELSEWHERE == set(ERRORS)


# ── malformed requests ───────────────────────────────────────────────────────────────────────────


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
    ids=["TLS", "no path", "invalid length", "two lengths", "length and chunked", "coding", "NUL", "long", "no host",
         "two hosts"],
)  # fmt: skip
async def test_malformed_http_is_400_in_the_envelope_and_the_connection_closes(
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


async def test_flood_of_malformed_requests_writes_few_log_lines(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_rejected", server.RateLimitedEvent("http.rejected", per_s=0.0, burst=3))
    for _ in range(20):
        assert (await answered(desk.url, b"nonsense\r\n\r\n")).status == 400
    assert len(desk.lines.of("http.rejected")) == 3
    assert desk.lines.of("library.logged") == []


# ── timeouts ─────────────────────────────────────────────────────────────────────────────────────


async def test_body_that_does_not_arrive_is_408_and_the_connection_closes(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"{", length=100))
        found = await read_answer(reader)
        assert "too slowly: 1 bytes" in check_error(found, "request_timeout")
        assert await read_to_end(reader) == b""
    line = await desk.line()
    assert (line["outcome"], line["status"], line["bytes_in"]) == ("timed_out", 408, 0)
    assert line["t_read_ms"] >= 40


async def test_body_timeout_is_extended_in_proportion_to_the_received_bytes(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(body, "BODY_S_PER_BYTE", 10.0)
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"{", length=2))
        await asyncio.sleep(0.1)  # longer than BODY_TIMEOUT_S, the limit for a client that has sent nothing
        writer.write(b"}")
        assert (await read_answer(reader)).json == {"result": {}}


async def test_request_head_that_does_not_arrive_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.05)
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(b"POST /v1/tasks/say HTTP/1.1\r\nHost: loc")
        assert b"200" not in await read_to_end(reader)


# ── Expect: 100-continue, and the connection after a response ────────────────────────────────────


async def test_expect_100_continue_receives_100_before_the_body_is_sent(desk: RunningGateway) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"", "Expect: 100-continue", length=2))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"{}")
        assert (await read_answer(reader)).json == {"result": {}}


async def test_expect_100_continue_with_an_oversized_body_is_rejected_before_it_is_sent() -> None:
    async with running_gateway(**STUB, **LIMIT) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"", "Expect: 100-continue", length=5000))
        assert "1000 bytes" in check_error(await read_answer(reader), "body_too_large")


async def test_connection_is_kept_alive_after_an_error_whose_body_was_read(desk: RunningGateway) -> None:
    async with connected(desk.url) as (reader, writer):
        for sent, status in ((b"{", 400), (b"{}", 200), (b"[1", 400), (b"1", 200)):
            writer.write(post("/v1/tasks/say", sent))
            assert (await read_answer(reader)).status == status


async def test_unread_body_is_never_parsed_as_the_next_request(desk: RunningGateway) -> None:
    smuggled = b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with connected(desk.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", smuggled, "Content-Encoding: gzip"))
        check_error(await read_answer(reader), "unsupported_encoding")
        assert b"HTTP/1.1 200" not in await read_to_end(reader)
    assert len(desk.lines.of("request.finished")) == 1


async def test_every_get_route_answers_head_without_a_body(desk: RunningGateway) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/v1/models", "/v1/models/clerk", "/v1/tasks", "/openapi.json"):
        async with connected(desk.url) as (reader, writer):
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await read_to_end(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), path
        assert body == b""


async def test_absolute_request_target_must_match_the_host_header(desk: RunningGateway) -> None:
    sent = b"GET http://%s/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await answered(desk.url, sent % b"localhost")).status == 200
    assert (await answered(desk.url, sent % b"evil.example")).json["error"]["code"] == "misdirected_request"


async def test_browser_of_an_allowed_origin_gets_cors_headers_and_preflight() -> None:
    origin = "http://app.example"
    async with running_gateway(**STUB, GATEWAY_ALLOWED_ORIGINS=origin) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"1", f"Origin: {origin}"))
        assert (found.json, found.headers["access-control-allow-origin"]) == ({"result": 1}, origin)
        assert "x-gateway-backend" in found.headers["access-control-expose-headers"]
        assert found.headers["vary"] == "Origin"  # otherwise a cache serves one origin the response for another
        wanted = "authorization,x-stainless-read-timeout,traceparent"  # an SDK adds its own headers
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


async def test_request_is_503_with_retry_after_when_slots_and_queue_are_full() -> None:
    few = STUB | {"GATEWAY_BACKENDS__DESK__SLOTS": "1", "GATEWAY_BACKENDS__DESK__QUEUE": "1"}
    async with (
        running_gateway(**few) as gateway,
        connected(gateway.url) as (_, one),
        connected(gateway.url) as (_, two),
    ):
        one.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        two.write(post("/v1/tasks/wait", b"{}"))
        await wait_until(lambda: gateway.service.scheduler.waiting()["desk"] == 1)
        found = await answered(gateway.url, post("/v1/tasks/say", b"1"))
    check_error(found, "overloaded", attempts=0)
    assert int(found.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize("line", ["X_API_KEY: a", "api-key: a\r\napi-key: b"])
async def test_ambiguous_header_is_rejected_and_logged_like_any_request(line: str) -> None:
    async with running_gateway(**STUB) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"1", line))
        check_error(found, "bad_request")
        assert found.headers["connection"] == "close"
        assert (await gateway.line())["status"] == 400


async def test_repeated_content_encoding_header_is_rejected() -> None:
    async with running_gateway(**STUB) as gateway:
        asked = post("/v1/tasks/say", b"1", "Content-Encoding: gzip", "Content-Encoding: identity")
        check_error(await answered(gateway.url, asked), "unsupported_encoding")


async def test_server_timing_is_not_sent_to_remote_clients(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "is_local", lambda _: False)
    found = await answered(desk.url, post("/v1/tasks/fail"))
    assert found.status == 500
    assert "server-timing" not in found.headers


# ── full queues and model lists that are not loaded ──────────────────────────────────────────────


async def test_request_is_503_overloaded_with_retry_after_when_the_queue_is_full() -> None:
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


async def test_backend_failing_its_health_check_is_used_when_it_is_the_only_one() -> None:
    script = by_path({"/add": answer(json={"sum": 3})}, answer(status=500, json={}))
    async with relaying(script, TASKS=ADD) as (gateway, _):
        await gateway.line("backend.unwell")
        assert (await answered(gateway.url, post("/v1/tasks/add", b"{}"))).json == {"sum": 3}


async def test_unknown_model_is_503_not_404_while_the_model_list_is_not_loaded() -> None:
    async with relaying(answer(status=503, json={})) as (gateway, _):
        for sent in (post("/v1/tasks/add"), post("/v1/chat/completions", CHAT)):
            found = await answered(gateway.url, sent)
            assert "not known yet" in check_error(found, "unavailable")
            assert found.headers["retry-after"] == "1"
        found = await answered(gateway.url, b"GET /v1/models/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found.status == 503


async def test_edge_only_request_is_503_even_if_the_cloud_backend_failed_to_open() -> None:
    environ = OFF_SITE_STUB | {"GATEWAY_BACKENDS__FAR__REFUSES_TO_OPEN": "true"}
    async with running_gateway(**environ) as gateway:
        found = await answered(gateway.url, post("/v1/tasks/say", b"{}"))
        assert "not known yet" not in found.json["error"]["message"]
        assert (found.status, "locked" in found.json["error"]["message"]) == (503, True)
