"""The registry: all configured backends, their start, reload and stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from gateway.health.breaker import Breaker
from gateway.health.quarantine import Quarantine
from gateway.health.rests import Rests
from gateway.measure.measurements import Measurements
from gateway.plugin import BackendSettings, Services
from gateway.plugin.errors import message_of
from gateway.registry.catalog import Catalog
from gateway.registry.lifecycle import BackendLifecycle, OnChange
from gateway.registry.loader import BackendConfig, build_backend, fingerprint
from gateway.registry.managed_backend import ManagedBackend, public_error
from gateway.registry.reload import BackendReloader, BackendResources
from gateway.telemetry import log, log_exceptions
from gateway.workers import DRAIN_S, SecretMask, secrets_in


class Registry(Catalog):
    """All configured backends, from their configuration until they are closed.

    drain_s: seconds a cancelled task has to end before its worker process is killed. clock: returns monotonic seconds.
    backend_by_package: the backend that uses each plugin package. mask: the secrets that worker output must not show;
    those of all backends are added.
    """

    def __init__(
        self,
        configs: Iterable[BackendConfig],
        services_for: Callable[[str], Services],
        measurements: Measurements,
        *,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
        clock: Callable[[], float] = time.monotonic,
        mask: SecretMask | None = None,
    ) -> None:
        super().__init__()
        self._mask = mask or SecretMask()
        self._lifecycle = BackendLifecycle(measurements, clock)
        self._clock, self._services_for, self._drain_s = clock, services_for, drain_s
        self.backend_by_package: dict[str, str] = {}
        self._reloader = BackendReloader(self.members, self._lifecycle, self._make)
        configs = list(configs)
        self._mask.add(secrets_in([config.settings for config in configs]))
        for config in configs:
            self.members[config.name] = self._make(config)

    def _make(self, config: BackendConfig) -> ManagedBackend:
        settings = config.settings or BackendSettings.model_validate({})
        backend, cause = None, config.broken
        error = cause and "its plugin cannot be loaded"
        if config.cls is not None and cause is None:
            self.backend_by_package.setdefault(config.cls.__module__.partition(".")[0], config.name)
            try:
                backend = build_backend(
                    config.cls, settings, self._services_for(config.name), self._drain_s, self._mask
                )
            except BaseException as exc:  # synchronous, so every exception comes from the plugin
                error, cause = public_error(exc), f"{type(exc).__name__}: {message_of(exc)}"
        return ManagedBackend(
            name=config.name,
            plugin=config.plugin,
            settings=settings,
            backend=backend,
            breaker=Breaker(self._clock, partial(self._on_breaker_change, config.name)),
            quarantine=Quarantine(self._clock, partial(self._on_quarantine, config.name)),
            rests=Rests(self._clock, partial(self._on_rest, config.name)),
            error=error,
            cause=cause,
            fingerprint=fingerprint(config),
        )

    def _on_breaker_change(self, backend: str, before: str, after: str, why: str) -> None:
        event = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}[after]
        if before != after:
            log.info(event, backend=backend, why=why)

    def _on_rest(self, backend: str, model: str, why: str, seconds: float) -> None:
        log.warning("backend.rested", backend=backend, model=model or None, why=why, seconds=seconds)

    def _on_quarantine(self, backend: str, why: str, seconds: float) -> None:
        log.error("backend.quarantined", backend=backend, why=why, seconds=seconds)

    async def open_all(self, on_change: OnChange) -> None:
        """Open all backends at once, in the background. on_change: called for each one that opened or failed."""
        for managed in self.members.values():
            self._lifecycle.start(managed, on_change)

    @property
    def is_opening(self) -> bool:
        """True if at least one backend has neither opened nor failed yet."""
        return any(managed.state == "starting" for managed in self.members.values())

    async def wait_opened(self, timeout_s: float) -> None:
        """Wait until every backend has opened or failed, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for managed in self.members.values():
                    await managed.opening_done.wait()

    def reload(self, configs: Mapping[str, BackendConfig], resources: BackendResources) -> None:
        """Replace the set of backends, in the background. Unchanged backends continue; see `wait_reloaded`."""
        self._mask.add(secrets_in([config.settings for config in configs.values()]))
        for name in {**self.members, **configs}:
            with log_exceptions(f"changing backend {name}"):
                self._reloader.apply(name, configs.get(name), resources)

    async def wait_reloaded(self) -> None:
        """Wait until the last reload is applied to every backend and all retired backends are closed."""
        await self._reloader.wait()

    async def close_all(self) -> None:
        """Close all backends. A backend that ignores that, and then its cancellation, is abandoned."""
        await self._reloader.cancel()
        await self._lifecycle.close_all()

    def stuck(self) -> list[str]:
        """The backends that still open or close; after `close_all`, those that will never end."""
        return self._lifecycle.stuck()
