"""The record of one run of one policy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .arrivals import Request


@dataclass
class Record:
    """Latencies by request id, in seconds.

    Also the site of each answer and the cost of the policy.
    """

    policy: str
    latencies: dict[int, float] = field(default_factory=dict)
    sites: dict[int, str] = field(default_factory=dict)
    late: int = 0
    duplicates: int = 0
    moves: int = 0
    decisions_us: list[float] = field(default_factory=list)

    def answered(self, request: Request, site: str, now: float) -> None:
        if request.id in self.latencies:
            raise AssertionError(f"request {request.id} was answered twice")
        latency = now - request.at
        self.latencies[request.id] = latency
        self.sites[request.id] = site
        self.late += latency > request.deadline_s

    def mean(self) -> float:
        return sum(self.latencies.values()) / len(self.latencies)

    def percentile(self, q: float) -> float:
        ordered = sorted(self.latencies.values())
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


class Stopwatch:
    """Times a decision in real microseconds: `with stopwatch: …`."""

    def __init__(self, into: list[float]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._into.append((time.perf_counter() - self._began) * 1e6)
