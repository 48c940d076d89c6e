from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from gateway.plugin import BackendFailed, BackendUnavailable, NotServed, Part, Task, TaskInvalid
from gateway.workers import WorkerBackend
from gateway_local import Local, LocalSettings
from gateway_local.calling import BoundFunction, as_json
from support.recording_services import RecordingServices


def a_task(name: str, arguments: Any) -> Task:
    return Task(kind="task", name=name, deadline=time.monotonic() + 20, body=msgspec.json.encode(arguments))


async def call(local: Any, name: str, arguments: Any) -> list[Any]:
    items = [item async for item in local.run(a_task(name, arguments))]
    return [item.data if isinstance(item, Part) else item.json for item in items]


def here(**settings: Any) -> Local:
    """A backend in this process: same behaviour, faster tests."""
    return Local(LocalSettings(**settings), RecordingServices())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "greet.py").write_text(
        "from _words import hello\n"
        "import asyncio\n"
        "from dataclasses import dataclass\n"
        "def greet(name, *, loud=False):\n"
        "    '''Say hello.\n\n    More.'''\n"
        "    return hello(name).upper() if loud else hello(name)\n"
        "async def later(**anything):\n"
        "    await asyncio.sleep(0)\n"
        "    return sorted(anything)\n"
        "async def ticks(n):\n"
        "    for i in range(n):\n"
        "        yield i\n"
        "def _private():\n"
        "    return 1\n"
        "def confused(text):\n"
        "    return len(5)\n"
    )
    (tmp_path / "_words.py").write_text("def hello(name):\n    return f'hello {name}'\n")
    return tmp_path


# ── in worker processes ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def workers() -> AsyncIterator[WorkerBackend]:
    async with WorkerBackend(Local, LocalSettings(), RecordingServices(), slots=1) as backend:
        yield backend


async def test_shipped_functions_are_served_by_a_worker(workers: WorkerBackend) -> None:
    assert await call(workers, "add", {"a": 10, "b": 20}) == [{"result": 30}]
    assert await call(workers, "add", {"a": 2**64, "b": 1}) == [{"result": 2**64 + 1}]
    assert await call(workers, "squares", {"items": [1, 2, 3]}) == [{"result": [1, 4, 9]}]
    assert await call(workers, "count", {"n": 3}) == [1, 2, 3]


async def test_burn_keeps_a_core_busy(workers: WorkerBackend) -> None:
    began = time.monotonic()
    ((burnt),) = await call(workers, "burn", {"seconds": 0.1})
    assert time.monotonic() - began >= 0.1
    assert 0 < burnt["result"] <= 0.2


async def test_worker_announces_the_task_names(workers: WorkerBackend) -> None:
    assert set(workers.tasks) == {"add", "burn", "count", "squares"}


async def test_exception_in_a_function_is_named_in_the_error(workers: WorkerBackend) -> None:
    with pytest.raises(BackendUnavailable, match=r"`add` raised TypeError") as caught:
        await call(workers, "add", {"a": 1, "b": "x"})
    assert (caught.value.code, caught.value.again) == ("plugin_error", False)
    assert caught.value.detail.startswith("unsupported operand")


async def test_invalid_argument_keeps_its_name_across_the_process_boundary(workers: WorkerBackend) -> None:
    with pytest.raises(TaskInvalid, match=r"`add\(a, b\)` needs `b`, which is missing") as caught:
        await call(workers, "add", {"a": 1})
    assert caught.value.param == "b"


# ── configured tasks ─────────────────────────────────────────────────────────────────────────────


async def test_public_functions_of_a_folder_are_served(folder: Path) -> None:
    async with here(tasks_dir=folder) as local:
        assert set(local.tasks) == {"greet", "later", "ticks", "confused"}
        assert await call(local, "greet", {"name": "Ada", "loud": True}) == [{"result": "HELLO ADA"}]
        assert await call(local, "later", {"x": 1, "a": 2}) == [{"result": ["a", "x"]}]
        assert await call(local, "ticks", {"n": 3}) == [0, 1, 2]


async def test_type_error_inside_a_function_is_a_plugin_error(folder: Path) -> None:
    async with here(tasks_dir=folder) as local:
        with pytest.raises(BackendUnavailable, match="`confused` raised TypeError") as caught:
            await call(local, "confused", {"text": "x"})
        assert caught.value.code == "plugin_error"


async def test_repeated_exception_at_one_line_is_logged_once_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with here(tasks_dir=folder) as local:
        for every_s in (60.0, 60.0, 60.0, 0.0):
            monkeypatch.setattr("gateway_local.LOG_INTERVAL_S", every_s)
            with pytest.raises(BackendUnavailable):
                await call(local, "confused", {"text": "x"})
        logged = [keys for event, keys in local.services.log.events if event == "local.raised"]
    assert [keys["suppressed"] for keys in logged] == [0, 2]
    assert logged[0]["traceback"].splitlines()[-1].endswith(".py:18 confused")
    assert "len(5)" not in str(logged)  # source text may contain a password, so it is never logged


async def test_tasks_setting_accepts_a_list_or_a_map() -> None:
    async with here(tasks="math:factorial,statistics:mean") as local:
        assert await call(local, "factorial", {"n": 5}) == [{"result": 120}]
        assert await call(local, "mean", {"data": [1, 2]}) == [{"result": 1.5}]
    async with here(tasks={"avg": "statistics:mean"}, tasks_dir=None) as local:
        assert local.tasks == {"avg": "avg"}


async def test_named_functions_and_a_folder_are_served_together(folder: Path) -> None:
    async with here(tasks="math:factorial", tasks_dir=folder) as local:
        assert {"factorial", "greet"} <= set(local.tasks)


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ("no_such_module:f", "`no_such_module:f` cannot be imported: ModuleNotFoundError: No module named"),
        ("math:no_such", "`math:no_such` cannot be imported: AttributeError"),
        ("math:pi", "`math:pi` is float, not a function"),
        ("builtins:max", "its arguments have no names; wrap it in a function"),
    ],
)
async def test_unservable_function_is_named_at_start(tasks: str, why: str) -> None:
    with pytest.raises(BackendUnavailable, match=why):
        await here(tasks=tasks).__aenter__()


async def test_duplicate_function_names_are_reported_with_both_locations(folder: Path) -> None:
    (folder / "hi.py").write_text("def greet(): ...\n")
    why = r"`greet` is defined both in .*greet\.py and in .*hi\.py"
    async with here(tasks_dir=folder) as local:
        with pytest.raises(NotServed, match=why):
            await call(local, "greet", {"name": "Ada"})
        assert await call(local, "ticks", {"n": 1}) == [0]
    (folder / "hi.py").unlink()
    with pytest.raises(BackendUnavailable, match=r"`greet` is both in TASKS \(math:factorial\) and in "):
        await here(tasks_dir=folder, tasks={"greet": "math:factorial"}).__aenter__()


async def test_folder_without_functions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no file in .* defines a public function"):
        await here(tasks_dir=tmp_path).__aenter__()


async def test_task_file_named_like_a_library_module_does_not_shadow_it(folder: Path) -> None:
    (folder / "queue.py").write_text("def length():\n    import queue\n    return hasattr(queue, 'Queue')\n")
    async with here(tasks_dir=folder) as local:
        assert await call(local, "length", {}) == [{"result": True}]


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ("math:gcd,numpy:gcd", "`math:gcd` and `numpy:gcd` are both called `gcd`"),
        ("factorial", "`factorial` is not of the form `package.module:function`"),
        ({"f": "math.factorial"}, "not of the form"),
    ],
)
def test_invalid_tasks_setting_is_rejected(tasks: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        LocalSettings(tasks=tasks)


def test_settings_are_unchanged_after_serialisation() -> None:
    settings = LocalSettings(tasks="math:gcd,statistics:mean")  # type: ignore[arg-type]
    assert settings.tasks == {"gcd": "math:gcd", "mean": "statistics:mean"}
    assert LocalSettings.model_validate(settings.model_dump()) == settings


# ── arguments and values ─────────────────────────────────────────────────────────────────────────


def scale(value: float, by: float = 2, /, *rest: Any, unit: str = "") -> Any:
    return [value * by, unit]


@pytest.mark.parametrize(
    ("arguments", "param", "why"),
    [
        ({}, "value", r"`scale\(value, by=2, /, \*rest, unit=''\)` needs `value`, which is missing"),
        ({"value": 1, "units": "m"}, "units", "has no such argument"),
        ({"value": 1, "rest": 2}, "rest", "has no such argument"),
        ([1], None, "takes a JSON object with its arguments, not a list"),
        (None, None, "not null"),
    ],
)
def test_invalid_arguments_report_the_signature(arguments: Any, param: str | None, why: str) -> None:
    with pytest.raises(TaskInvalid, match=why) as caught:
        BoundFunction("scale", scale).call(arguments)
    assert caught.value.param == param


def test_positional_only_arguments_are_accepted_by_name() -> None:
    assert BoundFunction("scale", scale).call({"unit": "m", "by": 3, "value": 1}) == [3, "m"]
    assert BoundFunction("scale", scale).call({"value": 1}) == [2, ""]


@dataclasses.dataclass
class Point:
    x: int
    at: date


class Grid:
    def tolist(self) -> list[list[int]]:
        return [[1]]


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (b"\x00\x01", "AAE="),
        (Point(1, date(2024, 2, 29)), {"x": 1, "at": "2024-02-29"}),
        ({1: [2, {3}]}, {"1": [2, [3]]}),
        (Path("/a"), "/a"),
        (Grid(), [[1]]),
        (2**70, 2**70),
    ],
)
def test_return_values_are_converted_to_json(value: Any, json: Any) -> None:
    assert as_json(value, "f") == json


def test_value_that_is_not_json_is_reported_with_advice() -> None:
    with pytest.raises(BackendFailed, match=r"`f` returned a value that has no JSON form \(a object\); return"):
        as_json({"x": object()}, "f")


async def test_abandoned_generator_is_closed_at_once(folder: Path) -> None:
    (folder / "gen.py").write_text(
        "closed = []\ndef numbers():\n    try:\n        yield from range(9)\n    finally:\n        closed.append(1)\n"
        "def how_many_closed():\n    return len(closed)\n"
    )
    async with here(tasks_dir=folder) as local:
        stream = local.run(a_task("numbers", {}))
        assert await anext(stream) == Part(0)
        await stream.aclose()  # type: ignore[attr-defined]
        assert await call(local, "how_many_closed", {}) == [{"result": 1}]


def test_constructor_sets_slots_and_loads_no_functions() -> None:
    local = here()
    assert local.slots >= 1
    assert local.tasks is None
