"""Fallback: after a failure another backend serves, or the client gets the error."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.dispatch import timeouts
from gateway.lanes import Work, WorkOwner
from gateway.plugin import TERMS, TaskRefused
from gateway.testing import RunningGateway, running_gateway
from support.addition import GOOD, NUMBERS, SUM, call, posts
from support.tcp_delay_proxy import DelayProxy
from support.upstream import Upstream, answer, by_path, cut, reset, sends_and_cuts, stall, whole
from support.wiring import ADD, STUB, backend, cloud, relaying
from support.workers import wait_until

ATTEMPTS = 3  # the best of several measurements counts: the machine may be loaded

# ── a worker is killed while it runs a task ──────────────────────────────────────────────────────

FUNCTIONS = "support.functions:stumble,support.functions:add"


async def kill_the_worker(gateway: RunningGateway, marker: Path, *, slots: int) -> tuple[Any, float]:
    """Kill the worker of a running request while other requests are served.

    Returns the response of that request, and the seconds until the pool was complete again.
    """
    async with gateway.session() as http, asyncio.TaskGroup() as clients:
        victim = clients.create_task(call(gateway, "/v1/tasks/stumble", {"marker": str(marker)}))
        pid = await until_written(marker)
        others = [clients.create_task(sums(http, gateway)) for _ in range(4)]
        await gateway.line(model="add")
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await gateway.lines.wait("worker.ready", slots + 1)
        whole_s = time.monotonic() - killed_at
    assert all(task.result() == [SUM] * 10 for task in others)
    return victim.result(), whole_s


async def until_written(marker: Path) -> int:
    """Return the pid that the running worker wrote to `marker`."""
    await wait_until(marker.exists)
    return int(await asyncio.to_thread(marker.read_text))


async def sums(http: aiohttp.ClientSession, gateway: RunningGateway) -> list[Any]:
    out = []
    for _ in range(10):
        async with http.post(f"{gateway.url}/v1/tasks/add", json=NUMBERS) as got:
            out.append(await got.json())
    return out


@pytest.mark.parametrize("slots", [1, 2])
async def test_repeatable_task_of_a_killed_worker_is_run_again(tmp_path: Path, slots: int) -> None:
    environ = backend("local", "local", TASKS=FUNCTIONS, SLOTS=str(slots), REPEATABLE="true")
    async with running_gateway(**environ) as gateway:
        if slots == 1:  # other requests would wait in the queue behind it
            victim = asyncio.create_task(call(gateway, "/v1/tasks/stumble", {"marker": str(tmp_path / "pid")}))
            os.kill(await until_written(tmp_path / "pid"), signal.SIGKILL)
            status, said, _ = await victim
        else:
            (status, said, _), _ = await kill_the_worker(gateway, tmp_path / "pid", slots=slots)
        line = await gateway.line(model="stumble")
    assert (status, said) == (200, {"result": "served"})
    assert (line["outcome"], line["attempts"], line["backend"]) == ("served", 2, "local")
    assert "SIGKILL" in gateway.lines.of("worker.died")[0]["how"]


async def test_non_repeatable_task_of_a_killed_worker_fails_with_503(tmp_path: Path) -> None:
    environ = backend("local", "local", TASKS=FUNCTIONS, SLOTS="2")
    whole_s = []
    async with running_gateway(**environ) as gateway:
        for n in range(ATTEMPTS):
            (status, said, headers), seconds = await kill_the_worker(gateway, tmp_path / f"pid{n}", slots=2 + n)
            whole_s.append(seconds)
            assert (status, said["error"]["code"], headers["x-gateway-attempts"]) == (503, "unavailable", "1")
            assert "SIGKILL" in said["error"]["message"]
            assert headers["x-gateway-backend"] == "local"
    assert min(whole_s) <= 1.0


async def test_repeatable_task_of_a_killed_worker_is_run_by_another_backend(tmp_path: Path) -> None:
    environ = (
        backend("first", "local", TASKS=FUNCTIONS, SLOTS="1", REPEATABLE="true")
        | backend("second", "local", TASKS=FUNCTIONS, SLOTS="1", REPEATABLE="true", USD_PER_REQUEST="9")
        | {"GATEWAY_POLICY__USD": "1"}
    )
    async with running_gateway(**environ) as gateway:
        victim = asyncio.create_task(call(gateway, "/v1/tasks/stumble", {"marker": str(tmp_path / "pid")}))
        os.kill(await until_written(tmp_path / "pid"), signal.SIGKILL)
        status, said, headers = await victim
    assert (status, said) == (200, {"result": "served"})
    assert (headers["x-gateway-backend"], headers["x-gateway-reason"]) == ("second", "fell-back")


# ── an upstream fails ────────────────────────────────────────────────────────────────────────────


def pair(bad: str, good: str, **settings: str) -> dict[str, str]:
    """Configure two equivalent upstreams; `bad` costs less, so it is tried first."""
    both = {"TASKS": ADD, "MODELS": "gpt", **settings}
    costs = {"USD_PER_REQUEST": "9"}
    return cloud(bad, "bad", **both) | cloud(good, "good", **both, **costs) | {"GATEWAY_POLICY__USD": "1"}


FAULTS = {
    "reset": reset(),
    "hang-up": cut(),
    "500": answer(status=500, json={}),
    "503": answer(status=503, json={}, headers=[("Retry-After", "1")]),
    "429": answer(status=429, json={}, headers=[("Retry-After", "1")]),
    "401": answer(status=401, json={}),
    "garbage": answer(b"\x00\x01"),
    "cut": sends_and_cuts(whole(b'{"result":', length=100)),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_repeatable_task_falls_back_to_the_next_backend_after_an_upstream_fault(fault: str) -> None:
    async with (
        Upstream(by_path({"/add": FAULTS[fault]})) as bad,
        Upstream(GOOD) as good,
        running_gateway(**pair(bad.url, good.url, REPEATABLE="true")) as gateway,
    ):
        status, said, headers = await call(gateway)
        line = await gateway.line()
    assert (status, said) == (200, SUM)
    assert (headers["x-gateway-backend"], headers["x-gateway-attempts"]) == ("good", "2")
    assert (line["reason"], line["attempts"], line["site"]) == ("fell-back", 2, "cloud")
    assert (len(posts(bad)) >= 1, len(posts(good))) == (
        True,
        1,
    )  # a failed request on a kept-alive connection is sent once more
    assert line["candidates"].keys() == {"bad", "good"}


@pytest.mark.parametrize("fault", ["reset", "hang-up", "500", "cut"])
async def test_non_repeatable_task_that_may_have_started_is_not_retried(fault: str) -> None:
    async with (
        Upstream(by_path({"/add": FAULTS[fault]})) as bad,
        Upstream(GOOD) as good,
        running_gateway(**pair(bad.url, good.url)) as gateway,
    ):
        status, said, headers = await call(gateway)
    assert status in (500, 502, 503)
    assert headers["x-gateway-attempts"] == "1"
    assert headers["x-gateway-backend"] == "bad"
    assert [len(posts(each)) for each in (bad, good)] == [1, 0]
    assert said["error"]["message"]


async def test_non_repeatable_task_that_did_not_start_falls_back_to_the_next_backend() -> None:
    async with (
        Upstream(GOOD) as good,
        Upstream(GOOD) as gone,
        running_gateway(**pair(gone.url, good.url), GATEWAY_POLICY__PROBE_S="60") as gateway,
    ):
        await gone.__aexit__()
        status, said, headers = await call(gateway)
    assert (status, said, headers["x-gateway-backend"]) == (200, SUM, "good")


@pytest.mark.parametrize("code", ["overloaded", "unavailable"])
async def test_task_refused_by_a_full_or_closed_queue_goes_to_the_next_backend(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The queue became full, or was closed, after the backend was chosen."""
    both = backend("one", "support.stub_backend:StubBackend") | backend("two", "support.stub_backend:StubBackend")
    async with running_gateway(**both) as gateway:
        submit, refused = gateway.service.scheduler.submit, list[str]()

        def refuse_once(work: Work, name: str, owner: WorkOwner) -> None:
            if not refused:
                refused.append(name)
                raise TaskRefused("no place", code=code)
            submit(work, name, owner)

        monkeypatch.setattr(gateway.service.scheduler, "submit", refuse_once)
        status, answered, headers = await call(gateway, "/v1/tasks/say", 1)
        assert (status, answered) == (200, {"result": 1})
        assert [headers["x-gateway-backend"], *refused] in (["one", "two"], ["two", "one"])


async def test_hanging_upstream_times_out_early_enough_to_try_the_next_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "TIMEOUT_PREDICTIONS", 0.1)
    monkeypatch.setattr(timeouts, "TIMEOUT_SHARE", 0.01)
    gone = asyncio.Event()
    async with (
        Upstream(by_path({"/add": stall(gone=gone)})) as bad,
        Upstream(GOOD) as good,
        running_gateway(**pair(bad.url, good.url, REPEATABLE="true")) as gateway,
    ):
        status, said, headers = await call(gateway, x_gateway_deadline_ms="5000")
        await asyncio.wait_for(gone.wait(), 5)
        line = await gateway.line()
    assert (status, said, headers["x-gateway-backend"]) == (200, SUM, "good")
    assert line["t_total_ms"] < 5000


async def test_stalled_attempt_is_hedged_and_the_first_response_wins() -> None:
    gone = asyncio.Event()
    async with (
        Upstream(by_path({"/add": answer(json=SUM)})) as stalling,
        Upstream(GOOD) as good,
        running_gateway(**pair(stalling.url, good.url, REPEATABLE="true")) as gateway,
    ):
        for _ in range(5):  # measures the response time, which hedging needs
            assert (await call(gateway))[2]["x-gateway-backend"] == "bad"
        stalling.script = by_path({"/add": stall(gone=gone)})
        status, said, headers = await call(gateway)
        line = await gateway.line(request_id=headers["x-request-id"])
        await asyncio.wait_for(gone.wait(), 5)
        rescue = await gateway.line("dispatch.rescued")
    assert (status, said) == (200, SUM)
    assert (headers["x-gateway-backend"], headers["x-gateway-reason"]) == ("good", "rescued")
    assert (line["backend"], line["attempts"], line["outcome"]) == ("good", 2, "served")
    assert (rescue["backend"], rescue["next"]) == ("bad", "good")
    assert line["t_overlap_ms"] > 0
    assert (
        abs(
            sum(line[f"t_{term}_ms"] for term in TERMS) - line["t_overlap_ms"] + line["t_other_ms"] - line["t_total_ms"]
        )
        < 0.01
    )


async def test_last_failure_is_reported_when_every_backend_fails() -> None:
    bad = by_path({"/add": answer(status=500, json={"error": {"message": "disk full"}})})
    async with (
        Upstream(bad) as first,
        Upstream(bad) as second,
        running_gateway(**pair(first.url, second.url, REPEATABLE="true")) as gateway,
    ):
        status, said, headers = await call(gateway)
    assert (status, headers["x-gateway-attempts"], headers["x-should-retry"]) == (500, "2", "false")
    assert "disk full" in said["error"]["message"]
    assert [len(posts(each)) for each in (first, second)] == [1, 1]


# ── the link is down ─────────────────────────────────────────────────────────────────────────────


async def test_edge_serves_while_the_link_is_down_and_the_cloud_serves_after_recovery() -> None:
    async with (
        Upstream(by_path({"/say": answer(json={"result": "far"})})) as upstream,
        DelayProxy("127.0.0.1", upstream.port) as link,
    ):
        environ = (
            backend("desk", "support.stub_backend:StubBackend", USD_PER_REQUEST="9", TASKS="say", REPEATABLE="true")
            | cloud(f"http://127.0.0.1:{link.port}", TASKS='{"say":"/say"}', REPEATABLE="true")
            | {"GATEWAY_POLICY__USD": "1", "GATEWAY_POLICY__PROBE_S": "0.05"}
        )
        async with running_gateway(**environ) as gateway:
            assert (await call(gateway, "/v1/tasks/say"))[1] == {"result": "far"}
            link.refuse = True
            link.reset()
            for _ in range(5):
                status, said, _ = await call(gateway, "/v1/tasks/say")
                assert (status, said) == (200, {"result": NUMBERS})
            await gateway.line("link.state_changed", after="down")
            _, _, headers = await call(gateway, "/v1/tasks/say")
            line = await gateway.line(request_id=headers["x-request-id"])
            assert (headers["x-gateway-site"], line["attempts"]) == ("edge", 1)
            assert "refused" in line["candidates"]["cloud"]
            link.refuse = False
            await gateway.line("link.state_changed", before="down", after="up")
            await gateway.lines.wait("backend.well")
            assert (await call(gateway, "/v1/tasks/say"))[1] == {"result": "far"}


async def test_request_is_the_probe_when_the_link_to_the_only_backend_is_down() -> None:
    async with (
        Upstream(by_path({"/say": answer(json={"result": "far"})})) as upstream,
        DelayProxy("127.0.0.1", upstream.port) as link,
    ):
        environ = cloud(f"http://127.0.0.1:{link.port}", TASKS='{"say":"/say"}', REPEATABLE="true")
        async with running_gateway(**environ, GATEWAY_POLICY__PROBE_S="3600") as gateway:
            assert (await call(gateway, "/v1/tasks/say"))[0] == 200
            gateway.service.measurements.on_carrier_lost("cloud")
            link.refuse = True
            link.reset()
            status, said, headers = await call(gateway, "/v1/tasks/say")
            assert (status, headers["x-gateway-attempts"]) == (503, "1")
            assert said["error"]["code"] == "unavailable"
            assert gateway.service.measurements.why_down("cloud") == "its link is down: reset"
            link.refuse = False
            assert (await call(gateway, "/v1/tasks/say"))[:2] == (200, {"result": "far"})
            assert gateway.service.measurements.why_down("cloud") is None


async def test_gateway_starts_and_is_ready_when_every_backend_is_unreachable() -> None:
    async with Upstream(GOOD) as gone:
        url = gone.url
    async with running_gateway(**cloud(url, TASKS=ADD)) as gateway, gateway.session() as http:
        async with http.get(f"{gateway.url}/readyz") as ready:
            assert ready.status == 200
        status, said, headers = await call(gateway)
        assert (status, said["error"]["code"]) == (503, "unavailable")
        assert "refused" in said["error"]["message"]
        assert headers["x-gateway-site"] in ("none", "cloud")


# ── edge-only requests ───────────────────────────────────────────────────────────────────────────

SECRET = "the-patient-is-called-Ada"


def seen_by(upstream: Upstream) -> bytes:
    """Return all client data that the upstream received."""
    return b"".join(r.body + json.dumps([r.path, dict(r.headers)]).encode() for r in upstream.requests)


@pytest.mark.parametrize(
    ("path", "body", "served"),
    [
        ("/v1/tasks/say", {"text": SECRET}, True),
        ("/v1/tasks/scatter", {"items": [1, 2, 3], "note": SECRET}, True),
        ("/v1/tasks/down", {"text": SECRET}, False),
        ("/v1/tasks/only", {"text": SECRET}, False),
        ("/v1/chat/completions", {"model": "cloud/gpt", "messages": [{"role": "user", "content": SECRET}]}, False),
        ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": SECRET}]}, True),
    ],
    ids=["cloud is cheaper", "divided", "edge fails", "cloud only", "pinned to cloud", "auto"],
)
async def test_edge_only_data_is_never_sent_to_the_cloud(path: str, body: Any, served: bool) -> None:
    tasks = json.dumps({name: f"/{name}" for name in ("say", "down", "only", "squares")})
    environ = (
        backend("desk", "support.stub_backend:StubBackend", USD_PER_REQUEST="9", REPEATABLE="true")
        | backend("hybrid", "hybrid", EDGE="desk", CLOUD="cloud", TASKS='{"scatter":"squares"}', GROUPS="3")
        | {"GATEWAY_POLICY__USD": "1"}
    )
    everything = by_path({}, answer(json={"result": [0]}))
    async with relaying(everything, TASKS=tasks, MODELS="gpt", environ=environ) as (gateway, upstream):
        status, _, headers = await call(gateway, path, body, x_gateway_locality="edge-only")
        subtasks = gateway.lines.of("subtask.finished")
    assert (status == 200) is served
    assert headers["x-gateway-site"] != "cloud"
    assert {line["backend"] for line in subtasks} <= {"desk"}
    assert SECRET.encode() not in seen_by(upstream)
    assert posts(upstream) == []


async def test_plugin_subtask_of_an_edge_only_request_cannot_leave_the_site() -> None:
    environ = backend("smuggler", "support.exfiltrating_backend:ExfiltratingBackend")
    async with relaying(by_path({}, answer(json={})), TASKS='{"out":"/out"}', environ=environ) as (gateway, upstream):
        status, said, _ = await call(gateway, "/v1/tasks/smuggle", {"text": SECRET}, x_gateway_locality="edge-only")
        assert (status, said["error"]["code"]) == (503, "no_backend")
        assert posts(upstream) == []
        assert (await call(gateway, "/v1/tasks/smuggle", {"text": SECRET}))[0] == 200
    assert SECRET.encode() in seen_by(upstream)


# ── broken plugins ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (backend("broken", "support.nowhere:Missing"), "support.nowhere"),
        (backend("broken", "support.stub_backend:Absent"), "Absent"),
        (backend("broken", "support.stub_backend:DESK_IS_NO_CLASS"), "DESK_IS_NO_CLASS"),
        (
            backend("broken", "support.stub_backend:StubBackend", REFUSES_TO_OPEN="true", MODELS="other"),
            "the desk is locked",
        ),
    ],
    ids=["no module", "no attribute", "no class", "does not open"],
)
async def test_plugin_that_fails_to_load_is_excluded_and_named_while_others_serve(
    broken: dict[str, str], says: str
) -> None:
    async with running_gateway(**STUB, **broken) as gateway, gateway.session() as http:
        assert (await call(gateway, "/v1/tasks/say", 1))[0] == 200
        async with http.get(f"{gateway.admin_url}/status") as got:
            told = (await got.json())["backends"]["broken"]
        line = await gateway.line("backend.failed_to_open")
        async with http.get(f"{gateway.url}/v1/tasks") as got:
            tasks = await got.json()
    assert (told["state"], says in told["error"]) == ("failed", True)
    assert (line["backend"], says in line["error"]) == ("broken", True)
    assert "broken" not in json.dumps(tasks)


# ── breakers ─────────────────────────────────────────────────────────────────────────────────────
