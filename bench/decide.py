"""Measures a decision, and a rebalancing pass over long queues, in microseconds of one core.

    ./run bench decide [--json FILE]

A decision is `Selector.choose`: three candidates are predicted from measurements and lanes, then ordered. The lanes
have work (an edge box with two running and some queued, two clouds with running uploads). Every decision has another
size.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.lanes import Scheduler, Work
from gateway.measure.measurements import Measurements
from gateway.policy import Policy, Query

NAMES = ("box", "cloud", "other")
QUERY = Query("task", "detect", 300.0)
ALL: dict[str, str | None] = dict.fromkeys(NAMES)
DECISIONS, WARM_UP, PASSES = 20_000, 2_000, 300
DECISION_TARGET_US, PASS_TARGET_US = 20.0, 1000.0


def work(number: int, allowed: tuple[str, ...] = NAMES) -> Work:
    size = 40_000.0 + 997 * (number % 331)
    return Work(
        id=str(number),
        kind="task",
        name="detect",
        models=dict.fromkeys(NAMES, "detect"),
        sizes=dict.fromkeys(NAMES, size),
        body_bytes=int(size),
        allowed=allowed,
    )


class Ignored:
    """The owner of work that never runs."""

    def on_granted(self, backend: str) -> None: ...

    def on_moved(self, before: str, after: str) -> None: ...

    def on_dropped(self, backend: str) -> None: ...

    def on_stalled(self, backend: str) -> bool:
        return False


def lanes_in_use(requests: int) -> Scheduler:
    """Lanes with a learned class, every slot of the box taken, and `requests` queued where the policy sends them."""
    board = Measurements(time.monotonic)
    lanes = Scheduler(board, Policy(), time.monotonic, lambda name: None)
    lanes.add("box", site="edge", slots=2, queue=4096, remote=False)
    lanes.add("cloud", site="cloud", slots=16, queue=4096, remote=True, usd=0.001)
    lanes.add("other", site="cloud", slots=16, queue=4096, remote=True)
    for number in range(60):
        for name, seconds in (("box", 0.3), ("cloud", 0.05), ("other", 0.07)):
            board.learn(name, "task", "detect", work(number).size(name), seconds * (0.9 + 0.2 * (number % 7) / 6))
    for number in range(requests):
        each = work(number)
        lanes.submit(each, lanes.selector.choose(each, QUERY, ALL).order[0], Ignored())
    return lanes


def timed_us(action: Callable[[int], object], times: int) -> list[float]:
    """Microseconds of each call, sorted; without garbage collection, which is not part of a decision."""
    found = []
    gc.disable()
    try:
        for number in range(times):
            began = time.perf_counter()
            action(number)
            found.append((time.perf_counter() - began) * 1e6)
    finally:
        gc.enable()
    return sorted(found)


def decisions_us(requests: int) -> list[float]:
    """Decisions among three backends."""
    lanes = lanes_in_use(requests)
    works = [work(number) for number in range(DECISIONS)]
    timed_us(lambda number: lanes.selector.choose(works[number], QUERY, ALL), WARM_UP)
    return timed_us(lambda number: lanes.selector.choose(works[number], QUERY, ALL), DECISIONS)


def passes_us(requests: int) -> list[float]:
    """Passes over the queues; the first passes move some work, later ones find nothing to gain."""
    lanes = lanes_in_use(requests)
    return timed_us(lambda number: lanes.tick(), PASSES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench decide", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    target = parser.parse_args().json
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':36}{'p50 us':>10}{'p95 us':>10}{'p99 us':>10}{'target':>10}")
    for label, found, limit_us in (
        ("decision among 3, 10 in the lanes", decisions_us(10), DECISION_TARGET_US),
        ("decision among 3, 1,000 in the lanes", decisions_us(1000), None),
        ("re-bind pass, 10 in the lanes", passes_us(10), PASS_TARGET_US),
        ("re-bind pass, 1,000 waiting", passes_us(1034), PASS_TARGET_US),
    ):
        at = {f"p{q}_us": found[len(found) * q // 100] for q in (50, 95, 99)}
        figures[label] = at
        print(f"{label:36}" + "".join(f"{us:10.1f}" for us in at.values()) + (f"{limit_us:10.0f}" if limit_us else ""))
    if target:
        target.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
