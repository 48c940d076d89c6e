"""One gateway: made from settings, started, changed, stopped; and what it does beside requests.

Start: listeners first, so that nobody is refused; then the backends, all at once. `/readyz` and systemd's
READY wait until each has opened or failed, or START_S have passed. Stop: `/readyz` says no, new work
still comes in and is served; what is not done FAREWELL_S before DRAIN_S have passed is told so.
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
from gateway.service.backend_resources import Backends
from gateway.service.listeners import Listeners, all_of
from gateway.service.loop_watchdog import LoopWatchdog
from gateway.service.memory_guard import MemoryGuard
from gateway.service.state_file import Learned
from gateway.service.wiring import mqtt_door, policy_of, rules_of, tls_of
from gateway.settings import Loaded, Settings
from gateway.settings.live import waiting_for_restart
from gateway.telemetry import flush, log, log_exceptions, log_task_failure, metrics
from gateway.workers import SecretMask, secrets_in

START_S = 5.0
DRAIN_S = 30.0
FAREWELL_S = 2.0
TICK_S = 0.25
LOAD_EVERY_TICKS = 2
SAVE_S = 300.0


class Service:
    """One gateway: made from settings, started, stopped."""

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[str, BackendConfig],
        keys: Mapping[str, Key] | None = None,
    ) -> None:
        self.settings = settings
        self.gate = Gate(keys)
        policy = settings.policy
        self.board = Measurements(
            time.monotonic,
            sampler=LoadSampler(time.monotonic),
            probe_s=policy.probe_s,
            on_link_change=self._link_changed,
        )
        self.policy = policy_of(settings)
        self._services: dict[str, BackendServices] = {}
        mask = SecretMask()
        mask.add(secrets_in(settings))
        self.registry = Registry(
            backends.values(), self._services_for, self.board, drain_s=lambda: self.settings.deadline_s, mask=mask
        )
        why_excluded = Eligibility(self.registry, self.board).why_unavailable
        self.lanes = Scheduler(self.board, self.policy, time.monotonic, why_excluded)
        self._backends = Backends(self.lanes, self.board, self._forgotten, lambda: DRAIN_S)
        self.dispatcher = Dispatcher(self.registry, self.board, self.lanes)
        self.shedding = LoadShedding()
        self.handler = RequestHandler(
            self.dispatcher, rules_of(settings), __version__, lambda: self.is_ready, self.gate, self.shedding
        )
        self.is_ready = False
        self.mqtt = mqtt_door(self.handler, settings.mqtt)
        self.listeners = Listeners(self.handler, self.gate, tls_of(settings.tls))
        self._bound_by = settings
        self.relief = MemoryGuard(self.shedding, MemoryGauge())
        self._stalls = LoopWatchdog(self.registry.backend_by_package)
        self._ticker: asyncio.Task[None] | None = None
        self._carrier = CarrierWatch()
        self._sources: dict[str, str | None] = {}
        self._learned = Learned(settings.state_dir, self.board, self.registry)

    def _services_for(self, name: str) -> BackendServices:
        services = BackendServices(name, self.board, log.bind(backend=name), self._find_dispatcher)
        self._services[name] = services
        return services

    def _find_dispatcher(self) -> Dispatcher | None:
        return getattr(self, "dispatcher", None)  # a plugin's constructor may already use its services

    @property
    def bound(self) -> list[str]:
        """What its data listeners are called."""
        return self.listeners.bound

    @property
    def admin_bound(self) -> list[str]:
        """What its admin listener is called."""
        return self.listeners.admin_bound

    async def start(self) -> None:
        """Listen, and start the backends. Raises OSError where an address cannot be bound."""
        check_parser()
        metrics.BUILD.set(1, version=__version__, python=platform.python_version())
        self._learned.restore()
        self.board.sample_load()
        await self.listeners.open(self.settings, sum(each.slots for each in self.registry.members.values()))
        await self.registry.open_all(self._backends.on_change)
        self._ticker = log_task_failure(asyncio.create_task(self._tick(), name="tick"))
        self._stalls.start()
        asyncio.get_running_loop().add_reader(self._carrier.fileno(), self._network_changed)
        await self.registry.wait_opened(START_S)
        await self.listeners.go()
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
        """Finish what is in flight, then close everything.

        Who comes meanwhile is served too; where systemd holds the sockets they wait for the next process instead.
        A step that fails is told, and skips none of the others.
        """
        self.is_ready = False
        until = asyncio.get_running_loop().time() + max(0.0, DRAIN_S - FAREWELL_S)
        for step in (
            partial(self._close_doors, until),
            partial(self.listeners.close, until),
            self._stop_watching,
            self.dispatcher.close,
            self.registry.close_all,
        ):
            with log_exceptions(f"stopping, `{getattr(step, 'func', step).__qualname__}`"):
                await step()
        self._learned.save()
        log.info("service.stopped")

    async def _close_doors(self, until: float) -> None:
        self.listeners.hold()
        doors = [self.listeners.drain(until)]
        if self.mqtt is not None:
            doors.append(self.mqtt.stop(until - asyncio.get_running_loop().time()))
        await all_of("draining a door", *doors)

    async def _stop_watching(self) -> None:
        asyncio.get_running_loop().remove_reader(self._carrier.fileno())
        self._carrier.close()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker})
        self._stalls.stop()

    async def reload(self, loaded: Loaded) -> list[str]:
        """Go on with this configuration; the variables that wait for a restart. Backends come and go in the background.

        Raises SettingsError or TlsInvalid, and all stays.
        """
        settings = loaded.settings
        waiting = waiting_for_restart(self._bound_by, settings)
        self.listeners.refuse(self.settings, settings)
        self.listeners.renew(tls_of(settings.tls))
        try:
            self._take_up(loaded)
        finally:
            await self.listeners.renewed()  # whoever is let in finds the keys that go with the certificates
        return waiting

    def _take_up(self, loaded: Loaded) -> None:
        settings = loaded.settings
        self.gate.replace(loaded.keys)
        self.policy, self.board.probe_s = policy_of(settings), settings.policy.probe_s
        self.lanes.set_policy(self.policy)
        self.handler.set_limits(rules_of(settings))
        self.listeners.allow(settings)
        self.settings = settings.model_copy(update={"state_dir": self.settings.state_dir})
        self.registry.reload(loaded.backends, self._backends)

    # ── what goes on beside requests ─────────────────────────────────────────────────────────────

    def _forgotten(self, backend: str) -> None:
        self._sources.pop(backend, None)

    def _link_changed(self, backend: str, change: LinkChange) -> None:
        """What waits for `backend`, or is stalled on its way there, may be better off elsewhere."""
        log.info("link.state_changed", backend=backend, before=change.before, after=change.after, why=change.why)
        self._look_again()

    def _network_changed(self) -> None:
        """The kernel says so: what are we called now, is there still a way to each backend, and is it a new one?"""
        self._carrier.drain()
        with suppress(OSError):  # where the kernel does not tell its addresses, those known stay
            self.listeners.allow(self.settings)
        for name, services in self._services.items():
            if services.peer is None:
                continue
            source, before = source_address_for(services.peer), self._sources.get(name, "")
            self._sources[name] = source
            if source is None:
                self.board.on_carrier_lost(name)
            elif source != before:
                self.board.on_carrier_back(name)

    def _look_again(self) -> None:
        with suppress(RuntimeError):  # no loop: the service is being built
            asyncio.get_running_loop().call_soon(self.lanes.tick)

    async def _tick(self) -> None:
        """Re-binding, load and saving, by one timer; how late it runs is how long the loop was blocked."""
        loop = asyncio.get_running_loop()
        ticks, due, save_at = 0, loop.time(), loop.time() + SAVE_S
        while True:
            due = max(due + TICK_S, loop.time())
            await asyncio.sleep(due - loop.time())
            metrics.LOOP_STALL.observe(max(0.0, loop.time() - due))
            ticks += 1
            for step in (systemd.feed_watchdog, flush, self.lanes.tick, self.dispatcher.look_for_leaks):
                with log_exceptions("the tick"):
                    step()
            if ticks % LOAD_EVERY_TICKS == 0:
                await self._look_at_the_device()
            if loop.time() > save_at:
                save_at = loop.time() + SAVE_S
                with log_exceptions("saving what was learned"):
                    self._learned.save()

    async def _look_at_the_device(self) -> None:
        with log_exceptions("reading the load"):
            self.board.sample_load()
        with log_exceptions("looking at the memory"):
            await self.relief.look(self.listeners.sites if self.is_ready else ())
