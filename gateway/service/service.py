"""One gateway: construction, start, reload and stop, and the periodic work beside requests.

Start: the listeners open first, so that no connection is refused; then all backends open at once. `/readyz` and
systemd's READY wait until each backend has opened or failed, but at most START_S.

Stop: `/readyz` returns 503, and new requests are still served. DRAIN_S is the limit for all requests; those that still
run FINAL_RESPONSES_S earlier get an error response.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from gateway import __version__
from gateway.admit import Gate, Key
from gateway.dispatch import BackendServices, Dispatcher, Eligibility
from gateway.ingress.handler import RequestHandler
from gateway.ingress.http.server import check_parser
from gateway.ingress.load_shedding import LoadShedding
from gateway.lanes import Scheduler
from gateway.measure.device_load import LoadSampler
from gateway.measure.measurements import LinkChange, Measurements
from gateway.measure.memory_gauge import MemoryGauge
from gateway.measure.netlink import CarrierWatch, source_address_for
from gateway.registry import BackendConfig, Registry
from gateway.service import systemd
from gateway.service.backend_resources import BackendResources
from gateway.service.listeners import Listeners, run_all
from gateway.service.loop_watchdog import LoopWatchdog
from gateway.service.memory_guard import MemoryGuard
from gateway.service.state_file import StateFile
from gateway.service.wiring import mqtt_transport, policy_of, request_limits_of, tls_context_of
from gateway.settings import Loaded, Settings
from gateway.settings.load import waiting_for_restart
from gateway.telemetry import flush, log, log_exceptions, log_task_failure, metrics
from gateway.workers import SecretMask, secrets_in

START_S = 5.0
DRAIN_S = 30.0
FINAL_RESPONSES_S = 2.0
TICK_S = 0.25
LOAD_EVERY_TICKS = 2
SAVE_INTERVAL_S = 300.0


class Service:
    """One gateway. Call `start` once, `reload` any number of times, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[str, BackendConfig],
        keys: Mapping[str, Key] | None = None,
    ) -> None:
        self.settings = settings
        self.gate = Gate(keys)
        policy = settings.policy
        self.measurements = Measurements(
            time.monotonic,
            sampler=LoadSampler(time.monotonic),
            probe_s=policy.probe_s,
            on_link_change=self._on_link_changed,
        )
        self.policy = policy_of(settings)
        self._services: dict[str, BackendServices] = {}
        mask = SecretMask()
        mask.add(secrets_in(settings))
        self.registry = Registry(
            backends.values(),
            self._create_services,
            self.measurements,
            drain_s=lambda: self.settings.deadline_s,
            mask=mask,
        )
        why_excluded = Eligibility(self.registry, self.measurements).why_unavailable
        self.scheduler = Scheduler(self.measurements, self.policy, time.monotonic, why_excluded)
        self._backends = BackendResources(self.scheduler, self.measurements, self._on_forgotten, lambda: DRAIN_S)
        self.dispatcher = Dispatcher(self.registry, self.measurements, self.scheduler)
        self.shedding = LoadShedding()
        self.handler = RequestHandler(
            self.dispatcher, request_limits_of(settings), __version__, lambda: self.is_ready, self.gate, self.shedding
        )
        self.is_ready = False
        self.mqtt = mqtt_transport(self.handler, settings.mqtt)
        self.listeners = Listeners(self.handler, self.gate, tls_context_of(settings.tls))
        self._bound_by = settings
        self.memory_guard = MemoryGuard(self.shedding, MemoryGauge())
        self._loop_watchdog = LoopWatchdog(self.registry.backend_by_package)
        self._ticker: asyncio.Task[None] | None = None
        self._carrier = CarrierWatch()
        self._sources: dict[str, str | None] = {}
        self._state_file = StateFile(settings.state_dir, self.measurements, self.registry)

    def _create_services(self, name: str) -> BackendServices:
        services = BackendServices(name, self.measurements, log.bind(backend=name), self._find_dispatcher)
        self._services[name] = services
        return services

    def _find_dispatcher(self) -> Dispatcher | None:
        return getattr(self, "dispatcher", None)  # a plugin's constructor may already use its services

    @property
    def bound(self) -> list[str]:
        """The addresses of the data listeners, written as in GATEWAY_LISTEN."""
        return self.listeners.bound

    @property
    def admin_bound(self) -> list[str]:
        """The address of the admin listener, in a list; empty before `start`."""
        return self.listeners.admin_bound

    async def start(self) -> None:
        """Listen, then open the backends. Raises SettingsError, and OSError if an address cannot be bound."""
        check_parser()
        metrics.BUILD.set(1, version=__version__, python=platform.python_version())
        self._state_file.restore()
        self.measurements.sample_load()
        await self.listeners.open(self.settings, sum(each.slots for each in self.registry.members.values()))
        await self.registry.open_all(self._backends.on_change)
        self._ticker = log_task_failure(asyncio.create_task(self._tick(), name="tick"))
        self._loop_watchdog.start()
        asyncio.get_running_loop().add_reader(self._carrier.fileno(), self._on_network_changed)
        await self.registry.wait_opened(START_S)
        await self.listeners.accept_held()
        if self.mqtt is not None:
            self.mqtt.start()
        self.is_ready = True
        log.info(
            "service.started",
            version=__version__,
            listen=self.bound,
            admin=self.admin_bound,
            backends=sorted(self.registry.members),
        )

    async def stop(self) -> None:
        """Finish requests in flight, then close everything.

        New requests are served meanwhile; with sockets passed by systemd, new connections wait for the next process.
        A step that fails is logged, and the other steps still run.
        """
        self.is_ready = False
        until = asyncio.get_running_loop().time() + max(0.0, DRAIN_S - FINAL_RESPONSES_S)
        for step in (
            partial(self._drain, until),
            partial(self.listeners.close, until),
            self._stop_background_work,
            self.dispatcher.close,
            self.registry.close_all,
        ):
            with log_exceptions(f"stopping, `{getattr(step, 'func', step).__qualname__}`"):
                await step()
        self._state_file.save()
        log.info("service.stopped")

    async def _drain(self, until: float) -> None:
        self.listeners.hold()
        draining = [self.listeners.drain(until)]
        if self.mqtt is not None:
            draining.append(self.mqtt.stop(until - asyncio.get_running_loop().time()))
        await run_all("draining a transport", *draining)

    async def _stop_background_work(self) -> None:
        asyncio.get_running_loop().remove_reader(self._carrier.fileno())
        self._carrier.close()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker})
        self._loop_watchdog.stop()

    async def reload(self, loaded: Loaded) -> list[str]:
        """Apply a new configuration; return the variables that take effect only after a restart.

        Backends open and close in the background. Raises SettingsError or TlsInvalid, and changes nothing then.
        """
        settings = loaded.settings
        waiting = waiting_for_restart(self._bound_by, settings)
        self.listeners.refuse_exposure(self.settings, settings)
        self.listeners.replace_tls(tls_context_of(settings.tls))
        try:
            self._apply(loaded)
        finally:
            await self.listeners.accept_after_tls()  # after the keys: a new connection sees both or neither
        return waiting

    def _apply(self, loaded: Loaded) -> None:
        settings = loaded.settings
        self.gate.replace(loaded.keys)
        self.policy, self.measurements.probe_s = policy_of(settings), settings.policy.probe_s
        self.scheduler.set_policy(self.policy)
        self.handler.set_limits(request_limits_of(settings))
        self.listeners.update_allowed_hosts(settings)
        self.settings = settings.model_copy(update={"state_dir": self.settings.state_dir})
        self.registry.reload(loaded.backends, self._backends)

    # ── beside requests ──────────────────────────────────────────────────────────────────────────

    def _on_forgotten(self, backend: str) -> None:
        self._sources.pop(backend, None)

    def _on_link_changed(self, backend: str, change: LinkChange) -> None:
        """Schedule a tick: work that waits for the backend, or is stalled on its link, may finish earlier elsewhere."""
        log.info("link.state_changed", backend=backend, before=change.before, after=change.after, why=change.why)
        self._schedule_tick()

    def _on_network_changed(self) -> None:
        """Update the allowed hosts and the route to each backend, after the kernel reported a network change."""
        self._carrier.drain()
        with suppress(OSError):  # the host's addresses cannot be read: keep the known ones
            self.listeners.update_allowed_hosts(self.settings)
        for name, services in self._services.items():
            if services.peer is None:
                continue
            source, before = source_address_for(services.peer), self._sources.get(name, "")
            self._sources[name] = source
            if source is None:
                self.measurements.on_carrier_lost(name)
            elif source != before:
                self.measurements.on_carrier_back(name)

    def _schedule_tick(self) -> None:
        with suppress(RuntimeError):  # no loop: the service is being built
            asyncio.get_running_loop().call_soon(self.scheduler.tick)

    async def _tick(self) -> None:
        """Run the periodic work by one timer, and observe how late it runs: the time that the loop was blocked."""
        loop = asyncio.get_running_loop()
        ticks, due, save_at = 0, loop.time(), loop.time() + SAVE_INTERVAL_S
        while True:
            due = max(due + TICK_S, loop.time())
            await asyncio.sleep(due - loop.time())
            metrics.LOOP_STALL.observe(max(0.0, loop.time() - due))
            ticks += 1
            for step in (systemd.feed_watchdog, flush, self.scheduler.tick, self.dispatcher.look_for_leaks):
                with log_exceptions("the tick"):
                    step()
            if ticks % LOAD_EVERY_TICKS == 0:
                await self._sample_host()
            if loop.time() > save_at:
                save_at = loop.time() + SAVE_INTERVAL_S
                with log_exceptions("saving what was learned"):
                    self._state_file.save()

    async def _sample_host(self) -> None:
        with log_exceptions("reading the load"):
            self.measurements.sample_load()
        with log_exceptions("looking at the memory"):
            await self.memory_guard.check(self.listeners.sites if self.is_ready else ())
