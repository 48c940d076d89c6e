"""What plugins there are: installed, enabled, serving, or why not.

Three are asked, and each may be silent: what is installed here, what the environment enables, and the gateway that
runs, whose word on state and names counts.
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
class Row:
    """A plugin, or one backend made of it. state: `off`, `enabled`, `broken`, or what the running gateway says."""

    plugin: str
    version: str = "-"
    distribution: str = "-"
    backend: str = "-"
    state: str = "off"
    serves: str = "-"
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """It as a JSON object; None for what there is not."""
        return {key: None if value in ("-", "") else value for key, value in asdict(self).items()}


def rows(backends: Mapping[str, BackendConfig], status: Mapping[str, Any] | None) -> Iterator[Row]:
    """Every plugin that is installed or enabled, by name; `status` is what the running gateway says, if one does."""
    running: Mapping[str, Any] = (status or {}).get("backends", {})
    used = {name: config.plugin for name, config in backends.items()}
    used |= {name: told["plugin"] for name, told in running.items()}
    points = installed_plugins()
    for plugin in sorted(points.keys() | set(used.values())):
        origin = _origin(points.get(plugin))
        names = sorted(name for name, theirs in used.items() if theirs == plugin)
        for name in names:
            yield _backend_row(plugin, name, origin, backends.get(name), running.get(name))
        if not names:
            yield _unused_row(plugin, origin)


def table(found: Iterable[Row]) -> Iterator[str]:
    """The rows as lines of text, each reason below its row."""
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
    plugin: str, name: str, origin: Mapping[str, str], config: BackendConfig | None, told: Mapping[str, Any] | None
) -> Row:
    if told is not None:
        why = told["error"] or told["unwell"] or ""
        serves = _names(told["models"], told["tasks"])
        return Row(plugin=plugin, backend=name, state=told["state"], serves=serves, why=why, **origin)
    if config is None or config.cls is None or config.settings is None:
        return Row(plugin=plugin, backend=name, state="broken", why=config.broken or "" if config else "", **origin)
    serves = _serves(config.cls, config.settings.model_dump(exclude_unset=True))
    return Row(plugin=plugin, backend=name, state="enabled", serves=serves, **origin)


def _unused_row(plugin: str, origin: Mapping[str, str]) -> Row:
    try:
        cls = find_plugin(plugin)
    except (PluginBroken, PluginMissing) as exc:
        return Row(plugin=plugin, state="broken", why=str(exc), **origin)
    return Row(plugin=plugin, serves=_serves(cls, {}), **origin)


def _serves(cls: type[Backend[Any]], settings: Mapping[str, Any]) -> str:
    """What it says before it is started; the class alone is asked where settings are missing."""
    try:
        asked = cls(cls.Settings.model_validate(settings), FakeServices("listed", echo_subtask))
        return _names(asked.models, asked.tasks)
    except Exception:
        return _names(cls.models, cls.tasks)


def _names(models: Any, tasks: Any) -> str:
    parts = [
        f"{what} {', '.join(parse_names(names))}" if names is not None else f"{what} known once it runs"
        for what, names in (("models", models), ("tasks", tasks))
        if names is None or parse_names(names)
    ]
    return "; ".join(parts) or "-"
