"""Finds plugins, and makes backends of them as they are configured."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from gateway.plugin import Backend, BackendSettings, Services
from gateway.workers import WorkerBackend

GROUP = "gateway.backends"


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
    except BaseException as exc:  # an import awaits nothing: whatever it raises is its own
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


def build(
    cls: type[Backend[Any]], settings: BackendSettings, services: Services, drain_s: Callable[[], float]
) -> Backend[Any]:
    """The backend, not yet open; in worker processes where it, or the operator, wants that.

    drain_s: seconds a cancelled task has there to end in.
    """
    isolation = settings.isolation or cls.isolation
    if isolation == "process":
        return WorkerBackend(cls, settings, services, slots=settings.slots or cls.slots, drain_s=drain_s)
    return cls(settings, services)
