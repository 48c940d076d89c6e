"""All configured backends: which there are, and which there are to be after a reload."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from gateway.health.breaker import Breaker
from gateway.health.quarantine import Quarantine
from gateway.measure.board import Measurements
from gateway.plugin import BackendSettings, Services
from gateway.plugin.errors import message_of
from gateway.registry.lifecycle import BackendLifecycle, Changed
from gateway.registry.loader import BackendConfig, build, fingerprint
from gateway.registry.lookup import Catalog
from gateway.registry.member import ManagedBackend, describe
from gateway.registry.reload import BackendReloader, BackendResources
from gateway.telemetry import log, log_exceptions
from gateway.workers import DRAIN_S


class Registry(Catalog):
    """All configured backends, from their configuration to their end.

    drain_s: seconds a cancelled task has to end in, before its worker process is killed.
    """

    def __init__(
        self,
        configs: Iterable[BackendConfig],
        services_for: Callable[[str], Services],
        board: Measurements,
        *,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lives = BackendLifecycle(board, clock)
        self._clock, self._services_for, self._drain_s = clock, services_for, drain_s
        self.packages: dict[str, str] = {}
        self._succession = BackendReloader(self.members, self._lives, self._member)
        for config in configs:
            self.members[config.name] = self._member(config)

    def _member(self, config: BackendConfig) -> ManagedBackend:
        settings = config.settings or BackendSettings.model_validate({})
        backend, cause = None, config.broken
        error = cause and "its plugin cannot be loaded"
        if config.cls is not None and cause is None:
            self.packages.setdefault(config.cls.__module__.partition(".")[0], config.name)
            try:
                backend = build(config.cls, settings, self._services_for(config.name), self._drain_s)
            except BaseException as exc:  # nothing is awaited here: whatever it is, it is the plugin's
                error, cause = describe(exc), f"{type(exc).__name__}: {message_of(exc)}"
        return ManagedBackend(
            name=config.name,
            plugin=config.plugin,
            settings=settings,
            backend=backend,
            breaker=Breaker(self._clock, partial(self._breaker_changed, config.name)),
            quarantine=Quarantine(self._clock, partial(self._quarantined, config.name)),
            error=error,
            cause=cause,
            fingerprint=fingerprint(config),
        )

    def _breaker_changed(self, backend: str, before: str, after: str, why: str) -> None:
        event = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}[after]
        if before != after:
            log.info(event, backend=backend, why=why)

    def _quarantined(self, backend: str, why: str, seconds: float) -> None:
        log.error("backend.quarantined", backend=backend, why=why, seconds=seconds)

    async def open_all(self, changed: Changed) -> None:
        """Start every backend, all at once, in the background; `changed` is told of each that opened or failed."""
        for member in self.members.values():
            self._lives.start(member, changed)

    def change(self, configs: Mapping[str, BackendConfig], ground: BackendResources) -> None:
        """Have these backends and no others, those that are the same going on as they are; `changed` waits for it."""
        for name in {**self.members, **configs}:
            with log_exceptions(f"changing backend {name}"):
                self._succession.want(name, configs.get(name), ground)

    async def changed(self) -> None:
        """Wait until all that goes or changes has done so."""
        await self._succession.settled()

    @property
    def is_opening(self) -> bool:
        """Whether some backend has neither opened nor failed yet."""
        return any(member.state == "starting" for member in self.members.values())

    async def settled(self, timeout_s: float) -> None:
        """Wait until every backend has opened or failed, or `timeout_s` has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for member in self.members.values():
                    await member.opened.wait()

    async def close_all(self) -> None:
        """Close every backend; what ignores that, and its cancellation, is left behind."""
        await self._succession.end()
        await self._lives.end()

    def stuck(self) -> list[str]:
        """Whose start or stop still goes on; after `close_all`, that is what will never end."""
        return self._lives.stuck()
