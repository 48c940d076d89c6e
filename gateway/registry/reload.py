"""Reload: adds, removes or replaces each backend independently, in the background.

A changed backend is handled in one of three ways:

in place         if only settings in POLICY_ONLY differ: lanes and policy read them, the plugin does not
start then stop  the new backend opens beside the old one, which serves until the new one has opened and its first
                 health check is done, or until it has failed. Then the new one takes over the name, and the old one
                 finishes the work it has
stop then start  if one of the two may hold a resource that exists once per host (the memory of a model, a device):
                 the old backend finishes and closes before the new one opens
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

MAX_OVERLAP_S = 30.0  # the old backend serves at most this long in place of a new one that does not open
POLICY_ONLY = ("usd_per_request", "watts", "queue")


class BackendResources(Protocol):
    """The gateway's own data of each backend, by name: its lane and its measurements."""

    def on_change(self, managed: ManagedBackend) -> None:
        """It has opened or failed, or has other settings now."""

    def on_replaced(self, old: ManagedBackend, new: ManagedBackend) -> None:
        """`new` has taken over the name; `old` finishes the work it has."""

    async def drain(self, managed: ManagedBackend, *, keep_data: bool = False) -> None:
        """Wait until it has finished its work, or a time limit has passed; then drop the data kept for its name.

        The data stays if another backend has the name now, or with `keep_data`: the same backend will start again.
        """


class BackendReloader:
    """Applies a new configuration to `members`, one name at a time, in the background."""

    def __init__(
        self,
        members: dict[str, ManagedBackend],
        lifecycle: BackendLifecycle,
        make: Callable[[BackendConfig], ManagedBackend],
    ) -> None:
        self._members, self._lifecycle, self._make = members, lifecycle, make
        self._replacements: dict[str, ManagedBackend] = {}  # by name, until they take over
        self._changes: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def apply(self, name: str, config: BackendConfig | None, resources: BackendResources) -> None:
        """Have the backend of this configuration under `name`; None: no backend.

        A backend that has failed or is quarantined is replaced even if its configuration is unchanged.
        """
        replacement, present = self._replacements.get(name), self._members.get(name)
        if replacement is not None and self._keep(replacement, config, resources):
            return
        self._cancel_replacement(name)
        if present is not None and self._keep(present, config, resources):
            return
        if config is None:
            if present is not None:
                self._changes[name] = self._spawn(name, self._remove(present, resources))
            return
        new = self._make(config)
        if present is None:
            self._members[name] = new
            self._lifecycle.start(new, resources.on_change)
            return
        self._replacements[name] = new
        is_exclusive = present.has_exclusive_resources or new.has_exclusive_resources
        replace_it = self._stop_then_start if is_exclusive else self._start_then_stop
        self._changes[name] = self._spawn(name, replace_it(present, new, resources))

    def _keep(self, managed: ManagedBackend, config: BackendConfig | None, resources: BackendResources) -> bool:
        """True if `managed` already fits the configuration, or was changed in place to fit."""
        if config is None or not managed.is_usable:
            return False
        wanted = fingerprint(config)
        if wanted == managed.fingerprint:
            return True
        if config.settings is None:
            return False
        old_values = {name: getattr(managed.settings, name) for name in POLICY_ONLY}
        if fingerprint(replace(config, settings=config.settings.model_copy(update=old_values))) != managed.fingerprint:
            return False
        managed.settings, managed.fingerprint = config.settings, wanted
        if self._members.get(managed.name) is managed:
            resources.on_change(managed)
        return True

    def _cancel_replacement(self, name: str) -> None:
        """Cancel the change under way for this name, and stop the replacement that has not taken over yet."""
        if (change := self._changes.pop(name, None)) is not None:
            change.cancel()
        if (replacement := self._replacements.pop(name, None)) is not None:
            self._lifecycle.stop(replacement)

    # ── kinds of change ──────────────────────────────────────────────────────────────────────────

    async def _remove(self, old: ManagedBackend, resources: BackendResources) -> None:
        await self._lifecycle.retire(old, resources.drain)
        del self._members[old.name]

    async def _stop_then_start(self, old: ManagedBackend, new: ManagedBackend, resources: BackendResources) -> None:
        is_same = old.fingerprint == new.fingerprint
        await self._lifecycle.retire(old, partial(resources.drain, keep_data=is_same))
        self._members[new.name] = self._replacements.pop(new.name)
        self._lifecycle.start(new, resources.on_change)

    async def _start_then_stop(self, old: ManagedBackend, new: ManagedBackend, resources: BackendResources) -> None:
        self._lifecycle.start(new, partial(self._on_change, resources))
        if old.state == "serving" and old.is_usable:
            with suppress(TimeoutError):
                async with asyncio.timeout(MAX_OVERLAP_S):
                    await new.opening_done.wait()
        self._members[new.name] = self._replacements.pop(new.name)
        with log_exceptions(f"the change of backend {new.name}"):
            resources.on_replaced(old, new)
        self._spawn(old.name, self._lifecycle.retire(old, resources.drain))

    def _on_change(self, resources: BackendResources, managed: ManagedBackend) -> None:
        if self._members.get(managed.name) is managed:  # else `on_replaced` reports it when it takes over the name
            resources.on_change(managed)

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, name: str, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = log_task_failure(asyncio.create_task(change, name=f"the change of backend {name}"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Wait until all changes are applied and all retired backends are closed."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def cancel(self) -> None:
        """Cancel all changes under way."""
        for task in self._tasks:
            task.cancel()
        await self.wait()
