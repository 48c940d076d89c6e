"""A backend that changes while it serves: who is asked meanwhile, and that nobody is refused for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from gateway.decide import quarantine
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
def _good_again() -> Iterator[None]:
    yield
    FaultyLifecycle.health_results, FaultyLifecycle.open_error = [], ""


async def reload(gateway: RunningGateway, **environ: str) -> None:
    """As SIGHUP does: it does not wait for backends to come and go."""
    state = {"GATEWAY_STATE_DIR": str(gateway.service.settings.state_dir)}
    await gateway.service.reload(load(LOOPBACK | state | environ))


async def status(gateway: RunningGateway, asked: bytes) -> int:
    return (await answered(gateway.url, asked)).status


async def is_at_rest(gateway: RunningGateway) -> None:
    await gateway.service.registry.changed()
    assert not any(gateway.service.lanes.busy().values())
    assert not gateway.service.lanes._retired


async def test_what_only_the_policy_reads_changes_in_place_whatever_the_backend_is_doing() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        member = gateway.service.registry.members["desk"]
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        new = backend("desk", "support.stub_backend:StubBackend", USD_PER_REQUEST="1", WATTS="7", QUEUE="3")
        await reload(gateway, **new)
        assert gateway.service.registry.members["desk"] is member
        lane = gateway.service.lanes._lanes["desk"]
        assert (lane.usd, lane.watts, lane.queue) == (1, 7, 3)
        assert await status(gateway, SAY) == 200
        await reload(gateway, **new)
        assert gateway.service.registry.members["desk"] is member
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
        await is_at_rest(gateway)


async def test_a_new_backend_does_not_wait_for_one_that_goes() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await reload(gateway, **CANARY)
        await wait_until(lambda: gateway.service.registry.members["bird"].opened.is_set())
        assert await status(gateway, post("/v1/tasks/sing", b"{}")) == 200
        assert gateway.service.registry.members["desk"].state == "closing"
        StubBackend.open.set()
        assert (await read_answer(reader)).status == 200
        await is_at_rest(gateway)


async def test_a_changed_backend_serves_on_while_the_old_one_finishes_beside() -> None:
    async with running_gateway(**OFF_SITE_STUB) as gateway, connected(gateway.url) as (reader, writer):
        old = gateway.service.registry.members["far"]
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        of_the_old_one = StubBackend.open
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__SLOTS="3")
        await wait_until(lambda: gateway.service.registry.members["far"] is not old)
        assert [await status(gateway, SAY) for _ in range(4)] == [200] * 4
        assert gateway.service.lanes._lanes["far"].slots == 3
        assert (old.state, gateway.service.registry.members["far"].state) == ("closing", "serving")
        of_the_old_one.set()
        assert (await read_answer(reader)).json == {"result": "waited"}
        await is_at_rest(gateway)
        assert old.state == "closed"


@pytest.mark.parametrize(("change", "wanted"), [("REPEATABLE", 200), ("TASKS", 503)])
async def test_who_waits_in_line_is_served_by_the_new_one_where_that_does_the_same(change: str, wanted: int) -> None:
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
        await wait_until(lambda: gateway.service.lanes.waiting()["far"])
        await reload(gateway, **narrow, **{f"GATEWAY_BACKENDS__FAR__{change}": to})
        assert (await asyncio.wait_for(read_answer(reader), 10)).status == wanted
        of_the_old_one.set()
        assert (await read_answer(first_reader)).json == {"result": "waited"}
        await is_at_rest(gateway)


@pytest.mark.parametrize("lanes_hear_of_it", [True, False])
async def test_what_may_not_leave_stays_where_it_waits_when_another_backend_is_moved_off_the_site(
    monkeypatch: pytest.MonkeyPatch, lanes_hear_of_it: bool
) -> None:
    """Decided among two here; one of them is in the cloud by the time there is room for it."""
    monkeypatch.setattr(GatedBackend, "gates", {})
    monkeypatch.setattr(GatedBackend, "waiting", set())
    both = TURNSTILES["a"] | TURNSTILES["b"]
    stand, walk = post("/v1/tasks/stand", b"{}"), post("/v1/tasks/walk", b"{}", "x-gateway-locality: edge-only")
    async with running_gateway(**both) as gateway, AsyncExitStack() as stack:
        lanes, members = gateway.service.lanes, gateway.service.registry.members
        talks = [await stack.enter_async_context(connected(gateway.url)) for _ in range(3)]
        for (_, writer), names in zip(talks, (1, 2), strict=False):
            writer.write(stand)
            await wait_until(lambda names=names: len(GatedBackend.waiting) == names)
        (reader, writer), old = talks[2], members["b"]
        writer.write(walk)
        await wait_until(lambda: lanes._waiting_in)
        (work,) = lanes._waiting_in
        assert sorted(work.allowed) == ["a", "b"]
        if not lanes_hear_of_it:
            monkeypatch.setattr(lanes, "_strike", lambda name: None)
        await reload(gateway, **both, GATEWAY_BACKENDS__B__SITE="cloud")
        GatedBackend.gates["b"].set()
        await wait_until(lambda: members["b"] is not old and members["b"].state == "serving" and "b" in lanes.busy())
        if lanes_hear_of_it:
            assert work.allowed == ("a",)
        else:
            lanes.withdraw(work)
            lanes.submit(work, "b")
            await gateway.line("dispatch.fell_back")
        GatedBackend.gates["a"].set()
        answer = await read_answer(reader)
        assert (answer.status, answer.json, answer.headers["x-gateway-site"]) == (200, {"result": {"at": "a"}}, "edge")
        assert gateway.lines.of("egress.refused") == []


async def test_until_the_new_one_has_opened_the_old_one_serves() -> None:
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


async def test_what_is_asked_from_an_upstream_is_known_before_the_new_one_has_the_name() -> None:
    script = by_path({"/v1/models": answer(json={"data": [{"id": "m"}]})}, answer(status=404, json={}))
    async with relaying(script) as (gateway, upstream):
        old = gateway.service.registry.members["cloud"]
        assert old.models == {"m": "m"}
        await reload(gateway, **cloud(upstream.url, SLOTS="3"))
        await wait_until(lambda: gateway.service.registry.members["cloud"] is not old)
        assert gateway.service.registry.members["cloud"].models == {"m": "m"}
        await is_at_rest(gateway)


async def test_settings_taken_back_before_the_new_one_has_opened_leave_the_old_one_and_cancel_that() -> None:
    old_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud", OPENS_AT_ONCE="true")
    new_late = backend("late", "support.slow_lifecycle:SlowLifecycle", SITE="cloud")
    async with running_gateway(**old_late) as gateway:
        old, opened_before = gateway.service.registry.members["late"], SlowLifecycle.may_open
        lives = gateway.service.registry._lives._lives
        await reload(gateway, **new_late)
        await wait_until(lambda: SlowLifecycle.may_open is not opened_before)
        assert len(lives) == 2
        await reload(gateway, **old_late)
        await wait_until(lambda: len(lives) == 1)  # though it would never have opened
        await is_at_rest(gateway)
        assert gateway.service.registry.members["late"] is old
        assert (old.state, await status(gateway, LATE)) == ("serving", 200)
        assert gateway.lines.of("backend.failed_to_open") == []


async def test_one_that_cannot_open_takes_the_name_nonetheless_for_its_settings_are_what_was_asked_for() -> None:
    async with running_gateway(**OFF_SITE_STUB) as gateway:
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__REFUSES_TO_OPEN="true")
        await is_at_rest(gateway)
        refused = await answered(gateway.url, SAY)
        assert (refused.status, "the desk is locked" in refused.json["error"]["message"]) == (503, True)
        await reload(gateway, **OFF_SITE_STUB)
        await is_at_rest(gateway)
        await gateway.service.registry.settled(5)
        assert await status(gateway, SAY) == 200


async def test_what_may_hold_a_device_closes_before_its_successor_opens() -> None:
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
        await gateway.service.registry.settled(5)
        assert (old.state, await status(gateway, SAY)) == ("closed", 200)


async def test_a_reload_tries_a_backend_again_that_had_failed() -> None:
    rascal = backend("bad", "support.faulty_lifecycle:FaultyLifecycle")
    FaultyLifecycle.open_error = "the line is unplugged"
    async with running_gateway(**rascal) as gateway:
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 503
        FaultyLifecycle.open_error = ""
        await reload(gateway, **rascal)
        await is_at_rest(gateway)
        await gateway.service.registry.settled(5)
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 200


async def test_a_reload_ends_a_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "RAISES", 2)
    faulty = backend("bad", "support.faulty_backend:FaultyBackend")
    async with running_gateway(**faulty) as gateway:
        for _ in range(2):
            assert await status(gateway, post("/v1/tasks/raise", b"{}")) == 500
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 503
        await reload(gateway, **faulty)
        await is_at_rest(gateway)
        await gateway.service.registry.settled(5)
        assert await status(gateway, post("/v1/tasks/serve", b"{}")) == 200


async def test_a_gateway_stops_in_the_middle_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.life.DRAIN_S", 0.1)
    async with running_gateway(**STUB, **OFF_SITE_STUB) as gateway, connected(gateway.url) as (_, writer):
        writer.write(WAIT)
        await StubBackend.waiting.wait()
        await reload(gateway, **OFF_SITE_STUB, GATEWAY_BACKENDS__FAR__SLOTS="3")
    assert gateway.service.registry.stuck() == []


async def test_what_was_learned_of_a_backend_that_comes_back_as_it_was_stays() -> None:
    for plugin in (
        backend("bad", "support.faulty_lifecycle:FaultyLifecycle"),
        backend("bad", "support.faulty_lifecycle:FaultyLifecycle", SITE="cloud"),
    ):
        FaultyLifecycle.open_error = "the line is unplugged"
        async with running_gateway(**plugin) as gateway:
            gateway.service.board.learn("bad", "task", "serve", 1.0, 2.0)
            FaultyLifecycle.open_error = ""
            await reload(gateway, **plugin)
            await is_at_rest(gateway)
            assert gateway.service.board.predict("bad", "task", "serve", 1.0).samples == 1
            await reload(gateway, **plugin, GATEWAY_BACKENDS__BAD__SLOTS="2")
            await is_at_rest(gateway)
            assert gateway.service.board.predict("bad", "task", "serve", 1.0).samples == 0


# ── what systemd hears ───────────────────────────────────────────────────────────────────────────


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
    task = asyncio.create_task(main._reload_when_told(Bound(), None, told))  # type: ignore[arg-type]
    await wait_until(lambda: said)
    said.clear()
    return task, said


async def test_who_stops_during_a_reload_does_not_say_that_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    task, said = await reloading(monkeypatch, asyncio.get_running_loop().create_future())
    task.cancel()
    await asyncio.wait({task})
    assert said == []


@pytest.mark.parametrize("raised", [RuntimeError(SECRET), Panic(SECRET), asyncio.CancelledError()])
async def test_a_reload_that_breaks_is_told_without_words_and_the_next_is_heard(
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
