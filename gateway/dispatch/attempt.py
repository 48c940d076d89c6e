"""One backend's go at a task, from its place in line until its slot is free again.

`may_leave` is checked where candidates are filtered, and here again, at the last instruction before `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from gateway.dispatch.collect import MAX_EMPTY_BYTES, gathered, no_answer, size_of, too_much
from gateway.dispatch.continuation import Renderer
from gateway.dispatch.response_spec import ResponseSpec
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
    Task,
    TaskInvalid,
)
from gateway.plugin.errors import PluginRaised, is_own_cancellation
from gateway.registry import ManagedBackend, ServingBackends
from gateway.telemetry import exception_fields, log, metrics
from gateway.timing import Watch

# What a site's time is charged to until the backend says otherwise.
_FIRST_TERM: dict[Site, str] = {"edge": "edge", "cloud": "cloud", "hybrid": "split"}


class End:
    """The last item of an attempt that went well."""


Item = Part | Result | GatewayError | type[End]
Put = Callable[["Attempt", Item], Awaitable[None]]


class Attempt:
    """Runs one backend once. Everything it yields, or raises, goes to `put`; nobody awaits it.

    What came of it teaches before the slot is freed, and once. Its account runs on until whoever listens
    has heard of it, and stops the watch.
    """

    def __init__(
        self,
        task: Task,
        offer: ServingBackends,
        work: Work,
        watch: Watch,
        lanes: Scheduler,
        expected: ResponseSpec,
        put: Put,
    ) -> None:
        self.task, self.offer, self.work, self.watch = task, offer, work, watch
        self.member: ManagedBackend | None = None
        self.began = False
        self.is_settled = False
        self._is_stopped = False
        self._lanes, self._expected, self._put = lanes, expected, put
        self._empty_bytes = 0
        self._inner: Watch | None = None
        self._granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, members: Mapping[str, ManagedBackend], handed: Callable[..., Task]) -> None:
        """Wait for the grant, and run. Cancelling it means that nobody waits any more; `release` when it has ended."""
        self._handed = handed
        try:
            self.member = _found(members, await self._granted, self.offer)
            await self._produce(self.member)
            await self._put(self, End)
        except BaseException as exc:
            if self._is_stopped and is_own_cancellation(exc):
                raise
            _carry_on()
            error = self._translated(exc)
            _forget_way(error)
            self.failed(error)
            await self._put(self, error)

    @property
    def has_own_limits(self) -> bool:
        """Whether time that runs out says little of a backend: the client has less of it than the operator gives."""
        return self._expected.has_own_limits

    def release(self) -> None:
        """Give the slot back, or the place in line.

        Not within `run`: who is cancelled before its first step never enters it, and who is cancelled in the turn of
        the grant does not hear of it.
        """
        self._lanes.withdraw(self.work)
        self._granted.cancel()
        if not self._granted.cancelled() and self._granted.exception() is None:
            self._lanes.done(self.work, self._granted.result())

    def grant(self, backend: str) -> None:
        """A slot of `backend` is free for this; it goes straight back where nobody waits any more."""
        if self._granted.done():
            self._lanes.done(self.work, backend)
        else:
            self._granted.set_result(backend)

    def drop(self, backend: str) -> None:
        """`backend` is removed, and its line with it; somebody else may be asked."""
        if not self._granted.done():
            self._granted.set_exception(_removed(backend))

    async def _produce(self, member: ManagedBackend) -> None:
        task, site = self.task, member.site
        if member.is_off_site and not task.may_leave:
            log.error("egress.refused", request_id=task.id, backend=member.name)
            raise BackendFailed(f"{member.name} is off site, and this may not leave", code="forbidden", began=False)
        if not member.breaker.try_acquire(pinned=self.offer.pinned == member.name):
            raise BackendUnavailable(f"the breaker of {member.name} is open: {member.breaker.why_open}", began=False)
        assert member.backend is not None
        self._inner = inner = self.watch.fork(only="edge" if site == "edge" else None)
        inner.enter(_FIRST_TERM[site], at=self.watch.leave())
        inner.on_cloud = lambda: self._lanes.sent(self.work, member.name)
        inner.rtt_s = self._lanes.board.rtt_s(member.name) if member.is_remote else 0.0
        self.began = True
        if member.is_off_site:
            metrics.EGRESS.inc(len(task.body), backend=member.name)
            log.info(
                "egress.sent", request_id=task.id, parent_id=task.parent_id, backend=member.name, bytes=len(task.body)
            )
        name = self.offer.names[member.name]
        produced = member.backend.run(self._handed(task, member.name, name, terms=inner))
        renderer = self._expected.renderer(member.name, name) if self._expected.renderer else None
        if isinstance(produced, AsyncIterator):
            await self._relay(produced, renderer)
        else:
            await self._tell(await _rendered(await produced, renderer))

    async def _relay(self, produced: AsyncIterator[Part | Result], renderer: Renderer | None) -> None:
        has_begun = False
        async with aclosing(produced) as items:  # type: ignore[type-var]
            async for item in items:
                if not isinstance(item, Part):
                    await self._tell(await _rendered(item, renderer))
                    return
                if not has_begun and renderer is not None and self._expected.gathers(item):
                    await self._tell(await gathered(item, items, renderer, self._expected))
                    return
                has_begun = True
                await self._tell(item)
        if not has_begun and self.task.kind != "task":  # which may give no values at all
            raise BackendUnavailable("it answered with nothing", code="upstream_bad_response", again=False)

    async def _tell(self, item: Part | Result) -> None:
        if isinstance(item, Result):
            self._succeeded(item.status)
        elif not self.is_settled:
            self._look_at(item)
        await self._put(self, item)

    def _look_at(self, part: Part) -> None:
        """The first content settles it. What comes before is kept until then, so there is an end to it."""
        if self._expected.is_content(part):
            self._succeeded(200)
            return
        self._empty_bytes += size_of(part)
        if self._empty_bytes > MAX_EMPTY_BYTES:
            raise too_much(self._empty_bytes, "without content")

    def _translated(self, exc: BaseException) -> GatewayError:
        if isinstance(exc, GatewayError):
            if isinstance(exc, PluginRaised) and self.member is not None and not exc.is_of_subtask:
                self.member.quarantine.record_exception(exc.raised)
                if not self.member.has_workers:  # a worker's own process has logged it
                    where = exception_fields(exc) | {"error": exc.raised}
                    log.error("dispatch.raised", request_id=self.task.id, backend=self.member.name, **where)
            return exc
        name, what = self.member.name if self.member else "none", type(exc).__name__
        log.error("dispatch.raised", request_id=self.task.id, backend=name, **exception_fields(exc))
        if self.member is not None:
            self.member.quarantine.record_exception(what)
        return PluginRaised(f"the plugin of backend {name} raised {what}", raised=what)

    # ── what it teaches, told once ───────────────────────────────────────────────────────────────

    def _succeeded(self, status: int) -> None:
        """It answered. Only a real answer teaches how fast the backend is; a 4xx teaches nothing at all."""
        if self.is_settled or self.member is None:
            return
        self.is_settled = True
        if status >= 400:
            self.member.breaker.record_ignored()
            return
        self.member.breaker.record_success()
        self.member.quarantine.record_success()
        if self.member.site != "hybrid":
            self.watch.did(self.member.site, self.task.items)
        self._lanes.answered(self.work, self.member.name)

    def failed(self, error: GatewayError) -> None:
        """It did not."""
        if self.is_settled or self.member is None:
            return
        self.is_settled = True
        if not self.began:
            return  # nor was a try taken of a breaker that is half open; somebody else's may be under way
        if isinstance(error, DeadlineExceeded):
            is_late = self._lanes.gave_up(self.work, self.member.name)
            if self._expected.has_own_limits and not is_late:
                self.member.breaker.record_ignored()  # a short client timeout; the backend was not slow
                return
        self._blame(error)

    def broke_off(self, error: GatewayError) -> None:
        """What its first content taught has turned out too good."""
        if not (isinstance(error, DeadlineExceeded) and self._expected.has_own_limits):
            self._blame(error)

    def _blame(self, error: GatewayError) -> None:
        """The client's mistakes are not held against a backend, nor is a bug that some argument meets."""
        assert self.member is not None
        if isinstance(error, TaskInvalid) or error.code == "plugin_error" or self._is_from_below(error):
            self.member.breaker.record_ignored()  # its code failed on this task; that says nothing of the next one
        elif isinstance(error, NotServed):
            self._note_lack(error)
        else:
            is_limit = error.code == "rate_limited"
            self.member.breaker.record_failure(error.message, retry_after_s=error.retry_after_s, is_limit=is_limit)

    def _note_lack(self, error: NotServed) -> None:
        assert self.member is not None
        self.member.breaker.record_ignored()
        if error.code == "not_found":
            self.member.missing_endpoints.record(self.task.path)

    def _is_from_below(self, error: GatewayError) -> bool:
        """Whether its subtasks ended so, or were not done in time: those they were given to have been blamed for it.

        What is refused there (a rule that holds for this request, a full line) would otherwise shut it for everybody.
        """
        is_waiting = self._inner is not None and bool(self._inner.children)
        return error.is_of_subtask or (isinstance(error, DeadlineExceeded) and is_waiting)

    def stop(self, running: asyncio.Task[None]) -> None:
        """Cancel it. A cancellation that does not come from here is the plugin's own, and a fault."""
        self._is_stopped = True
        running.cancel()

    def outrun(self) -> None:
        """It stalled, and one that was asked later has answered: it takes longer than that, if it answers at all."""
        self.failed(DeadlineExceeded("it was silent, and another was sooner"))

    def abandoned(self) -> None:
        """Nobody waits for it any more; that says nothing of the backend."""
        self._lanes.withdraw(self.work)
        if not self.is_settled and self.member is not None:
            self.is_settled = True
            if self.began:
                self.member.breaker.record_ignored()


def _forget_way(error: GatewayError) -> None:
    """How it came about: that would keep alive all that was at hand there, such as an answer read so far."""
    error.__traceback__ = error.__cause__ = error.__context__ = None


def _carry_on() -> None:
    """A plugin that has cancelled the task it runs in has not cancelled us."""
    me = asyncio.current_task()
    while me is not None and me.cancelling():
        me.uncancel()


def _found(members: Mapping[str, ManagedBackend], backend: str, offer: ServingBackends) -> ManagedBackend:
    """Who was chosen, or one like that. Raises BackendUnavailable where the name is nobody's now, or another's."""
    member, meant = members.get(backend), offer.members.get(backend)
    if member is None:
        raise _removed(backend)
    if meant is not None and member is not meant and not member.is_equivalent_to(meant):
        raise BackendUnavailable(f"backend {backend} is another one since this was decided", began=False)
    return member


def _removed(backend: str) -> BackendUnavailable:
    return BackendUnavailable(f"backend {backend} was removed before this could start there", began=False)


async def _rendered(result: Any, renderer: Renderer | None) -> Result:
    if not isinstance(result, Result):
        raise no_answer(result)
    return result if renderer is None else await renderer.whole(result)
