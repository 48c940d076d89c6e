from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import pytest

from gateway.plugin import Kind, Part, Result, Task, TaskInvalid
from gateway_echo import Echo, EchoSettings
from support.recording_services import RecordingServices


async def ask(kind: Kind, json: Any, *, stream: bool = False, **settings: Any) -> list[Part | Result]:
    task = Task(
        kind=kind, name="echo", deadline=time.monotonic() + 9, body=msgspec.json.encode(json), stream=stream
    )  # fmt: skip
    async with Echo(EchoSettings(**settings), RecordingServices()) as echo:
        return [item async for item in echo.run(task)]


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": role, "content": content} for role, content in turns]}


async def test_echo_task_returns_its_json() -> None:
    assert await ask("task", {"a": [1]}) == [Result(body=b'{"result":{"a":[1]}}')]


async def test_chat_returns_the_last_user_message() -> None:
    turns = chat(("user", "one"), ("assistant", "two"), ("user", "three"), ("system", "four"))
    assert await ask("chat", turns) == [Result(json="three")]


async def test_chat_joins_the_text_parts_of_a_multipart_message() -> None:
    content = [{"type": "text", "text": "see "}, {"type": "image_url"}, {"type": "text", "text": "this"}]
    assert await ask("chat", chat(("user", content))) == [Result(json="see this")]


async def test_stream_yields_the_same_text_word_by_word() -> None:
    parts = await ask("chat", chat(("user", " to be,\n or not")), stream=True)
    assert [part.data for part in parts if isinstance(part, Part)] == [" to ", "be,\n ", "or ", "not"]


async def test_completion_returns_its_prompt() -> None:
    assert await ask("completion", {"prompt": "once"}) == [Result(json="once")]
    assert await ask("completion", {"prompt": ["a", "b"]}) == [Result(json="ab")]


async def test_embeddings_are_unit_vectors_that_depend_only_on_the_input() -> None:
    (one,) = await ask("embeddings", {"input": ["a", "b", "a"]})
    (other,) = await ask("embeddings", {"input": "a"})
    assert isinstance(one, Result)
    assert isinstance(other, Result)
    a, b, again = one.json
    assert a == again == other.json[0] != b
    assert len(a) == 8
    assert math.isclose(math.hypot(*a), 1)


async def test_dimension_setting_applies_and_a_token_list_is_one_input() -> None:
    (result,) = await ask("embeddings", {"input": [1, 2, 3]}, dimension=3)
    assert isinstance(result, Result)
    assert [len(vector) for vector in result.json] == [3]


@pytest.mark.parametrize(
    ("kind", "json", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("chat", [], "messages"),
        ("chat", chat(("user", None)), "messages"),
        ("completion", {}, "prompt"),
        ("embeddings", {"input": []}, "input"),
    ],
)
async def test_request_without_content_is_invalid_and_names_the_field(kind: Kind, json: Any, param: str) -> None:
    with pytest.raises(TaskInvalid) as caught:
        await ask(kind, json)
    assert caught.value.param == param


def test_configured_names_replace_the_default_models_and_tasks() -> None:
    echo = Echo(EchoSettings(models="gpt,claude", tasks={"say": "echo"}), RecordingServices())  # type: ignore[arg-type]
    assert echo.models == {"gpt": "gpt", "claude": "claude"}
    assert echo.tasks == {"say": "echo"}
