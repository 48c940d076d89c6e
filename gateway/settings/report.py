"""Prints the effective settings with their origins, and a commented environment file of all settings.

Both are made from the settings tree and the installed plugins, and neither shows a secret.
"""

from __future__ import annotations

import stat
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gateway.plugin import Backend, BackendSettings
from gateway.settings.load import Loaded
from gateway.settings.messages import REDACTED, quote, redact_urls, render
from gateway.settings.model import Leaf, leaves_of, mentions_secret
from gateway.settings.tree import PREFIX, Settings
from gateway.settings.variables import BACKENDS

WIDTH = 100
# Names of backends in the generated file, by plugin; the default is the plugin's name. `hybrid` refers to these two.
_USUAL_NAMES = {"local": "edge", "http": "cloud"}
Plugins = Mapping[str, type[Backend[Any]]]

_ENV_HEAD = """\
# All settings of edge-gateway, one NAME=value per line. A line that is commented out shows the default or an example.
# Quote values that contain spaces, # or quotes: NAME='…'. Lists are comma separated; lists and maps may be JSON.
# A secret X may be in a file named by X_FILE, or in a systemd credential named X. An empty value means unset.
"""


# ── effective settings ───────────────────────────────────────────────────────────────────────────


def show_settings(loaded: Loaded) -> Iterator[str]:
    """One line per setting: `NAME=value  # origin`. Secrets and passwords in URLs are redacted."""
    rows = list(_rows(Settings, PREFIX, loaded.settings, loaded.origins))
    for name, backend in loaded.backends.items():
        prefix = f"{BACKENDS}__{name.upper()}__"
        if backend.settings is None:
            rows.append((f"{prefix}PLUGIN={backend.plugin}", f"left out: {backend.broken}"))
        else:
            rows += _rows(type(backend.settings), prefix, backend.settings, loaded.origins)
    width = min(60, max(len(setting) for setting, _ in rows))
    for setting, origin in rows:
        yield f"{setting:<{width}}  # {origin}"


def exposed_secrets(loaded: Loaded, env_file: Path) -> list[str]:
    """The secrets that `env_file` holds, if every user of this machine may read it."""
    if not env_file.stat().st_mode & stat.S_IROTH:
        return []
    leaves = list(leaves_of(Settings, PREFIX))
    for name, backend in loaded.backends.items():
        if backend.settings is not None:
            leaves += leaves_of(type(backend.settings), f"{BACKENDS}__{name.upper()}__")
    secrets = [leaf.variable for leaf in leaves if mentions_secret(leaf.field.annotation)]
    return sorted(name for name in secrets if loaded.origins.get(name, "").startswith(f"{env_file}, line "))


def _rows(
    model: type[BaseModel], prefix: str, settings: BaseModel, origins: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    for leaf in leaves_of(model, prefix):
        value = leaf.value_in(settings)
        text = REDACTED if leaf.is_secret and value is not None else redact_urls(render(value))
        yield f"{leaf.variable}={quote(text)}", origins.get(leaf.variable, "default")


# ── environment file of all settings ─────────────────────────────────────────────────────────────


def render_env(plugins: Plugins) -> str:
    """A commented environment file of all settings; one backend is enabled, so that the file works unchanged."""
    lines = [_ENV_HEAD, "# ── the gateway"]
    for leaf in leaves_of(Settings, PREFIX):
        lines += ["", *_commented(leaf, _about(leaf)), f"#{leaf.variable}={quote(leaf.example)}"]
    first = next((name for name in ("local", "echo") if name in plugins), next(iter(sorted(plugins)), ""))
    for name, cls in sorted(plugins.items(), key=lambda item: (item[0] != first, item[0])):
        lines += _backend_lines(name, cls, is_enabled=name == first)
    return "\n".join(lines) + "\n"


def _backend_lines(name: str, cls: type[Backend[Any]], *, is_enabled: bool) -> Iterator[str]:
    """A backend's settings; those that all backends have are explained at the enabled backend only."""
    backend = variable_part(_USUAL_NAMES.get(name, name))
    prefix = f"{BACKENDS}__{backend}__"
    yield from ("", "", f"# ── a backend named {backend.lower()}, plugin {name}: {summary(cls)}")
    yield from ("", f"{'' if is_enabled else '#'}{prefix}PLUGIN={name}")
    for leaf in backend_leaves(cls, prefix):
        about = _about(leaf) if is_enabled or not is_common(leaf) else ""
        is_active = is_enabled and leaf.field.is_required()
        yield from (["", *_commented(leaf, about)] if about else [])
        yield f"{'' if is_active else '#'}{leaf.variable}={quote(leaf.example)}"


def backend_leaves(cls: type[Backend[Any]], prefix: str) -> Iterable[Leaf]:
    """The settings of a backend of this plugin: the plugin's own first, then those of all backends; without PLUGIN."""
    leaves = [leaf for leaf in leaves_of(cls.Settings, prefix) if leaf.path != ("plugin",)]
    return sorted(leaves, key=is_common)


def is_common(leaf: Leaf) -> bool:
    """Whether all backends have this setting, with the same meaning."""
    common = BackendSettings.model_fields.get(leaf.path[0])
    return common is not None and common.description == leaf.field.description


def variable_part(name: str) -> str:
    """A plugin's name, converted to part of a variable's name."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").upper()


def summary(cls: type[Backend[Any]]) -> str:
    """The first line of the class's own docstring, else the class's name."""
    return (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0] or cls.__name__


def _about(leaf: Leaf) -> str:
    unit = f" ({leaf.unit})" if leaf.unit else ""
    needed = " Required." if leaf.field.is_required() else ""
    secret = f" Secret; may be in a file: {leaf.variable}_FILE." if leaf.is_secret else ""
    text = leaf.field.description or leaf.path[-1]
    return f"{text[:1].upper()}{text[1:]}{unit}.{needed}{secret}"


def _commented(leaf: Leaf, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
