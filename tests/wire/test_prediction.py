"""Prediction error for tasks of known sizes after 50 observations of their class."""

from __future__ import annotations

import random
import statistics

from gateway.testing import RunningGateway, running_gateway
from support.tcp_delay_proxy import DelayProxy
from support.wiring import backend, cloud

TASKS = "support.functions:read_aloud"
READER = backend("reader", "local", TASKS=TASKS, SLOTS="1")


async def median_error(gateway: RunningGateway, seen: int = 50, measured: int = 20) -> float:
    sizes = random.Random(7)
    async with gateway.session() as http:
        for _ in range(seen + measured):
            text = "x" * sizes.randrange(10, 2000)
            async with http.post(f"{gateway.url}/v1/tasks/read_aloud", json={"text": text}) as got:
                assert (await got.json()) == {"result": len(text)}
    lines = [line for line in gateway.lines.of("request.finished") if line["model"] == "read_aloud"]
    return statistics.median(line["prediction_error_ratio"] for line in lines[seen:])


async def test_predictions_at_the_edge_are_within_15_percent() -> None:
    async with running_gateway(**READER) as gateway:
        assert await median_error(gateway) <= 0.15


async def test_predictions_over_a_steady_link_are_within_15_percent() -> None:
    async with running_gateway(**READER) as far:
        host, port = far.service.bound[0].split(":")
        async with (
            DelayProxy(host, int(port), delay=0.02) as link,
            running_gateway(**cloud(f"http://127.0.0.1:{link.port}", TASKS="read_aloud")) as gateway,
        ):
            assert await median_error(gateway) <= 0.15
