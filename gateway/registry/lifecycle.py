"""The lives of backends: each is opened, watched by its health check, and closed, in a task of its own.

Whatever a plugin raises there, a cancellation of its own making too, is a fault of that backend: its state says so
at the end, and a line does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from gateway.measure.board import Measurements
from gateway.plugin import LinkSample
from gateway.plugin.errors import is_own_cancellation
from gateway.registry.member import ManagedBackend, describe
from gateway.telemetry import log, log_exceptions, log_task_failure

MIN_PAUSE_S = 0.01
LOOK_AGAIN_S = 0.25  # interest in an idle backend, which brings its next probe forward, is noticed this soon
CLOSE_S = 10.0  # what has not closed by then, when the gateway stops, is cancelled
CANCEL_S = 1.0  # and left behind where it ignores that

Changed = Callable[[ManagedBackend], None]


class BackendLifecycle:
    """Starts and ends them; remembers those, too, that a reload has left behind. clock: monotonic seconds."""

    def __init__(self, board: Measurements, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock
        self._lives: dict[asyncio.Task[None], ManagedBackend] = {}

    def start(self, member: ManagedBackend, changed: Changed) -> None:
        """Open it in the background, and keep an eye on it; `changed` is told when it has opened or failed."""
        life = member.life = log_task_failure(
            asyncio.create_task(self._live(member, changed), name=f"backend {member.name}")
        )
        self._lives[life] = member
        life.add_done_callback(self._lives.pop)

    async def retire(self, member: ManagedBackend, finished: Callable[[ManagedBackend], Awaitable[None]]) -> None:
        """Give it no new work, and close it once it has `finished`; it is left behind after CLOSE_S."""
        member.state = "closing"
        await finished(member)
        member.stopping.set()
        if member.life is not None:
            await asyncio.wait({member.life}, timeout=CLOSE_S)

    def give_up(self, member: ManagedBackend) -> None:
        """Close it; its start, where that still goes on, is cancelled: it may never end."""
        member.stopping.set()
        if member.state == "starting" and member.life is not None:
            member.life.cancel()

    async def end(self) -> None:
        """Close them all; one that will not within CLOSE_S is cancelled, and left behind CANCEL_S later."""
        for member in self._lives.values():
            member.stopping.set()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CLOSE_S)
        for life in self._lives:
            life.cancel()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CANCEL_S)

    def stuck(self) -> list[str]:
        """Whose start or stop still goes on; after `end`, that is what will never end."""
        return sorted({member.name for member in self._lives.values()})

    async def _live(self, member: ManagedBackend, changed: Changed) -> None:
        try:
            if await self._has_opened(member, changed):
                try:
                    await self._watch(member)
                finally:
                    await self._close(member)
        except asyncio.CancelledError:
            if not member.stopping.is_set():
                member.error = member.error or "it has cancelled the task it lives in"
                log.error("backend.ended", backend=member.name, error=member.error)
            raise
        finally:
            member.opened.set()

    async def _has_opened(self, member: ManagedBackend, changed: Changed) -> bool:
        began = self._clock()
        try:
            member.check()
            assert member.backend is not None
            self._board.add(member.name, remote=member.is_remote)  # it may tell of its network while it opens
            await member.backend.__aenter__()
        except BaseException as exc:
            if member.stopping.is_set() and is_own_cancellation(exc):
                member.state = "closed"  # nobody wants it any more; that is no failure
                raise
            member.fail(exc)
            log.error("backend.failed_to_open", backend=member.name, plugin=member.plugin, error=member.cause)
            changed(member)
            if is_own_cancellation(exc):
                raise
            return False
        if not member.stopping.is_set():  # while it opened
            member.state = "serving"
            log.info(
                "backend.opened", backend=member.name, plugin=member.plugin, seconds=round(self._clock() - began, 3)
            )
            with log_exceptions(f"opening backend {member.name}"):
                changed(member)
        return True

    async def _watch(self, member: ManagedBackend) -> None:
        while not member.stopping.is_set():
            pause_s: float | None = LOOK_AGAIN_S
            with log_exceptions(
                f"watching backend {member.name}"
            ):  # a bug of ours: it serves on, and is looked at again
                pause_s = await self._look(member)
            member.opened.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.stopping.wait(), pause_s)

    async def _look(self, member: ManagedBackend) -> float | None:
        """Ask how it is, where that is due; seconds until the next look, None where there is nothing to ask."""
        if not member.is_watched:
            return None
        if not member.opened.is_set() or self._board.probe_due_s(member.name) <= 0:
            await self._probe(member)
        return min(max(MIN_PAUSE_S, self._board.probe_due_s(member.name)), LOOK_AGAIN_S)

    async def _probe(self, member: ManagedBackend) -> None:
        was = member.complaint
        self._board.probe_sent(member.name)
        member.complaint = await self._asked(member)
        if member.complaint is None:
            member.breaker.probe_ok()
        if member.complaint and not was:
            log.warning("backend.unwell", backend=member.name, error=member.complaint)
        elif was and not member.complaint:
            log.info("backend.well", backend=member.name)

    async def _asked(self, member: ManagedBackend) -> str | None:
        """What it says of itself, or how it failed to."""
        assert member.backend is not None
        try:
            async with asyncio.timeout(self._board.probe_timeout_s(member.name)):
                said = await member.backend.health()
        except TimeoutError:
            late = "its health check was not answered in time"
            self._board.observe(member.name, LinkSample(failed=late))
            return late
        except BaseException as exc:
            if is_own_cancellation(exc):
                raise
            return f"its health check raised {describe(exc)}"
        return None if said is None else str(said)

    async def _close(self, member: ManagedBackend) -> None:
        member.state = "closed"
        try:
            assert member.backend is not None
            await member.backend.__aexit__(None, None, None)
        except BaseException as exc:
            log.error("backend.close_failed", backend=member.name, error=describe(exc))
            if is_own_cancellation(exc):
                raise
