"""Finds plugins, and creates backends from their configuration."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from gateway.plugin import Backend, BackendSettings, Services
from gateway.workers import SecretMask, WorkerBackend

ENTRY_POINT_GROUP = "gateway.backends"
MAX_FILES = 1000  # of a folder that a setting names


class PluginMissing(Exception):
    """No plugin of this name is installed; the message suggests the nearest name."""


class PluginBroken(Exception):
    """The plugin is installed but cannot be imported, or is not a subclass of Backend."""


def installed_plugins() -> dict[str, EntryPoint]:
    """The entry points of all installed plugins, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def find_plugin(plugin: str) -> type[Backend[Any]]:
    """The class that an entry point's name, or `package.module:attribute`, refers to.

    Raises PluginMissing or PluginBroken.
    """
    points = installed_plugins()
    if plugin in points:
        point = points[plugin]
    elif ":" in plugin:
        point = EntryPoint(plugin, plugin, ENTRY_POINT_GROUP)
    else:
        near = difflib.get_close_matches(plugin, points, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PluginMissing(f"no plugin {plugin!r} is installed ({', '.join(sorted(points)) or 'none are'}){hint}")
    try:
        found = point.load()
    except BaseException as exc:  # an import does not await, so every exception comes from the plugin
        raise PluginBroken(f"plugin {plugin!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise PluginBroken(f"plugin {plugin!r} is {found!r}, not a subclass of gateway.plugin.Backend")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """One configured backend: its plugin's class and validated settings, or why the plugin is broken."""

    name: str
    plugin: str
    cls: type[Backend[Any]] | None = None
    settings: BackendSettings | None = None
    broken: str | None = None


def fingerprint(config: BackendConfig | None) -> object:
    """A value that changes when the backend has to be replaced: its settings and the state of the files they name."""
    if config is None or config.settings is None:
        return config and (config.plugin, config.broken)
    files = {name: _file_state(value) for name, value in config.settings if isinstance(value, Path)}
    return (config.plugin, config.cls, config.settings, files)


def _file_state(path: Path) -> object:
    """Modification time (ns) and size; of a folder, the content of its Python files. None without such a file.

    A folder's own time changes with each file that is created in it, and not with an edit in place.
    """
    try:
        if path.is_dir():
            files = sorted(path.rglob("*.py"))[:MAX_FILES]
            return [(str(file), hashlib.sha256(file.read_bytes()).digest()) for file in files if file.is_file()]
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size)


def build_backend(
    cls: type[Backend[Any]],
    settings: BackendSettings,
    services: Services,
    drain_s: Callable[[], float],
    mask: SecretMask,
) -> Backend[Any]:
    """The backend, not yet opened; in worker processes if its class or the operator's settings ask for that.

    drain_s: seconds a cancelled task has to end before its worker process is killed. mask: conceals secrets in what
    workers print.
    """
    if runs_in_workers(cls, settings):
        return WorkerBackend(cls, settings, services, slots=settings.slots or cls.slots, drain_s=drain_s, mask=mask)
    return cls(settings, services)


def runs_in_workers(cls: type[Backend[Any]], settings: BackendSettings) -> bool:
    """Whether the backend runs in worker processes."""
    return (settings.isolation or cls.isolation) == "process"
