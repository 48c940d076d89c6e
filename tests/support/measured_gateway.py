"""A gateway in its own process that reports memory and event loop stalls.

    async with measured_gateway(environ) as gateway:
        gateway.url
        before = await gateway.cost()      # resets the measurement
        ...
        cost = await gateway.cost()        # peak_bytes since then, and longest_s: CPU time of one turn of the loop

It measures CPU time, not wall time, because other processes on the machine must not affect the result.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio import events
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SELF = Path("/proc/self")


@dataclass(frozen=True)
class Cost:
    peak_bytes: int
    now_bytes: int
    longest_s: float


class MeasuredGateway:
    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process, self.url = process, url

    async def cost(self) -> Cost:
        """Return the cost since the previous call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(10):
            return Cost(**json.loads(await self._process.stdout.readline()))


@asynccontextmanager
async def measured_gateway(environ: Mapping[str, str]) -> AsyncIterator[MeasuredGateway]:
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "plugins", "tests"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.measured_gateway", json.dumps(dict(environ))),
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            url = (await process.stdout.readline()).decode().strip()
        yield MeasuredGateway(process, url)
    finally:
        process.stdin.close()
        await process.wait()


# ── in the child process ─────────────────────────────────────────────────────────────────────────

_longest_s = 0.0


def _time_every_callback() -> None:
    run = events.Handle._run

    def timed(self: events.Handle) -> None:
        global _longest_s
        began = time.thread_time()
        run(self)
        _longest_s = max(_longest_s, time.thread_time() - began)

    events.Handle._run = timed  # type: ignore[method-assign]


def _status(field: str) -> int:
    line = next(line for line in (SELF / "status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _report() -> None:
    global _longest_s
    print(
        json.dumps({"peak_bytes": _status("VmHWM"), "now_bytes": _status("VmRSS"), "longest_s": _longest_s}), flush=True
    )
    (SELF / "clear_refs").write_text("5")  # proc(5): resets the peak
    _longest_s = 0.0


async def _serve(environ: Mapping[str, str]) -> None:
    from gateway.testing import running_gateway

    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with running_gateway(**environ) as gateway:
        print(gateway.url, flush=True)
        while await reader.readline():
            loop.call_soon(_report)
            await asyncio.sleep(0)


if __name__ == "__main__":
    _time_every_callback()
    asyncio.run(_serve(json.loads(sys.argv[1])))
