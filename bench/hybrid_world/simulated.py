"""Scatter against every static split: the real plugin with simulated sides.

It runs in virtual time.

The edge has slots that each process one item at a time. The cloud is an uplink that sends one group after the other, a
round trip, and servers. A static split gives the first m items to the cloud and the others to the edge; the best of
all N + 1 is found by trying each with full knowledge of the link. Both use the same service times.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gateway.plugin import Result, Task
from gateway_hybrid import Hybrid, HybridSettings
from hybrid_world.uplinks import Uplink
from support.virtual_time import virtual_time

CALL_S = 0.004  # overhead per group at either side


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch in one world: seconds and bytes per item."""

    uplink: Uplink
    start_s: float
    items: int
    item_bytes: int
    edge_item_s: float
    edge_slots: int
    cloud_item_s: float
    cloud_servers: int


def batches(uplink: Uplink, count: int, seed: int) -> list[Batch]:
    """Return batches of which both sides can do a useful part.

    They start at random instants of the uplink.
    """
    rng = random.Random(f"{uplink.name} {seed}")
    return [
        Batch(
            uplink,
            rng.uniform(0, uplink.period_s),
            items=rng.choice((20, 40, 80)),
            item_bytes=round(rng.uniform(10e3, 60e3)),
            edge_item_s=rng.uniform(0.05, 0.25),
            edge_slots=rng.choice((1, 2)),
            cloud_item_s=rng.uniform(0.02, 0.1),
            cloud_servers=rng.choice((1, 4)),
        )
        for _ in range(count)
    ]


# ── static splits ────────────────────────────────────────────────────────────────────────────────


def static_s(batch: Batch, to_cloud: int) -> float:
    """Return the seconds until both sides finish, with one group for the cloud."""
    at_edge = batch.items - to_cloud
    edge_s = -(-at_edge // batch.edge_slots) * batch.edge_item_s + CALL_S if at_edge else 0.0
    return max(edge_s, _cloud_s(batch, to_cloud) if to_cloud else 0.0)


def _cloud_s(batch: Batch, items: int) -> float:
    free, last = [0.0] * batch.cloud_servers, 0.0
    for n in range(items):
        arrived = batch.uplink.finish_s(batch.start_s, (n + 1) * batch.item_bytes) - batch.start_s
        done = max(heapq.heappop(free), arrived) + batch.cloud_item_s
        heapq.heappush(free, done)
        last = max(last, done)
    return last + batch.uplink.rtt_s + CALL_S


# ── the plugin with simulated sides ──────────────────────────────────────────────────────────────


class World:
    """Services and view of the plugin.

    Predictions are wrong by up to a third, as learned ones are.
    """

    name = "hybrid"

    def __init__(self, batch: Batch, seed: int) -> None:
        rng = random.Random(seed)
        self.batch, self.view, self.log = batch, self, _Silence()
        self._wrong = {side: rng.uniform(0.75, 1.33) for side in ("edge", "cloud")}
        self._offset_s = 0.0

    def begins_at(self, start_s: float) -> None:
        """Reset the world to `start_s` on the uplink's clock, with no item in flight."""
        self._offset_s = start_s - asyncio.get_running_loop().time()
        self._wire = asyncio.Lock()
        self._servers = asyncio.Semaphore(self.batch.cloud_servers)
        self._edge = asyncio.Semaphore(self.batch.edge_slots)

    @property
    def _at_s(self) -> float:
        return self._offset_s + asyncio.get_running_loop().time()

    def slots(self, backend: str) -> int:
        return self.batch.edge_slots if backend == "edge" else 16

    def seconds(self, backend: str, task: Task) -> float:
        batch, items = self.batch, task.items
        if backend == "edge":
            return self._wrong["edge"] * items * batch.edge_item_s + CALL_S
        before = max(self._at_s - 10.0, 0.0)
        rate = max(batch.uplink.mean(before, before + 10.0), 2e4)
        item_s = max(batch.item_bytes / rate, batch.cloud_item_s / batch.cloud_servers)
        return self._wrong["cloud"] * items * item_s + batch.uplink.rtt_s + CALL_S

    def p95_s(self, backend: str, task: Task) -> float:
        return 2 * self.seconds(backend, task)

    def observe(self, sample: Any) -> None: ...

    async def dispatch(self, task: Task) -> Result:
        await asyncio.sleep(CALL_S)
        items = task.json["items"]
        if task.pin == "edge":
            async with self._edge:
                await asyncio.sleep(len(items) * self.batch.edge_item_s)
        else:
            await self._far(len(items))
        return Result(json={"result": [-n for n in items]})

    async def _far(self, items: int) -> None:
        async with self._wire:
            begun = self._at_s
            await asyncio.sleep(self.batch.uplink.finish_s(begun, items * self.batch.item_bytes) - begun)
        await asyncio.sleep(self.batch.uplink.rtt_s)
        await asyncio.gather(*(self._served() for _ in range(items)))

    async def _served(self) -> None:
        async with self._servers:
            await asyncio.sleep(self.batch.cloud_item_s)


class _Silence:
    def info(self, event: str, **keys: Any) -> None: ...

    debug = warning = error = info


async def _scattered_s(batch: Batch, seed: int) -> float:
    """Time the second batch of a class, so that the gateway has measured one before."""
    settings = HybridSettings.model_validate({"edge": "edge", "cloud": "cloud", "tasks": ["f"]})
    clock, elapsed_s = asyncio.get_running_loop().time, 0.0
    world = World(batch, seed)
    hybrid = Hybrid(settings, world)
    for start_s in (batch.start_s - 30.0, batch.start_s):
        began = clock()
        world.begins_at(max(start_s, 0.0))
        await _whole(hybrid, batch.items)
        elapsed_s = clock() - began
    return elapsed_s


async def _whole(hybrid: Hybrid, count: int) -> None:
    items = list(range(count))
    task = Task(kind="task", name="f", deadline=float("inf"), items=count).replace(_decoded={"items": items})
    result = await hybrid.run(task)
    assert result.json == {"result": [-n for n in items]}, "an item was lost or out of order"


def scattered_s(batch: Batch, seed: int = 0) -> float:
    """Return the seconds the plugin takes for a batch."""
    with virtual_time() as runner:
        return runner.run(_scattered_s(batch, seed))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One batch: seconds by scatter, by the best static split, and by each side alone."""

    uplink: str
    scatter_s: float
    best_s: float
    edge_s: float
    cloud_s: float

    @property
    def ratio(self) -> float:
        return self.scatter_s / self.best_s

    @property
    def both_useful(self) -> bool:
        """Whether the best split is clearly better than either side alone."""
        return self.best_s < 0.9 * min(self.edge_s, self.cloud_s)


def compare(batch: Batch, seed: int = 0) -> Outcome:
    """Run scatter and all static splits on one batch."""
    static = [static_s(batch, m) for m in range(batch.items + 1)]
    return Outcome(batch.uplink.name, scattered_s(batch, seed), min(static), static[0], static[-1])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the quantile `share` of the values."""
    ranked = sorted(values)
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return ratios to the best static split.

    Also return how often one side alone was faster although both were useful.
    """
    ratios = [each.ratio for each in outcomes]
    useful = [each for each in outcomes if each.both_useful]
    lost = [each for each in useful if each.scatter_s >= min(each.edge_s, each.cloud_s)]
    return {
        "batches": len(outcomes),
        "median": median(ratios),
        "p95": percentile(ratios, 0.95),
        "worst": max(ratios),
        "edge_median": median(each.edge_s / each.best_s for each in outcomes),
        "cloud_median": median(each.cloud_s / each.best_s for each in outcomes),
        "both_useful": len(useful),
        "not_below_single": len(lost),
    }
