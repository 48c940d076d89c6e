"""An event loop on virtual time, an edge box, an uplink and a cloud.

The edge box throttles at random.

Edge: two slots, first come first served for policies without a queue of their own; speed drops by a factor of 1.8 at
random (60 s fast, 30 s slow in the mean). Uplink: one FIFO of bytes that drains along a link's curve; a cancelled
transfer discards its unsent bytes. Cloud: serves everything concurrently, after a propagation delay.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from .arrivals import Request
from .links import Link

THROTTLED = 1.8
EDGE_SLOTS = 2
Done = Callable[[], None]


class Timer:
    """A scheduled callback that can be cancelled."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Done) -> None:
        self.at = at
        self.action: Done | None = action

    def cancel(self) -> None:
        self.action = None


class Simulator:
    """A virtual clock with its scheduled callbacks."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Timer]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now

    def at(self, when: float, action: Done) -> Timer:
        timer = Timer(max(when, self.now), action)
        self._count += 1
        heappush(self._due, (timer.at, self._count, timer))
        return timer

    def run(self, finished: Callable[[], bool]) -> None:
        """Run until the schedule is empty or `finished` returns true."""
        while self._due and not finished():
            when, _, timer = heappop(self._due)
            if timer.action is not None:
                self.now = when
                timer.action()


class Throttle:
    """The edge's speed over a run: work done by an instant, and its end time.

    All times are in seconds.
    """

    def __init__(self, seed: int, duration_s: float) -> None:
        rng = random.Random(f"throttle/{seed}")
        self._times, self._work, self._speeds = [0.0], [0.0], [1.0]
        t, speed = 0.0, 1.0
        while t < duration_s * 3:
            length = rng.expovariate(1 / (60.0 if speed == 1.0 else 30.0))
            t += length
            self._work.append(self._work[-1] + length * speed)
            self._times.append(t)
            speed = 1 / THROTTLED if speed == 1.0 else 1.0
            self._speeds.append(speed)

    def finish(self, start: float, work_s: float) -> float:
        step = bisect_right(self._times, start) - 1
        goal = self._work[step] + (start - self._times[step]) * self._speeds[step] + work_s
        step = bisect_right(self._work, goal) - 1
        return self._times[step] + (goal - self._work[step]) / self._speeds[step]


class Job:
    """One attempt at a request on either site; a cancelled attempt never reports."""

    __slots__ = ("began", "bytes_left", "done", "request", "sent", "state", "timer")

    def __init__(self, request: Request, done: Done, sent: Done | None = None) -> None:
        self.request = request
        self.done = done
        self.sent = sent
        self.state = "waiting"
        self.timer: Timer | None = None
        self.began = 0.0
        self.bytes_left = float(request.body_bytes)


class Edge:
    """The edge box."""

    def __init__(self, sim: Simulator, throttle: Throttle) -> None:
        self.sim, self.throttle = sim, throttle
        self.line: deque[Job] = deque()
        self.running: list[Job] = []

    def run(self, request: Request, done: Done) -> Job:
        job = Job(request, done)
        self.line.append(job)
        self._next()
        return job

    def _next(self) -> None:
        while self.line and len(self.running) < EDGE_SLOTS:
            job = self.line.popleft()
            job.state, job.began = "running", self.sim.now
            self.running.append(job)
            end = self.throttle.finish(self.sim.now, job.request.edge_s)
            job.timer = self.sim.at(end, lambda job=job: self._ended(job))  # type: ignore[misc]

    def _ended(self, job: Job) -> None:
        job.state = "done"
        self.running.remove(job)
        self._next()
        job.done()

    def cancel(self, job: Job) -> None:
        if job.state == "waiting":
            self.line.remove(job)
        elif job.state == "running" and job.timer is not None:
            job.timer.cancel()
            self.running.remove(job)
            self._next()
        job.state = "cancelled"

    def finish_of(self, request: Request) -> float:
        """Return the true end time of `request` if it joined the queue now."""
        free = sorted([0.0] * (EDGE_SLOTS - len(self.running)) + [job.timer.at for job in self.running if job.timer])
        for job in (*self.line, None):
            start = max(free[0], self.sim.now)
            end = self.throttle.finish(start, (job.request if job else request).edge_s)
            if job is None:
                return end
            free = sorted([*free[1:], end])
        raise AssertionError("unreachable")


class Cloud:
    """The uplink and the cloud behind it.

    `sent` is called when the last byte is acknowledged.
    """

    def __init__(self, sim: Simulator, link: Link) -> None:
        self.sim, self.link = sim, link
        self.line: deque[Job] = deque()  # the first one is in transmission
        self._head_since = 0.0
        self._head_timer: Timer | None = None

    def run(self, request: Request, done: Done, sent: Done | None = None) -> Job:
        job = Job(request, done, sent)
        job.began = self.sim.now
        self.line.append(job)
        if len(self.line) == 1:
            self._send_head()
        return job

    def _send_head(self) -> None:
        if self.line:
            job = self.line[0]
            self._head_since = self.sim.now
            self._head_timer = self.sim.at(self.link.finish(self.sim.now, job.bytes_left), self._head_sent)

    def _head_sent(self) -> None:
        job = self.line.popleft()
        job.state = "sent"
        rtt_s = self.link.rtt_s(self.sim.now)
        if job.sent is not None:
            self.sim.at(self.sim.now + rtt_s, lambda: job.sent() if job.state == "sent" and job.sent else None)
        job.timer = self.sim.at(self.sim.now + rtt_s + job.request.cloud_s, lambda: self._answered(job))
        self._send_head()

    def _answered(self, job: Job) -> None:
        job.state = "done"
        job.done()

    def cancel(self, job: Job) -> None:
        if job.state == "waiting":
            if self.line[0] is job and self._head_timer is not None:
                self._head_timer.cancel()
                self.line.popleft()
                self._send_head()
            else:
                self.line.remove(job)
        elif job.timer is not None:
            job.timer.cancel()
        job.state = "cancelled"

    def unsent_bytes(self) -> float:
        """The true number of bytes queued and not yet sent."""
        if not self.line:
            return 0.0
        moved = self.link.sent_by(self.sim.now) - self.link.sent_by(self._head_since)
        return max(self.line[0].bytes_left - moved, 0.0) + sum(job.bytes_left for job in list(self.line)[1:])

    def finish_of(self, request: Request, bytes_ahead: float | None = None) -> float:
        """Return the true time of the answer if `request` were sent now."""
        ahead = self.unsent_bytes() if bytes_ahead is None else bytes_ahead
        sent = self.link.finish(self.sim.now, ahead + request.body_bytes)
        return sent + self.link.rtt_s(sent) + request.cloud_s

    def probe(self, answered: Callable[[float], None]) -> Timer:
        """Send a small packet that bypasses the queue; `answered` receives its round trip."""
        began = self.sim.now
        back = self.link.finish(began, 100.0) + self.link.rtt_s(began)
        return self.sim.at(back, lambda: answered(self.sim.now - began))
