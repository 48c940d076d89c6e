"""All attempts at one request that run at once: usually one, two after a rescue. The first content wins."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from gateway.dispatch.attempt import Attempt, End, Item
from gateway.dispatch.call import error_to_report
from gateway.dispatch.channel import Alarm, Channel
from gateway.dispatch.planner import Plan
from gateway.dispatch.response_spec import ResponseSpec
from gateway.lanes import Scheduler, Work
from gateway.plugin import DeadlineExceeded, GatewayError, Part, Result, Site, Task, TaskRefused
from gateway.telemetry import log
from gateway.timing import Watch

LOOK_S = 1.0  # a part is looked at once this long was waited for parts: a look costs more than all else per part
IDLE = Part()  # among the parts of a stream: nothing has come for a while

Spawn = Callable[[Attempt], asyncio.Task[None]]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of a task: a whole `result`, or `parts`, whose first content has arrived. Close it after use.

    served_as: the backend's own name for the model or task.
    """

    backend: str
    site: Site
    served_as: str
    race: AttemptGroup
    result: Result | None = None
    parts: AsyncGenerator[Part, None] | None = None

    def close(self) -> None:
        """Nobody listens any more."""
        self.race.close()

    def become(self, other: Answer) -> None:
        """Somebody else goes on."""
        self.backend, self.site, self.race = other.backend, other.site, other.race


class AttemptGroup:
    """Attempts at one task under one plan. Its channel is bounded, so a slow reader slows the backend."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        expected: ResponseSpec,
        watch: Watch,
        lanes: Scheduler,
        spawn: Spawn,
    ) -> None:
        self.task, self.plan, self.expected, self.watch = task, plan, expected, watch
        self.attempts: dict[Attempt, asyncio.Task[None]] = {}
        self.winner: Attempt | None = None
        self._is_closed = False
        self._look_s = min(LOOK_S, expected.limits.stall_s / 10)
        self._lanes, self._spawn = lanes, spawn
        self._channel = Channel()
        self._alarm = Alarm(self._channel)
        self._until = math.inf
        self._until_rescued: Callable[[], float] = lambda: math.inf

    def start(self) -> None:
        """Take the first place in line. Raises TaskRefused when the line is full."""
        self._enter(self.plan.work, self.plan.decision.order[0])

    def _enter(self, work: Work, backend: str) -> None:
        watch = self.watch.fork()
        attempt = Attempt(self.task, self.plan.offer, work, watch, self._lanes, self.expected, self._put)
        work.start, work.dropped = attempt.grant, attempt.drop
        if len(self.plan.decision.order) > 1 and work.repeatable and not self.attempts:
            work.duplicate = self._rescue
        work.moved = self._moved
        try:
            self._lanes.submit(work, backend)
        except BaseException:
            watch.stop()  # else its line stays open, and the account of a long stream elsewhere is never put together
            raise
        watch.enter("queue", at=self.watch.leave())
        self.attempts[attempt] = running = self._spawn(attempt)
        running.add_done_callback(lambda _: attempt.release())

    def _rescue(self, backend: str) -> bool:
        """The lanes ask for a second attempt: the first is stalled."""
        if self.winner is not None or len(self.attempts) > 1:
            return False
        stalled = next(iter(self.attempts))
        work = replace(self.plan.work, allowed=(backend,), duplicate=None)
        try:
            self._enter(work, backend)
        except TaskRefused:  # its line is full; the lanes' own timer, which asks, must not hear of it
            return False
        self._until = self._until_rescued()  # what is left to the first is not what the second was given
        self._alarm.set(self._until)
        log.info(
            "dispatch.rescued",
            request_id=self.task.id,
            backend=stalled.member.name if stalled.member else "none",
            next=backend,
        )
        return True

    def _moved(self, before: str, after: str) -> None:
        log.info("lane.rebound", request_id=self.task.id, before=before, after=after)

    async def _put(self, attempt: Attempt, item: Item) -> None:
        if self._is_closed or (self.winner is not None and self.winner is not attempt):
            return  # nobody would take it from the channel
        await self._channel.put((attempt, item))

    # ── to the first content ─────────────────────────────────────────────────────────────────────

    async def first(self, until: float, until_rescued: Callable[[], float]) -> Answer:
        """The whole result, or the stream from its first content on. Raises what the last attempt failed with.

        until: the instant up to which to wait. until_rescued: what that is once a second attempt has been made.
        """
        self._until, self._until_rescued = until, until_rescued
        ahead: list[tuple[Attempt, Part]] = []
        failed: dict[Attempt, Item] = {}
        while len(failed) < len(self.attempts) and (heard := await self._next_or_refusal(failed)) is not None:
            attempt, item = heard
            if attempt in failed:
                continue  # the end of its refusal
            if _is_no_good(item):
                attempt.watch.stop()
                failed[attempt] = item
                continue
            if isinstance(item, Part):
                ahead.append((attempt, item))
                if not self.expected.is_content(item):
                    continue
            return self._won(attempt, item, [part for who, part in ahead if who is attempt])
        return self._lost(failed)

    async def _next_or_refusal(self, failed: Mapping[Attempt, Item]) -> tuple[Attempt, Item] | None:
        """What comes next; None when the time is up, and one of those that failed has at least refused."""
        try:
            return await self._next(self._until)
        except DeadlineExceeded:
            if any(isinstance(item, Result) for item in failed.values()):
                return None
            raise

    def _lost(self, failed: dict[Attempt, Item]) -> Answer:
        """A refusal, where there is one: who was asked first knows best. Else raises what is to be told."""
        for attempt in self.attempts:
            if isinstance(item := failed.get(attempt), Result):
                return self._won(attempt, item, [])
        failure = _told_of(failed.values())
        failed.clear()
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame, and with it the whole request

    def _won(self, attempt: Attempt, item: Item, ahead: list[Part]) -> Answer:
        assert attempt.member is not None
        self.winner = attempt
        first = next(iter(self.attempts))
        for other, running in self.attempts.items():
            other.watch.stop()
            if other is not attempt:
                other.outrun() if other is first else other.abandoned()
                other.stop(running)
        name = attempt.member.name
        answer = Answer(backend=name, site=attempt.member.site, served_as=self.plan.offer.names[name], race=self)
        if isinstance(item, Result):
            answer.result = item
        else:
            answer.parts = self._parts(ahead, is_over=item is End)
        return answer

    async def _parts(self, ahead: list[Part], *, is_over: bool) -> AsyncGenerator[Part, None]:
        for part in ahead:
            yield part
        silent_s = 0.0  # waited for content since there was any; what is none keeps nobody waiting for longer
        while not is_over:
            began = time.monotonic()
            heard = await self._soon(silent_s)
            silent_s += time.monotonic() - began
            if heard is None:
                yield IDLE
                continue
            attempt, item = heard
            if attempt is not self.winner:
                continue
            if isinstance(item, Part):
                if silent_s > self._look_s and self.expected.is_content(item):
                    silent_s = 0.0
                yield item
            elif isinstance(item, GatewayError):
                attempt.broke_off(item)
                raise item
            else:
                return

    async def _soon(self, silent_s: float) -> tuple[Attempt, Item] | None:
        """What comes next; None when it is time for a QUIET. Raises DeadlineExceeded after too long without content."""
        now, quiet_s = time.monotonic(), self.expected.quiet_s
        stall_at = min(self.task.parts_deadline, now + self.expected.limits.stall_s + self._look_s - silent_s)
        pause_at = stall_at if quiet_s is None else min(stall_at, now + quiet_s - silent_s % quiet_s)
        try:
            return await self._next(pause_at)
        except DeadlineExceeded as exc:
            if pause_at < stall_at:
                return None
            assert self.winner is not None
            self.winner.broke_off(exc)
            raise

    async def _next(self, until: float) -> tuple[Attempt, Item]:
        if self._channel.is_empty:
            self._alarm.set(until)
        heard = await self._channel.get()
        if heard is None:
            raise DeadlineExceeded(f"{self._waits_for()} within the time allowed")
        self._alarm.unset()
        return heard

    def _waits_for(self) -> str:
        running = [attempt.member.name for attempt in self.attempts if attempt.member]
        return f"nothing came from {' and '.join(running)}" if running else "no slot became free"

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def timed_out(self, error: DeadlineExceeded) -> None:
        """The time is up: held against who was running."""
        for attempt in self.attempts:
            attempt.failed(error)

    def close(self) -> None:
        """Nobody listens any more. Slots are freed when their backends have really stopped."""
        self._is_closed = True
        self._alarm.close()
        for attempt, running in self.attempts.items():
            attempt.abandoned()
            attempt.watch.stop()
            attempt.stop(running)

    @property
    def began(self) -> bool:
        """Whether any work may have started."""
        return any(attempt.began for attempt in self.attempts)

    @property
    def asked(self) -> Mapping[str, Attempt]:
        """Who was granted this, by backend."""
        return {attempt.member.name: attempt for attempt in self.attempts if attempt.member}


def _told_of(failures: Iterable[Item]) -> GatewayError:
    return functools.reduce(error_to_report, (item for item in failures if isinstance(item, GatewayError)))


def _is_no_good(item: Item) -> bool:
    """Whether it is a failure, or a refusal: the answer only where nobody has a better one."""
    return isinstance(item, GatewayError) or (isinstance(item, Result) and item.status >= 400)
