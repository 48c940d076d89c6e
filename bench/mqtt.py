"""The latency of MQTT requests at QoS 1 and 0, with Nagle's algorithm off and on.

The round trips are echo requests on loopback.

./run bench mqtt                 needs mosquitto
./run bench mqtt --queued 5000   also 5,000 requests queued at the broker: time and memory
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

from gateway.service import Service  # noqa: E402
from gateway.testing import RunningGateway, running_gateway  # noqa: E402
from support.broker import Broker, running_broker  # noqa: E402
from support.mqtt_clients import Device, device  # noqa: E402

ECHO = {"GATEWAY_BACKENDS__E__PLUGIN": "echo", "GATEWAY_BACKENDS__E__QUEUE": "10000"}


async def round_trips(broker: Broker, *, qos: int, no_delay: bool, count: int) -> dict[str, Any]:
    """Return the median and p99 of `count` sequential requests."""

    def adjust(service: Service) -> None:
        assert service.mqtt is not None
        service.mqtt.session.broker = replace(service.mqtt.session.broker, no_delay=no_delay)

    async with running_gateway(adjust=adjust, **ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
        await gateway.line("mqtt.connected")
        options = {} if no_delay else {"socket_options": []}
        async with device(broker.port, **options) as lamp:
            took = [await one(lamp, n, qos) for n in range(count + 20)][20:]
    return {"median_ms": statistics.median(took), "p99_ms": sorted(took)[int(len(took) * 0.99)], "n": count}


async def one(lamp: Device, n: int, qos: int) -> float:
    began = time.perf_counter()
    await lamp.ask("/v1/tasks/echo", n, str(n).encode(), qos=qos)
    return (time.perf_counter() - began) * 1000


async def backlog(broker: Broker, count: int) -> dict[str, Any]:
    """Queue `count` requests at the broker while no gateway runs, then start one."""
    async with running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
        await gateway.line("mqtt.connected")
    async with device(broker.port) as lamp:
        for start in range(0, count, 200):
            await asyncio.gather(*(lamp.send("/v1/tasks/echo", n, str(n).encode()) for n in range(start, start + 200)))
        before, began = rss_mb(), time.perf_counter()
        async with running_gateway(**ECHO, GATEWAY_MQTT__URL=broker.url) as gateway:
            await lamp.wait_until(lambda heard: len(heard) >= count, timeout_s=300)
            took, most = time.perf_counter() - began, waited_most(gateway)
    return {"n": count, "took_s": took, "per_s": count / took, "grew_mb": rss_mb() - before, "active": most}


def waited_most(gateway: RunningGateway) -> int:
    """Return the maximum number of requests waiting for a slot at a decision."""
    return max(sum(line["queue"].values()) for line in gateway.lines.of("request.finished"))


def rss_mb() -> float:
    """Return the peak memory of this process (gateway, client and their log lines)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main(args: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    async with running_broker() as broker:
        if args.queued:
            rows[f"{args.queued} queued"] = await backlog(broker, args.queued)
            return rows
        rows["QoS 1"] = await round_trips(broker, qos=1, no_delay=True, count=args.count)
        rows["QoS 0"] = await round_trips(broker, qos=0, no_delay=True, count=args.count)
        rows["QoS 1, Nagle in the clients"] = await round_trips(broker, qos=1, no_delay=False, count=args.count // 10)
    async with running_broker(more="set_tcp_nodelay false") as broker:
        rows["QoS 1, Nagle in the broker"] = await round_trips(broker, qos=1, no_delay=True, count=args.count // 10)
        rows["QoS 1, Nagle in both"] = await round_trips(broker, qos=1, no_delay=False, count=args.count // 10)
    return rows


def show(rows: dict[str, Any]) -> None:
    for name, row in rows.items():
        figures = "  ".join(
            f"{key} {value:10.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
        )
        print(f"{name:30} {figures}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--queued", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = asyncio.run(main(args))
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
