"""The lives of backends: each is opened, watched by its health check, and closed, in a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from gateway.errors import PLUGIN_FAULTS
from gateway.measure.board import Board
from gateway.plugin import GatewayError, LinkSample
from gateway.registry.member import Member
from gateway.telemetry import log, watched

LEAST_PAUSE_S = 0.01
LOOK_AGAIN_S = 0.25  # interest in an idle backend, which brings its next probe forward, is noticed this soon
CLOSE_S = 10.0  # what has not closed by then, when the gateway stops, is cancelled
CANCEL_S = 1.0  # and left behind where it ignores that

Changed = Callable[[Member], None]


class Lives:
    """Starts and ends them; remembers those, too, that a reload has left behind. clock: monotonic seconds."""

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self._board, self._clock = board, clock
        self._lives: dict[asyncio.Task[None], str] = {}

    def start(self, member: Member, changed: Changed) -> None:
        """Open it in the background, and keep an eye on it; `changed` is told when it has opened or failed."""
        life = member.life = watched(asyncio.create_task(self._live(member, changed), name=f"backend {member.name}"))
        self._lives[life] = member.name
        life.add_done_callback(self._lives.pop)

    async def retire(self, member: Member, finished: Callable[[str], Awaitable[None]]) -> None:
        """Give it no new work, and close it once it has `finished`; it is left behind after CLOSE_S."""
        member.state = "closing"
        await finished(member.name)
        member.stopping.set()
        if member.life is not None:
            await asyncio.wait({member.life}, timeout=CLOSE_S)

    async def end(self, members: Iterable[Member]) -> None:
        """Close them all; one that will not within CLOSE_S is cancelled, and left behind CANCEL_S later."""
        for member in members:
            member.stopping.set()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CLOSE_S)
        for life in self._lives:
            life.cancel()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CANCEL_S)

    def stuck(self) -> list[str]:
        """Whose start or stop still goes on; after `end`, that is what will never end."""
        return sorted(set(self._lives.values()))

    async def _live(self, member: Member, changed: Changed) -> None:
        began = self._clock()
        try:
            if member.backend is None:
                raise GatewayError(member.error or "it has no plugin")
            self._board.add(member.name, remote=member.is_remote)  # it may tell of its network while it opens
            await member.backend.__aenter__()
        except PLUGIN_FAULTS as exc:
            member.state, member.error = "failed", _describe(exc)
            log.error("backend.failed_to_open", backend=member.name, plugin=member.plugin, error=member.error)
            changed(member)
            member.opened.set()
            return
        if member.stopping.is_set():  # while it opened
            member.opened.set()
            await self._close(member)
            return
        member.state = "serving"
        log.info("backend.opened", backend=member.name, plugin=member.plugin, seconds=round(self._clock() - began, 3))
        changed(member)
        try:
            await self._watch(member)
        finally:
            member.opened.set()
            await self._close(member)

    async def _watch(self, member: Member) -> None:
        while not member.stopping.is_set():
            if member.is_watched:
                await self._probe(member)
            member.opened.set()
            pause_s = max(LEAST_PAUSE_S, self._board.probe_due_s(member.name)) if member.is_watched else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.stopping.wait(), min(pause_s, LOOK_AGAIN_S) if pause_s else None)

    async def _probe(self, member: Member) -> None:
        if self._board.probe_due_s(member.name) > 0:
            return
        assert member.backend is not None
        was = member.unwell
        self._board.probe_sent(member.name)
        try:
            async with asyncio.timeout(self._board.probe_timeout_s(member.name)):
                member.unwell = await member.backend.health()
        except TimeoutError:
            member.unwell = "its health check was not answered in time"
            self._board.observe(member.name, LinkSample(failed=member.unwell))
        except PLUGIN_FAULTS as exc:
            member.unwell = _describe(exc)
        if member.unwell is None:
            member.breaker.probe_ok()
        if member.unwell and not was:
            log.warning("backend.unwell", backend=member.name, error=member.unwell)
        elif was and not member.unwell:
            log.info("backend.well", backend=member.name)

    async def _close(self, member: Member) -> None:
        member.state = "closed"
        try:
            assert member.backend is not None
            await member.backend.__aexit__(None, None, None)
        except PLUGIN_FAULTS as exc:
            log.error("backend.close_failed", backend=member.name, error=_describe(exc))


def _describe(exc: BaseException) -> str:
    return exc.message if isinstance(exc, GatewayError) else f"{type(exc).__name__}: {exc}"
