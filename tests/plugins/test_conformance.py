"""First-party plugins pass the conformance kit for third-party plugins.

Each runs in the loop and in worker processes.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.plugin import Backend, Isolation, Task, Upload
from gateway.testing import FakeNetwork, a_task, check_backend
from gateway.testing.harness import Answer, BackendHarness
from gateway.testing.requests import model_task, repeat, sample_wav
from gateway_echo import Echo
from gateway_http import Http
from gateway_hybrid import Hybrid
from gateway_local import Local
from gateway_speech import Speech

COMPLETION = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}}]}


@pytest.mark.parametrize("isolation", ["loop", "process"])
@pytest.mark.parametrize("cls", [Echo, Local])
async def test_local_plugins_pass_the_conformance_kit_in_either_isolation(
    cls: type[Backend[Any]], isolation: Isolation
) -> None:
    await check_backend(cls, settings={"isolation": isolation, "slots": 2})


async def test_speech_plugin_passes_the_conformance_kit() -> None:
    pytest.importorskip("pocketsphinx")
    upload = Upload(sample_wav(0.1), "a.wav", "audio/wav")
    task = Task(kind="transcription", name="pocketsphinx", deadline=0, fields={}, files={"file": upload})
    await check_backend(Speech, settings={"slots": 1}, tasks=[task])


@pytest.mark.parametrize("site", ["edge", "cloud"])
async def test_http_plugin_passes_the_conformance_kit_under_network_faults(site: str) -> None:
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


async def test_hybrid_plugin_passes_the_conformance_kit() -> None:
    settings = {"edge": "here", "cloud": "there", "tasks": "squares", "slots": 4}
    await check_backend(Hybrid, settings=settings, tasks={"squares": {"items": [1, 2, 3]}})


async def answers(cls: type[Backend[Any]], isolation: Isolation, tasks: list[Task]) -> list[Answer]:
    harness = BackendHarness(cls, cls.Settings.model_validate({"isolation": isolation}), tasks)
    async with harness.started_backend() as backend:
        found = [await harness.run(backend, repeat(task)) for task in tasks]
    await harness.close()
    return found


@pytest.mark.parametrize(
    ("cls", "tasks"),
    [
        (Echo, [a_task("echo", {"a": [1]}), model_task("chat", "echo"), model_task("embeddings", "echo")]),
        (Local, [a_task("add", {"a": 10, "b": 20}), a_task("count", {"n": 3}), a_task("squares", {"items": [2]})]),
    ],
)
async def test_answers_are_equal_in_loop_and_process_isolation(cls: type[Backend[Any]], tasks: list[Task]) -> None:
    in_loop, in_process = [await answers(cls, isolation, tasks) for isolation in ("loop", "process")]
    assert in_loop == in_process
