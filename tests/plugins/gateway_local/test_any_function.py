"""Functions as people write them: asyncio inside, decorators, broken and hidden files, bytes and forms."""

from __future__ import annotations

import base64
import dataclasses
import time
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, NotServed, Part, Result, Task, TaskInvalid, Upload
from gateway.workers import WorkerBackend
from gateway_local import Local, LocalSettings
from gateway_local.calling import BoundFunction
from support.recording_services import RecordingServices


def workers(folder: Path) -> WorkerBackend:
    return WorkerBackend(Local, LocalSettings(tasks_dir=folder), RecordingServices(), slots=1)


async def call(local: Any, name: str, arguments: Any = None, **more: Any) -> list[Any]:
    body = msgspec.json.encode(arguments or {})
    task = Task(kind="task", name=name, deadline=time.monotonic() + 20, body=body, **more)
    items = [item async for item in local.run(task)]
    return [item.data if isinstance(item, Part) else item.json for item in items if isinstance(item, Part | Result)]


# ── asyncio ──────────────────────────────────────────────────────────────────────────────────────


async def test_functions_generators_and_modules_may_run_an_event_loop_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "loops.py").write_text(
        "import asyncio\n"
        "async def value(n):\n    await asyncio.sleep(0)\n    return n\n"
        "AT_IMPORT = asyncio.run(value(1))\n"
        "def run():\n    return [AT_IMPORT, asyncio.run(value(2))]\n"
        "def stream():\n"
        "    try:\n        yield asyncio.run(value(3))\n        yield asyncio.run(value(4))\n"
        "    finally:\n        asyncio.run(value(5))\n"
        "async def later():\n    return await value(6)\n"
    )
    async with workers(tmp_path) as local:
        for _ in range(2):
            assert await call(local, "run") == [{"result": [1, 2]}]
            assert await call(local, "stream") == [3, 4]
            assert await call(local, "later") == [{"result": 6}]


# ── files of a folder ────────────────────────────────────────────────────────────────────────────

BROKEN = {
    "syntax.py": ("def task_a(:\n", "SyntaxError"),
    "missing.py": ("import no_such_library\ndef task_a(): ...\n", "No module named 'no_such_library'"),
    "exits.py": ("import sys\ndef task_a(): ...\nsys.exit('no licence')\n", "SystemExit: no licence"),
    "raises.py": ("def task_a(): ...\n1 / 0\n", "ZeroDivisionError"),
    "bytes.py": ("# coding: no-such\ndef task_a(): ...\n", "SyntaxError"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_file_affects_its_own_tasks_only(tmp_path: Path, name: str) -> None:
    source, why = BROKEN[name]
    (tmp_path / "good.py").write_text("def fine():\n    return 1\n")
    (tmp_path / name).write_text(source)
    async with workers(tmp_path) as local:
        assert await call(local, "fine") == [{"result": 1}]
        with pytest.raises(NotServed, match="task_a") as caught:
            await call(local, "task_a")
        assert caught.value.code == "unavailable"
        assert why in caught.value.message
        assert str(tmp_path / name) in caught.value.message
        assert [str(tmp_path / name) in problem for problem in local.problems] == [True]


async def test_folder_in_which_nothing_loads_is_an_error_with_each_reason(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1 / 0\n")
    (tmp_path / "b.py").write_text("import no_such_library\n")
    with pytest.raises(BackendUnavailable, match=r"a\.py .*ZeroDivisionError.*b\.py .*no_such_library"):
        await workers(tmp_path).__aenter__()


async def test_repaired_file_is_served_without_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_one.py").write_text("def fine():\n    return 1\n")
    (tmp_path / "late_one.py").write_text("def late():\n    return (\n")
    async with Local(LocalSettings(tasks_dir=tmp_path), RecordingServices()) as local:
        (tmp_path / "late_one.py").write_text("def late():\n    return 2\n")
        with pytest.raises(NotServed):
            await call(local, "late")
        monkeypatch.setattr("gateway_local.RETRY_S", 0.0)
        assert await call(local, "late") == [{"result": 2}]


async def test_hidden_and_editor_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def fine():\n    return 1\n")
    (tmp_path / "._good.py").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".#good.py").symlink_to("user@host.123")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    (tmp_path / "good.py~").write_text("def old(): ...\n")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "package.py").mkdir()
    async with workers(tmp_path) as local:
        assert set(local.tasks) == {"fine"}
        assert local.problems == ()


async def test_files_import_each_other_once_and_other_processes_can_import_them(tmp_path: Path) -> None:
    (tmp_path / "aaa_first.py").write_text(
        "import zzz_shared\ndef first():\n    zzz_shared.seen.append(1)\n    return 1\n"
    )
    (tmp_path / "zzz_shared.py").write_text(
        "import multiprocessing\nseen = []\n"
        "def double(n):\n    return 2 * n\n"
        "def count():\n    return len(seen)\n"
        "def spread(n):\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        return pool.map(double, range(n))\n"
    )
    async with workers(tmp_path) as local:
        await call(local, "first")
        assert await call(local, "count") == [{"result": 1}]
        assert await call(local, "spread", {"n": 3}) == [{"result": [0, 2, 4]}]


async def test_decorated_functions_and_callable_objects_are_served(tmp_path: Path) -> None:
    (tmp_path / "_tools.py").write_text(
        "def bare(f):\n    def inner(a):\n        return f(a)\n    return inner\n"
        "class Wrapped:\n    def __init__(self, f): self.f = f\n    def __call__(self, a): return self.f(a)\n"
        "def helper(a): ...\n"
    )
    (tmp_path / "decorated.py").write_text(
        "import functools, logging\nfrom _tools import bare, helper, Wrapped\nfrom math import sqrt\n"
        "def keeps(f):\n    @functools.wraps(f)\n    def inner(*args, **kwargs):\n"
        "        return f(*args, **kwargs)\n    return inner\n"
        "del_me = keeps\n"
        "@keeps\ndef wrapped(a):\n    return a + 1\n"
        "@bare\ndef unwrapped(a):\n    return a + 2\n"
        "@functools.lru_cache\ndef cached(a):\n    return a + 3\n"
        "@Wrapped\ndef by_class(a):\n    return a + 4\n"
        "class Adder:\n    def __init__(self, n): self.n = n\n    def __call__(self, a): return a + self.n\n"
        "adder = Adder(5)\npartial = functools.partial(wrapped, a=6)\n_hidden = Adder(1)\nLog = logging.getLogger()\n"
    )
    async with workers(tmp_path) as local:
        served = {"wrapped", "unwrapped", "cached", "by_class", "adder", "partial"}
        assert set(local.tasks) == served | {"keeps", "del_me"}
        values = [(await call(local, name, {"a": 0}))[0]["result"] for name in sorted(served)]
        assert values == [5, 4, 3, 1, 2, 1]


async def test_all_of_a_file_selects_what_it_serves(tmp_path: Path) -> None:
    (tmp_path / "chosen.py").write_text("from math import sqrt\n__all__ = ['sqrt']\ndef other(): ...\n")
    (tmp_path / "more.py").write_text("def more(): ...\n")
    async with workers(tmp_path) as local:
        assert set(local.tasks) == {"sqrt", "more"}


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Box:
    x: int
    y: float


def typed(
    image: bytes | None = None, day: date | None = None, box: Box | None = None, n: int = 0, on: bool = False,
    text: str = "", names: list[str] | None = None, free: Any = None,
) -> dict[str, Any]:  # fmt: skip
    given = {"image": image, "day": day, "box": box, "n": n, "on": on, "text": text, "names": names, "free": free}
    return {name: value for name, value in given.items() if value}


def converted(body: Any = None, fields: Any = None, **files: bytes) -> Any:
    function = BoundFunction("typed", typed)
    uploads = {name: Upload(data, name, "image/png") for name, data in files.items()}
    if files:
        fields = fields or {}
    task = Task(kind="task", name="typed", deadline=0, body=msgspec.json.encode(body), fields=fields, files=uploads)
    return function.call(function.arguments(task))


PNG = b"\x89PNG\r\n\xfb\xff"


def test_bytes_come_from_a_file_or_from_base64() -> None:
    text = base64.b64encode(PNG).decode()
    safe = base64.urlsafe_b64encode(PNG).decode().rstrip("=")
    assert converted(image=PNG) == {"image": PNG}
    for given in (text, safe, f"data:image/png;base64,{text}", f"{text[:4]}\n{text[4:]}"):
        assert converted({"image": given}) == {"image": PNG}
    assert converted(free=PNG) == {"free": PNG}
    assert converted(text="ü".encode()) == {"text": "ü"}


@pytest.mark.parametrize("wrong", ["not base64!", 5, ["x"], "a"])
def test_wrong_bytes_are_reported_with_both_ways_to_send_them(wrong: Any) -> None:
    with pytest.raises(TaskInvalid, match=r"needs `image` as a file \(-F name=@path\), or base64") as caught:
        converted({"image": wrong})
    assert caught.value.param == "image"


def test_types_without_a_json_form_are_converted_and_others_are_passed_unchanged() -> None:
    assert converted({"day": "2024-02-29", "box": {"x": 1, "y": 2}}) == {"day": date(2024, 2, 29), "box": Box(1, 2.0)}
    assert converted({"n": 1.5, "text": 3, "names": "x"}) == {"n": 1.5, "text": 3, "names": "x"}
    with pytest.raises(TaskInvalid, match="needs `day` as date") as caught:
        converted({"day": "yesterday"})
    assert caught.value.param == "day"


def test_fields_of_a_form_are_converted_by_every_annotation() -> None:
    assert converted(fields={"n": "5", "on": "true", "text": "7", "names": '["a"]', "free": "9"}) == {
        "n": 5, "on": True, "text": "7", "names": ["a"], "free": "9",
    }  # fmt: skip
    with pytest.raises(TaskInvalid, match="needs `n` as int"):
        converted(fields={"n": "five"})
