"""Hedging with 3 % of calls 20 to 40 times slower: p99 and extra calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hybrid_world.real import Pair, local, pair
from hybrid_world.simulated import percentile

AT_ONCE = 2
WARM_UP = 60


async def hedged(requests: int) -> dict[str, Any]:
    """Run the same work at the edge without and with hedging."""
    work = "hybrid_world.tasks:tail"
    edge = {
        **local("LOCAL", f'{{"tail": "{work}"}}', slots=4),
        "CLOUD__PLUGIN": "http",
        "CLOUD__URL": "{link}",
        "CLOUD__TASKS": '{"far": "/v1/tasks/tail", "tail": "/v1/tasks/tail"}',
        "PLAIN__PLUGIN": "hybrid",
        "PLAIN__MODE": "hedge",
        "PLAIN__BUDGET": "0",
        "PLAIN__EDGE": "local",
        "PLAIN__CLOUD": "cloud",
        "PLAIN__TASKS": '{"unhedged": "tail"}',
        "BOTH__PLUGIN": "hybrid",
        "BOTH__MODE": "hedge",
        "BOTH__EDGE": "local",
        "BOTH__CLOUD": "cloud",
        "BOTH__TASKS": '{"hedged": "tail"}',
    }
    async with pair(edge, local("LOCAL", f'{{"tail": "{work}"}}', slots=4)) as both:
        await both.wan.steady(0.01)
        await _many(both, "unhedged", WARM_UP)
        plain = await _many(both, "unhedged", requests)
        await _many(both, "hedged", WARM_UP)
        before = len(both.lines("hybrid.hedged"))
        saved = await _many(both, "hedged", requests)
        extra = len(both.lines("hybrid.hedged")) - before
        return {
            "link": both.wan.kind,
            "requests": requests,
            "extra_calls": extra,
            "extra_share": extra / requests,
            "unhedged": _figures(plain),
            "hedged": _figures(saved),
        }


def _figures(taken: list[float]) -> dict[str, float]:
    shares = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
    return {name: percentile(taken, share) for name, share in shares.items()} | {"mean_s": sum(taken) / len(taken)}


async def _many(both: Pair, task: str, count: int) -> list[float]:
    taken: list[float] = []

    async def some(n: int) -> None:
        for _ in range(n):
            taken.append((await both.task(task, {}))[0])

    client: Callable[[int], Awaitable[None]] = some
    await asyncio.gather(*(client(count // AT_ONCE) for _ in range(AT_ONCE)))
    return taken
