"""Plugins that exit, start threads or raise do not end or block the gateway."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from support import fault_injector
from support.raw import answered, connected, post, read_answer
from support.serving import gateway, wait_until

WRECKER = {"GATEWAY_BACKENDS__BAD__PLUGIN": "support.fault_injector:FaultInjector"}
CALM = post("/v1/tasks/slow", b'{"seconds":0}')


@pytest.mark.parametrize("how", ["exit_0", "exit_78", "exit_in_a_callback", "interrupt", "stop_the_loop"])
async def test_plugin_cannot_end_the_gateway_and_its_attempt_is_logged_with_the_location(
    how: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        async with connected(it.url) as (reader, writer):
            writer.write(post("/v1/tasks/slow", b'{"seconds":0.3}'))
            assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
            await wait_until(lambda: it.lines("service.unhandled"))
            assert (await read_answer(reader)).status == 200
        assert (await answered(it.url, CALM)).status == 200
        told = it.lines("service.unhandled")[0]
        assert how == "stop_the_loop" or told["where"].startswith(fault_injector.__file__)
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        assert it.lines("service.stopped")


@pytest.mark.parametrize(
    ("how", "name"), [("thread", "sleeper"), ("executor", "sleepers_"), ("default_executor", "asyncio_")]
)
async def test_thread_that_never_ends_does_not_prevent_the_exit(how: str, name: str, tmp_path: Path) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        (told,) = it.lines("service.abandoned")
        (thread,) = told["threads"]
        assert (told["backends"], thread.startswith(name)) == ([], True)
        assert " at /" in thread


async def test_idle_plugin_threads_are_not_logged_at_the_exit(tmp_path: Path) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post("/v1/tasks/idle_executor", b"{}"))).status == 200
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        assert it.lines("service.stopped")
        assert not it.lines("service.abandoned")


async def test_reload_works_when_plugins_fill_asyncios_default_executor(tmp_path: Path) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        for _ in range(40):  # asyncio's default executor has at most 32 threads
            assert (await answered(it.url, post("/v1/tasks/default_executor", b"{}"))).status == 200
        it.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: it.lines("service.reloaded"))


@pytest.mark.parametrize(
    ("how", "event", "error"),
    [
        ("raise_in_a_thread", "service.unhandled", "the thread `failing` has ended: LookupError"),
        ("raise_when_collected", "service.unhandled", "`RaisesWhenCollected.__del__`: LookupError"),
        ("raise_in_a_callback", "service.unhandled", "an exception in a callback: LookupError"),
        ("warn", "library.logged", "UserWarning"),
    ],
)
async def test_last_resort_exceptions_and_warnings_are_logged_without_their_text(
    how: str, event: str, error: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        await wait_until(lambda: it.lines(event))  # each log line is parsed as JSON
        (told,) = it.lines(event)
        assert told["error"] == error
        assert fault_injector.__file__ in (told.get("where") or told["message"])
        assert fault_injector.SECRET not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise_in_a_thread", "the thread `failing` has ended: LookupError at "),
        ("raise_when_collected", "`RaisesWhenCollected.__del__`: LookupError at "),
        ("raise_in_a_callback", "an exception in a callback: LookupError at "),
        ("warn", ": UserWarning"),
    ],
)
async def test_last_resort_exceptions_in_a_worker_are_in_its_output_without_their_text(
    how: str, said: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER, GATEWAY_BACKENDS__BAD__ISOLATION="process") as it:
        await wait_until(lambda: len(it.lines("worker.ready")) >= 2)  # at least one per backend
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        await wait_until(lambda: it.lines("worker.output"))
        line = it.lines("worker.output")[0]["line"]
        assert said in line
        assert fault_injector.__file__ in line
        assert fault_injector.SECRET not in (tmp_path / "log").read_text()
