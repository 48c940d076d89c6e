"""All parallel attempts at one task: usually one, two after a hedge. The first content wins."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from gateway.dispatch.attempt import Attempt, End, Item
from gateway.dispatch.channel import BoundedChannel, Message, ReceiveTimer
from gateway.dispatch.planner import Plan
from gateway.dispatch.retry import DispatchState, error_to_report
from gateway.lanes import Scheduler, Work
from gateway.plugin import DeadlineExceeded, GatewayError, Part, Result, Site, TaskRefused
from gateway.telemetry import log

CHECK_S = 1.0  # a part is checked for content after this much waiting; the check is the dearest step per part
IDLE = Part()  # among the parts of a stream: no content for a while

Spawn = Callable[[Attempt], asyncio.Task[None]]


@dataclass(slots=True, kw_only=True)
class Answer:
    """The response to a task: a whole `result`, or `parts` from the first content on. Close it after use.

    served_as: the backend's own name for the model or task.
    """

    backend: str
    site: Site
    served_as: str
    group: AttemptGroup
    result: Result | None = None
    parts: AsyncGenerator[Part, None] | None = None

    def close(self) -> None:
        """Stop all attempts."""
        self.group.close()

    def replace_with(self, other: Answer) -> None:
        """Become the response of the backend that continues the stream."""
        self.backend, self.site, self.group = other.backend, other.site, other.group


class AttemptGroup:
    """Attempts at one task under one plan. Its channel is bounded, so a slow reader slows the backend.

    spawn: starts the asyncio task of an attempt. Implements `gateway.dispatch.attempt.AttemptListener`.
    """

    def __init__(self, state: DispatchState, plan: Plan, scheduler: Scheduler, spawn: Spawn) -> None:
        self.plan = plan
        self.attempts: dict[Attempt, asyncio.Task[None]] = {}
        self.winner: Attempt | None = None
        self._state, self._task, self._expected = state, state.task, state.expected
        self._scheduler, self._spawn = scheduler, spawn
        self._is_closed = False
        self._check_s = min(CHECK_S, state.expected.limits.stall_s / 10)
        self._channel = BoundedChannel()
        self._timer = ReceiveTimer(self._channel)
        self._until = math.inf
        self._hedged_until: Callable[[], float] = lambda: math.inf
        self._postponed_until: Callable[[], float] = lambda: -math.inf

    def start(self) -> None:
        """Queue the first attempt. Raises TaskRefused if the queue is full."""
        self._start_attempt(self.plan.work, self.plan.decision.order[0])

    def _start_attempt(self, work: Work, backend: str) -> None:
        attempt = Attempt(self._state, self.plan, work, self._scheduler, self)
        watch = attempt.watch
        try:
            self._scheduler.submit(work, backend, attempt)
        except BaseException:
            watch.stop()  # an open watch would keep the parent's intervals from being merged
            raise
        watch.enter("queue", at=self._state.watch.leave())
        self.attempts[attempt] = running = self._spawn(attempt)
        running.add_done_callback(lambda _: attempt.release())

    # ── AttemptListener ──────────────────────────────────────────────────────────────────────────

    async def on_item(self, attempt: Attempt, item: Item) -> None:
        """Send an item to the receiver."""
        if self._is_closed or (self.winner is not None and self.winner is not attempt):
            return  # it would never be received
        await self._channel.put((attempt, item))

    def on_stalled(self, attempt: Attempt, backend: str) -> bool:
        """Start a hedge at `backend`, unless there is one already."""
        if self.winner is not None or len(self.attempts) > 1:
            return False
        try:
            self._start_attempt(replace(self.plan.work, allowed=(backend,)), backend)
        except TaskRefused:  # its queue is full; must not raise into the tick of the lanes, which calls this
            return False
        self._until = self._hedged_until()  # the hedge gets a timeout of its own
        self._timer.set(self._until)
        log.info(
            "dispatch.rescued",
            request_id=self._task.id,
            backend=attempt.member.name if attempt.member else "none",
            next=backend,
        )
        return True

    # ── to the first content ─────────────────────────────────────────────────────────────────────

    async def first_content(
        self, until: float, *, hedged_until: Callable[[], float], postponed_until: Callable[[], float]
    ) -> Answer:
        """Return the whole result, or the stream from its first content on. Raises the error of the last attempt.

        until: the instant of the timeout. hedged_until: returns the new instant once a hedge has started.
        postponed_until: called at the timeout of the only attempt; returns a later instant if nothing better is left.
        """
        self._until, self._hedged_until, self._postponed_until = until, hedged_until, postponed_until
        ahead: list[tuple[Attempt, Part]] = []
        failed: dict[Attempt, Item] = {}
        while len(failed) < len(self.attempts) and (message := await self._next_unless_refused(failed)) is not None:
            attempt, item = message
            if attempt in failed:
                continue  # the End after an error response
            if _is_failure(item):
                attempt.watch.stop()
                failed[attempt] = item
                continue
            if isinstance(item, Part):
                ahead.append((attempt, item))
                if not self._expected.is_content(item):
                    continue
            return self._won(attempt, item, [part for sender, part in ahead if sender is attempt])
        return self._lost(failed)

    async def _next_unless_refused(self, failed: Mapping[Attempt, Item]) -> Message | None:
        """Return the next message; None on a timeout if a failed attempt has an error response to return instead."""
        try:
            return await self._next(self._until)
        except DeadlineExceeded:
            if len(self.attempts) == 1 and not failed and (until := self._postponed_until()) > time.monotonic():
                self._until = until
                return await self._next(until)
            if any(isinstance(item, Result) for item in failed.values()):
                return None
            raise

    def _lost(self, failed: dict[Attempt, Item]) -> Answer:
        """Return the first attempt's HTTP error response, if there is one; else raise the error to report."""
        for attempt in self.attempts:
            if isinstance(item := failed.get(attempt), Result):
                return self._won(attempt, item, [])
        failure = _error_of(failed.values())
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
                other.record_outrun() if other is first else other.abandon()
                other.stop(running)
        name = attempt.member.name
        answer = Answer(backend=name, site=attempt.member.site, served_as=self.plan.serving.names[name], group=self)
        if isinstance(item, Result):
            answer.result = item
        else:
            answer.parts = self._parts(ahead, is_over=item is End)
        return answer

    # ── after the first content ──────────────────────────────────────────────────────────────────

    async def _parts(self, ahead: list[Part], *, is_over: bool) -> AsyncGenerator[Part, None]:
        for part in ahead:
            yield part
        silent_s = 0.0  # waited since the last content; parts without content do not end the silence
        while not is_over:
            began = time.monotonic()
            message = await self._next_or_idle(silent_s)
            silent_s += time.monotonic() - began
            if message is None:
                yield IDLE
                continue
            attempt, item = message
            if attempt is not self.winner:
                continue
            if isinstance(item, Part):
                if silent_s > self._check_s and self._expected.is_content(item):
                    silent_s = 0.0
                yield item
            elif isinstance(item, GatewayError):
                attempt.record_broken_stream(item)
                raise item
            else:
                return

    async def _next_or_idle(self, silent_s: float) -> Message | None:
        """Return the next message; None when an IDLE is due. Raises DeadlineExceeded after too long without content."""
        now, heartbeat_s = time.monotonic(), self._expected.heartbeat_s
        stall_at = min(self._task.parts_deadline, now + self._expected.limits.stall_s + self._check_s - silent_s)
        idle_at = stall_at if heartbeat_s is None else min(stall_at, now + heartbeat_s - silent_s % heartbeat_s)
        try:
            return await self._next(idle_at)
        except DeadlineExceeded as exc:
            if idle_at < stall_at:
                return None
            assert self.winner is not None
            self.winner.record_broken_stream(exc)
            raise

    async def _next(self, until: float) -> Message:
        if self._channel.is_empty:
            self._timer.set(until)
        message = await self._channel.get()
        if message is None:
            raise DeadlineExceeded(f"{self._wait_reason()} within the time allowed")
        self._timer.unset()
        return message

    def _wait_reason(self) -> str:
        running = [attempt.member.name for attempt in self.attempts if attempt.member]
        return f"no response from {' and '.join(running)}" if running else "no slot became free"

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def on_timeout(self, error: DeadlineExceeded) -> None:
        """Record the timeout as a failure of each running backend."""
        for attempt in self.attempts:
            attempt.record_failure(error)

    def close(self) -> None:
        """Stop all attempts. Their slots are freed when their backends have really stopped."""
        self._is_closed = True
        self._timer.close()
        for attempt, running in self.attempts.items():
            attempt.abandon()
            attempt.watch.stop()
            attempt.stop(running)

    @property
    def has_begun(self) -> bool:
        """Whether any work may have started."""
        return any(attempt.began for attempt in self.attempts)

    @property
    def granted(self) -> Mapping[str, Attempt]:
        """The attempts that have got a slot, by backend."""
        return {attempt.member.name: attempt for attempt in self.attempts if attempt.member}


def _error_of(failures: Iterable[Item]) -> GatewayError:
    return functools.reduce(error_to_report, (item for item in failures if isinstance(item, GatewayError)))


def _is_failure(item: Item) -> bool:
    """Whether it is an error or an HTTP error response, which is used only if no attempt does better."""
    return isinstance(item, GatewayError) or (isinstance(item, Result) and item.status >= 400)
