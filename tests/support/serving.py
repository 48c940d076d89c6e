"""A gateway in its own process, with its log and systemd notifications."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.documents import ROOT, free_port
from support.notify import NotifySocket

SERVE = [sys.executable, "-P", "-m", "gateway.cli", "serve"]
JOBS = """
import time

def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "done"

def held(fifo: str) -> str:
    with open(fifo) as gate:  # blocks until a writer opens the fifo
        gate.read()
    return "done"
"""
# systemd's steps before it starts a socket-activated service: the socket at descriptor 3, and LISTEN_PID.
ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class Gateway:
    """A running process, its log and its environment file."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int, notify: NotifySocket) -> None:
        self.process, self.folder, self.notify = process, folder, notify
        self.url = f"http://127.0.0.1:{port}"

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in (self.folder / "log").read_text().splitlines())
        return [line for line in lines if line["event"] == event]


@contextmanager
def gateway(
    folder: Path,
    *,
    listener: socket.socket | None = None,
    log_to: int | None = None,
    await_ready: bool = True,
    prefix: Sequence[str] = (),
    **more: str,
) -> Iterator[Gateway]:
    """Run a serving process.

    `listener` is passed as systemd does. log_to: its standard error; by default a file. prefix: the program that
    runs it.
    """
    port = free_port()
    (folder / "jobs.py").write_text(JOBS)
    env_file = folder / "gateway.env"
    env_file.write_text(f"GATEWAY_BACKENDS__HERE__PLUGIN=local\nGATEWAY_BACKENDS__HERE__TASKS_DIR={folder}\n")
    with NotifySocket(folder / "notify") as notify, (folder / "log").open("wb") as log:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]),
            "NOTIFY_SOCKET": str(notify.path),
            # __pycache__ in the tasks' folder changes its time: the first SIGHUP would replace the backend `here`.
            "PYTHONDONTWRITEBYTECODE": "1",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
            "GATEWAY_STATE_DIR": str(folder / "state"),
            **more,
        }
        handed = [] if listener is None else [sys.executable, "-c", ACTIVATE, str(listener.fileno())]
        process = subprocess.Popen(
            [*prefix, *handed, *SERVE, "--env-file", str(env_file)],
            env=environ,
            stderr=log if log_to is None else log_to,
            pass_fds=() if listener is None else (listener.fileno(),),
        )
        try:
            if await_ready:
                notify.wait_for("READY=1")
            yield Gateway(process, folder, port, notify)
        finally:
            process.kill()
            process.wait()


async def wait_until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.to_thread(os.sched_yield)
