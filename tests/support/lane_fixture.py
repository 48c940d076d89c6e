"""Lanes with backends of known speed, on a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.lanes import Scheduler, Work
from gateway.measure.board import Measurements
from gateway.plugin import LinkSample
from gateway.policy import Policy, Query

QUERY = Query("task", "add")
BIG = 200_000


class LaneFixture:
    """A board and lanes on a manual clock.

    Records the works started, moved and duplicated.
    """

    def __init__(self, policy: Policy | None = None, *, slots: int = 1, queue: int = 100) -> None:
        self.now = 100.0
        self.board = Measurements(lambda: self.now)
        self.lanes = Scheduler(self.board, policy or Policy(), lambda: self.now)
        self.lanes.add("box", site="edge", slots=slots, queue=queue, remote=False)
        self.lanes.add("cloud", site="cloud", slots=16, queue=queue, remote=True)
        self.started: list[tuple[str, str]] = []
        self.moved: list[tuple[str, str, str]] = []
        self.doubled: list[tuple[str, str]] = []
        self.works: dict[str, Work] = {}

    def work(self, name: str, size: float = 1.0, body_bytes: int = 0, **more: Any) -> Work:
        more.setdefault("allowed", ("box", "cloud"))
        work = Work(
            id=name,
            kind="task",
            name="add",
            models={"box": "add", "cloud": "add"},
            sizes={"box": size, "cloud": size},
            body_bytes=body_bytes,
            start=lambda backend: self.started.append((name, backend)),
            duplicate=self._double(name),
            moved=lambda before, after: self.moved.append((name, before, after)),
            **more,
        )
        self.works[name] = work
        return work

    def _double(self, name: str) -> Callable[[str], bool]:
        def double(backend: str) -> bool:
            self.doubled.append((name, backend))
            return True

        return double

    def teach(self, *, box_s: float = 1.0, cloud_s: float = 1.0, uplink_bytes_per_s: float = 1e6) -> None:
        """Let the board learn seconds per unit of size from enough samples to be used."""
        for size in (1.0, 2.0, 3.0) * 10:
            self.board.learn("box", "task", "add", size, box_s * size)
            self.board.learn("cloud", "task", "add", size, cloud_s * size)
        for _ in range(5):
            self.board.observe("cloud", LinkSample(upload_bytes=BIG, upload_s=BIG / uplink_bytes_per_s))
        self.board.observe("cloud", LinkSample(rtt_s=0.02))

    def submit(self, name: str, backend: str, size: float = 1.0, **more: Any) -> Work:
        work = self.work(name, size, **more)
        self.lanes.submit(work, backend)
        return work

    def finish(self, name: str) -> None:
        backend = dict(self.started)[name]
        self.lanes.answered(self.works[name], backend)
        self.lanes.done(self.works[name], backend)

    def names_started(self) -> list[str]:
        return [name for name, _ in self.started]


HERE: dict[str, Any] = {"allowed": ("box",)}
