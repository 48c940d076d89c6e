"""Plugins that fork, write to foreign descriptors or close them: no frame reaches another task."""

from __future__ import annotations

import pytest

from gateway.plugin import BackendUnavailable, Part
from gateway.workers import WorkerBackend
from support.worker_backends import Tool
from support.workers import a_task, answer, children, events, items, of, pids, state_of, wait_until


@pytest.mark.parametrize(
    ("how", "status"), [("exit", 3), ("exit with a text", 1), ("raise", 1), ("cancel", 1), ("return", 0), ("writes", 0)]
)
async def test_forked_child_leaves_with_its_own_status_and_the_worker_answers(
    tool: WorkerBackend, how: str, status: int
) -> None:
    before = pids(tool)
    for nonce in range(3):
        got = await answer(tool, a_task("fork", {"child": how, "nonce": nonce}))
        assert got == {"nonce": nonce, "status": status}
    assert pids(tool) == before


async def test_exception_in_a_forked_child_is_in_the_log(tool: WorkerBackend) -> None:
    await answer(tool, a_task("fork", {"child": "raise", "nonce": 1}))
    await wait_until(lambda: any("LookupError: in the child" in e["line"] for e in events(tool, "worker.output")))


async def test_child_of_a_stream_sends_no_parts(tool: WorkerBackend) -> None:
    for nonce in range(3):
        assert await items(tool, a_task("fork_stream", {"nonce": nonce})) == [Part(nonce), Part(nonce)]


async def test_child_that_awaits_ends_and_does_not_read_the_next_task(tool: WorkerBackend) -> None:
    for nonce in range(3):
        assert await answer(tool, a_task("fork_and_await", {"nonce": nonce})) == {"nonce": nonce}


@pytest.mark.parametrize("how", ["native return", "native raise", "native writes"])
async def test_worker_whose_natively_forked_child_answers_is_killed_and_its_task_fails(how: str) -> None:
    async with of(Tool) as tool:
        for nonce in range(2):
            with pytest.raises(BackendUnavailable, match="while it worked"):
                await answer(tool, a_task("fork", {"child": how, "nonce": nonce}))
        assert await answer(tool, a_task("json", {"nonce": "next"})) == {"nonce": "next"}
        if how != "native writes":
            assert "a process that it forked" in events(tool, "worker.died")[0]["how"]


@pytest.mark.parametrize("offset", [-1, 1])
async def test_worker_that_answers_another_task_is_killed_and_its_task_fails(tool: WorkerBackend, offset: int) -> None:
    assert await answer(tool, a_task("json", 1)) == 1
    with pytest.raises(BackendUnavailable, match="sent a ResultFrame for another task"):
        await answer(tool, a_task("answer_twice", {"nonce": 1, "offset": offset}))
    assert await answer(tool, a_task("json", 2)) == 2


async def test_second_answer_to_one_task_never_answers_the_next(tool: WorkerBackend) -> None:
    await answer(tool, a_task("answer_twice", {"nonce": 1, "offset": 0}))
    await wait_until(lambda: bool(events(tool, "worker.died")))
    assert "for another task" in events(tool, "worker.died")[0]["how"]
    assert await answer(tool, a_task("json", 2)) == 2


@pytest.mark.parametrize("name", ["close_all", "write_all"])
async def test_task_that_breaks_the_descriptors_of_its_worker_fails_at_once(tool: WorkerBackend, name: str) -> None:
    with pytest.raises(BackendUnavailable, match="while it worked"):
        await answer(tool, a_task(name, {"nonce": 1}))
    assert await answer(tool, a_task("json", 2)) == 2


async def test_children_do_not_outlive_a_stopped_backend() -> None:
    before = children()
    async with of(Tool, slots=2) as tool:
        for nonce in range(8):
            await answer(tool, a_task("fork", {"child": "exit", "nonce": nonce, "wait": False}))
    # If the conformance kit ran before, this process is a subreaper, and the dead children are its zombies.
    assert {pid for pid in children() - before if state_of(pid) != "Z"} == set()
