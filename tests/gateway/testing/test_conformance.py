"""The test kit itself.

A correct backend passes. Each faulty backend fails with a message that names the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.plugin import Backend
from gateway.testing import CHECKS, check_backend, examine
from support import broken_backends as broken
from support.broken_backends import Conforming, caller_network


@pytest.fixture(autouse=True)
def cleared_away() -> Iterator[None]:
    yield
    for thing in Conforming.kept:
        for end in ("close", "set", "kill", "wait"):
            if hasattr(thing, end) and not hasattr(thing, "get_coro"):
                getattr(thing, end)()
    Conforming.kept.clear()


async def test_correct_backend_passes_every_check() -> None:
    outcomes = [outcome async for outcome in examine(Conforming)]
    assert [outcome.check for outcome in outcomes] == list(CHECKS)
    assert {outcome.state for outcome in outcomes} == {"kept"}


async def test_requests_that_a_backend_declares_not_served_are_not_repeated() -> None:
    outcomes = [outcome async for outcome in examine(broken.ServesSome)]
    assert {outcome.state for outcome in outcomes} == {"kept"}


FAULTS = [
    (broken.LeaksTask, "start and stop: 1 asyncio task left after it was stopped: LeaksTask._tick"),
    (broken.LeaksFile, 'growth: `say` with the body \'{"text":"hello"}\': each run leaves something behind: after 8'),
    (broken.LeaksThread, "start and stop: 1 thread left after it was stopped: poller"),
    (broken.LeaksProcess, "start and stop: 1 process left after it was stopped: sleep 60"),
    (broken.Blocks, "it blocked the event loop for "),
    (broken.Blocks, "ms, at broken_backends.py:"),
    (broken.SwallowsCancel, "it swallowed its cancellation and answered"),
    (broken.OutlivesCancel, "it went on for more than 1 s after it was cancelled"),
    (broken.ConnectsOffSite, "site: its site is edge, and it connected to 203.0.113.7:80"),
    (broken.HalfStarted, "half start: 1 open file or socket left after a start that was cancelled half-way"),
    (broken.WrongType, "`run` returned a dict, which is neither Result nor Part"),
    (broken.NotAsync, "declaration: `run` is a plain function"),
    (broken.NotJson, "its answer cannot be written as JSON"),
    (broken.Raises, "errors: `say` with the body '{}': `run` raised RuntimeError: no text"),
    (broken.SharesState, "among 4 at once it got another answer than alone"),
    (broken.NanSize, "questions: `size` is nan"),
    (broken.RaisingSize, "questions: `size` raised KeyError: 'text' for `say` with the body '{}'"),
    (broken.TasksIsString, "declaration: tasks is the string 'say'"),
    (broken.NoTasks, "run: it names no models and no tasks"),
    (broken.ServesNothing, "run: it raised NotServed for each request"),
    (broken.EntersAsNone, "start and stop: `__aenter__` returned None, not the backend itself"),
    (broken.HangsInExit, "start and stop: `__aexit__` was not done after"),
    (broken.MixesPartsAndResult, "`run` yielded a Result after 1 Part"),
    (broken.IgnoresGeneratorExit, "closing its stream raised RuntimeError: async generator ignored GeneratorExit"),
]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # faulty generators stay open until collected
@pytest.mark.parametrize(("cls", "names"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
async def test_faulty_backend_fails_with_a_message_that_names_the_fault(
    cls: type[Backend[Any]], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.testing.harness.STOP_S", 0.1)
    with pytest.raises(AssertionError) as caught:
        await check_backend(cls)
    assert names in str(caught.value), caught.value
    assert "fix: " in str(caught.value)


async def test_untranslated_network_errors_fail_the_check() -> None:
    async with caller_network() as network:
        with pytest.raises(AssertionError, match=r"ConnectionResetError|IncompleteReadError"):
            await check_backend(broken.UpstreamCaller, settings={"url": network.url}, network=network)


async def test_fault_in_a_worker_is_named_as_in_the_loop() -> None:
    with pytest.raises(AssertionError, match=r"errors: .* raised RuntimeError: no text"):
        await check_backend(broken.Raises, settings={"isolation": "process"})


@pytest.mark.parametrize("isolation", ["loop", "process"])
async def test_untranslated_key_error_produces_a_warning(isolation: str) -> None:
    with pytest.warns(
        UserWarning, match=r"Untranslated: errors: `say` with the body '\{\}': `run` raised KeyError: 'text'"
    ):
        await check_backend(broken.Untranslated, settings={"isolation": isolation})


async def test_checks_without_an_example_are_skipped_with_advice() -> None:
    outcomes = {outcome.check: outcome async for outcome in examine(broken.NoExamples)}
    assert {outcome.state for outcome in outcomes.values()} == {"kept", "skipped"}
    assert 'examples = {"say": {…}}' in outcomes["run"].fix


async def test_backend_in_a_worker_process_may_block() -> None:
    await check_backend(broken.Blocks, settings={"isolation": "process"})


async def test_class_that_is_not_a_backend_is_refused() -> None:
    with pytest.raises(AssertionError, match="is not a backend"):
        await check_backend(dict)  # type: ignore[arg-type]
