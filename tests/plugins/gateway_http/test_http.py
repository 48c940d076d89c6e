"""Requests to an upstream, its answers, and the errors they map to."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.plugin import BackendFailed, BackendUnavailable, DeadlineExceeded, GatewayError, NotServed, Task
from gateway_http import Http
from gateway_http.settings import is_private
from support.http_backend import chat, job, opened, parts, result
from support.upstream import (
    Upstream,
    answer,
    by_path,
    head,
    reset,
    sends,
    sends_and_cuts,
    sse,
    sse_bytes,
)

COMPLETION = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}}]}
DELTA = {"choices": [{"index": 0, "delta": {"content": "h"}, "finish_reason": None}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def unreachable_url() -> str:
    return "http://127.0.0.1:1"  # tcpmux: no server listens on this port


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_plain_http_service_becomes_a_backend_by_settings_alone() -> None:
    async with (
        Upstream(by_path({"/add": answer(json={"result": 30})})) as upstream,
        opened(upstream.url, tasks='{"add": "/add"}') as (backend, _),
    ):
        assert backend.tasks == {"add": "/add"}
        got = await result(backend, job("/add"))
    assert got.value() == {"result": 30}
    assert upstream.requests[0].json == {"a": 10, "b": 20}


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/openai/v1", "/openai/v1/chat/completions"),
    ],
)
async def test_request_path_is_joined_to_the_base_url(base: str, path: str) -> None:
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url + base) as (backend, _):
        await result(backend, chat())
    assert upstream.requests[0].path == path


async def test_task_without_a_path_is_sent_to_the_peers_task_endpoint() -> None:
    async with Upstream(answer(json={"result": 1})) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, job("odd name/é"))
    assert upstream.requests[0].path == "/v1/tasks/odd%20name%2F%C3%A9"


async def test_request_carries_our_key_and_deadline_and_no_client_credentials() -> None:
    sent = {
        "authorization": "Bearer client", "x-api-key": "client", "cookie": "client", "traceparent": "00-ab-cd-01",
        "x-gateway-deadline-ms": "999999", "openai-beta": "x",
    }  # fmt: skip
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url, api_key="ours") as (backend, _):
        task = chat(headers=sent, deadline_s=2.0)
        await result(backend, task)
    got = upstream.requests[0].headers
    assert got["authorization"] == "Bearer ours"
    assert got["x-request-id"] == task.id
    assert got["traceparent"] == "00-ab-cd-01"
    assert got["openai-beta"] == "x"
    assert got["accept-encoding"] == "identity"
    assert 1 <= int(got["x-gateway-deadline-ms"]) <= 2000
    assert "client" not in str(got)
    assert "x-gateway-locality" not in got


async def test_edge_peer_receives_the_edge_only_locality_header() -> None:
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url, site="edge") as (backend, _):
        await result(backend, chat(may_leave=False))
    assert upstream.requests[0].headers["x-gateway-locality"] == "edge-only"


@pytest.mark.parametrize("body", [{}, {"id": "x"}, {"choices": None}, {"choices": []}, {"choices": {}}, {"data": [1]}])
async def test_json_object_without_choices_is_a_backend_failure(body: Any) -> None:
    async with Upstream(answer(json=body)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="no `choices`"):
            await result(backend, chat())


async def test_chat_fails_on_an_empty_answer_and_on_done_before_any_event() -> None:
    async with Upstream(sends(head(204))) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="empty"):
            await result(backend, chat())
        upstream.script = sse()
        with pytest.raises(BackendUnavailable, match="before its first choice"):
            await parts(backend, chat(stream=True))


async def test_edge_only_task_is_refused_before_any_byte_is_sent() -> None:
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendFailed) as refused:
            await result(backend, chat(may_leave=False))
    assert refused.value.code == "forbidden"
    assert upstream.connections == 0


async def test_request_goes_through_the_proxy_with_the_proxy_credentials() -> None:
    async with Upstream(answer(json=COMPLETION)) as proxy:
        given = f"http://me:pass@127.0.0.1:{proxy.port}"
        async with opened("http://far.test", proxy=given) as (backend, services):
            await result(backend, chat())
            assert "pass" not in repr(backend.settings)
    assert proxy.requests[0].path == "http://far.test/v1/chat/completions"
    assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cGFzcw=="
    assert [sample.tcp_rtt_s for sample in services.samples] == [None]


async def test_proxy_environment_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", unreachable_url())
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat())


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://93.184.216.34", "site": "edge"},
        {"url": "http://169.254.169.254", "site": "edge"},
        {"url": "http://[2606:2800::1]", "site": "edge"},
        {"url": "http://[::ffff:8.8.8.8]", "site": "edge"},
        {"url": "http://127.0.0.1", "site": "edge", "proxy": "http://127.0.0.1:3128"},
        {"url": "http://me:secret@host"},
        {"url": "http://host/?q=1"},
        {"url": "ftp://host"},
        {"url": "http://host", "api_key": "two words"},
        {"url": "http://host", "proxy": "nonsense"},
        {"url": "http://host", "verify": "false"},
    ],
)
def test_contradictory_settings_are_rejected_without_revealing_secrets(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        Http.Settings.model_validate(settings)
    assert "secret" not in str(refused.value.errors(include_url=False, include_input=False))


@pytest.mark.parametrize(
    ("address", "private"),
    [("::ffff:10.0.0.1", True), ("::ffff:127.0.0.1", True), ("::ffff:8.8.8.8", False), ("10.0.0.1", True)],
)
def test_ipv4_mapped_addresses_are_classified_like_their_ipv4_form(address: str, private: bool) -> None:
    assert is_private(address) is private


async def test_edge_backend_refuses_a_name_that_resolves_to_a_public_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("http://rebound.test", site="edge") as (backend, _):
        elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 80))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: elsewhere)
        with pytest.raises(BackendUnavailable, match=r"192\.0\.2\.7 is not a loopback or private address"):
            await result(backend, chat())


async def test_backend_opens_while_the_upstream_is_unreachable() -> None:
    async with opened(unreachable_url()) as (backend, services):
        assert backend.models is None
        assert "refused" in str(await backend.health())
        assert services.failures == ["refused"]


async def test_invalid_ca_file_is_named_in_the_error(tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(OSError, match=r"CA_FILE .*ca\.pem"):
        async with opened("https://host", ca_file=str(tmp_path / "ca.pem")):
            pass


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 405, 409, 413, 415, 422])
async def test_client_error_is_passed_on_with_status_and_body(status: int) -> None:
    body = b'{"error": {"message": "too long", "code": "context_length_exceeded"}}'
    async with Upstream(answer(body, status=status)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert (got.status, got.body) == (status, body)


async def test_client_error_keeps_the_retry_headers() -> None:
    sent = {"x-should-retry": "true", "Retry-After": "90000", "retry-after-ms": "250", "OpenAI-Version": "1"}
    script = answer(json={"error": {"message": "busy"}}, status=409, headers=[*sent.items(), ("Set-Cookie", "a=b")])
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert got.headers == sent


async def test_client_error_body_that_is_not_json_is_dropped() -> None:
    page = answer(b"<html>internal host names</html>", status=409, content_type="text/html")
    async with Upstream(page) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert (got.status, got.body) == (409, b"")


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("body", [b"404 page not found", b"", b'{"detail":"Not Found"}', b"<html>no</html>"])
async def test_missing_upstream_endpoint_raises_not_served(status: int, body: bytes) -> None:
    async with Upstream(answer(body, status=status)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(NotServed) as raised:
            await result(backend, chat(path="/v1/responses?a=b").replace(kind="other"))
    assert (raised.value.code, raised.value.status, raised.value.again) == ("not_found", status, False)
    assert raised.value.message == f"the upstream has no /v1/responses (status {status})"


@pytest.mark.parametrize("sent", [{"error": {"message": "no such model"}}, {"detail": "no such model"}])
async def test_404_that_names_the_missing_model_is_passed_on(sent: Any) -> None:
    async with Upstream(answer(json=sent, status=404)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert (got.status, got.value()) == (404, sent)


@pytest.mark.parametrize(
    ("code", "status", "kind", "as_code"),
    [
        ("no_backend", 503, NotServed, "no_backend"),
        ("deadline_exceeded", 504, DeadlineExceeded, "deadline_exceeded"),
        ("overloaded", 503, BackendUnavailable, "overloaded"),
        ("unavailable", 503, BackendUnavailable, "unavailable"),
        ("plugin_error", 500, BackendUnavailable, "upstream_bad_response"),
        ("rate_limited", 429, BackendUnavailable, "rate_limited"),
    ],
)
async def test_peer_gateway_error_codes_map_to_exceptions(
    code: str, status: int, kind: type[Any], as_code: str
) -> None:
    sent = {"error": {"message": "in its words", "code": code}}
    script = answer(json=sent, status=status, headers=[("x-gateway-backend", "none")])
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(GatewayError) as raised:
            await result(backend, chat())
    assert (type(raised.value), raised.value.code) == (kind, as_code)
    assert "in its words" in raised.value.detail


@pytest.mark.parametrize(
    ("status", "headers", "code", "kept", "wait_s"),
    [
        (401, [], "upstream_auth", None, None),
        (403, [], "upstream_auth", None, None),
        (408, [], "upstream_bad_response", 408, None),
        (429, [("Retry-After", "7")], "rate_limited", 429, 7.0),
        (429, [("Retry-After", "7"), ("retry-after-ms", "250")], "rate_limited", 429, 0.25),
        (429, [("Retry-After", "3600")], "rate_limited", 429, 3600.0),
        (429, [("Retry-After", "1e9")], "rate_limited", 429, 86400.0),
        (429, [("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")], "rate_limited", 429, 0.0),
        (429, [("Retry-After", "soon")], "rate_limited", 429, None),
        (500, [], "upstream_bad_response", 500, None),
        (503, [("Retry-After", "2")], "upstream_bad_response", 503, 2.0),
        (302, [("Location", "http://169.254.169.254/")], "upstream_bad_response", None, None),
    ],
)
async def test_failure_statuses_map_to_error_codes_and_retry_delays(
    status: int, headers: list[tuple[str, str]], code: str, kept: int | None, wait_s: float | None
) -> None:
    script = answer(json={"error": {"message": "so\nsorry"}}, status=status, headers=headers)
    async with Upstream(script) as upstream, opened(upstream.url, api_key="sk-1") as (backend, services):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, chat())
    error = failed.value
    assert (error.code, error.status, error.retry_after_s) == (code, kept, wait_s)
    assert (error.detail == "so sorry") == (status in (408, 429, 500, 503))  # sent to the client, never logged
    assert "sorry" not in error.message
    assert len(upstream.requests) == 1
    assert services.failures == []


async def test_empty_204_answer_to_a_task_is_passed_on() -> None:
    async with Upstream(sends(head(204))) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, job())
    assert (got.status, got.body) == (204, b"")


async def test_task_answer_may_be_any_json_with_any_content_type() -> None:
    async with Upstream(answer(b"[1]", content_type="text/html")) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, job())
    assert (got.body, got.content_type) == (b"[1]", "application/json")


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_stream_is_relayed_event_by_event_and_its_connection_is_reused() -> None:
    async with Upstream(sse(DELTA, STOP)) as upstream, opened(upstream.url) as (backend, _):
        for _ in range(2):
            events = await parts(backend, chat(stream=True))
            assert len(events) == 3
            assert events[-1] == b"data: [DONE]\n\n"
    assert upstream.connections == 1


async def test_stream_with_finish_reason_but_without_done_is_complete() -> None:
    async with Upstream(sse(DELTA, STOP, done=False)) as upstream, opened(upstream.url) as (backend, _):
        assert (await parts(backend, chat(stream=True)))[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "script",
    [
        sse(DELTA, done=False),
        sends_and_cuts(sse_bytes(DELTA, done=False)),
        reset(sse_bytes(DELTA, done=False)),
        sse(STOP | {"choices": [STOP["choices"][0], {"index": 1, "finish_reason": None}]}, done=False),
        sse(DELTA, "{not json"),
        sse(DELTA, "[1]"),
        sse(DELTA, {"error": {"message": "overloaded"}}),
        sse(DELTA, "x" * (1 << 20)),
    ],
    ids=["no finish reason", "cut", "reset", "one choice open", "garbage", "not an object", "error", "oversized"],
)
async def test_cut_or_broken_stream_raises_instead_of_ending(script: Any) -> None:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await parts(backend, chat(stream=True))
    assert failed.value.code in ("upstream_bad_response", "unavailable")


def choice_event(index: int = 0, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "text": delta.get("content"), "finish_reason": reason}]}


TWO = b'{"model":"m","messages":[],"n":2}'
FOUR = b'{"model":"m","prompt":["a","b"],"n":2}'
TOKENS = b'{"model":"m","prompt":[1,2]}'


@pytest.mark.parametrize(
    ("body", "kind", "events"),
    [
        (b"{}", "chat", [choice_event(reason="", content="h")]),
        (b"{}", "chat", [choice_event(reason="", content="h"), choice_event(reason="")]),
        (TWO, "chat", [choice_event(content="h"), choice_event(reason="stop")]),
        (FOUR, "completion", [choice_event(index, "stop", content="h") for index in range(3)]),
        (TWO, "chat", [choice_event(content="h", reason="stop"), choice_event(1, content="h"), "[DONE]"]),
        (b"{}", "chat", [choice_event(tool_calls=[{"index": 0}]), "[DONE]"]),
        (b"{}", "chat", [choice_event(content="h"), choice_event(function_call={"name": "f"}), "[DONE]"]),
        (b"{}", "chat", [choice_event(role="assistant"), "[DONE]"]),
        (b"{}", "chat", [choice_event(role="assistant", content="", refusal=None, reason=""), "[DONE]"]),
    ],
    ids=[
        "empty reason",
        "empty reason to the end",
        "second choice missing",
        "three of four",
        "one choice unfinished",
        "unfinished tool call",
        "unfinished function call",
        "role only",
        "empty content",
    ],
)
async def test_stream_with_an_unfinished_choice_is_incomplete(body: bytes, kind: Any, events: list[Any]) -> None:
    task = chat(body=body, stream=True).replace(kind=kind)
    async with Upstream(sse(*events, done=False)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="ended its stream before"):
            await parts(backend, task)


@pytest.mark.parametrize(
    ("body", "kind", "events"),
    [
        (TWO, "chat", [choice_event(0, "stop", content="h"), choice_event(1, "stop", content="h")]),
        (FOUR, "completion", [choice_event(index, "stop", content="h") for index in range(4)]),
        (TOKENS, "completion", [choice_event(reason="stop", content="h")]),
        (TWO, "chat", [choice_event(reason="stop", content="h"), "[DONE]"]),
        (b"{}", "chat", [choice_event(content="h"), "[DONE]"]),
        (b"{}", "chat", [choice_event(role="assistant"), choice_event(reason="stop"), "[DONE]"]),
        (b"{}", "chat", [choice_event(reason="stop"), choice_event(content=""), {"choices": []}]),
    ],
    ids=["two choices", "four choices", "token prompt", "n ignored", "no finish reason", "empty", "late chunk"],
)
async def test_stream_is_complete_when_all_choices_are_finished(body: bytes, kind: Any, events: list[Any]) -> None:
    task = chat(body=body, stream=True).replace(kind=kind)
    async with Upstream(sse(*events, done=False)) as upstream, opened(upstream.url) as (backend, _):
        assert (await parts(backend, task))[-1] == b"data: [DONE]\n\n"


async def test_transcription_stream_requires_its_done_event() -> None:
    task = Task(kind="transcription", name="", path="/v1/audio/transcriptions", deadline=time.monotonic() + 5)
    last = {"type": "transcript.text.done", "text": "go"}
    async with Upstream(sse(last, done=False)) as upstream, opened(upstream.url) as (backend, _):
        assert len(await parts(backend, task)) == 1
        upstream.script = sse({"type": "transcript.text.delta"}, done=False)
        with pytest.raises(BackendUnavailable, match="cut"):
            await parts(backend, task)


async def test_task_stream_requires_the_done_event() -> None:
    async with Upstream(sse({"part": 1})) as upstream, opened(upstream.url) as (backend, _):
        assert await parts(backend, job()) == [b'data: {"part": 1}\n\n', b"data: [DONE]\n\n"]
        upstream.script = sse({"part": 1}, done=False)
        with pytest.raises(BackendUnavailable, match="cut"):
            await parts(backend, job())
