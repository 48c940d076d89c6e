"""Who comes after whom when the settings change: a backend that goes, comes, or comes back otherwise, each by itself.

What only the lanes and the policy read (POLICY_ONLY) is changed in place. A changed backend is opened beside the old
one, which serves until the new one has opened and has been asked how it is, or has failed; then the new one has the
name, and the old one finishes what it has. Where it may hold what there is only once on a host (the memory of a model,
a device), the old one finishes and closes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from gateway.registry.lifecycle import BackendLifecycle
from gateway.registry.loader import BackendConfig, fingerprint
from gateway.registry.managed_backend import ManagedBackend
from gateway.telemetry import log_exceptions, log_task_failure

STAND_IN_S = 30.0  # for as long an old one serves in place of a new one that does not get to open
POLICY_ONLY = ("usd_per_request", "watts", "queue")


class BackendResources(Protocol):
    """What is kept of backends by their name, and what they have to do: lanes and measurements."""

    def changed(self, member: ManagedBackend) -> None:
        """It has opened or failed, or has other settings now."""

    def replaced(self, old: ManagedBackend, new: ManagedBackend) -> None:
        """`new` has the name now; `old` does what it has."""

    async def finished(self, member: ManagedBackend, *, comes_back: bool = False) -> None:
        """Return when it has done what it has, or after a while.

        What is known by its name is forgotten, unless somebody else has that, or it comes back as it was.
        """


class BackendReloader:
    """Makes `members` what the settings say, one name at a time, in the background."""

    def __init__(
        self,
        members: dict[str, ManagedBackend],
        lives: BackendLifecycle,
        make: Callable[[BackendConfig], ManagedBackend],
    ) -> None:
        self._members, self._lives, self._make = members, lives, make
        self._heirs: dict[str, ManagedBackend] = {}
        self._moves: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, name: str, config: BackendConfig | None, ground: BackendResources) -> None:
        """Have this backend by that name, or none; one that has failed or is quarantined is made anew."""
        heir, present = self._heirs.get(name), self._members.get(name)
        if heir is not None and self._goes_on(heir, config, ground):
            return
        self._disinherit(name)
        if present is not None and self._goes_on(present, config, ground):
            return
        if config is None:
            if present is not None:
                self._moves[name] = self._spawn(name, self._leave(present, ground))
            return
        new = self._make(config)
        if present is None:
            self._members[name] = new
            self._lives.start(new, ground.changed)
            return
        self._heirs[name] = new
        by_turns = present.holds_resources or new.holds_resources
        way = self._take_turns if by_turns else self._stand_in
        self._moves[name] = self._spawn(name, way(present, new, ground))

    def _goes_on(self, member: ManagedBackend, config: BackendConfig | None, ground: BackendResources) -> bool:
        """Whether `member` is what is wanted, or can be made so in place."""
        if config is None or not member.is_sound:
            return False
        wanted = fingerprint(config)
        if wanted == member.fingerprint:
            return True
        if config.settings is None:
            return False
        kept = {name: getattr(member.settings, name) for name in POLICY_ONLY}
        if fingerprint(replace(config, settings=config.settings.model_copy(update=kept))) != member.fingerprint:
            return False
        member.settings, member.fingerprint = config.settings, wanted
        if self._members.get(member.name) is member:
            ground.changed(member)
        return True

    def _disinherit(self, name: str) -> None:
        """Whoever was to have this name is not wanted any more, nor is the change that was under way."""
        if (move := self._moves.pop(name, None)) is not None:
            move.cancel()
        if (heir := self._heirs.pop(name, None)) is not None:
            self._lives.give_up(heir)

    # ── the ways ─────────────────────────────────────────────────────────────────────────────────

    async def _leave(self, old: ManagedBackend, ground: BackendResources) -> None:
        await self._lives.retire(old, ground.finished)
        del self._members[old.name]

    async def _take_turns(self, old: ManagedBackend, new: ManagedBackend, ground: BackendResources) -> None:
        comes_back = old.fingerprint == new.fingerprint
        await self._lives.retire(old, partial(ground.finished, comes_back=comes_back))
        self._members[new.name] = self._heirs.pop(new.name)
        self._lives.start(new, ground.changed)

    async def _stand_in(self, old: ManagedBackend, new: ManagedBackend, ground: BackendResources) -> None:
        self._lives.start(new, partial(self._opened, ground))
        if old.state == "serving" and old.is_sound:
            with suppress(TimeoutError):
                async with asyncio.timeout(STAND_IN_S):
                    await new.opened.wait()
        self._members[new.name] = self._heirs.pop(new.name)
        with log_exceptions(f"the change of backend {new.name}"):
            ground.replaced(old, new)
        self._spawn(old.name, self._lives.retire(old, ground.finished))

    def _opened(self, ground: BackendResources, member: ManagedBackend) -> None:
        if self._members.get(member.name) is member:  # else that is told when it gets the name
            ground.changed(member)

    # ── their tasks ──────────────────────────────────────────────────────────────────────────────

    def _spawn(self, name: str, way: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = log_task_failure(asyncio.create_task(way, name=f"the change of backend {name}"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Wait until the settings are what is, and what goes has gone."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def end(self) -> None:
        """Change nothing any more."""
        for task in self._tasks:
            task.cancel()
        await self.settled()
