"""What stands in a lane: work, its place in line, its run on a slot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

AGING = 0.2  # 0.35 costs 1 to 3 % of the mean, 0.1 costs 1 to 3 % at p99 (docs/routing.md)
PERMIT_BYTES = 65_536  # smaller bodies vanish into socket buffers: nothing could be revoked, nor seen
LINDY = 0.5  # what has taken far longer than foreseen takes half as long again


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One attempt's place in line; a second attempt at the same request is a Work of its own.

    models, sizes: per backend, its name for the model or task, and the size in that backend's measure.
    estimates: predicted seconds by backends that know better than the learned model.
    deadline: on the lanes' clock. allowed: backends it may be moved to while it waits.
    start(backend): it may begin there now; called once per grant. duplicate(backend): asks for a second
    attempt there; false when that cannot be. moved(before, after): it changed lanes while waiting.
    dropped(backend): the lane it waited in was removed, and it will not start.
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
    start: Callable[[str], None]
    duplicate: Callable[[str], bool] | None = None
    moved: Callable[[str, str], None] | None = None
    dropped: Callable[[str], None] | None = None
    arrived: float | None = None

    def model(self, backend: str) -> str:
        """What `backend` calls it."""
        return self.models.get(backend, self.name)

    def size(self, backend: str) -> float:
        """How big it is, as `backend` measures."""
        return self.sizes.get(backend, 0.0)


class QueueEntry:
    """Work waiting in a lane."""

    __slots__ = ("is_waiting", "key", "nbytes", "service_s", "work")

    def __init__(self, work: Work, service_s: float, now: float) -> None:
        """service_s: for how long it will take a slot."""
        self.work = work
        self.service_s = service_s
        self.key = service_s + AGING * (now if work.arrived is None else work.arrived)
        self.nbytes = work.body_bytes
        self.is_waiting = False


class RunningWork:
    """Work a backend has been given; `upload_s` is what its upload was expected to take, bytes ahead included."""

    __slots__ = (
        "answered",
        "answered_at",
        "began",
        "held_p95_s",
        "held_s",
        "nbytes",
        "p95_s",
        "rescued",
        "sent_at",
        "service_s",
        "upload_s",
        "work",
    )

    def __init__(
        self, work: Work, now: float, service_s: float, p95_s: float, upload_s: float, hold: float = 1.0
    ) -> None:
        self.work = work
        self.began = now
        self.service_s, self.p95_s, self.upload_s = service_s, p95_s, upload_s
        self.held_s, self.held_p95_s = service_s * hold, p95_s * hold
        self.answered_at = now
        self.nbytes = work.body_bytes
        self.sent_at: float | None = None
        self.answered = False
        self.rescued = False

    def sent_by(self) -> float:
        """The instant its last byte left, as reported, or as expected where a socket buffer hides it."""
        return self.sent_at if self.sent_at is not None else self.began + self.upload_s

    def is_uploading(self) -> bool:
        """Whether a body is on its way that the socket buffers do not hide."""
        return self.sent_at is None and self.nbytes > PERMIT_BYTES

    # Asked for every run in every decision, hence without max() and min().

    def remaining_s(self, now: float) -> float:
        """Seconds its slot stays taken."""
        age_s = now - self.began - self.upload_s
        left_s, min_s = self.held_s - age_s, self.held_s / 4
        if age_s > self.held_p95_s:
            min_s = age_s * LINDY if age_s * LINDY > min_s else min_s
        return left_s if left_s > min_s else min_s

    def unsent_s(self, bytes_per_s: float, now: float) -> float:
        """Seconds until its last byte has left. A stall lasts as long again as it has lasted."""
        own_s, age_s = self.nbytes / bytes_per_s, now - self.began
        if self.nbytes > PERMIT_BYTES:
            left_s, min_s, late_s = own_s - age_s, own_s / 4, age_s - self.upload_s
            left_s = left_s if left_s > min_s else min_s
            return left_s if left_s > late_s else late_s
        left_s = self.upload_s - age_s
        return 0.0 if left_s <= 0.0 else own_s if own_s < left_s else left_s
