"""Carries out a decision: a place in line, one attempt after another, and what each of them teaches.

Theory of operation. A request becomes a `Work` in the lanes (they own every wait) and an `Attempt`, an
asyncio task that owns the slot from the grant until the backend has really stopped. The request's own
task only listens at the attempt's channel. So a client that leaves ends the request at once while the
slot stays taken as long as a worker is busy, and a slow client holds no more than the channel's few parts.

Nothing is committed to the client before the first content. Until then another backend may be asked:
when running twice is harmless, or when the failed one certainly did not begin.

`may_leave` is checked where candidates are filtered, and again at the last instruction before `run`.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.decide.policy import Candidate, Decision, Policy, Query, decide
from gateway.journal import Record, finish, outcome_of
from gateway.lanes import Lanes, Work
from gateway.measure.board import Board
from gateway.plugin import (
    Backend,
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    LinkSample,
    Log,
    Part,
    Result,
    Services,
    Site,
    Task,
    TaskInvalid,
)
from gateway.registry import Member, Offer, Registry
from gateway.telemetry import log, metrics
from gateway.timing import Watch

CHANNEL_PARTS = 32  # what a backend may be ahead of a slow client
MAX_DEPTH = 4  # subtasks of subtasks of …
SERVICE_TERMS = ("edge", "network", "cloud", "download")  # from the last byte sent to the result

Content = Callable[[Part], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds a stream may take to its first content, and between contents."""

    first_byte_s: float = 60.0
    stall_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of a task: a whole `result`, or `parts`, the first of which has arrived. Close it after use."""

    backend: str
    site: Site
    result: Result | None = None
    parts: AsyncIterator[Part] | None = None
    attempt: Attempt | None = None

    def close(self) -> None:
        """Nobody listens any more."""
        if self.attempt is not None:
            self.attempt.cancel()


class _End:
    """The channel's last item where all went well."""


class Attempt:
    """One backend's go at a task, from its place in line until its slot is free again."""

    def __init__(self, dispatcher: Dispatcher, task: Task, offer: Mapping[str, str], watch: Watch) -> None:
        self.task, self.offer, self.watch = task, offer, watch
        self.member: Member | None = None
        self.began = False
        self.answered = False
        self.inner: Watch | None = None
        self.work: Work | None = None
        self._dispatcher = dispatcher
        self._granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._channel: asyncio.Queue[Part | Result | BaseException | type[_End]] = asyncio.Queue(CHANNEL_PARTS)
        self._pump: asyncio.Task[None] | None = None

    def start(self, backend: str) -> None:
        """The lanes grant a slot of `backend`; it goes straight back where nobody waits any more."""
        if self._granted.done():
            assert self.work is not None
            self._dispatcher.lanes.done(self.work, backend)
        else:
            self._granted.set_result(backend)

    def launch(self, work: Work) -> None:
        """Take the place in line as `work`, and go when it is granted."""
        self.work = work
        self.watch.enter("queue")
        self._pump = self._dispatcher.spawn(self._run(work))

    def cancel(self) -> None:
        """Nobody waits for this any more. The slot is freed when the backend has really stopped."""
        if self._pump is not None:
            self._pump.cancel()

    async def next(self, limit_s: float | None = None) -> Part | Result | None:
        """What comes next, or None at the proper end. Raises what the backend raised, or DeadlineExceeded."""
        try:
            async with asyncio.timeout(limit_s):
                item = await self._channel.get()
        except TimeoutError:
            who = self.member.name if self.member else "a slot"
            raise DeadlineExceeded(f"waited {limit_s:.1f} s for {who}; nothing came in the time allowed") from None
        if isinstance(item, BaseException):
            raise item
        return item if isinstance(item, (Part, Result)) else None

    async def _run(self, work: Work) -> None:
        lanes = self._dispatcher.lanes
        backend = None
        try:
            backend = await self._granted
            self.watch.leave()
            self.member = self._dispatcher.registry.members[backend]
            await self._produce(self.member)
            await self._channel.put(_End)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            await self._channel.put(self._translate(exc))
        finally:
            if backend is None and self._granted.done() and not self._granted.cancelled():
                backend = self._granted.result()
            if backend is None:
                lanes.withdraw(work)
            else:
                lanes.done(work, backend)

    async def _produce(self, member: Member) -> None:
        assert member.backend is not None
        site = member.site
        if site == "cloud" and not self.task.may_leave:
            raise BackendFailed(f"{member.name} is off site and this may not leave", code="forbidden", began=False)
        self.inner = self.watch.fork(only="edge" if site == "edge" else None)
        self.inner.enter({"edge": "edge", "cloud": "cloud", "hybrid": "split"}[site])
        self.began = True
        if site == "cloud":
            metrics.EGRESS.inc(len(self.task.body), backend=member.name)
        task = self.task.replace(name=self.offer[member.name], terms=self.inner)
        produced = member.backend.run(task)
        try:
            if isinstance(produced, AsyncIterator):
                await self._relay(produced)
            else:
                self._answer(await produced)
                await self._channel.put(self._result)
        finally:
            self.inner.stop()

    async def _relay(self, produced: AsyncIterator[Part | Result]) -> None:
        async with aclosing(produced) as items:  # type: ignore[type-var]
            async for item in items:
                if isinstance(item, Result):
                    self._answer(item)
                    await self._channel.put(item)
                    return
                if not isinstance(item, Part):
                    raise TypeError(f"run yielded {type(item).__name__}, not Part or Result")
                await self._channel.put(item)

    def _answer(self, result: Any) -> None:
        if not isinstance(result, Result):
            raise TypeError(f"run returned {type(result).__name__}, not Result")
        self._result = result

    def _translate(self, exc: BaseException) -> BaseException:
        if isinstance(exc, GatewayError):
            return exc
        frames = traceback.extract_tb(exc.__traceback__)
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
        name = self.member.name if self.member else "none"
        log.error(
            "dispatch.raised",
            request_id=self.task.id,
            backend=name,
            error=f"{type(exc).__name__}: {exc}"[:500],
            where=where,
        )
        return BackendUnavailable(f"the plugin of backend {name} raised {type(exc).__name__}", code="plugin_error")

    # ── what it teaches ──────────────────────────────────────────────────────────────────────────

    def succeeded(self, status: int = 200) -> None:
        """It answered. Only a real answer teaches how fast the backend is; a 4xx teaches nothing at all."""
        if self.answered or self.member is None or self.inner is None:
            return
        self.answered = True
        if status >= 400:
            return
        self.member.breaker.succeeded()
        if self.member.site != "hybrid":
            self.inner.did(self.member.site, self.task.items)
        self._dispatcher.learn(self.member, self.task, self.work, self.inner.spent_s(SERVICE_TERMS))

    def failed(self, error: GatewayError) -> None:
        """It did not. The client's own mistakes are not held against it."""
        if self.member is None or isinstance(error, TaskInvalid):
            return
        self.member.breaker.failed(error.retry_after_s)


class Dispatcher:
    """Gives each task to the backend that should serve it, and to the next where that one cannot."""

    def __init__(
        self, registry: Registry, board: Board, lanes: Lanes, policy: Policy, limits: Limits | None = None
    ) -> None:
        self.registry, self.board, self.lanes, self.policy = registry, board, lanes, policy
        self.limits = limits or Limits()
        self._last: dict[tuple[str, str], str] = {}
        self._pumps: set[asyncio.Task[None]] = set()

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """A task this dispatcher waits for when it closes."""
        pump: asyncio.Task[None] = asyncio.create_task(work)
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        return pump

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has stopped."""
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def decide(self, task: Task, record: Record) -> tuple[Decision, Offer, Work]:
        """Who should serve `task`, with everything that led to it put into `record`. Runs nothing.

        Raises GatewayError where nobody serves it, or the rules leave nobody.
        """
        offer = self.registry.offer(task.kind, task.name)
        if task.pin is not None:
            offer = _pin(offer, task.pin)
        members = {name: self.registry.members[name] for name in offer.names}
        work = self._work(task, offer, members)
        refused = {name: self._refusal(member, task, offer) for name, member in members.items()}
        candidates = self._estimated(self.lanes.candidates(work, refused), task, members)
        key = (task.kind, task.name)
        query = Query(
            kind=task.kind,
            name=task.name,
            slack_s=task.deadline - time.monotonic(),
            client_deadline=work.client_deadline,
            may_leave=task.may_leave,
            pinned=offer.pinned,
        )
        decision = decide(query, candidates, self.policy, self._last.get(key))
        record.candidates, record.reason = decision.candidates, decision.reason
        record.queue, record.load = self.lanes.waiting(), self.board.load()
        record.predicted_s, record.decided_at = decision.predicted_s, time.monotonic()
        if not decision.order:
            raise _nobody(decision)
        self._last[key] = decision.order[0]
        return decision, offer, work

    def _work(self, task: Task, offer: Offer, members: Mapping[str, Member]) -> Work:
        return Work(
            id=task.id,
            kind=task.kind,
            models=dict(offer.names),
            sizes={name: _size(member, task) for name, member in members.items()},
            body_bytes=len(task.body),
            deadline=task.deadline,
            client_deadline=False,
            repeatable=all(member.repeatable(task.kind) for member in members.values()),
        )

    def _refusal(self, member: Member, task: Task, offer: Offer) -> str | None:
        if member.backend is None or member.state != "serving":
            return f"it is {member.state}" + (f": {member.error}" if member.error else "")
        if member.site == "cloud" and not task.may_leave:
            return "edge-only: its data would leave the site"
        is_pinned = offer.pinned == member.name
        if not member.breaker.allows(pinned=is_pinned):
            return f"breaker open: {member.breaker.why_open}"
        if not is_pinned and self.board.link(member.name).state == "down":
            return "its link is down"
        return None

    def _estimated(self, candidates: list[Candidate], task: Task, members: Mapping[str, Member]) -> list[Candidate]:
        """Put a plugin's own estimate in the place of the learned one, where it has one."""
        view = _View(self)
        for index, candidate in enumerate(candidates):
            backend = members[candidate.name].backend
            if backend is None or candidate.refused or type(backend).estimate is Backend.estimate:
                continue
            with suppress(Exception):
                seconds = backend.estimate(task, view)
                if seconds is not None:
                    candidates[index] = replace(candidate, service_s=seconds, p95_s=max(seconds, candidate.p95_s))
        return candidates

    def seconds(self, backend: str, task: Task) -> float | None:
        """Predicted seconds until `backend` would have finished `task`; None where it cannot serve it."""
        member = self.registry.members.get(backend)
        own = member.serves(task.kind, task.name) if member else None
        if member is None or own is None:
            return None
        offer = Offer({backend: own}, backend)
        if self._refusal(member, task, offer):
            return None
        work = self._work(task, offer, {backend: member})
        return self.lanes.candidates(work, {backend: None})[0].t_s

    # ── carrying it out ──────────────────────────────────────────────────────────────────────────

    async def dispatch(self, task: Task, watch: Watch, record: Record, is_content: Content = lambda _: True) -> Answer:
        """Have `task` served. Returns when the whole result, or a stream's first content, is there.

        is_content: whether a part of a stream is worth committing to. Raises GatewayError.
        """
        watch.enter("decide")
        decision, offer, work = self.decide(task, record)
        metrics.DECISIONS.inc(backend=decision.order[0], reason=decision.reason)
        if task.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline had passed before work could start")
        error: GatewayError | None = None
        for backend in decision.order:
            if error is not None:
                log.warning(
                    "dispatch.fell_back",
                    request_id=record.request_id,
                    backend=record.backend,
                    error=error.message,
                    next=backend,
                )
                work = self._work(task, offer, {name: self.registry.members[name] for name in offer.names})
            attempt = Attempt(self, task, offer.names, watch.fork())
            watch.leave()
            try:
                return await self._attempt(attempt, work, backend, decision, record, is_content)
            except GatewayError as exc:
                attempt.failed(exc)
                attempt.cancel()
                error = exc
                if not _may_try_elsewhere(exc, attempt, self.registry.members[record.backend], task):
                    raise
                watch.enter("decide")
            except BaseException:
                attempt.cancel()
                raise
        assert error is not None
        raise error

    async def _attempt(
        self,
        attempt: Attempt,
        work: Work,
        backend: str,
        decision: Decision,
        record: Record,
        is_content: Content,
    ) -> Answer:
        task = attempt.task
        record.attempts += 1
        self._note(record, backend)
        work.allowed = tuple(decision.order)
        work.start = attempt.start
        attempt.launch(work)
        self.lanes.submit(work, backend)
        ahead: list[Part] = []
        limit_s = self.limits.first_byte_s if task.stream else None
        until = min(task.deadline, time.monotonic() + limit_s) if limit_s else task.deadline
        while True:
            item = await attempt.next(max(0.0, until - time.monotonic()))
            if attempt.member is not None:
                self._note(record, attempt.member.name)
            if isinstance(item, Result):
                attempt.succeeded(item.status)
                attempt.watch.stop()
                return Answer(backend=record.backend, site=_site(record), result=item, attempt=attempt)
            if item is not None:
                ahead.append(item)
            if item is None or is_content(item):
                attempt.succeeded()
                attempt.watch.stop()
                parts = self._parts(attempt, ahead, is_over=item is None)
                return Answer(backend=record.backend, site=_site(record), parts=parts, attempt=attempt)

    async def _parts(self, attempt: Attempt, ahead: list[Part], *, is_over: bool) -> AsyncIterator[Part]:
        for part in ahead:
            yield part
        while not is_over:
            item = await attempt.next(self.limits.stall_s)
            if item is None:
                return
            if isinstance(item, Part):
                yield item

    def _note(self, record: Record, backend: str) -> None:
        record.backend = backend
        record.site = self.registry.members[backend].site
        record.link = self.board.link(backend)

    def learn(self, member: Member, task: Task, work: Work | None, seconds: float) -> None:
        """One sample of how long `member` takes for work like this."""
        if work is not None and seconds > 0:
            x = work.sizes[member.name]
            self.board.learn(member.name, task.kind, work.models[member.name], x, seconds)


def _pin(offer: Offer, backend: str) -> Offer:
    if backend not in offer.names:
        raise BackendUnavailable(f"backend {backend!r} does not serve this", began=False)
    return Offer({backend: offer.names[backend]}, backend)


def _size(member: Member, task: Task) -> float:
    try:
        return float(member.backend.size(task)) if member.backend else 0.0
    except Exception:  # a plugin's guess at the size must never cost the request
        return float(len(task.body))


def _site(record: Record) -> Site:
    assert record.site != "none"
    return record.site


def _may_try_elsewhere(error: GatewayError, attempt: Attempt, member: Member, task: Task) -> bool:
    if not isinstance(error, BackendUnavailable):
        return False
    return not attempt.began or not error.began or member.repeatable(task.kind)


def _nobody(decision: Decision) -> GatewayError:
    """No candidate is left: `no_backend` where the rules refuse all, `unavailable` where faults do."""
    named = "; ".join(f"{name}: {why}" for name, why in decision.refused.items())
    by_rule = all(why.startswith("edge-only") for why in decision.refused.values())
    return GatewayError(
        f"no backend may serve this now ({named})",
        code="no_backend" if by_rule else "unavailable",
        retry_after_s=None if by_rule else 1.0,
    )


@dataclass(frozen=True, slots=True)
class _View:
    """What `Backend.estimate` may ask."""

    dispatcher: Dispatcher

    def seconds(self, backend: str, task: Task) -> float | None:
        return self.dispatcher.seconds(backend, task)

    def slots(self, backend: str) -> int:
        member = self.dispatcher.registry.members.get(backend)
        return member.slots if member else 0


@dataclass(slots=True)
class BackendServices:
    """`gateway.plugin.Services` for one backend; the dispatcher is put in when it exists."""

    name: str
    board: Board
    log: Log
    dispatcher: Dispatcher | None = field(default=None, repr=False)

    def observe(self, sample: LinkSample) -> None:
        """Tell the board what the network did."""
        self.board.observe(self.name, sample)

    async def dispatch(self, task: Task) -> Result:
        """Run a subtask like any request; its account is laid over its parent's."""
        if self.dispatcher is None:
            raise BackendFailed("dispatch works only once the gateway serves")
        if task.depth > MAX_DEPTH:
            raise BackendFailed(f"subtasks are nested more than {MAX_DEPTH} deep")
        parent = task.terms
        watch = parent.fork() if isinstance(parent, Watch) else Watch()
        record = Record(
            request_id=task.id, parent_id=task.parent_id, kind=task.kind, model=task.name, items=task.items,
            bytes_in=len(task.body),
        )  # fmt: skip
        return await subdispatch(self.dispatcher, task, watch, record)


async def subdispatch(dispatcher: Dispatcher, task: Task, watch: Watch, record: Record) -> Result:
    """Dispatch a subtask to its whole result, and write its line whatever happens."""
    answer: Answer | None = None
    try:
        answer = await dispatcher.dispatch(task, watch, record)
        if answer.result is None:
            raise BackendFailed("a subtask was answered by a stream", code="upstream_bad_response")
        record.status, record.outcome = answer.result.status, outcome_of(answer.result.status)
        return replace(answer.result, backend=answer.backend, site=answer.site)
    except GatewayError as exc:
        record.error, record.reason = exc.message, exc.code
        record.outcome = "timed_out" if isinstance(exc, DeadlineExceeded) else "failed"
        raise
    except asyncio.CancelledError:
        record.outcome = "cancelled"
        raise
    finally:
        if answer is not None:
            answer.close()
        finish(record, watch)


_: type[Services] = BackendServices
