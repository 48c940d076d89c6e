"""Functions of a folder through the whole gateway: broken files, reloads, forms."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import aiohttp

from gateway.admin import status
from gateway.settings import load
from gateway.testing import RunningGateway, running_gateway
from support.wiring import backend

LOOPBACK = {"GATEWAY_LISTEN": "127.0.0.1:0", "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"}


def local(folder: Path) -> dict[str, str]:
    return backend("here", "local", TASKS_DIR=str(folder), SLOTS="1")


async def reload(gateway: RunningGateway, folder: Path) -> None:
    state = {"GATEWAY_STATE_DIR": str(gateway.service.settings.state_dir)}
    await gateway.service.reload(load(LOOPBACK | state | local(folder)))
    await gateway.service.registry.wait_reloaded()
    await gateway.service.registry.wait_opened(10)


async def ask(gateway: RunningGateway, task: str, **more: Any) -> tuple[int, Any]:
    async with gateway.session() as session, session.post(f"{gateway.url}/v1/tasks/{task}", **more) as answer:
        return answer.status, await answer.json()


async def test_broken_file_is_named_in_the_log_the_status_and_the_503_of_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def fine():\n    return 1\n")
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_library\ndef lost():\n    return 2\n")
    async with running_gateway(**local(tmp_path)) as gateway:
        assert await ask(gateway, "fine") == (200, {"result": 1})
        for _ in range(8):  # above the limit of a circuit breaker
            code, answer = await ask(gateway, "lost")
            assert (code, answer["error"]["code"], answer["error"]["retryable"]) == (503, "unavailable", True)
            assert f"{bad} cannot be imported: ModuleNotFoundError" in answer["error"]["message"]
        assert (await ask(gateway, "never"))[0] == 404
        assert await ask(gateway, "fine") == (200, {"result": 1})
        (line,) = gateway.lines.of("backend.problem")
        assert str(bad) in line["error"]
        (problem,) = status(gateway.service.dispatcher, True)["backends"]["here"]["problems"]
        assert str(bad) in problem


async def test_edit_in_place_is_served_after_one_reload_and_an_unchanged_folder_keeps_its_workers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "good.py"
    file.write_text("def fine():\n    return 1\n")
    async with running_gateway(**local(tmp_path)) as gateway:
        assert await ask(gateway, "fine") == (200, {"result": 1})
        before = gateway.service.registry.members["here"].backend
        (tmp_path / "notes.txt").write_text("changes the folder's time")
        await reload(gateway, tmp_path)
        assert gateway.service.registry.members["here"].backend is before
        with file.open("r+") as opened:
            opened.write("def fine():\n    return 22\n")
        await reload(gateway, tmp_path)
        assert await ask(gateway, "fine") == (200, {"result": 22})


async def test_picture_reaches_a_function_from_a_form_and_from_json(tmp_path: Path) -> None:
    (tmp_path / "picture.py").write_text("def size(image: bytes, times: int = 1):\n    return len(image) * times\n")
    async with running_gateway(**local(tmp_path)) as gateway:
        form = aiohttp.FormData({"times": "2"})
        form.add_field("image", b"\x89PNG" * 5, filename="x.png", content_type="image/png")
        assert await ask(gateway, "size", data=form) == (200, {"result": 40})
        encoded = base64.b64encode(b"\x89PNG" * 5).decode()
        assert await ask(gateway, "size", json={"image": encoded}) == (200, {"result": 20})
        code, answer = await ask(gateway, "size", json={"image": "?"})
        assert (code, answer["error"]["param"]) == (400, "image")


async def test_json_after_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def echo(a):\n    return a\n")
    async with running_gateway(**local(tmp_path)) as gateway:
        for body in (b'\xef\xbb\xbf{"a": 1}', b'\xef\xbb\xbf  {"a": 1}'):
            assert await ask(gateway, "echo", data=body) == (200, {"result": 1})
        code, answer = await ask(gateway, "echo", data=b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}')
        assert (code, answer["error"]["code"]) == (400, "bad_request")


async def test_developer_mode_shows_the_traceback_to_clients_on_this_host_only(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def wrong(a):\n    secret = a\n    raise ValueError(secret)\n")
    sent = {"json": {"a": "in the request"}}
    async with running_gateway(**local(tmp_path), GATEWAY_DEBUG="true") as gateway:
        code, answer = await ask(gateway, "wrong", **sent)
        assert (code, answer["error"]["code"]) == (500, "plugin_error")
        assert "line 3, in wrong" in answer["error"]["debug"]
        assert "ValueError: in the request" in answer["error"]["debug"]
        for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
            assert "debug" not in (await ask(gateway, "wrong", headers={name: "x"}, **sent))[1]["error"]
        assert "in the request" not in str(gateway.lines.of("local.raised"))
    async with running_gateway(**local(tmp_path)) as gateway:
        assert "debug" not in (await ask(gateway, "wrong", **sent))[1]["error"]
