"""One attempt: a task at one backend, from its place in the queue until its slot is free again.

`may_leave` is checked where candidates are filtered, and again here, at the last instruction before `run`, by the rules
and the key of that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from gateway.dispatch.collect import MAX_EMPTY_BYTES, collect, size_of, too_large, wrong_type
from gateway.dispatch.eligibility import Locality
from gateway.dispatch.planner import Plan
from gateway.dispatch.response_spec import Renderer
from gateway.dispatch.retry import DispatchState
from gateway.health.rests import ALL
from gateway.lanes import Scheduler, Work
from gateway.plugin import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    NotServed,
    Part,
    Result,
    Site,
    TaskInvalid,
)
from gateway.plugin.errors import PluginRaised, is_own_cancellation
from gateway.registry import ManagedBackend
from gateway.telemetry import exception_fields, log, metrics
from gateway.timing import Watch

# The term that a site's time is charged to until the backend enters another.
_FIRST_TERM: dict[Site, str] = {"edge": "edge", "cloud": "cloud", "hybrid": "split"}


class End:
    """The last item of a successful attempt."""


Item = Part | Result | GatewayError | type[End]


class AttemptListener(Protocol):
    """Receives what becomes of an attempt."""

    async def on_item(self, attempt: Attempt, item: Item) -> None:
        """The attempt has a part, a result, an error or its end. Returns when there is space for more."""

    def on_stalled(self, attempt: Attempt, backend: str) -> bool:
        """The attempt has stalled: hedge it at `backend`. Returns False if that is not possible."""


class AttemptTerms(Watch):
    """The account that a backend writes; its `uploaded` gives the upload permit back to the lanes."""

    __slots__ = ("_on_uploaded",)

    def __init__(
        self, parent: Watch, on_uploaded: Callable[[], None], *, only: str | None = None, rtt_s: float = 0.0
    ) -> None:
        super().__init__(only=only, rtt_s=rtt_s, parent=parent)
        self._on_uploaded = on_uploaded

    def uploaded(self) -> None:
        """Return the upload permit: the request's last byte is on its way."""
        self._on_uploaded()


class Attempt:
    """Runs one backend once. All that it yields or raises goes to the listener; nothing awaits it.

    The outcome is learned once, before the slot is freed. The account stays open until the listener has received the
    outcome and stops the watch. Implements `gateway.lanes.WorkOwner`.
    """

    def __init__(
        self, state: DispatchState, plan: Plan, work: Work, scheduler: Scheduler, listener: AttemptListener
    ) -> None:
        self.task, self.work = state.task, work
        self.watch = state.watch.fork()
        self.member: ManagedBackend | None = None
        self.began = False
        self.is_settled = False
        self._is_stopped = False
        self._plan, self._expected = plan, state.expected
        self._scheduler, self._listener = scheduler, listener
        self._empty_bytes = 0
        self._terms: Watch | None = None
        self._granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, backends: Mapping[str, ManagedBackend], locality: Locality) -> None:
        """Wait for the grant, then run. Cancel it if the result is not needed; call `release` when it has ended."""
        try:
            self.member = member = self._granted_backend(backends, await self._granted)
            await self._produce(member, locality)
            await self._listener.on_item(self, End)
        except BaseException as exc:
            if self._is_stopped and is_own_cancellation(exc):
                raise
            _undo_cancellation()
            error = self._as_gateway_error(exc)
            _drop_traceback(error)
            self.record_failure(error)
            await self._listener.on_item(self, error)

    @property
    def has_own_limits(self) -> bool:
        """Whether a timeout does not show that a backend is slow: the client allows less time than the operator."""
        return self._expected.has_own_limits

    @property
    def may_leave(self) -> Callable[[], bool] | None:
        """Whether the data may leave by the rules of this moment, see ResponseSpec; also for its subtasks."""
        return self._expected.may_leave

    def release(self) -> None:
        """Give the slot back, or the place in the queue.

        Not within `run`: a task that is cancelled before its first step never enters it, and a task that is cancelled
        in the same turn of the loop as the grant does not receive it.
        """
        self._scheduler.withdraw(self.work)
        self._granted.cancel()
        if not self._granted.cancelled() and self._granted.exception() is None:
            self._scheduler.on_finished(self.work, self._granted.result())

    # ── gateway.lanes.WorkOwner ──────────────────────────────────────────────────────────────────

    def on_granted(self, backend: str) -> None:
        """Start at `backend`; give the slot back if the attempt has ended meanwhile."""
        if self._granted.done():
            self._scheduler.on_finished(self.work, backend)
        else:
            self._granted.set_result(backend)

    def on_moved(self, before: str, after: str) -> None:
        log.info("lane.rebound", request_id=self.task.id, before=before, after=after)

    def on_dropped(self, backend: str) -> None:
        """Fail: `backend` is removed, and its queue with it. Another backend may be tried."""
        if not self._granted.done():
            self._granted.set_exception(_removed(backend))

    def on_stalled(self, backend: str) -> bool:
        return self._listener.on_stalled(self, backend)

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def _granted_backend(self, backends: Mapping[str, ManagedBackend], name: str) -> ManagedBackend:
        """Return the chosen backend, or its equivalent after a reload.

        Raises BackendUnavailable if the backend was removed, or if the name now belongs to a different backend.
        """
        member, chosen = backends.get(name), self._plan.serving.members.get(name)
        if member is None:
            raise _removed(name)
        if chosen is not None and member is not chosen and not member.is_equivalent_to(chosen):
            raise BackendUnavailable(f"backend {name} was replaced by a different one since the decision", began=False)
        return member

    async def _produce(self, member: ManagedBackend, locality: Locality) -> None:
        site, serving = member.site, self._plan.serving
        task = locality.under_present_rules(self.task, self.may_leave)
        if member.is_off_site and self.task.may_leave and not task.may_leave:
            raise BackendUnavailable(f"a rule keeps this on the site now, and {member.name} is off site", began=False)
        if member.is_off_site and not task.may_leave:
            log.error("egress.refused", request_id=task.id, backend=member.name)
            raise BackendFailed(
                f"backend {member.name} is off site, and this task may not leave", code="forbidden", began=False
            )
        if not member.breaker.try_acquire(pinned=serving.pinned == member.name):
            raise BackendUnavailable(f"the breaker of {member.name} is open: {member.breaker.why_open}", began=False)
        assert member.backend is not None
        self._terms = terms = AttemptTerms(
            self.watch,
            lambda: self._scheduler.on_uploaded(self.work, member.name),
            only="edge" if site == "edge" else None,
            rtt_s=self._scheduler.measurements.rtt_s(member.name) if member.is_remote else 0.0,
        )
        terms.enter(_FIRST_TERM[site], at=self.watch.leave())
        self.began = True
        if member.is_off_site:
            metrics.EGRESS.inc(len(task.body), backend=member.name)
            log.info(
                "egress.sent", request_id=task.id, parent_id=task.parent_id, backend=member.name, bytes=len(task.body)
            )
        name = serving.names[member.name]
        produced = member.backend.run(locality.task_for(task, member.name, name, terms=terms))
        renderer = self._expected.renderer(member.name, name) if self._expected.renderer else None
        if isinstance(produced, AsyncIterator):
            await self._relay(produced, renderer)
        else:
            await self._pass_on(await _rendered(await produced, renderer))

    async def _relay(self, produced: AsyncIterator[Part | Result], renderer: Renderer | None) -> None:
        has_begun = False
        async with aclosing(produced) as items:  # type: ignore[type-var]
            async for item in items:
                if not isinstance(item, Part):
                    await self._pass_on(await _rendered(item, renderer))
                    return
                if not has_begun and renderer is not None and self._expected.collects(item):
                    await self._pass_on(await collect(item, items, renderer, self._expected))
                    return
                has_begun = True
                await self._pass_on(item)
        if not has_begun and self.task.kind != "task":  # a task may return no values at all
            raise BackendUnavailable("its response is empty", code="upstream_bad_response", again=False)

    async def _pass_on(self, item: Part | Result) -> None:
        if isinstance(item, Result):
            self._record_success(item.status)
        elif not self.is_settled:
            self._inspect(item)
        await self._listener.on_item(self, item)

    def _inspect(self, part: Part) -> None:
        """Record the first content as a success. Parts before it are buffered, so their size is bounded."""
        if self._expected.is_content(part):
            self._record_success(200)
            return
        self._empty_bytes += size_of(part)
        if self._empty_bytes > MAX_EMPTY_BYTES:
            raise too_large(self._empty_bytes, "without content")

    def _as_gateway_error(self, exc: BaseException) -> GatewayError:
        if isinstance(exc, GatewayError):
            if isinstance(exc, PluginRaised) and self.member is not None and not exc.is_of_subtask:
                self.member.quarantine.record_exception(exc.raised)
                if not self.member.has_workers:  # the worker process has logged it
                    where = exception_fields(exc) | {"error": exc.raised}
                    log.error("dispatch.raised", request_id=self.task.id, backend=self.member.name, **where)
            return exc
        name, kind = self.member.name if self.member else "none", type(exc).__name__
        log.error("dispatch.raised", request_id=self.task.id, backend=name, **exception_fields(exc))
        if self.member is not None:
            self.member.quarantine.record_exception(kind)
        return PluginRaised(f"the plugin of backend {name} raised {kind}", raised=kind)

    # ── the outcome, recorded once ───────────────────────────────────────────────────────────────

    def _record_success(self, status: int) -> None:
        """Record a response. Only a success teaches how fast the backend is; a 4xx teaches nothing."""
        if self.is_settled or self.member is None:
            return
        self.is_settled = True
        if status >= 400:
            self.member.breaker.record_ignored()
            return
        self.member.breaker.record_success()
        self.member.quarantine.record_success()
        if self.member.rests.entries:
            self.member.rests.record_success(self.task.name)
        if self.member.site != "hybrid":
            self.watch.add_items(self.member.site, self.task.items)
        self._scheduler.on_answered(self.work, self.member.name)

    def record_failure(self, error: GatewayError) -> None:
        """Record a failure, unless the outcome is recorded already."""
        if self.is_settled or self.member is None:
            return
        self.is_settled = True
        if not self.began:
            return  # it took no try of a half-open breaker; another request's try may be running
        if isinstance(error, DeadlineExceeded):
            is_overdue = self._scheduler.on_timeout(self.work, self.member.name)
            if self._expected.has_own_limits and not is_overdue:
                self.member.breaker.record_ignored()  # the client allowed little time; the backend was not slow
                return
        self._count_failure(error)

    def record_broken_stream(self, error: GatewayError) -> None:
        """Record a failure after the first content, which was recorded as a success."""
        if not (isinstance(error, DeadlineExceeded) and self._expected.has_own_limits):
            self._count_failure(error)

    def _count_failure(self, error: GatewayError) -> None:
        """Report a failure to the breaker, but not a client's mistake, nor a bug that one argument triggers."""
        assert self.member is not None
        if isinstance(error, TaskInvalid) or error.code == "plugin_error" or self._is_from_subtask(error):
            self.member.breaker.record_ignored()  # the plugin failed on this task; the next one may succeed
        elif error.rests:
            self.member.breaker.record_ignored()
            self.member.rests.record(self.task.name if error.rests == "model" else ALL, error.message)
        elif isinstance(error, NotServed):
            self.member.breaker.record_ignored()
            if error.code == "not_found":
                self.member.missing_endpoints.record(self.task.path)
        else:
            is_limit = error.code == "rate_limited"
            self.member.breaker.record_failure(error.message, retry_after_s=error.retry_after_s, is_limit=is_limit)

    def _is_from_subtask(self, error: GatewayError) -> bool:
        """Whether a subtask failed or was not done in time: the backend that ran it has been charged already.

        A refusal of a subtask (a rule that holds for this request, a full queue) would otherwise open this backend's
        breaker for every request.
        """
        is_waiting = self._terms is not None and bool(self._terms.children)
        return error.is_of_subtask or (isinstance(error, DeadlineExceeded) and is_waiting)

    def stop(self, running: asyncio.Task[None]) -> None:
        """Cancel its asyncio task. Any other cancellation comes from the plugin, and is a failure."""
        self._is_stopped = True
        running.cancel()

    def record_outrun(self) -> None:
        """Record a timeout: it stalled, and a hedge that started later has answered first."""
        self.record_failure(DeadlineExceeded("no response before that of a hedge that started later"))

    def abandon(self) -> None:
        """Record no outcome: the result is not needed any more, which shows nothing about the backend."""
        self._scheduler.withdraw(self.work)
        if not self.is_settled and self.member is not None:
            self.is_settled = True
            if self.began:
                self.member.breaker.record_ignored()


def _drop_traceback(error: GatewayError) -> None:
    """Drop the traceback and cause: they would keep alive the frames' data, such as a response read so far."""
    error.__traceback__ = error.__cause__ = error.__context__ = None


def _undo_cancellation() -> None:
    """Undo a cancellation of this asyncio task by the plugin that runs in it."""
    current = asyncio.current_task()
    while current is not None and current.cancelling():
        current.uncancel()


def _removed(backend: str) -> BackendUnavailable:
    return BackendUnavailable(f"backend {backend} was removed before this could start there", began=False)


async def _rendered(result: Any, renderer: Renderer | None) -> Result:
    if not isinstance(result, Result):
        raise wrong_type(result)
    return result if renderer is None else await renderer.whole(result)
