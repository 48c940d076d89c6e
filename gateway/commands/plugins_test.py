"""Checks one plugin, configured as an operator would, and reports failed checks with their fixes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.registry import BackendConfig
from gateway.settings import load
from gateway.settings.tree import PREFIX
from gateway.settings.variables import BACKENDS
from gateway.testing import CHECKS, Outcome, examine

WIDTH = max(map(len, CHECKS))


def configured(plugin: str, assignments: Iterable[str], environ: Mapping[str, str]) -> BackendConfig:
    """The plugin's class and settings: those of its backend in the environment, overridden by `KEY=VALUE` assignments.

    Without such a backend, only the variables of a backend with the plugin's name apply. Raises SettingsError, and
    ValueError if an assignment is invalid.
    """
    name = _enabled_as(plugin, environ)
    if name is None:
        name = re.sub(r"\W+", "_", plugin.rpartition(":")[2].lower()).strip("_") or "plugin"
        own = f"{BACKENDS}__{name.upper()}__"
        environ = {k: v for k, v in environ.items() if not k.upper().startswith(PREFIX) or k.upper().startswith(own)}
    prefix = f"{BACKENDS}__{name.upper()}__"
    chosen = {f"{prefix}PLUGIN": plugin} | {prefix + key.upper(): value for key, value in map(_pair, assignments)}
    return load({k: v for k, v in environ.items() if k.upper() not in chosen} | chosen).backends[name]


def _enabled_as(plugin: str, environ: Mapping[str, str]) -> str | None:
    pattern = re.compile(rf"{BACKENDS}__(\w+?)__PLUGIN")
    found = (pattern.fullmatch(key.upper()) for key, value in environ.items() if value == plugin)
    return next((match[1].lower() for match in found if match), None)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not of the form NAME=VALUE")
    return key, value


def requests(assignments: Iterable[str]) -> dict[str, Any] | None:
    """Parse `NAME=JSON` or `NAME=@FILE` to bodies by name; None without any. Raises ValueError, OSError."""
    found = {}
    for name, text in map(_pair, assignments):
        try:
            found[name] = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
        except ValueError as exc:
            raise ValueError(f"the request for {name!r} is not JSON: {exc}") from exc
    return found or None


async def report(config: BackendConfig, tasks: Mapping[str, Any] | None) -> AsyncIterator[tuple[str, bool]]:
    """Run the checks; yield each line to print, and whether it reports a failed check."""
    assert config.cls is not None
    passed = total = 0
    async for outcome in examine(config.cls, config.settings, tasks):
        total += outcome.state != "skipped"
        passed += outcome.state == "kept"
        yield _line(outcome), outcome.state == "broken"
    yield f"{passed} of {total} promises kept", False


def _line(outcome: Outcome) -> str:
    word = {"kept": "ok", "broken": "FAIL", "advised": "note", "skipped": "skip"}[outcome.state]
    line = f"{word:4}  {outcome.check:{WIDTH}}  {outcome.message}".rstrip()
    return f"{line}\n{'':{WIDTH + 8}}fix: {outcome.fix}" if outcome.fix else line
