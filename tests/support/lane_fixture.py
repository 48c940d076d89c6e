"""Lanes with backends of known speed, on a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.lanes import Scheduler, Work
from gateway.measure.measurements import Measurements
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
        self.why_excluded: Callable[[str], str | None] = self.board.why_down
        self.lanes = Scheduler(self.board, policy or Policy(), lambda: self.now, lambda name: self.why_excluded(name))
        self.lanes.add("box", site="edge", slots=slots, queue=queue, remote=False)
        self.lanes.add("cloud", site="cloud", slots=16, queue=queue, remote=True)
        self.started: list[tuple[str, str]] = []
        self.moved: list[tuple[str, str, str]] = []
        self.doubled: list[tuple[str, str]] = []
        self.dropped: list[tuple[str, str]] = []
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
            **more,
        )
        self.works[name] = work
        return work

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
        self.submit_work(work, backend)
        return work

    def submit_work(self, work: Work, backend: str) -> None:
        self.lanes.submit(work, backend, _Owner(self, work.id))

    def finish(self, name: str) -> None:
        backend = dict(self.started)[name]
        self.lanes.on_answered(self.works[name], backend)
        self.lanes.on_finished(self.works[name], backend)

    def names_started(self) -> list[str]:
        return [name for name, _ in self.started]


class _Owner:
    """Notes in the house what becomes of one piece of work."""

    def __init__(self, house: LaneFixture, name: str) -> None:
        self._house, self._name = house, name

    def on_granted(self, backend: str) -> None:
        self._house.started.append((self._name, backend))

    def on_moved(self, before: str, after: str) -> None:
        self._house.moved.append((self._name, before, after))

    def on_dropped(self, backend: str) -> None:
        self._house.dropped.append((self._name, backend))

    def on_stalled(self, backend: str) -> bool:
        self._house.doubled.append((self._name, backend))
        return True


HERE: dict[str, Any] = {"allowed": ("box",)}
