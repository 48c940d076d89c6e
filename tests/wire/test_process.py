"""The gateway as a process: signals, systemd, a hung loop, passed sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.documents import ROOT
from support.raw import answered, connected, post, read_answer
from support.serving import ACTIVATE, SERVE, gateway, wait_until


async def test_running_request_finishes_before_the_exit_and_readiness_reports_draining(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        async with connected(it.url) as (reader, writer), connected(it.url) as (kept, to):
            to.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_answer(kept)).status == 200
            os.mkfifo(tmp_path / "fifo")
            writer.write(post("/v1/tasks/held", json.dumps({"fifo": str(tmp_path / "fifo")}).encode()))
            gate = await asyncio.to_thread((tmp_path / "fifo").open, "w")
            it.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(it.notify.wait_for, "STOPPING=1")
            to.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            draining = await read_answer(kept)
            assert (draining.status, draining.headers["connection"]) == (503, "close")
            assert (await answered(it.url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
            gate.close()
            done = await read_answer(reader)
            assert (done.status, done.json, done.headers["connection"]) == (200, {"result": "done"}, "close")
        assert await asyncio.to_thread(it.process.wait, 10) == 0
        assert it.lines("service.stopped")
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in it.notify.received)


async def test_sighup_applies_valid_settings_keeps_old_ones_otherwise_and_notifies_systemd(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        env_file = tmp_path / "gateway.env"
        good = env_file.read_text()
        env_file.write_text(good + "GATEWAY_MAX_BODY_BYTES=3\n")
        it.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: it.lines("service.reloaded"))
        assert (await answered(it.url, post("/v1/tasks/slow", b'{"seconds":0}'))).status == 413
        env_file.write_text(good + "GATEWAY_MAX_BODY=3\n")
        it.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: it.lines("service.reload_failed"))
        assert "GATEWAY_MAX_BODY_BYTES" in it.lines("service.reload_failed")[0]["problems"][0]
        assert (await answered(it.url, post("/v1/tasks/slow", b'{"seconds":0}'))).status == 413
        await wait_until(lambda: it.notify.count_of("READY=1") == 3)
        said = [line.partition("=")[0] for line in it.notify.received if not line.startswith(("STATUS", "WATCHDOG"))]
        assert said == ["READY", "RELOADING", "MONOTONIC_USEC", "READY", "RELOADING", "MONOTONIC_USEC", "READY"]


async def test_sighup_during_startup_does_not_end_the_process(tmp_path: Path) -> None:
    with gateway(tmp_path, await_ready=False) as it:
        await wait_until(lambda: ignores_hangup(it.process.pid))
        it.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(it.notify.wait_for, "READY=1")
        assert (await answered(it.url, post("/v1/tasks/slow", b'{"seconds":0}'))).status == 200


def ignores_hangup(pid: int) -> bool:
    """Return True if the process handles SIGHUP.

    Before our code runs, SIGHUP has its default action and ends the process.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = {name: int(mask, 16) for name, _, mask in (line.partition(":\t") for line in lines) if name[:3] == "Sig"
             and name in ("SigIgn", "SigCgt")}  # fmt: skip
    return bool((masks["SigIgn"] | masks["SigCgt"]) & 1 << (signal.SIGHUP - 1))


async def test_watchdog_is_notified_only_while_the_event_loop_runs(tmp_path: Path) -> None:
    more = {"WATCHDOG_USEC": "600000", "GATEWAY_BACKENDS__BAD__PLUGIN": "support.faulty_backend:FaultyBackend"}
    with gateway(tmp_path, **more) as it:
        await wait_until(lambda: it.notify.count_of("WATCHDOG=1") >= 3)
        async with connected(it.url) as (_, writer):
            turns = tmp_path / "turns"
            writer.write(post("/v1/tasks/hang", json.dumps({"file": str(turns)}).encode()))
            await wait_until(lambda: it.lines("loop.stalled"))
            fed, since = it.notify.count_of("WATCHDOG=1"), turns.stat().st_size
            await wait_until(
                lambda: turns.stat().st_size >= since + 7
            )  # 0.1 s each; the watchdog is notified every 0.2 s
            assert it.notify.count_of("WATCHDOG=1") == fed
        assert it.lines("loop.stalled")[0]["backend"] == "bad"


async def test_plugin_that_never_stops_does_not_prevent_the_exit(tmp_path: Path) -> None:
    with gateway(tmp_path, GATEWAY_BACKENDS__BAD__PLUGIN="support.faulty_backend:FaultyBackend") as it:
        async with connected(it.url) as (_, writer):
            begun = tmp_path / "begun"
            writer.write(post("/v1/tasks/ignore", json.dumps({"file": str(begun)}).encode()))
            await wait_until(begun.exists)
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        assert it.lines("service.abandoned")[0]["backends"] == ["bad"]


async def test_plugin_whose_close_never_returns_does_not_prevent_the_exit(tmp_path: Path) -> None:
    late = "GATEWAY_BACKENDS__LATE__"
    more = {f"{late}PLUGIN": "support.slow_lifecycle:SlowLifecycle", f"{late}OPENS_AT_ONCE": "true"}
    with gateway(tmp_path, **more, **{f"{late}CLOSES_AT_ONCE": "false"}) as it:
        it.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
        assert it.lines("service.abandoned")[0]["backends"] == ["late"]


def test_public_systemd_socket_requires_keys(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
            "LISTEN_FDS": "1",
            "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
            "GATEWAY_STATE_DIR": str(tmp_path),
            "GATEWAY_BACKENDS__E__PLUGIN": "echo",
        }
        command = [sys.executable, "-c", ACTIVATE, str(listener.fileno()), *SERVE]
        done = subprocess.run(
            command, env=environ, capture_output=True, pass_fds=(listener.fileno(),), timeout=30, check=False
        )
    assert done.returncode == 78
    assert b"GATEWAY_KEYS_FILE" in done.stderr


async def test_restart_behind_a_systemd_socket_refuses_no_request(tmp_path: Path) -> None:
    """Two consecutive processes share one listening socket under load of 100 clients."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    answers: list[int] = []

    async def client() -> None:
        for _ in range(3):
            answers.append((await answered(url, post("/v1/tasks/slow", b'{"seconds":0.01}'))).status)

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    activated = {"LISTEN_FDS": "1", "GATEWAY_BACKENDS__HERE__SLOTS": "2"}
    with gateway(first, listener=listener, **activated) as one:
        clients = [asyncio.ensure_future(client()) for _ in range(100)]
        await wait_until(lambda: len(answers) >= 20)
        one.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.process.wait, 20) == 0
    with gateway(second, listener=listener, **activated):
        await asyncio.gather(*clients)
    assert answers == [200] * 300
    listener.close()
