"""The cost of a decision and of a re-bind pass, in microseconds of one core.

    ./run bench decide [--json FILE]

A decision is `Scheduler.choose`: it forecasts three candidates from measurements and lanes and orders them. The lanes
are in use: an edge box with two running and some waiting requests, and two clouds with uploads in flight. Every
decision has a different size.
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
from gateway.measure.board import Measurements
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
        start=lambda backend: None,
    )


def lanes_in_use(requests: int) -> Scheduler:
    """Return lanes with a learned class and all edge slots busy.

    `requests` are queued where the policy puts them.
    """
    board = Measurements(time.monotonic)
    lanes = Scheduler(board, Policy(), time.monotonic)
    lanes.add("box", site="edge", slots=2, queue=4096, remote=False)
    lanes.add("cloud", site="cloud", slots=16, queue=4096, remote=True, usd=0.001)
    lanes.add("other", site="cloud", slots=16, queue=4096, remote=True)
    for number in range(60):
        for name, seconds in (("box", 0.3), ("cloud", 0.05), ("other", 0.07)):
            board.learn(name, "task", "detect", work(number).size(name), seconds * (0.9 + 0.2 * (number % 7) / 6))
    for number in range(requests):
        each = work(number)
        lanes.submit(each, lanes.choose(each, QUERY, ALL).order[0])
    return lanes


def timed_us(action: Callable[[int], object], times: int) -> list[float]:
    """Return the sorted microseconds of each call, without garbage collection."""
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
    """Time choices among three backends."""
    lanes = lanes_in_use(requests)
    works = [work(number) for number in range(DECISIONS)]
    timed_us(lambda number: lanes.choose(works[number], QUERY, ALL), WARM_UP)
    return timed_us(lambda number: lanes.choose(works[number], QUERY, ALL), DECISIONS)


def passes_us(requests: int) -> list[float]:
    """Time re-bind passes.

    The first ones move requests, the later ones find no better backend.
    """
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
