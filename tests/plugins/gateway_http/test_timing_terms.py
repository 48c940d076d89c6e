"""Deadlines, connections, time terms, link samples, health checks and lists."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, DeadlineExceeded
from gateway.timing import Watch
from gateway_http import Http, model_lists
from gateway_http.transport import exchange
from gateway_http.transport.exceptions import TIMER_SLACK_S
from support.http_backend import SampleRecorder, accounted, chat, job, opened, result
from support.polling import wait_until
from support.upstream import (
    CHUNKED,
    JSON,
    Script,
    Talk,
    Upstream,
    answer,
    by_path,
    chunk,
    cut,
    head,
    in_turn,
    reset,
    sends_and_cuts,
    sse,
    sse_bytes,
    stall,
    whole,
)

NOTHING = b'{"choices":[{"message":{}}]}'
COMPLETION = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}}]}
DELTA = {"choices": [{"index": 0, "delta": {"content": "h"}, "finish_reason": None}]}


# --- time and the connection ------------------------------------------------------------------------------------------


async def test_deadline_bounds_the_wait_for_head_body_and_stream() -> None:
    for begins in ((), (head(200, [JSON, CHUNKED]) + chunk(b"{"),), (sse_bytes(DELTA, done=False),)):
        gone = asyncio.Event()
        async with Upstream(stall(*begins, gone=gone)) as upstream, opened(upstream.url) as (backend, _):
            task = chat(deadline_s=0.1)
            with pytest.raises(DeadlineExceeded):
                async for _ in backend.run(task):
                    pass
            assert time.monotonic() >= task.deadline - TIMER_SLACK_S
            await gone.wait()  # before the backend closes: closing would end the connection too


async def test_expired_task_is_not_sent() -> None:
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(DeadlineExceeded):
            await result(backend, chat(deadline_s=0))
    assert upstream.connections == 0


async def test_closing_a_stream_closes_the_upstream_connection_at_once() -> None:
    gone = asyncio.Event()
    async with (
        Upstream(stall(sse_bytes(DELTA, done=False), gone=gone)) as upstream,
        opened(upstream.url) as (backend, _),
    ):
        run = backend.run(chat(stream=True))
        await anext(run)
        await run.aclose()  # type: ignore[attr-defined]
        await gone.wait()  # before the backend closes


async def test_cancelling_a_request_closes_the_upstream_while_waiting_or_uploading() -> None:
    async def drains(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await resume.wait()
            while data := await reader.read(1 << 16):
                taken.append(len(data))
        writer.close()
        gone.set()

    for body in (b"{}", b"{" + b" " * 20_000_000 + b"}"):
        arrived, gone, resume = asyncio.Event(), asyncio.Event(), asyncio.Event()
        taken: list[int] = []
        server = await asyncio.start_server(drains, "127.0.0.1", 0)
        async with server, opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (backend, _):
            asked = asyncio.create_task(result(backend, chat("", body=body)))
            await arrived.wait()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            resume.set()
            await gone.wait()
            assert len(body) == 2 or sum(taken) < len(body)  # the rest of the upload is never sent


async def test_stale_connection_is_retried_once_for_a_repeatable_request() -> None:
    script = in_turn(answer(json=COMPLETION), cut(), answer(json=COMPLETION))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat())
        await result(backend, chat())
    assert (upstream.connections, len(upstream.requests)) == (2, 3)


async def test_task_is_sent_twice_only_when_configured_as_repeatable() -> None:
    for repeatable, asked in ((None, 2), (True, 3)):
        script = in_turn(answer(json={}), reset(), answer(json={}))
        async with Upstream(script) as upstream, opened(upstream.url, repeatable=repeatable) as (backend, _):
            await result(backend, job())
            if repeatable:
                await result(backend, job())
            else:
                with pytest.raises(BackendUnavailable):
                    await result(backend, job())
        assert len(upstream.requests) == asked


async def test_request_on_a_fresh_connection_is_not_retried() -> None:
    async with Upstream(cut()) as upstream, opened(upstream.url) as (backend, services):
        with pytest.raises(BackendUnavailable, match="without a response"):
            await result(backend, chat())
        upstream.script = reset()
        with pytest.raises(BackendUnavailable, match="reset"):
            await result(backend, chat())
    assert len(upstream.requests) == 2
    assert services.failures == ["reset"]


async def test_unsolicited_bytes_are_not_taken_as_the_next_answer() -> None:
    stray_sent = asyncio.Event()

    async def answers_and_adds(talk: Any) -> None:
        await talk.send(whole(NOTHING))
        await ready.wait()
        await talk.send(whole(b'{"stray": true}'))
        stray_sent.set()

    ready = asyncio.Event()
    async with Upstream(answers_and_adds) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat())
        ready.set()
        await stray_sent.wait()
        second = {"choices": [{"message": {"second": True}}]}
        upstream.script = answer(json=second)
        assert (await result(backend, chat())).value() == second


# --- time terms -------------------------------------------------------------------------------------------------------


async def test_server_timing_headers_split_the_wait_into_cloud_and_network() -> None:
    for name, claim, source in (
        ("Server-Timing", "queue;dur=1, total;desc=x;dur=0.02", "server-timing"),
        ("openai-processing-ms", "0.02", "header"),
        ("x-envoy-upstream-service-time", "0.02", "header"),
    ):
        async with Upstream(answer(NOTHING, headers=[(name, claim)])) as upstream, opened(upstream.url) as (backend, _):
            _, account = await accounted(backend, chat())
        terms = account.terms_us
        assert terms["cloud"] == pytest.approx(20, abs=2)  # µs: less than any round trip
        assert terms["network"] > 0
        assert account.cloud_source == source
        assert terms["connect"] > 0
        assert terms["upload"] > 0
        assert account.overlap_us == 0


async def test_server_timing_above_the_wait_is_capped_and_estimated_when_absent() -> None:
    exaggerates = answer(NOTHING, headers=[("openai-processing-ms", "9000")])
    async with Upstream(exaggerates) as upstream, opened(upstream.url) as (backend, _):
        _, account = await accounted(backend, chat())
        assert account.terms_us["network"] == 0
        assert account.terms_us["cloud"] < 1_000_000
        upstream.script = answer(NOTHING, headers=[("Server-Timing", "app;dur=1")])
        _, account = await accounted(backend, chat())
        assert account.cloud_source == "estimated"


async def test_upload_time_ends_at_the_kernel_acknowledgement() -> None:
    body = b"{" + b" " * 3_000_000 + b"}"
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, services):
        _, account = await accounted(backend, chat("", body=body))
    (sample,) = services.samples
    assert sample.upload_bytes == len(body)
    assert sample.upload_s is not None
    assert account.terms_us["upload"] >= sample.upload_s * 1e6 - 10
    assert upstream.requests[0].body == body


async def test_time_terms_are_consistent_when_the_upstream_answers_before_the_upload_ends() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(b'{"error": {"message": "too large"}}', status=413))
        with suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()
        over.set()

    over = asyncio.Event()
    server = await asyncio.start_server(early, "127.0.0.1", 0)
    async with server, opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (backend, _):
        got, account = await accounted(backend, chat("", body=b"{" + b" " * 20_000_000 + b"}"))
        await over.wait()
    assert got.status == 413
    terms = account.terms_us
    assert account.total_us == sum(terms.values()) - account.overlap_us + account.other_us
    assert min(terms.values()) >= 0


async def test_failed_request_is_charged_for_its_wait() -> None:
    async with Upstream(stall()) as upstream, opened(upstream.url) as (backend, _):
        watch = Watch()
        with pytest.raises(DeadlineExceeded):
            await result(backend, chat(deadline_s=0.05, terms=watch))
        terms = watch.close().terms_us
        assert terms["cloud"] == max(terms.values())


# --- link samples -----------------------------------------------------------------------------------------------------

STALLS: dict[str, tuple[Script, bool]] = {
    "a stream": (stall(sse_bytes(DELTA, done=False)), True),
    "a body": (stall(head(200, [JSON, CHUNKED]) + chunk(b"{")), False),
}


@pytest.mark.parametrize("name", STALLS)
async def test_stalled_answer_gives_no_link_sample(name: str) -> None:
    script, is_stream = STALLS[name]
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, services):
        with pytest.raises(DeadlineExceeded):
            async for _ in backend.run(chat(stream=is_stream, deadline_s=0.1)):
                pass
        begun = asyncio.Event()

        async def send_request() -> None:
            async for _ in backend.run(chat(stream=is_stream)):
                begun.set()

        sending = asyncio.create_task(send_request())
        await (begun.wait() if is_stream else wait_until(lambda: len(upstream.requests) == 2))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert services.samples == []


async def test_broken_answer_gives_no_link_sample() -> None:
    async with (
        Upstream(reset(sse_bytes(DELTA, done=False))) as upstream,
        opened(upstream.url) as (backend, services),
    ):
        with pytest.raises(BackendUnavailable, match="broke off its response"):
            async for _ in backend.run(chat(stream=True)):
                pass
    assert services.samples == []


@pytest.mark.parametrize(
    "script",
    [
        answer(json=COMPLETION),
        answer(json={}, status=500),
        answer(json={}, status=404),
        sse(DELTA),
        stall(sse_bytes(DELTA)),
    ],
    ids=["whole", "server error", "client error", "stream", "stream with an unfinished body"],
)
async def test_complete_answer_gives_a_link_sample_for_any_status(script: Script) -> None:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, services):
        with suppress(BackendUnavailable):
            async for _ in backend.run(chat()):
                pass
    assert [sample.failed for sample in services.samples] == [None]


async def test_old_end_of_answer_gives_no_link_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_SAMPLE_AGE_S", 0.0)
    async with Upstream(sse(DELTA)) as upstream, opened(upstream.url) as (backend, services):
        async for _ in backend.run(chat()):
            pass
    assert services.samples == []


# --- health and lists -------------------------------------------------------------------------------------------------

PEER_MODELS = {"data": [{"id": name} for name in ("auto", "echo", "speech", "edge/echo", "cloud/auto", "meta/llama")]}


async def test_health_check_measures_a_warm_round_trip_and_lists_peer_models_and_tasks() -> None:
    peer = by_path(
        {
            "/livez": answer(json={}),
            "/v1/models": answer(json=PEER_MODELS),
            "/v1/tasks": answer(json={"object": "list", "data": [{"id": "add"}]}),
        }
    )
    async with Upstream(peer) as upstream, opened(upstream.url) as (backend, services):
        assert backend.models is None
        assert backend.tasks is None
        began = time.monotonic()
        assert await backend.health() is None
        took_s = time.monotonic() - began
        assert backend.models == {"echo": "echo", "speech": "speech", "meta/llama": "meta/llama"}
        assert backend.tasks == {"add": "add"}
        cold, sample = services.samples
        assert (cold.rtt_s, cold.failed) == (None, None)  # it only shows that the upstream answers
        assert sample.rtt_s is not None
        assert 0 < sample.rtt_s < took_s
        assert sample.tcp_rtt_s is not None
        assert upstream.connections == 1
        assert [r.path for r in upstream.requests].count("/livez") == 2
        await backend.health()
        assert [r.path for r in upstream.requests].count("/v1/models") == 1


async def test_health_check_accepts_any_status_below_500_and_missing_lists() -> None:
    async with Upstream(answer(json={}, status=404)) as upstream, opened(upstream.url) as (backend, _):
        assert await backend.health() is None
        assert backend.models == {}
        assert backend.tasks == {}


async def test_health_check_reports_the_reason() -> None:
    async with Upstream(answer(json={}, status=503)) as upstream, opened(upstream.url) as (backend, services):
        assert "status 503" in str(await backend.health())
        assert backend.models is None
        upstream.script = by_path({"/v1/models": answer(json={}, status=401)})
        assert "key" in str(await backend.health())
        upstream.script = answer(json={"data": [{"id": "m"}]})
        assert await backend.health() is None
        assert backend.models == {"m": "m"}
        assert services.failures == []


async def test_upstream_with_a_slow_model_list_is_healthy() -> None:
    listed = asyncio.Event()

    async def slow(talk: Talk) -> None:
        await listed.wait()
        await talk.send(whole(b'{"data": [{"id": "m"}]}'))

    serves = by_path({"/livez": answer(json={}), "/v1/models": slow, "/v1/tasks": answer(json={"data": []})})
    async with Upstream(serves) as upstream, opened(upstream.url) as (backend, services):
        for _ in range(3):
            assert await backend.health() is None
            assert backend.models is None
        assert [r.path for r in upstream.requests].count("/v1/models") == 1
        assert len([sample for sample in services.samples if sample.rtt_s is not None]) == 3
        listed.set()
        await wait_until(lambda: backend.tasks is not None)
        assert backend.models == {"m": "m"}
        assert await backend.health() is None


async def test_backend_closes_while_a_list_request_is_in_flight() -> None:
    gone = asyncio.Event()
    serves = by_path({"/livez": answer(json={}), "/v1/models": stall(gone=gone)})
    async with Upstream(serves) as upstream:
        async with opened(upstream.url) as (backend, _):
            assert await backend.health() is None
        await gone.wait()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("lists of")] == []


async def test_failed_list_request_is_repeated_and_known_models_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lists, "REFRESH_S", 0.0)
    busy, breaks = answer(json={}, status=503), sends_and_cuts(head(200, [JSON, CHUNKED]))
    models = in_turn(breaks, answer(json={"data": [{"id": "m"}]}), breaks, busy)
    served = by_path({"/livez": answer(json={}), "/v1/models": models})
    async with Upstream(served) as upstream, opened(upstream.url, tasks="add") as (backend, services):
        assert await backend.health() is None
        assert backend.models is None
        for asked in (2, 3, 4):
            assert await backend.health() is None
            await wait_until(lambda asked=asked: [r.path for r in upstream.requests].count("/v1/models") == asked)
            assert backend.models == {"m": "m"}
        assert services.failures == []


async def test_invalid_list_does_not_clear_known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_lists, "REFRESH_S", 0.0)
    served, broken = answer(json={"data": [{"id": "m"}]}), answer(b'{"data":[{"id":"\xff"}]}')
    models = in_turn(served, broken, served, answer(json={}, status=404), answer(json={"data": []}), served)
    by = by_path({"/livez": answer(json={}), "/v1/models": models})
    async with Upstream(by) as upstream, opened(upstream.url, tasks="add") as (backend, _):
        known = []
        for asked in range(1, 7):
            assert await backend.health() is None
            await wait_until(lambda asked=asked: [r.path for r in upstream.requests].count("/v1/models") == asked)
            await backend.health()  # a second check sees the result
            known.append(backend.models)
    assert known[:3] == [{"m": "m"}] * 3


async def test_configured_lists_are_not_requested() -> None:
    given = {"models": "a,b", "tasks": '{"add": "/add"}'}
    async with Upstream(answer(json={})) as upstream, opened(upstream.url, **given) as (backend, _):
        await backend.health()
        assert backend.models == {"a": "a", "b": "b"}
    assert {r.path for r in upstream.requests} == {"/livez"}


def test_site_and_slots_default_to_cloud_and_16() -> None:
    def made(**settings: Any) -> Http:
        return Http(Http.Settings.model_validate({"url": "http://127.0.0.1", **settings}), SampleRecorder())

    assert (made().site, made().slots) == ("cloud", 16)
    assert (made(site="edge").site, made(slots=3).slots) == ("edge", 3)


async def test_html_health_answer_is_a_captive_portal_and_a_link_failure() -> None:
    async with (
        Upstream(answer(json={"error": "no"}, status=404)) as upstream,
        opened(upstream.url, tasks="add") as (up, services),
    ):
        assert await up.health() is None
        upstream.script = answer(b"<html>Sign in</html>", content_type="text/html")
        assert "captive portal" in (await up.health() or "")
        assert services.failures == ["captive portal"]
        upstream.script = answer(json={"error": "no"}, status=404)
        assert await up.health() is None
