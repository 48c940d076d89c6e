"""Builds the rooms, joins them, starts and stops them; takes the settings apart for them.

Start: listeners first, so that nobody is refused; then the backends, all at once. `/readyz` and systemd's
READY wait until each has opened or failed, or START_S have passed. Stop: `/readyz` says no, new work
still comes in on open connections and is served, what is in flight has DRAIN_S to finish.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import platform
import signal
import socket
import ssl
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from gateway import __version__, systemd
from gateway.admin import Admin
from gateway.admit import Gate, Key
from gateway.decide.policy import Policy
from gateway.dispatch import BackendServices, Dispatcher, Limits
from gateway.errors import PLUGIN_FAULTS
from gateway.ingress.door import Door, Rules
from gateway.ingress.hosts import own_hosts
from gateway.ingress.http import HttpDoor, Server, check_parser
from gateway.ingress.listening import Site, most_connections, raise_descriptor_limit
from gateway.ingress.mqtt import Broker, MqttDoor, Topics
from gateway.lanes import Lanes
from gateway.measure.board import Board, Change
from gateway.measure.carrier import CarrierWatch, way_to
from gateway.measure.load import LoadSampler
from gateway.measure.memory import MemoryGauge
from gateway.plugin import GatewayError
from gateway.registry import BackendConfig, Member, Registry
from gateway.relief import Relief
from gateway.settings import (
    Loaded,
    Settings,
    SettingsError,
    Tls,
    load,
)
from gateway.settings.live import waiting_for_restart
from gateway.settings.tree import Mqtt
from gateway.sockets import bind, host_of, name_of, refuse_public
from gateway.stalls import StallWatch
from gateway.telemetry import broke, configure, guarded, log, metrics, watched
from gateway.tls import TlsInvalid, client_context, server_context

START_S = 5.0
DRAIN_S = 30.0
CONFIGURATION = 78  # EX_CONFIG of sysexits.h
FINISH_S = 2.0  # for who came during that
STOP_S = 60.0  # what systemd is told that stopping may take: all of this, twice
TICK_S = 0.25
LOAD_EVERY_TICKS = 2
SAVE_S = 300.0
ADMIN_CONNECTIONS = 64


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
        self.board = Board(
            time.monotonic, sampler=LoadSampler(time.monotonic), probe_s=policy.probe_s, on_link=self._link_changed
        )
        self.policy = _policy_of(settings)
        self.lanes = Lanes(self.board, self.policy, time.monotonic)
        self._services: dict[str, BackendServices] = {}
        self.registry = Registry(backends.values(), self._services_for, self.board)
        self.dispatcher = Dispatcher(self.registry, self.board, self.lanes)
        self._join()
        self.door = Door(self.dispatcher, _rules_of(settings), __version__, lambda: self.is_ready, self.gate)
        self.is_ready = False
        self.http: HttpDoor | None = None
        self.mqtt = _mqtt_door(self.door, settings.mqtt)
        self.bound: list[str] = []
        self.admin_bound: list[str] = []
        self._tls = _tls(settings.tls)
        self._bound_by = settings
        self._listening: list[socket.socket] = []
        self._is_activated = False
        self._bound_to: list[str] = []
        self.admin: Admin | None = None
        self._sites: list[Site] = []
        self.relief = Relief(self.door, MemoryGauge())
        self._stalls = StallWatch(self.registry.packages)
        self._runners: list[web.BaseRunner] = []
        self._ticker: asyncio.Task[None] | None = None
        self._carrier = CarrierWatch()
        self._sources: dict[str, str | None] = {}

    def _services_for(self, name: str) -> BackendServices:
        services = BackendServices(name, self.board, log.bind(backend=name))
        self._services[name] = services
        return services

    def _join(self) -> None:
        for services in self._services.values():
            services.dispatcher = self.dispatcher

    async def start(self) -> None:
        """Listen, and start the backends. Raises OSError where an address cannot be bound."""
        check_parser()
        metrics.BUILD.set(1, version=__version__, python=platform.python_version())
        self._restore()
        self.board.sample_load()
        await self._listen()
        await self.registry.open_all(self._changed)
        self._ticker = watched(asyncio.create_task(self._tick(), name="tick"))
        self._stalls.start()
        asyncio.get_running_loop().add_reader(self._carrier.fileno(), self._network_changed)
        await self.registry.settled(START_S)
        if self._is_activated:  # who came during a restart waited for this; nobody is told to come again
            for site in self._sites:
                await site.resume()
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
        for step in (
            self._close_doors,
            self._close_listeners,
            self._stop_watching,
            self.dispatcher.close,
            self.registry.close_all,
        ):
            with guarded(f"stopping, `{step.__name__.strip('_')}`"):
                await step()
        self._save()
        log.info("service.stopped")

    async def _close_doors(self) -> None:
        if self._is_activated:
            for site in self._sites:
                site.pause()
        doors = [self.mqtt.stop(DRAIN_S)] if self.mqtt is not None else []
        if self.http is not None:
            doors.append(self.http.drain(DRAIN_S))
        await _all_of(*doors)

    async def _close_listeners(self) -> None:
        await _all_of(*(runner.cleanup() for runner in self._runners))

    async def _stop_watching(self) -> None:
        asyncio.get_running_loop().remove_reader(self._carrier.fileno())
        self._carrier.close()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait({self._ticker})
        self._stalls.stop()

    async def reload(self, loaded: Loaded) -> list[str]:
        """Go on with this configuration; the variables that wait for a restart.

        Raises SettingsError or TlsInvalid, and all stays.
        """
        settings = loaded.settings
        waiting = waiting_for_restart(self._bound_by, settings)
        refuse_public(self._listening, settings)
        tls = _tls(settings.tls)
        if tls is not None or self._tls is not None:
            await self._renew(tls)
        self.gate.replace(loaded.keys)
        self.policy, self.board.probe_s = _policy_of(settings), settings.policy.probe_s
        self.lanes.obey(self.policy)
        self.door.rules = _rules_of(settings)
        self._allow(settings)
        self.settings = settings.model_copy(update={"state_dir": self.settings.state_dir})
        await self.registry.change(loaded.backends, self._changed, self._finished)
        self._join()
        return waiting

    async def _renew(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        for site in self._sites:
            await site.renew(tls)

    async def _finished(self, backend: str) -> None:
        """Wait for what a backend has, then forget it."""
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until and (self.lanes.busy().get(backend) or self.lanes.waiting().get(backend)):
            self.lanes.tick()
            await asyncio.sleep(TICK_S / 5)
        self.lanes.remove(backend)
        self.board.remove(backend)
        self._sources.pop(backend, None)

    # ── listening ────────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        settings = self.settings
        passed = systemd.sockets()
        self._is_activated = bool(passed)
        refuse_public(passed, settings)
        listening = passed or [bind(listener, "GATEWAY_LISTEN") for listener in settings.listen]
        self._listening = listening
        admin = bind(settings.admin_listen, "GATEWAY_ADMIN_LISTEN")
        self.bound, self.admin_bound = [name_of(sock) for sock in listening], [name_of(admin)]
        self._bound_to = [host_of(sock) for sock in [*listening, admin]]
        hosts = own_hosts(self._bound_to)
        self.http = HttpDoor(self.door, allowed_hosts=hosts, allowed_origins=frozenset())
        guard = None if settings.admin_listen.is_local else self.gate
        self.admin = Admin(self.door, hosts, guard)
        self._allow(settings)
        most, held = self._most_connections(), self._is_activated
        self._sites = await self._serve(self.http, listening, most=most, tls=self._tls, held=held)
        await self._serve(self.admin, [admin], most=ADMIN_CONNECTIONS)

    def _allow(self, settings: Settings) -> None:
        """Who may be asked for, and by which pages. Our own addresses come and go: this asks for them anew."""
        assert self.http is not None
        assert self.admin is not None
        own = own_hosts(self._bound_to)
        hosts = frozenset(settings.allowed_hosts) if settings.allowed_hosts is not None else own
        self.http.allow(hosts, frozenset(settings.allowed_origins))
        self.admin.allow(own)

    def _most_connections(self) -> int:
        slots = sum(member.slots for member in self.registry.members.values())
        return most_connections(raise_descriptor_limit(), slots)

    async def _serve(
        self,
        handler: Any,
        sockets: list[socket.socket],
        *,
        most: int,
        tls: ssl.SSLContext | None = None,
        held: bool = False,
    ) -> list[Site]:
        runner = web.ServerRunner(Server(handler, most), handle_signals=False, shutdown_timeout=FINISH_S)
        await runner.setup()
        sites = [Site(runner, sock, tls, held=held) for sock in sockets]
        for site in sites:
            await site.start()
        self._runners.append(runner)
        return sites

    # ── what goes on beside requests ─────────────────────────────────────────────────────────────

    def _changed(self, member: Member) -> None:
        """A backend has opened, or failed to: give it a lane."""
        if member.state != "serving":
            return
        self.board.add(member.name, remote=member.is_remote)
        self.lanes.add(
            member.name,
            site=member.site,
            slots=member.slots,
            queue=member.settings.queue,
            remote=member.is_remote,
            usd=member.settings.usd_per_request,
            watts=member.settings.watts,
        )
        self._look_again()

    def _link_changed(self, backend: str, change: Change) -> None:
        """What waits for `backend`, or is stalled on its way there, may be better off elsewhere."""
        log.info("link.state_changed", backend=backend, before=change.before, after=change.after, why=change.why)
        self._look_again()

    def _network_changed(self) -> None:
        """The kernel says so: what are we called now, is there still a way to each backend, and is it a new one?"""
        self._carrier.drain()
        with suppress(OSError):  # where the kernel does not tell its addresses, those known stay
            self._allow(self.settings)
        for name, services in self._services.items():
            if services.peer is None:
                continue
            source, before = way_to(services.peer), self._sources.get(name, "")
            self._sources[name] = source
            if source is None:
                self.board.carrier_lost(name)
            elif source != before:
                self.board.carrier_back(name)

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
            for step in (systemd.feed_watchdog, self.lanes.tick, self.dispatcher.look_for_leaks):
                with guarded("the tick"):
                    step()
            if ticks % LOAD_EVERY_TICKS == 0:
                await self._look_at_the_device()
            if loop.time() > save_at:
                save_at = loop.time() + SAVE_S
                with guarded("saving what was learned"):
                    self._save()

    async def _look_at_the_device(self) -> None:
        with guarded("reading the load"):
            self.board.sample_load()
        with guarded("looking at the memory"):
            await self.relief.look(self._sites if self.is_ready else ())

    # ── what was learned ─────────────────────────────────────────────────────────────────────────

    @property
    def _learned(self) -> Path:
        return self.settings.state_dir.expanduser() / "learned.json"

    def _hashes(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(member.settings.model_dump_json().encode()).hexdigest()[:16]
            for name, member in self.registry.members.items()
        }

    def _restore(self) -> None:
        try:
            self.board.restore(msgspec.json.decode(self._learned.read_bytes()), self._hashes())
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("service.state_unreadable", path=str(self._learned), error=str(exc))

    def _save(self) -> None:
        """Write it beside, then rename: a reader never sees half of it."""
        path = self._learned
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(self.board.save(self._hashes())))
            fresh.replace(path)
        except OSError as exc:
            log.warning("service.state_not_saved", path=str(path), error=str(exc))


def _policy_of(settings: Settings) -> Policy:
    return Policy(**{name: getattr(settings.policy, name) for name in Policy.__dataclass_fields__})


def _rules_of(settings: Settings) -> Rules:
    return Rules(
        deadline_s=settings.deadline_s,
        max_body_bytes=settings.max_body_bytes,
        edge_only=settings.policy.edge_only,
        limits=Limits(first_byte_s=settings.first_byte_s, stall_s=settings.stall_s),
    )


def _mqtt_door(door: Door, settings: Mqtt) -> MqttDoor | None:
    """The MQTT door, where a broker is set. Raises TlsInvalid."""
    if settings.url is None:
        return None
    tls = client_context(settings.ca_file, settings.cert_file, settings.key_file) if settings.url.is_tls else None
    password = None if settings.password is None else settings.password.get_secret_value()
    host, port = settings.url.host, settings.url.port
    broker = Broker(host=host, port=port, username=settings.username, password=password, tls=tls)
    topics = Topics(prefix=settings.prefix, group=settings.group, host=socket.gethostname())
    is_trusted = settings.username is not None or settings.cert_file is not None or settings.url.is_local
    return MqttDoor(door, broker, topics, telemetry_s=settings.telemetry_s, is_trusted=is_trusted, key_id=settings.key)


def _tls(settings: Tls) -> ssl.SSLContext | None:
    if settings.cert_file is None:
        return None
    return server_context(settings.cert_file, settings.key_file, settings.client_ca_file)


def serve(loaded: Loaded, env_file: Path | None = None) -> int:
    """Run until SIGTERM or SIGINT, reading the configuration again on SIGHUP; the process's exit status."""
    configure(loaded.settings.log.format, loaded.settings.log.level)
    try:
        return asyncio.run(_run(loaded, env_file))
    except SettingsError as exc:
        log.error("service.failed", error=str(exc))
        return CONFIGURATION
    except (OSError, RuntimeError, GatewayError) as exc:
        log.error("service.failed", error=str(exc))
        return 1


async def _run(loaded: Loaded, env_file: Path | None) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unhandled)
    asked: asyncio.Future[str] = loop.create_future()
    for name in ("SIGTERM", "SIGINT"):
        loop.add_signal_handler(getattr(signal, name), partial(_ask, asked, name))
    told = asyncio.Event()  # while it starts, too; one that comes before this line is ignored
    loop.add_signal_handler(signal.SIGHUP, told.set)
    service = Service(loaded.settings, loaded.backends, loaded.keys)
    starting: asyncio.Future[None] = asyncio.ensure_future(service.start())
    either: list[asyncio.Future[Any]] = [starting, asked]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        gc.collect()
        gc.freeze()  # what start-up made stays; no need to look at it again
        gc.enable()
        reloading = watched(asyncio.create_task(_reload_when_told(service, env_file, told), name="reload"))
        systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")
        await asked
        reloading.cancel()
    log.info("service.stopping", signal=asked.result())
    systemd.notify("STOPPING=1", "STATUS=finishing what is in flight", f"EXTEND_TIMEOUT_USEC={STOP_S * 1_000_000:.0f}")
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
    await service.stop()
    if service.dispatcher.is_stuck or service.registry.stuck():  # asyncio would wait for it for ever
        log.error("service.abandoned", backends=sorted({*service.dispatcher.stuck(), *service.registry.stuck()}))
        sys.stderr.flush()
        os._exit(0)
    return 0


async def _reload_when_told(service: Service, env_file: Path | None, told: asyncio.Event) -> None:
    while True:
        await told.wait()
        told.clear()
        systemd.reloading()
        try:
            await _reload(service, env_file)
        except PLUGIN_FAULTS as exc:  # a bug, ours or a plugin's: the old configuration serves on, and the next is read
            log.error("service.reload_failed", problems=[f"{type(exc).__name__}: {exc}"])
        finally:
            systemd.notify("READY=1", f"STATUS=serving on {', '.join(service.bound)}")


async def _reload(service: Service, env_file: Path | None) -> None:
    """Read everything again; where anything is wrong with it, all stays as it is."""
    try:
        loaded = await asyncio.to_thread(load, os.environ, env_file)
        waiting = await service.reload(loaded)
    except SettingsError as exc:
        log.error("service.reload_failed", problems=[str(problem) for problem in exc.problems])
        return
    except TlsInvalid as exc:
        log.error("service.reload_failed", problems=[str(exc)])
        return
    configure(loaded.settings.log.format, loaded.settings.log.level)
    log.info("service.reloaded", backends=sorted(service.registry.members), waiting_for_restart=waiting)


def _ask(asked: asyncio.Future[str], name: str) -> None:
    if not asked.done():
        asked.set_result(name)


async def _all_of(*steps: Coroutine[Any, Any, None]) -> None:
    """All of them at once, each to its end. Raises what the first failed with."""
    for ended in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended


def _unhandled(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    broke(str(context.get("message")), context.get("exception"))
