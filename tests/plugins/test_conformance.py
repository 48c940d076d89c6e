"""Every plugin of ours keeps the promises that third parties' have to keep, in either isolation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.plugin import Backend, Isolation, Task, Upload
from gateway.testing import FakeNetwork, check_backend
from gateway.testing.asking import again
from gateway.testing.bench import Answer, Bench
from gateway_echo import Echo
from gateway_http import Http
from gateway_hybrid import Hybrid
from gateway_local import Local
from gateway_speech import Speech

COMPLETION = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}}]}
RECORDING = Path(__file__).parents[2] / "gateway" / "demo" / "data" / "conveyor.wav"
BOTH = ("loop", "process")


@pytest.mark.parametrize("isolation", BOTH)
@pytest.mark.parametrize("cls", [Echo, Local])
async def test_what_runs_here_keeps_its_promises(cls: type[Backend[Any]], isolation: Isolation) -> None:
    await check_backend(cls, settings={"isolation": isolation, "slots": 2})


async def test_speech_keeps_its_promises() -> None:
    pytest.importorskip("pocketsphinx")
    await check_backend(Speech)


@pytest.mark.parametrize("site", ["edge", "cloud"])
async def test_http_keeps_its_promises_whatever_its_network_does(site: str) -> None:
    async with FakeNetwork() as network:
        network.answer("/v1/chat/completions", json=COMPLETION)
        network.answer("/add", json={"result": 30})
        network.answer("/livez", json={})
        await check_backend(
            Http,
            settings={"url": network.url, "site": site, "tasks": {"add": "/add"}, "models": "m", "slots": 4},
            tasks={"add": {"a": 10, "b": 20}, "m": {}},
            network=network,
        )


async def test_hybrid_keeps_its_promises() -> None:
    settings = {"edge": "here", "cloud": "there", "tasks": "squares", "slots": 4}
    await check_backend(Hybrid, settings=settings, tasks={"squares": {"items": [1, 2, 3]}})


async def answers(cls: type[Backend[Any]], isolation: Isolation, tasks: list[Task] | None) -> list[Answer]:
    bench = Bench(cls, cls.Settings.model_validate({"isolation": isolation}), tasks)
    async with bench.opened() as backend:
        bench.look(backend)
        found = [await bench.ask(backend, again(task)) for task in bench.tasks]
    await bench.close()
    return found


@pytest.mark.parametrize("cls", [Echo, Speech])
async def test_isolation_is_a_setting_and_changes_no_answer(cls: type[Backend[Any]]) -> None:
    if cls is Speech:
        pytest.importorskip("pocketsphinx")
    tasks = [_heard()] if cls is Speech else None
    in_loop, in_process = [await answers(cls, isolation, tasks) for isolation in BOTH]
    assert in_loop == in_process
    assert in_loop


def _heard() -> Task:
    upload = Upload(RECORDING.read_bytes(), "a.wav", "audio/wav")
    return Task(kind="transcription", name="pocketsphinx", deadline=0, fields={}, files={"file": upload})
