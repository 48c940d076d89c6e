"""The recipes of docs/plugins.md are complete plugins.

Each passes the conformance kit and works as documented.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tty
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.plugin import BackendUnavailable, Result, Task, TaskInvalid
from gateway.testing import FakeNetwork, a_task, answer_of, check_backend, parts_of

RECIPES = Path(__file__).parents[2] / "docs" / "examples" / "plugins"


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES)


async def test_wrap_function_recipe() -> None:
    from wrap_function import Quartiles

    await check_backend(Quartiles, settings={"isolation": "loop"})
    answer = await answer_of(Quartiles, a_task("quartiles", {"numbers": [1, 2, 3]}))
    assert answer.json == {"result": [1.0, 2.0, 3.0]}
    with pytest.raises(TaskInvalid, match="two numbers or more"):
        await answer_of(Quartiles, a_task("quartiles", {"numbers": [1]}))


async def test_vendor_api_recipe() -> None:
    from vendor_api import Translate

    async with FakeNetwork() as network:
        network.answer("/translate", json={"translated": "good day"})
        settings = {"url": f"{network.url}/translate", "api_key": "secret"}
        await check_backend(Translate, settings=settings, network=network)
        answer = await answer_of(Translate, a_task("translate", {"text": "guten Tag"}), **settings)
        assert answer.json == {"result": "good day"}
        assert network.requests[-1].json == {"q": "guten Tag"}
        assert network.requests[-1].headers["x-key"] == "secret"
        network.answer("/translate", status=422, body=b"which language is this?")
        with pytest.raises(TaskInvalid, match="which language"):
            await answer_of(Translate, a_task("translate", {"text": "?"}), **settings)


@asynccontextmanager
async def a_scale(reply: bytes) -> AsyncIterator[str]:
    """A pseudo-terminal with a simulated scale at the other end."""
    ours, theirs = os.openpty()
    tty.setraw(ours)
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: os.read(ours, 256).endswith(b"W\r") and os.write(ours, reply))
    try:
        yield os.ttyname(theirs)
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


async def test_serial_device_recipe() -> None:
    from serial_device import Scale

    async with a_scale(b"1.250 kg\n") as device:
        await check_backend(Scale, settings={"device": device})
        assert (await answer_of(Scale, a_task("weigh", {}), device=device)).json == {"result": 1.25, "unit": "kg"}
    async with a_scale(b"overload\n") as device:
        with pytest.raises(BackendUnavailable, match="did not answer as agreed"):
            await answer_of(Scale, a_task("weigh", {}), device=device)
    with pytest.raises(BackendUnavailable, match="is it plugged in"):
        await answer_of(Scale, a_task("weigh", {}), device="/dev/no-such-line")


async def test_stream_tokens_recipe() -> None:
    from stream_tokens import Parrot

    await check_backend(Parrot)
    asked = a_task("parrot", {"messages": [{"role": "user", "content": "to be or"}]}, kind="chat", stream=True)
    *words, last = await parts_of(Parrot, asked)
    assert "".join(words) == "to be or"
    assert last["usage"]["completion_tokens"] == 3


async def test_confidence_recipe() -> None:
    from confidence import Language

    await check_backend(Language)
    answer = await answer_of(Language, a_task("language", {"text": "das ist die Frage"}))
    assert (answer.json, answer.confidence) == ({"result": "de"}, 1.0)
    assert (await answer_of(Language, a_task("language", {"text": "ΑΒΓ"}))).confidence == 0


async def test_split_work_recipe() -> None:
    from split_work import Summaries

    async def summed_up(task: Task) -> Result:
        assert (task.name, task.depth) == ("summary", 1)
        await asyncio.sleep(0)
        return Result(json=task.json["text"][:2])

    await check_backend(Summaries, dispatch=summed_up)
    asked = a_task("summaries", {"texts": ["alpha", "beta"]})
    assert (await answer_of(Summaries, asked, dispatch=summed_up)).json == {"result": ["al", "be"]}


async def test_picture_recipe_without_its_library_reports_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES.parent / "picture_to_text")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    from gateway_picture import Picture

    with pytest.raises(BackendUnavailable, match=r"pip install -r requirements\.txt"):
        await answer_of(Picture, a_task("read", Picture.examples["read"]))
