"""Load shedding at five times the capacity: goodput, latency and refusals.

    ./run bench overload [--seconds N] [--json FILE]

A real `edge-gateway serve` has one backend of known capacity: a local function that takes WORK_S on each of SLOTS
workers, with QUEUE places in its queue. Phase one measures a single request, phase two the capacity with as many
clients as slots. Phase three offers FACTOR times the capacity in an open loop: arrivals do not wait for answers. The
project's targets: goodput at least 90 % of capacity, admitted p99 at most twice that of a single request, refusals
within 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from _serving import Serving, gateway, percentile

WORK_S, SLOTS, QUEUE, FACTOR = 0.02, 2, 2, 5
GOODPUT_TARGET, P99_TARGET, REFUSAL_TARGET_S = 0.9, 2.0, 0.010
CODE = "import time\n\ndef work(seconds: float) -> int:\n    time.sleep(seconds)\n    return 1\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of the overload (30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    with working() as serving:
        figures = asyncio.run(measure(serving.url, args.seconds))
    for name, value in figures.items():
        print(f"{name:28} {value:10.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


async def measure(url: str, seconds: float) -> dict[str, float]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await serve_for(http, url, clients=SLOTS, seconds=1.0)
        alone = await serve_for(http, url, clients=1, seconds=2.0)
        full = await serve_for(http, url, clients=SLOTS, seconds=4.0)
        capacity = len(full) / 4.0
        served, refused, failed = await flood(http, url, FACTOR * capacity, seconds)
    return {
        "alone_p99_s": percentile(alone, 99),
        "capacity_per_s": capacity,
        "offered_per_s": FACTOR * capacity,
        "goodput_per_s": len(served) / seconds,
        "goodput_of_capacity": len(served) / seconds / capacity,
        "admitted_p50_s": statistics.median(served),
        "admitted_p99_s": percentile(served, 99),
        "refused": float(len(refused)),
        "refusal_p50_s": statistics.median(refused),
        "refusal_p99_s": percentile(refused, 99),
        "failed": float(failed),
    }


async def ask(http: aiohttp.ClientSession, url: str) -> tuple[int, float]:
    began = time.perf_counter()
    async with http.post(f"{url}/v1/tasks/work", json={"seconds": WORK_S}) as answer:
        await answer.read()
    return answer.status, time.perf_counter() - began


async def serve_for(http: aiohttp.ClientSession, url: str, *, clients: int, seconds: float) -> list[float]:
    """Run clients that each send the next request after the answer."""
    until = time.monotonic() + seconds

    async def client() -> list[float]:
        took = []
        while time.monotonic() < until:
            took.append((await ask(http, url))[1])
        return took

    return [one for some in await asyncio.gather(*(client() for _ in range(clients))) for one in some]


async def flood(
    http: aiohttp.ClientSession, url: str, per_s: float, seconds: float
) -> tuple[list[float], list[float], int]:
    """Send requests at a steady rate.

    Returns the seconds of the served and of the refused ones, and the others.
    """
    asked, count, began = [], int(per_s * seconds), time.monotonic()
    for n in range(count):
        await asyncio.sleep(max(0.0, began + n / per_s - time.monotonic()))
        asked.append(asyncio.create_task(ask(http, url)))
    answers = await asyncio.gather(*asked)
    served = [took for status, took in answers if status == 200]
    refused = [took for status, took in answers if status == 503]
    return served, refused, len(answers) - len(served) - len(refused)


@contextmanager
def working() -> Iterator[Serving]:
    """Run a gateway with the local function on a number of workers and queue places."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "jobs.py").write_text(CODE)
        backend = {"PLUGIN": "local", "TASKS_DIR": folder, "SLOTS": str(SLOTS), "QUEUE": str(QUEUE)}
        with gateway({f"BACKENDS__HERE__{name}": value for name, value in backend.items()}) as serving:
            yield serving


if __name__ == "__main__":
    sys.exit(main())
