"""Replacing a backend during a reload: requests are served throughout."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from gateway.health import quarantine
from gateway.service import main
from gateway.settings import load
from gateway.testing import RunningGateway, running_gateway
from support.faulty_lifecycle import SECRET, FaultyLifecycle, Panic
from support.gated_backend import GatedBackend
from support.polling import wait_until
from support.raw import answered, connected, post, read_answer
from support.slow_lifecycle import SlowLifecycle
from support.stub_backend import StubBackend
from support.upstream import answer, by_path
from support.wiring import OFF_SITE_STUB, STUB, backend, cloud, relaying

LOOPBACK = {"GATEWAY_LISTEN": "127.0.0.1:0", "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"}
SAY, WAIT = post("/v1/tasks/say", b"1"), post("/v1/tasks/wait", b"{}")
LATE = post("/v1/tasks/late", b"{}")
TURNSTILES = {name: backend(name, "support.gated_backend:GatedBackend", SLOTS="1") for name in "ab"}
CANARY = backend("bird", "support.recording_backend:RecordingBackend")


@pytest.fixture(autouse=True)
def _reset_rascal() -> Iterator[None]:
    yield
    FaultyLifecycle.health_results, FaultyLifecycle.open_error = [], ""


async def reload(gateway: RunningGateway, **environ: str) -> None:
    """Reload as SIGHUP does, without waiting for backends to open and close."""
    state = {"GATEWAY_STATE_DIR": str(gateway.service.settings.state_dir)}
    await gateway.service.reload(load(LOOPBACK | state | environ))


async def status(gateway: RunningGateway, asked: bytes) -> int:
    return (await answered(gateway.url, asked)).status


async def is_at_rest(gateway: RunningGateway) -> None:
    await gateway.service.registry.wait_reloaded()
    assert not any(gateway.service.scheduler.busy().values())
    assert not gateway.service.scheduler._retired


async def test_policy_settings_change_in_place_while_the_backend_is_busy() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        member = gateway.service.registry.members["desk"]
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        new = backend("desk", "support.stub_backend:StubBackend", USD_PER_REQUEST="1", WATTS="7", QUEUE="3")
        await reload(gateway, **new)
        assert gateway.service.registry.members["desk"] is member
        lane = gateway.service.scheduler._lanes["desk"]
        assert (lane.usd, lane.watts, lane.queue) == (1, 7, 3)
        assert await status(gateway, SAY) == 200
        await reload(gateway, **new)
        assert gateway.service.registry.members["desk"] is member
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
        await is_at_rest(gateway)


async def test_new_backend_does_not_wait_for_a_closing_one() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await reload(gateway, **CANARY)
        await wait_until(lambda: gateway.service.registry.members["bird"].opening_done.is_set())
        assert await status(gateway, post("/v1/tasks/sing", b"{}")) == 200
        assert gateway.service.registry.members["desk"].state == "closing"
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
        await is_at_rest(gateway)


async def test_changed_backend_serves_while_the_old_one_finishes() -> None:
    async with running_gateway(**OFF_SITE_STUB) as gateway, connected(gateway.url) as (reader, writer):
        old = gateway.service.registry.members["far"]
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        of_the_old_one = StubBackend.open
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__SLOTS="3")
        await wait_until(lambda: gateway.service.registry.members["far"] is not old)
        assert [await status(gateway, SAY) for _ in range(4)] == [200] * 4
        assert gateway.service.scheduler._lanes["far"].slots == 3
        assert (old.state, gateway.service.registry.members["far"].state) == ("closing", "serving")
        of_the_old_one.set()
        assert (await read_answer(reader)).json == {"result": "waited"}
        await is_at_rest(gateway)
        assert old.state == "closed"


@pytest.mark.parametrize(("change", "wanted"), [("REPEATABLE", 200), ("TASKS", 503)])
async def test_queued_request_moves_to_the_replacement_if_it_is_equivalent(change: str, wanted: int) -> None:
    narrow = {**OFF_SITE_STUB, "GATEWAY_BACKENDS__FAR__SLOTS": "1"}
    to = {"REPEATABLE": "true", "TASKS": "count"}[change]
    async with (
        running_gateway(**narrow) as gateway,
        connected(gateway.url) as (first_reader, first),
        connected(gateway.url) as (reader, second),
    ):
        first.write(WAIT)
        await StubBackend.waiting.wait()
        of_the_old_one = StubBackend.open
        second.write(SAY)
        await wait_until(lambda: gateway.service.scheduler.waiting()["far"])
        await reload(gateway, **narrow, **{f"GATEWAY_BACKENDS__FAR__{change}": to})
        assert (await asyncio.wait_for(read_answer(reader), 10)).status == wanted
        of_the_old_one.set()
        assert (await read_answer(first_reader)).json == {"result": "waited"}
        await is_at_rest(gateway)


@pytest.mark.parametrize("lanes_hear_of_it", [True, False])
async def test_queued_edge_only_request_stays_when_a_candidate_moves_to_the_cloud(
    monkeypatch: pytest.MonkeyPatch, lanes_hear_of_it: bool
) -> None:
    """Queue for two edge backends; one moves to the cloud before a slot is free."""
    monkeypatch.setattr(GatedBackend, "gates", {})
    monkeypatch.setattr(GatedBackend, "waiting", set())
    both = TURNSTILES["a"] | TURNSTILES["b"]
    stand, walk = post("/v1/tasks/stand", b"{}"), post("/v1/tasks/walk", b"{}", "x-gateway-locality: edge-only")
    async with running_gateway(**both) as gateway, AsyncExitStack() as stack:
        lanes, members = gateway.service.scheduler, gateway.service.registry.members
        talks = [await stack.enter_async_context(connected(gateway.url)) for _ in range(3)]
        for (_, writer), names in zip(talks, (1, 2), strict=False):
            writer.write(stand)
            await wait_until(lambda names=names: len(GatedBackend.waiting) == names)
        (reader, writer), old = talks[2], members["b"]
        writer.write(walk)
        await wait_until(lambda: lanes._waiting_in)
        ((work, (_, entry)),) = lanes._waiting_in.items()
        assert sorted(work.allowed) == ["a", "b"]
        if not lanes_hear_of_it:
            monkeypatch.setattr(lanes, "_disallow", lambda name: None)
        await reload(gateway, **both, GATEWAY_BACKENDS__B__SITE="cloud")
        GatedBackend.gates["b"].set()
        await wait_until(lambda: members["b"] is not old and members["b"].state == "serving" and "b" in lanes.busy())
        if lanes_hear_of_it:
            assert work.allowed == ("a",)
        else:
            lanes.withdraw(work)
            lanes.submit(work, "b", entry.owner)
            await gateway.line("dispatch.fell_back")
        GatedBackend.gates["a"].set()
        answer = await read_answer(reader)
        assert (answer.status, answer.json, answer.headers["x-gateway-site"]) == (200, {"result": {"at": "a"}}, "edge")
        assert gateway.lines.of("egress.refused") == []


async def test_old_backend_serves_until_its_replacement_has_opened() -> None:
    old_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud", OPENS_AT_ONCE="true")
    new_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud")
    async with running_gateway(**old_late) as gateway:
        old = gateway.service.registry.members["late"]
        opened_before = SlowLifecycle.may_open
        await reload(gateway, **new_late)
        await wait_until(lambda: SlowLifecycle.may_open is not opened_before)
        assert gateway.service.registry.members["late"] is old
        assert await status(gateway, LATE) == 200
        SlowLifecycle.may_open.set()
        await is_at_rest(gateway)
        assert gateway.service.registry.members["late"] is not old
        assert await status(gateway, LATE) == 200


async def test_upstream_model_list_is_loaded_before_the_replacement_takes_over() -> None:
    script = by_path({"/v1/models": answer(json={"data": [{"id": "m"}]})}, answer(status=404, json={}))
    async with relaying(script) as (gateway, upstream):
        old = gateway.service.registry.members["cloud"]
        assert old.models == {"m": "m"}
        await reload(gateway, **cloud(upstream.url, SLOTS="3"))
        await wait_until(lambda: gateway.service.registry.members["cloud"] is not old)
        assert gateway.service.registry.members["cloud"].models == {"m": "m"}
        await is_at_rest(gateway)


async def test_reverted_settings_cancel_the_opening_replacement_and_keep_the_old_backend() -> None:
    old_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud", OPENS_AT_ONCE="true")
    new_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud")
    async with running_gateway(**old_late) as gateway:
        old, opened_before = gateway.service.registry.members["late"], SlowLifecycle.may_open
        lives = gateway.service.registry._lifecycle._running
        await reload(gateway, **new_late)
        await wait_until(lambda: SlowLifecycle.may_open is not opened_before)
        assert len(lives) == 2
        await reload(gateway, **old_late)
        await wait_until(lambda: len(lives) == 1)  # the replacement would never have opened
        await is_at_rest(gateway)
        assert gateway.service.registry.members["late"] is old
        assert (old.state, await status(gateway, LATE)) == ("serving", 200)
        assert gateway.lines.of("backend.failed_to_open") == []


async def test_replacement_that_fails_to_open_still_replaces_the_old_backend() -> None:
    async with running_gateway(**OFF_SITE_STUB) as gateway:
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__REFUSES_TO_OPEN="true")
        await is_at_rest(gateway)
        refused = await answered(gateway.url, SAY)
        assert (refused.status, "the desk is locked" in refused.json["error"]["message"]) == (503, True)
        await reload(gateway, **OFF_SITE_STUB)
        await is_at_rest(gateway)
        await gateway.service.registry.wait_opened(5)
        assert await status(gateway, SAY) == 200


async def test_backend_that_may_hold_a_device_closes_before_its_replacement_opens() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        old = gateway.service.registry.members["desk"]
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await reload(gateway, **STUB, GATEWAY_BACKENDS__DESK__SLOTS="3", **CANARY)
        await wait_until(lambda: old.state == "closing")
        assert await status(gateway, SAY) == 503
        assert await status(gateway, post("/v1/tasks/sing", b"{}")) == 200
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
        await is_at_rest(gateway)
        await gateway.service.registry.wait_opened(5)
        assert (old.state, await status(gateway, SAY)) == ("closed", 200)


async def test_reload_reopens_a_failed_backend() -> None:
    rascal = backend("bad", "support.faulty_lifecycle:FaultyLifecycle")
    FaultyLifecycle.open_error = "the line is unplugged"
    async with running_gateway(**rascal) as gateway:
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 503
        FaultyLifecycle.open_error = ""
        await reload(gateway, **rascal)
        await is_at_rest(gateway)
        await gateway.service.registry.wait_opened(5)
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 200


async def test_reload_ends_a_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_EXCEPTIONS", 2)
    faulty = backend("bad", "support.faulty_backend:FaultyBackend")
    async with running_gateway(**faulty) as gateway:
        for _ in range(2):
            assert await status(gateway, post("/v1/tasks/raise", b"{}")) == 500
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 503
        await reload(gateway, **faulty)
        await is_at_rest(gateway)
        await gateway.service.registry.wait_opened(5)
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 200


async def test_gateway_stops_during_a_backend_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.service.DRAIN_S", 0.1)
    async with running_gateway(**STUB, **OFF_SITE_STUB) as gateway, connected(gateway.url) as (_, writer):
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__SLOTS="3")
    assert gateway.service.registry.stuck() == []


async def test_measurements_are_kept_when_a_backend_returns_unchanged() -> None:
    for plugin in (
        backend("bad", "support.faulty_lifecycle:FaultyLifecycle"),
        backend("bad", "support.faulty_lifecycle:FaultyLifecycle", SITE="cloud"),
    ):
        FaultyLifecycle.open_error = "the line is unplugged"
        async with running_gateway(**plugin) as gateway:
            gateway.service.measurements.learn("bad", "task", "serve", 1.0, 2.0)
            FaultyLifecycle.open_error = ""
            await reload(gateway, **plugin)
            await is_at_rest(gateway)
            assert gateway.service.measurements.predict("bad", "task", "serve", 1.0).samples == 1
            await reload(gateway, **plugin, GATEWAY_BACKENDS__BAD__SLOTS="2")
            await is_at_rest(gateway)
            assert gateway.service.measurements.predict("bad", "task", "serve", 1.0).samples == 0


# ── systemd notification ─────────────────────────────────────────────────────────────────────────


async def reloading(
    monkeypatch: pytest.MonkeyPatch, work: asyncio.Future[BaseException]
) -> tuple[asyncio.Task[None], list[str]]:
    said: list[str] = []

    async def wait(*_: object) -> None:
        if (raised := await work) is not None:
            raise raised

    class Bound:
        bound = ("here",)

    monkeypatch.setattr(main, "reload", wait)
    monkeypatch.setattr(main.systemd, "notify", lambda *lines: said.extend(lines))
    told = asyncio.Event()
    told.set()
    task = asyncio.create_task(main._reload_on_signal(Bound(), None, os.environ, told))  # type: ignore[arg-type]
    await wait_until(lambda: said)
    said.clear()
    return task, said


async def test_stop_during_a_reload_sends_no_ready_to_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    task, said = await reloading(monkeypatch, asyncio.get_running_loop().create_future())
    task.cancel()
    await asyncio.wait({task})
    assert said == []


@pytest.mark.parametrize("raised", [RuntimeError(SECRET), Panic(SECRET), asyncio.CancelledError()])
async def test_reload_that_raises_is_logged_without_its_text_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    async with running_gateway(**STUB) as gateway:
        work = asyncio.get_running_loop().create_future()
        task, said = await reloading(monkeypatch, work)
        work.set_result(raised)
        (told,) = await gateway.lines.wait("service.reload_failed")
        assert type(raised).__name__ in told["problems"][0]
        assert SECRET not in str(told)
        await wait_until(lambda: said)
        assert "READY=1" in said
        task.cancel()
        await asyncio.wait({task})
