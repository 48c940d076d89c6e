"""What a plugin in the gateway's process does beside requests: it ends nobody's service, and stops nobody's end."""

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
async def test_a_plugin_cannot_end_the_gateway_and_is_named_where_it_tries(how: str, tmp_path: Path) -> None:
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
async def test_a_thread_that_never_ends_does_not_keep_the_gateway_from_ending(
    how: str, name: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        (told,) = it.lines("service.abandoned")
        (thread,) = told["threads"]
        assert (told["backends"], thread.startswith(name)) == ([], True)
        assert " at /" in thread


async def test_threads_that_only_wait_for_work_are_no_news(tmp_path: Path) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post("/v1/tasks/idle_executor", b"{}"))).status == 200
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        assert it.lines("service.stopped")
        assert not it.lines("service.abandoned")


async def test_plugins_that_fill_asyncios_threads_keep_no_new_settings_from_being_read(tmp_path: Path) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        for _ in range(40):  # asyncio has 32 at most
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
async def test_what_python_would_print_is_a_line_without_what_it_quotes(
    how: str, event: str, error: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER) as it:
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        await wait_until(lambda: it.lines(event))  # each line is read as JSON
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
async def test_in_a_worker_it_is_a_line_of_its_output_without_what_it_quotes(
    how: str, said: str, tmp_path: Path
) -> None:
    with gateway(tmp_path, **WRECKER, GATEWAY_BACKENDS__BAD__ISOLATION="process") as it:
        await wait_until(lambda: len(it.lines("worker.ready")) >= 2)  # one of each backend, at least
        assert (await answered(it.url, post(f"/v1/tasks/{how}", b"{}"))).status == 200
        await wait_until(lambda: it.lines("worker.output"))
        line = it.lines("worker.output")[0]["line"]
        assert said in line
        assert fault_injector.__file__ in line
        assert fault_injector.SECRET not in (tmp_path / "log").read_text()
