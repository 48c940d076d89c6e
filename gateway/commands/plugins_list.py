"""Lists plugins and their backends with version, state and served names, or the error.

There are three sources, and each may be empty: the installed plugins, the backends that the environment enables, and
the status of the running gateway, which takes precedence for states and names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from typing import Any

from gateway.plugin import Backend
from gateway.plugin.checks import parse_names
from gateway.registry import BackendConfig, PluginBroken, PluginMissing, find_plugin, installed_plugins
from gateway.testing.fake_services import FakeServices, echo_subtask

COLUMNS = ("plugin", "version", "distribution", "backend", "state", "serves")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRow:
    """A plugin, or one of its backends. state: `off`, `enabled`, `broken`, or the state in the running gateway."""

    plugin: str
    version: str = "-"
    distribution: str = "-"
    backend: str = "-"
    state: str = "off"
    serves: str = "-"
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as a JSON object; null for an empty cell."""
        return {key: None if value in ("-", "") else value for key, value in asdict(self).items()}


def rows(backends: Mapping[str, BackendConfig], status: Mapping[str, Any] | None) -> Iterator[PluginRow]:
    """The rows of all installed or enabled plugins, by name. status: of the running gateway, if available."""
    running: Mapping[str, Any] = (status or {}).get("backends", {})
    used = {name: config.plugin for name, config in backends.items()}
    used |= {name: backend["plugin"] for name, backend in running.items()}
    points = installed_plugins()
    for plugin in sorted(points.keys() | set(used.values())):
        origin = _origin(points.get(plugin))
        names = sorted(name for name, used_plugin in used.items() if used_plugin == plugin)
        for name in names:
            yield _backend_row(plugin, name, origin, backends.get(name), running.get(name))
        if not names:
            yield _unused_row(plugin, origin)


def table(found: Iterable[PluginRow]) -> Iterator[str]:
    """The rows as lines of text, each error below its row."""
    cells = [(row, [getattr(row, column) for column in COLUMNS]) for row in found]
    widths = [max(len(text) for text in column) for column in zip(COLUMNS, *(texts for _, texts in cells), strict=True)]
    yield _line([column.upper() for column in COLUMNS], widths)
    for row, texts in cells:
        yield _line(texts, widths)
        if row.why:
            yield f"    {row.why}"


def _line(texts: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()


def _origin(point: EntryPoint | None) -> dict[str, str]:
    if point is None or point.dist is None:
        return {}
    return {"distribution": point.dist.name, "version": point.dist.version}


def _backend_row(
    plugin: str, name: str, origin: Mapping[str, str], config: BackendConfig | None, status: Mapping[str, Any] | None
) -> PluginRow:
    if status is not None:
        error = status["error"] or status["unwell"] or ""
        serves = _names(status["models"], status["tasks"])
        return PluginRow(plugin=plugin, backend=name, state=status["state"], serves=serves, why=error, **origin)
    if config is None or config.cls is None or config.settings is None:
        error = config.broken or "" if config else ""
        return PluginRow(plugin=plugin, backend=name, state="broken", why=error, **origin)
    serves = _serves(config.cls, config.settings.model_dump(exclude_unset=True))
    return PluginRow(plugin=plugin, backend=name, state="enabled", serves=serves, **origin)


def _unused_row(plugin: str, origin: Mapping[str, str]) -> PluginRow:
    try:
        cls = find_plugin(plugin)
    except (PluginBroken, PluginMissing) as exc:
        return PluginRow(plugin=plugin, state="broken", why=str(exc), **origin)
    return PluginRow(plugin=plugin, serves=_serves(cls, {}), **origin)


def _serves(cls: type[Backend[Any]], settings: Mapping[str, Any]) -> str:
    """The names that a backend serves, before it is opened; those of the class if settings are missing."""
    try:
        backend = cls(cls.Settings.model_validate(settings), FakeServices("listed", echo_subtask))
        return _names(backend.models, backend.tasks)
    except Exception:
        return _names(cls.models, cls.tasks)


def _names(models: Any, tasks: Any) -> str:
    parts = [
        f"{kind} {', '.join(parse_names(names))}" if names is not None else f"{kind} known once it runs"
        for kind, names in (("models", models), ("tasks", tasks))
        if names is None or parse_names(names)
    ]
    return "; ".join(parts) or "-"
