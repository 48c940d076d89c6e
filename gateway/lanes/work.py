"""The contents of a lane: work, its entry in the queue, and its run on a slot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.measure.measurements import Estimate

AGING = 0.2  # 0.35 costs 1 to 3 % of the mean, 0.1 costs 1 to 3 % at p99 (docs/routing.md)
PERMIT_BYTES = 65_536  # smaller bodies vanish into socket buffers: they cannot be revoked, nor observed
LINDY = 0.5  # overdue work is predicted to take half of its age longer


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One attempt's work, as the lanes see it; a second attempt at the same request is a Work of its own.

    models, sizes: per backend, its name for the model or task, and the size in that backend's unit.
    estimates: seconds predicted by plugins, which take precedence over the learned model.
    deadline: on the lanes' clock. allowed: backends it may be moved to, or hedged at. arrived: when first queued.
    """

    id: str
    kind: str
    name: str = ""
    models: Mapping[str, str]
    sizes: Mapping[str, float] = field(default_factory=dict)
    estimates: Mapping[str, float] = field(default_factory=dict)
    body_bytes: int = 0
    deadline: float = math.inf
    client_deadline: bool = False
    repeatable: bool = True
    allowed: tuple[str, ...] = ()
    arrived: float | None = None

    def model(self, backend: str) -> str:
        """Return the name that `backend` uses for it."""
        return self.models.get(backend, self.name)

    def size(self, backend: str) -> float:
        """Return its size in the unit of `backend`."""
        return self.sizes.get(backend, 0.0)


class WorkOwner(Protocol):
    """Receives what becomes of submitted work."""

    def on_granted(self, backend: str) -> None:
        """A slot of `backend` is free for the work. Called once per submission."""

    def on_moved(self, before: str, after: str) -> None:
        """The queued work moves from the lane of one backend to another's."""

    def on_dropped(self, backend: str) -> None:
        """The lane in which the work waited was removed; it will not start."""

    def on_stalled(self, backend: str) -> bool:
        """The running work has stalled: hedge it at `backend`. Returns False if that is not possible."""


class QueueEntry:
    """Work that waits in a lane, and the estimate that its place rests on."""

    __slots__ = ("estimate", "is_waiting", "key", "nbytes", "owner", "queued_at", "service_s", "work")

    def __init__(self, work: Work, owner: WorkOwner, estimate: Estimate, now: float) -> None:
        self.work, self.owner = work, owner
        self.estimate, self.queued_at = estimate, now
        self.service_s = estimate.mean_s * estimate.hold  # for how long it will take a slot
        self.key = self.service_s + AGING * (now if work.arrived is None else work.arrived)
        self.nbytes = work.body_bytes
        self.is_waiting = False


class RunningWork:
    """Work that a backend is processing. `upload_s`: the predicted time of its upload, bytes ahead included."""

    __slots__ = (
        "answered_at",
        "began",
        "held_p95_s",
        "held_s",
        "is_answered",
        "is_hedged",
        "nbytes",
        "owner",
        "p95_s",
        "sent_at",
        "service_s",
        "upload_s",
        "work",
    )

    def __init__(self, work: Work, owner: WorkOwner, estimate: Estimate, upload_s: float, now: float) -> None:
        self.work, self.owner = work, owner
        self.began = now
        self.service_s, self.p95_s, self.upload_s = estimate.mean_s, estimate.p95_s, upload_s
        self.held_s, self.held_p95_s = estimate.mean_s * estimate.hold, estimate.p95_s * estimate.hold
        self.answered_at = now
        self.nbytes = work.body_bytes
        self.sent_at: float | None = None
        self.is_answered = False
        self.is_hedged = False

    def last_byte_at(self) -> float:
        """The instant its last byte left: as reported, or as predicted if a socket buffer hides it."""
        return self.sent_at if self.sent_at is not None else self.began + self.upload_s

    def is_uploading(self) -> bool:
        """Whether a body is being sent that the socket buffers do not hide."""
        return self.sent_at is None and self.nbytes > PERMIT_BYTES

    # The next two run for every running work in every decision, hence without max() and min().

    def remaining_s(self, now: float) -> float:
        """Seconds its slot stays taken."""
        age_s = now - self.began - self.upload_s
        left_s, min_s = self.held_s - age_s, self.held_s / 4
        if age_s > self.held_p95_s:
            min_s = age_s * LINDY if age_s * LINDY > min_s else min_s
        return left_s if left_s > min_s else min_s

    def unsent_s(self, bytes_per_s: float, now: float) -> float:
        """Seconds until its last byte has left. A stall is predicted to last as long again as it has lasted."""
        own_s, age_s = self.nbytes / bytes_per_s, now - self.began
        if self.nbytes > PERMIT_BYTES:
            left_s, min_s, late_s = own_s - age_s, own_s / 4, age_s - self.upload_s
            left_s = left_s if left_s > min_s else min_s
            return left_s if left_s > late_s else late_s
        left_s = self.upload_s - age_s
        return 0.0 if left_s <= 0.0 else own_s if own_s < left_s else left_s
