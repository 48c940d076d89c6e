"""Shows settings: what holds and where it came from, and a commented environment file of all there is.

Both are made from the tree and from the installed plugins, so neither can be out of date; neither shows a secret.
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
from gateway.settings.model import Leaf, leaves_of, mentions_secret
from gateway.settings.text import REDACTED, conceal, quote, render
from gateway.settings.tree import PREFIX, Settings
from gateway.settings.variables import BACKENDS

WIDTH = 100
# What the generated file calls a backend; others go by their plugin's name. `hybrid` then finds its two sides.
_USUAL_NAMES = {"local": "edge", "http": "cloud"}
Plugins = Mapping[str, type[Backend[Any]]]

_ENV_HEAD = """\
# Settings of edge-gateway, all of them: NAME=value, one a line. What is commented out is the default.
# Quote values that hold spaces, # or quotes: NAME='…'. Lists are comma separated; JSON is accepted for lists and maps.
# A secret X may stand in a file named by X_FILE, or in a systemd credential named X. An empty value means unset.
"""


# ── what holds now ───────────────────────────────────────────────────────────────────────────────


def show_settings(loaded: Loaded) -> Iterator[str]:
    """One line per setting: `NAME=value  # where from`. Secrets are redacted, passwords in URLs too."""
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
        value = _value(settings, leaf)
        text = REDACTED if leaf.is_secret and value is not None else conceal(render(value))
        yield f"{leaf.variable}={quote(text)}", origins.get(leaf.variable, "default")


def _value(settings: Any, leaf: Leaf) -> Any:
    for name in leaf.path:
        settings = getattr(settings, name, None)
    return settings


# ── all there is, as an environment file ─────────────────────────────────────────────────────────


def render_env(plugins: Plugins) -> str:
    """A commented environment file of every setting; one backend is switched on, so that it can be served as it is."""
    lines = [_ENV_HEAD, "# ── the gateway"]
    for leaf in leaves_of(Settings, PREFIX):
        lines += ["", *_commented(leaf, _about(leaf)), f"#{leaf.variable}={quote(leaf.example)}"]
    first = next((name for name in ("local", "echo") if name in plugins), next(iter(sorted(plugins)), ""))
    for name, cls in sorted(plugins.items(), key=lambda item: (item[0] != first, item[0])):
        lines += _backend_lines(name, cls, is_on=name == first)
    return "\n".join(lines) + "\n"


def _backend_lines(name: str, cls: type[Backend[Any]], *, is_on: bool) -> Iterator[str]:
    """What any backend may set is explained at the first one only."""
    called = variable_part(_USUAL_NAMES.get(name, name))
    prefix = f"{BACKENDS}__{called}__"
    yield from ("", "", f"# ── a backend called {called.lower()}, of plugin {name}: {summary(cls)}")
    yield from ("", f"{'' if is_on else '#'}{prefix}PLUGIN={name}")
    for leaf in backend_leaves(cls, prefix):
        about = _about(leaf) if is_on or not is_common(leaf) else ""
        active = is_on and leaf.field.is_required()
        yield from (["", *_commented(leaf, about)] if about else [])
        yield f"{'' if active else '#'}{leaf.variable}={quote(leaf.example)}"


def backend_leaves(cls: type[Backend[Any]], prefix: str) -> Iterable[Leaf]:
    """What a backend of this plugin may set: its own first, then what all may; without PLUGIN."""
    leaves = [leaf for leaf in leaves_of(cls.Settings, prefix) if leaf.path != ("plugin",)]
    return sorted(leaves, key=is_common)


def is_common(leaf: Leaf) -> bool:
    """Whether any backend has this setting, with this meaning."""
    common = BackendSettings.model_fields.get(leaf.path[0])
    return common is not None and common.description == leaf.field.description


def variable_part(name: str) -> str:
    """A plugin's name as it can stand in a variable."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").upper()


def summary(cls: type[Backend[Any]]) -> str:
    """The first line of the class's own docstring."""
    return (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0] or cls.__name__


def _about(leaf: Leaf) -> str:
    unit = f" ({leaf.unit})" if leaf.unit else ""
    needed = " Required." if leaf.field.is_required() else ""
    secret = f" Secret: or {leaf.variable}_FILE." if leaf.is_secret else ""
    text = leaf.field.description or leaf.path[-1]
    return f"{text[:1].upper()}{text[1:]}{unit}.{needed}{secret}"


def _commented(leaf: Leaf, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
