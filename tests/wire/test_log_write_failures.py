"""The gateway serves, reloads and stops when its log cannot be written."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.documents import ROOT
from support.raw import answered, connected, post, read_answer
from support.serving import SERVE, Gateway, gateway, wait_until

CALM = post("/v1/tasks/slow", b'{"seconds":0}')


def full_disk() -> tuple[int, ...]:
    return (os.open("/dev/full", os.O_WRONLY),)


def full_pipe() -> tuple[int, ...]:
    """Return a full pipe with an open, unread reading end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    return writing, reading


def reader_gone() -> tuple[int, ...]:
    reading, writing = os.pipe()
    os.close(reading)
    return (writing,)


@pytest.mark.parametrize("trouble", [full_disk, full_pipe, reader_gone])
async def test_gateway_starts_serves_reloads_and_stops_when_its_log_cannot_be_written(
    trouble: Callable[[], tuple[int, ...]], tmp_path: Path
) -> None:
    log_to, *kept = trouble()
    with gateway(tmp_path, log_to=log_to) as it:
        for _ in range(60):  # more log output than a pipe buffers
            assert (await answered(it.url, CALM)).status == 200
        it.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: it.notify.count_of("READY=1") == 2)
        await in_flight_is_served(it, tmp_path)
        assert await asyncio.to_thread(it.process.wait, 20) == 0
    for fd in (log_to, *kept):
        os.close(fd)


async def in_flight_is_served(it: Gateway, folder: Path) -> None:
    async with connected(it.url) as (reader, writer):
        os.mkfifo(folder / "fifo")
        writer.write(post("/v1/tasks/held", json.dumps({"fifo": str(folder / "fifo")}).encode()))
        gate = await asyncio.to_thread((folder / "fifo").open, "w")
        it.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(it.notify.wait_for, "STOPPING=1")
        gate.close()
        assert (await read_answer(reader)).status == 200


@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
def test_invalid_configuration_exits_78_even_if_stderr_cannot_be_written(closed: bool) -> None:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "GATEWAY_NO_SUCH": "1"}
    with open("/dev/full", "wb") as full:
        redirect = ["sh", "-c", 'exec "$0" "$@" 2>&-'] if closed else []
        done = subprocess.run([*redirect, *SERVE], env=environ, stderr=full, timeout=30, check=False)
    assert done.returncode == 78
