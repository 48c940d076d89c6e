"""Finds plugins, starts them, keeps an eye on them, stops them; and knows who serves what.

A backend that cannot be imported or started is left out by name while the others serve. Starting never
waits for the slowest: requests for what is not known yet are told to come back, not that it does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from gateway.decide.breaker import Breaker
from gateway.decide.quarantine import Quarantine
from gateway.errors import PLUGIN_FAULTS
from gateway.measure.board import Board
from gateway.plugin import Backend, BackendSettings, GatewayError, Kind, LinkSample, Services, Site, names_of
from gateway.telemetry import log, watched
from gateway.workers import WorkerBackend

GROUP = "gateway.backends"
LEAST_PAUSE_S = 0.01
LOOK_AGAIN_S = 0.25  # interest in an idle backend, which brings its next probe forward, is noticed this soon
AUTO = "auto"

CLOSE_S = 10.0  # what has not closed by then, when the gateway stops, is cancelled
CANCEL_S = 1.0  # and left behind where it ignores that

State = Literal["starting", "serving", "failed", "closing", "closed"]


class PluginMissing(Exception):
    """No such plugin is installed; the message names the nearest."""


class PluginBroken(Exception):
    """The plugin is installed but cannot be imported, or is no Backend."""


def installed() -> dict[str, EntryPoint]:
    """The entry points of all installed plugins, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def find_plugin(plugin: str) -> type[Backend[Any]]:
    """The class behind an entry point's name, or behind `package.module:attribute`.

    Raises PluginMissing or PluginBroken.
    """
    points = installed()
    if plugin in points:
        point = points[plugin]
    elif ":" in plugin:
        point = EntryPoint(plugin, plugin, GROUP)
    else:
        near = difflib.get_close_matches(plugin, points, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PluginMissing(f"no plugin {plugin!r} is installed ({', '.join(sorted(points)) or 'none are'}){hint}")
    try:
        found = point.load()
    except PLUGIN_FAULTS as exc:
        raise PluginBroken(f"plugin {plugin!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise PluginBroken(f"plugin {plugin!r} is {found!r}, not a subclass of gateway.plugin.Backend")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """One configured backend: its plugin's class and validated settings, or what is broken about it."""

    name: str
    plugin: str
    cls: type[Backend[Any]] | None = None
    settings: BackendSettings | None = None
    broken: str | None = None


@dataclass(slots=True, kw_only=True)
class Member:
    """One backend in life. What the operator set wins over what the plugin declares."""

    name: str
    plugin: str
    settings: BackendSettings
    backend: Backend[Any] | None
    breaker: Breaker
    quarantine: Quarantine
    state: State = "starting"
    error: str | None = None
    unwell: str | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    fingerprint: object = None

    @property
    def site(self) -> Site:
        """Where it works."""
        return self.backend.site if self.backend else "edge"

    @property
    def is_pool(self) -> bool:
        """Whether it works in processes of its own, which are replaced when they die."""
        return isinstance(self.backend, WorkerBackend)

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between the gateway and it."""
        declared = self.backend.remote if self.backend else None
        return self.site == "cloud" if declared is None else declared

    @property
    def slots(self) -> int:
        """How many tasks it works on at once."""
        return self.backend.slots if self.backend else 1

    @property
    def models(self) -> Mapping[str, str] | None:
        """Models by the client's name; None while unknown."""
        return None if self.backend is None or self.backend.models is None else names_of(self.backend.models)

    @property
    def tasks(self) -> Mapping[str, str] | None:
        """Tasks by the client's name; None while unknown."""
        return None if self.backend is None or self.backend.tasks is None else names_of(self.backend.tasks)

    def serves(self, kind: Kind, name: str) -> str | None:
        """The backend's own name for `name`, or None where it does not serve that."""
        if kind == "task":
            return (self.tasks or {}).get(name)
        models = self.models if self.backend and kind in self.backend.kinds else None
        if not models:
            return None
        return next(iter(models.values())) if name == AUTO else models.get(name)

    def knows(self, kind: Kind) -> bool:
        """Whether it is known what it serves of `kind`."""
        if self.state == "starting":
            return False
        return self.state != "serving" or (self.tasks if kind == "task" else self.models) is not None

    def repeatable(self, kind: Kind) -> bool:
        """Whether running a task of `kind` twice is harmless."""
        declared = self.backend.repeatable if self.backend else None
        return kind != "task" if declared is None else declared

    @property
    def resumes(self) -> bool:
        """Whether it continues an assistant's turn whose beginning it is given."""
        return self.backend is not None and self.backend.resumes

    @property
    def is_watched(self) -> bool:
        """Whether its health is asked for."""
        return self.backend is not None and type(self.backend).health is not Backend.health


@dataclass(frozen=True, slots=True)
class Offer:
    """Who serves a name: the backend's own name for it by backend, and the one that was pinned, if any."""

    names: Mapping[str, str]
    pinned: str | None = None


class Registry:
    """All configured backends."""

    def __init__(
        self,
        configs: Iterable[BackendConfig],
        services_for: Callable[[str], Services],
        board: Board,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self.members: dict[str, Member] = {}
        self._lives: dict[asyncio.Task[None], str] = {}  # of those, too, that a reload has left behind
        self._clock, self._services_for = clock, services_for
        self.packages: dict[str, str] = {}
        for config in configs:
            self._add(config)

    def _add(self, config: BackendConfig) -> Member:
        member = self.members[config.name] = self._member(config, self._services_for)
        if config.cls is not None:
            self.packages.setdefault(config.cls.__module__.partition(".")[0], config.name)
        return member

    def _member(self, config: BackendConfig, services_for: Callable[[str], Services]) -> Member:
        settings = config.settings or BackendSettings.model_validate({})
        backend, error = None, config.broken
        if config.cls is not None and error is None:
            try:
                backend = _build(config.cls, settings, services_for(config.name))
            except PLUGIN_FAULTS as exc:
                error = f"{type(exc).__name__}: {exc}"
        return Member(
            name=config.name,
            plugin=config.plugin,
            settings=settings,
            backend=backend,
            breaker=Breaker(self._clock, partial(self._breaker_changed, config.name)),
            quarantine=Quarantine(self._clock, partial(self._quarantined, config.name)),
            error=error,
            fingerprint=fingerprint(config),
        )

    def _breaker_changed(self, backend: str, before: str, after: str, why: str) -> None:
        event = {"open": "breaker.opened", "half_open": "breaker.half_opened", "closed": "breaker.closed"}[after]
        if before != after:
            log.info(event, backend=backend, why=why)

    def _quarantined(self, backend: str, why: str, seconds: float) -> None:
        log.error("backend.quarantined", backend=backend, why=why, seconds=seconds)

    async def open_all(self, changed: Callable[[Member], None]) -> None:
        """Start every backend, all at once, in the background; `changed` is told of each that opened or failed."""
        for member in self.members.values():
            self._start(member, changed)

    def _start(self, member: Member, changed: Callable[[Member], None]) -> None:
        life = member.life = watched(asyncio.create_task(self._live(member, changed), name=f"backend {member.name}"))
        self._lives[life] = member.name
        life.add_done_callback(self._lives.pop)

    async def change(
        self,
        configs: Mapping[str, BackendConfig],
        changed: Callable[[Member], None],
        finished: Callable[[str], Awaitable[None]],
    ) -> None:
        """Have these backends and no others: those whose settings are the same go on as they are.

        One that goes, or comes back otherwise, gets no new work; `finished` waits for what it has.
        """
        same = {name for name, member in self.members.items() if member.fingerprint == fingerprint(configs.get(name))}
        going = [self._retire(member, finished) for name, member in self.members.items() if name not in same]
        await asyncio.gather(*going)
        for name in [name for name in self.members if name not in same]:
            del self.members[name]
        for name in [name for name in configs if name not in same]:
            self._start(self._add(configs[name]), changed)

    async def _retire(self, member: Member, finished: Callable[[str], Awaitable[None]]) -> None:
        member.state = "closing"
        await finished(member.name)
        member.stopping.set()
        if member.life is not None:
            await asyncio.wait({member.life}, timeout=CLOSE_S)

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
        """Stop every backend; one that will not within CLOSE_S is cancelled, and left behind CANCEL_S later."""
        for member in self.members.values():
            member.stopping.set()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CLOSE_S)
        for life in self._lives:
            life.cancel()
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=CANCEL_S)

    def stuck(self) -> list[str]:
        """Whose start or stop still goes on; after `close_all`, that is what will never end."""
        return sorted(set(self._lives.values()))

    async def _live(self, member: Member, changed: Callable[[Member], None]) -> None:
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

    # ── who serves what ──────────────────────────────────────────────────────────────────────────

    def offer(self, kind: Kind, name: str) -> Offer:
        """Who serves `name`. Raises GatewayError: not found (with the nearest name), or not known yet."""
        pin, _, rest = name.partition("/")
        if kind != "task" and rest and pin in self.members:
            return Offer(self._among({pin: self.members[pin]}, kind, rest, name), pin)
        return Offer(self._among(self.members, kind, name, name))

    def _among(self, members: Mapping[str, Member], kind: Kind, name: str, asked: str) -> dict[str, str]:
        found = {m.name: own for m in members.values() if (own := m.serves(kind, name)) is not None}
        if found:
            return found
        unknown = [m.name + (f" ({m.unwell})" if m.unwell else "") for m in members.values() if not m.knows(kind)]
        if unknown:
            raise GatewayError(
                f"what {', '.join(unknown)} serves is not known yet; try again shortly",
                code="unavailable",
                retry_after_s=1.0,
            )
        what = "task" if kind == "task" else "model"
        near = difflib.get_close_matches(asked, self.names(kind), n=1)
        raise GatewayError(
            f"no backend serves the {what} {asked!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            code="not_found" if kind == "task" else "model_not_found",
            param=None if kind == "task" else "model",
        )

    def auto_off_site(self, kind: Kind) -> Iterator[str]:
        """The clients' names of the models that `auto` may become where data leaves the site."""
        for member in self.members.values():
            if member.site != "edge" and member.serves(kind, AUTO) is not None:
                yield next(iter(member.models or ()))

    def task_names(self) -> dict[str, list[str]]:
        """Every task a client may ask for, with the backends that serve it."""
        out: dict[str, list[str]] = {}
        for member in self.members.values():
            for task in (member.tasks or {}) if member.state == "serving" else {}:
                out.setdefault(task, []).append(member.name)
        return out

    def names(self, kind: Kind | None = None) -> dict[str, str]:
        """Every name a client may use for `kind` (None: any model), with who serves it; `edge-gateway`: several."""
        out: dict[str, str] = {}
        for member in self.members.values():
            if member.state != "serving":
                continue
            if kind == "task":
                out |= dict.fromkeys(member.tasks or {}, member.name)
            elif member.models and member.backend and (kind is None or kind in member.backend.kinds):
                for model in member.models:
                    out[model] = "edge-gateway" if model in out else member.name
                    out[f"{member.name}/{model}"] = member.name
        if kind != "task" and out:
            out[AUTO] = "edge-gateway"
        return out


def fingerprint(config: BackendConfig | None) -> object:
    """What makes a backend another one: its settings, and the state of every file they name."""
    if config is None or config.settings is None:
        return config and (config.plugin, config.broken)
    files = {name: _state_of(value) for name, value in config.settings if isinstance(value, Path)}
    return (config.plugin, config.cls, config.settings, files)


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size)


def _build(cls: type[Backend[Any]], settings: BackendSettings, services: Services) -> Backend[Any]:
    isolation = settings.isolation or cls.isolation
    if isolation == "process":
        return WorkerBackend(cls, settings, services, slots=settings.slots or cls.slots)
    return cls(settings, services)


def _describe(exc: BaseException) -> str:
    return exc.message if isinstance(exc, GatewayError) else f"{type(exc).__name__}: {exc}"
