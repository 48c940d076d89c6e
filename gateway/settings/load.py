"""Loads and checks the configuration from the environment, or reports everything that is wrong with it.

Each backend's settings are validated by its plugin's own settings class, with `{"name": …, "backends": {names}}` as the
validators' context, so that a plugin can check the names of other backends. A plugin that cannot be imported does not
fail the configuration: its backend is excluded, and the others serve.
"""

from __future__ import annotations

import grp
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.admit import Key, KeysInvalid
from gateway.admit.keyfile import read_keys
from gateway.admit.keys import may_administer
from gateway.plugin import Backend, BackendSettings
from gateway.plugin.errors import PLUGIN_EXCEPTIONS
from gateway.registry import BackendConfig, PluginBroken, PluginMissing, find_plugin, installed_plugins
from gateway.registry.loader import runs_in_workers
from gateway.settings.messages import Problem, SettingsError, nearest
from gateway.settings.model import Leaf, fill, groups_of, leaves_of
from gateway.settings.network_addresses import UnixListener
from gateway.settings.secrets import with_secrets
from gateway.settings.tree import PREFIX, Settings, Tls
from gateway.settings.variables import BACKENDS, Variable, Variables, read_variables
from gateway.tls import TlsInvalid, client_context, server_context

DEFAULT = "default"
RESERVED_NAMES = frozenset({"auto", "none"})  # the model `auto`; the value of x-gateway-backend without a backend

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A valid configuration. origins: for each variable the origin of its value, also of a default.

    keys: the API keys of the keys file; None without a keys file.
    """

    settings: Settings
    backends: Mapping[str, BackendConfig]
    origins: Mapping[str, str]
    keys: Mapping[str, Key] | None = None

    @property
    def broken(self) -> tuple[Problem, ...]:
        """A problem for each backend with a plugin that cannot be imported; the gateway serves without them."""
        return tuple(
            Problem(f"{BACKENDS}__{b.name.upper()}__PLUGIN", b.broken, "repair or reinstall the plugin, or remove it")
            for b in self.backends.values()
            if b.broken
        )


def load(environ: Mapping[str, str], env_file: Path | None = None) -> Loaded:
    """Load the configuration from `environ`, then `env_file`. Raises SettingsError with every problem."""
    known = [leaf.variable for leaf in leaves_of(Settings, PREFIX)]
    variables, problems = read_variables(environ, env_file, groups_of(Settings, PREFIX), known)
    own, by_backend = _split_by_backend(variables)
    settings, origins = _load_tree(own, environ, problems)
    backends = _load_backends(by_backend, environ, problems, origins)
    keys = None
    if settings is not None:
        keys = _load_keys(settings.keys_file, problems)
        problems += _cross_checks(settings, backends, keys or {}, {problem.variable for problem in problems})
    if problems or settings is None:
        raise SettingsError(sorted(problems, key=lambda problem: problem.variable))
    return Loaded(settings=settings, backends=backends, origins=origins, keys=keys)


def _split_by_backend(variables: Variables) -> tuple[Variables, dict[str, Variables]]:
    """Separate the gateway's own variables from those of each backend."""
    own: Variables = {}
    backends: dict[str, Variables] = {}
    for name, variable in variables.items():
        if not name.startswith(f"{BACKENDS}__"):
            own[name] = variable
        else:
            backend = name.removeprefix(f"{BACKENDS}__").partition("__")[0]
            backends.setdefault(backend.lower(), {})[name] = variable
    return own, backends


# ── the gateway's own tree ───────────────────────────────────────────────────────────────────────


def _load_tree(
    own: Variables, environ: Mapping[str, str], problems: list[Problem]
) -> tuple[Settings | None, dict[str, str]]:
    leaves = list(leaves_of(Settings, PREFIX))
    own, unreadable = with_secrets(own, leaves, environ)
    own.setdefault(f"{PREFIX}STATE_DIR", Variable(*_default_state_dir(environ)))
    settings, wrong = fill(Settings, PREFIX, own)
    problems += unreadable + wrong
    return settings, {leaf.variable: _origin(own, leaf.variable) for leaf in leaves}


def _load_keys(path: Path | None, problems: list[Problem]) -> Mapping[str, Key] | None:
    if path is None:
        return None
    try:
        return read_keys(path)
    except KeysInvalid as exc:
        fix = f"`edge-gateway keys --file {path} create NAME` creates it"
        problems.append(Problem(f"{PREFIX}KEYS_FILE", str(exc), fix))
        return None


def _default_state_dir(environ: Mapping[str, str]) -> tuple[str, str]:
    """systemd's state directory, else the XDG state home; its specification requires to ignore a relative path."""
    if systemd_dir := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return systemd_dir, "$STATE_DIRECTORY"
    home = environ.get("XDG_STATE_HOME", "")
    if not home.startswith("/"):
        home = f"{environ.get('HOME') or '~'}/.local/state"
    return f"{home}/edge-gateway", DEFAULT


def _origin(variables: Variables, name: str) -> str:
    return variables[name].origin if name in variables else DEFAULT


def _cross_checks(
    settings: Settings, backends: Mapping[str, BackendConfig], keys: Mapping[str, Key], reported: set[str]
) -> Iterator[Problem]:
    """Problems between settings. reported: variables with a problem already, which cause no further problem here."""
    public = [str(listener) for listener in settings.listen if not listener.is_local]
    is_open = settings.keys_file is None and not settings.allow_unauthenticated
    if public and is_open and f"{PREFIX}ALLOW_UNAUTHENTICATED" not in reported:
        yield Problem(
            f"{PREFIX}LISTEN",
            f"{', '.join(public)} can be reached from other machines, and no API key would be required",
            f"set {PREFIX}KEYS_FILE, listen on 127.0.0.1, or accept it with {PREFIX}ALLOW_UNAUTHENTICATED=true",
        )
    if not settings.admin_listen.is_local and not may_administer(keys.values(), time.time()):
        yield Problem(
            f"{PREFIX}ADMIN_LISTEN",
            f"{settings.admin_listen} can be reached from other machines, and no valid API key has `admin`",
            f"listen on 127.0.0.1:8081, [::1]:8081 or unix:/path, or create a key with --admin and set "
            f"{PREFIX}KEYS_FILE",
        )
    yield from _socket_group(settings)
    yield from _duplicate_listeners(settings)
    if settings.mqtt.url is not None and f"{PREFIX}KEYS_FILE" not in reported:
        yield from _mqtt(settings, keys)
    yield from _tls(settings.tls)
    for name, backend in settings.policy.routes.items():
        if backend not in backends:
            yield _unknown_backend(f"{PREFIX}POLICY__ROUTES", f"sends {name!r} to", backend, backends)


def _socket_group(settings: Settings) -> Iterator[Problem]:
    variable, group = f"{PREFIX}SOCKET_GROUP", settings.socket_group
    if group is None:
        return
    try:
        grp.getgrnam(group)
    except KeyError:
        yield Problem(variable, f"names {group!r}, and there is no such group", "`getent group` lists the groups")
    if not any(isinstance(listener, UnixListener) for listener in (*settings.listen, settings.admin_listen)):
        fix = "listen on unix:/path, or remove it; for systemd's sockets set SocketGroup= in edge-gateway.socket"
        yield Problem(variable, "has no effect: no listener is a Unix socket", fix)


def _tls(tls: Tls) -> Iterator[Problem]:
    if tls.cert_file is None:
        return
    try:
        server_context(tls.cert_file, tls.key_file, tls.client_ca_file)
    except TlsInvalid as exc:
        yield Problem(f"{PREFIX}TLS__CERT_FILE", str(exc), "name PEM files this user may read, the key unencrypted")


def _mqtt(settings: Settings, keys: Mapping[str, Key]) -> Iterator[Problem]:
    variable, name = f"{PREFIX}MQTT__KEY", settings.mqtt.key
    if name is None and settings.keys_file is not None:
        yield Problem(
            variable, "is not set, so every request by MQTT would be refused", f"name one of: {', '.join(sorted(keys))}"
        )
    elif name is not None and name not in keys:
        near = nearest(name, keys)
        fix = (
            f"did you mean {near}?" if near else f"`edge-gateway keys create {name}` creates it; set {PREFIX}KEYS_FILE"
        )
        yield Problem(variable, f"names the API key {name!r}, which does not exist", fix)
    if settings.mqtt.url is not None and settings.mqtt.url.is_tls:
        try:
            client_context(settings.mqtt.ca_file, settings.mqtt.cert_file, settings.mqtt.key_file)
        except TlsInvalid as exc:
            variable = f"{PREFIX}MQTT__{'CERT' if settings.mqtt.cert_file else 'CA'}_FILE"
            yield Problem(variable, str(exc), "name PEM files this user may read, the key unencrypted")


def _duplicate_listeners(settings: Settings) -> Iterator[Problem]:
    seen = {str(settings.admin_listen): f"{PREFIX}ADMIN_LISTEN"}
    for text in map(str, settings.listen):
        if text in seen and not text.endswith(":0"):
            yield Problem(f"{PREFIX}LISTEN", f"{text} is taken by {seen[text]}", "give each listener its own address")
        seen[text] = f"{PREFIX}LISTEN"


def _unknown_backend(variable: str, action: str, name: str, backends: Mapping[str, Any]) -> Problem:
    near = nearest(name, backends)
    return Problem(
        variable,
        f"{action} {name!r}, which is not a configured backend",
        f"did you mean {near!r}?" if near else f"name one of: {', '.join(sorted(backends)) or '(none configured)'}",
    )


# ── backends ─────────────────────────────────────────────────────────────────────────────────────


def _load_backends(
    by_backend: Mapping[str, Variables],
    environ: Mapping[str, str],
    problems: list[Problem],
    origins: dict[str, str],
) -> dict[str, BackendConfig]:
    if not by_backend and not any(problem.variable.startswith(BACKENDS) for problem in problems):
        problems.append(_no_backends())
    configs: dict[str, BackendConfig] = {}
    for name in sorted(by_backend):
        reader = _BackendReader(name, by_backend, environ)
        configs[name] = reader.read()
        problems += reader.problems
        origins |= reader.origins
    return configs


def _no_backends() -> Problem:
    plugin = next((p for p in ("local", "echo", *sorted(installed_plugins())) if p in installed_plugins()), "echo")
    return Problem(
        f"{BACKENDS}__<NAME>__PLUGIN",
        "no backend is configured, so no request could be served",
        f"set at least one, such as {BACKENDS}__{plugin.upper()}__PLUGIN={plugin}, or for a remote service "
        f"{BACKENDS}__CLOUD__PLUGIN=http {BACKENDS}__CLOUD__URL=https://api.example.com",
    )


class _BackendReader:
    """Reads one backend's variables; collects the problems, and the origin of each value."""

    def __init__(self, name: str, by_backend: Mapping[str, Variables], environ: Mapping[str, str]) -> None:
        self._name = name
        self._names = frozenset(by_backend)
        self._variables = by_backend[name]
        self._environ = environ
        self._prefix = f"{BACKENDS}__{name.upper()}__"
        self.problems: list[Problem] = []
        self.origins: dict[str, str] = {}

    def read(self) -> BackendConfig:
        """The backend's configuration, incomplete if there are problems."""
        self._check_name()
        variable = f"{self._prefix}PLUGIN"
        plugin = self._variables[variable].text if variable in self._variables else ""
        cls, settings, broken = None, None, None
        try:
            cls = self._find(variable, plugin)
        except PluginBroken as exc:
            broken = str(exc)
            self.origins[variable] = self._variables[variable].origin
        if cls is not None:
            settings = self._settings(cls.Settings)
        if cls is not None and settings is not None and settings.environment and not runs_in_workers(cls, settings):
            what = "has no effect: this backend runs in the process of the gateway, which inherits everything"
            self.problems.append(Problem(f"{self._prefix}ENVIRONMENT", what, "set ISOLATION=process, or remove it"))
        return BackendConfig(name=self._name, plugin=plugin, cls=cls, settings=settings, broken=broken)

    def _check_name(self) -> None:
        if not _NAME.fullmatch(self._name) or "__" in self._name or self._name in RESERVED_NAMES:
            why = "is reserved" if self._name in RESERVED_NAMES else "cannot be a backend's name"
            fix = "use letters, digits and single underscores, such as GPU_BOX"
            self.problems.append(Problem(self._prefix.rstrip("_"), f"{self._name!r} {why}", fix))

    def _find(self, variable: str, plugin: str) -> type[Backend[Any]] | None:
        if not plugin:
            choice = ", ".join(sorted(installed_plugins())) or "none is installed"
            fix = f"set {variable} to an installed plugin ({choice}), or to package.module:attribute"
            self.problems.append(Problem(variable, "is not set, so the backend has no plugin", fix))
            return None
        try:
            return find_plugin(plugin)
        except PluginMissing as exc:
            near = nearest(plugin, installed_plugins())
            fix = f"set {variable}={near}" if near else "`edge-gateway plugins list` shows the installed plugins"
            self.problems.append(Problem(variable, str(exc), fix))
            return None

    def _settings(self, model: type[BackendSettings]) -> BackendSettings | None:
        leaves = list(leaves_of(model, self._prefix))
        variables, unreadable = with_secrets(self._variables, leaves, self._environ)
        context = {"name": self._name, "backends": self._names}
        try:
            settings, wrong = fill(model, self._prefix, variables, context)
        except PLUGIN_EXCEPTIONS as exc:  # raised by a validator of the plugin
            settings, wrong = (
                None,
                [Problem(self._prefix.rstrip("_"), _plugin_fault(exc), "repair the plugin's Settings")],
            )
        self.problems += unreadable + wrong
        self.origins |= {leaf.variable: _origin(variables, leaf.variable) for leaf in leaves}
        return settings


def _plugin_fault(exc: BaseException) -> str:
    return f"cannot be checked: the plugin raised {type(exc).__name__}: {exc}"


# ── a reload ─────────────────────────────────────────────────────────────────────────────────────

# The settings that take effect on a reload: groups by field name, single settings by variable.
RELOADABLE_GROUPS = ("policy", "log", "tls")
RELOADABLE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "KEYS_FILE",
        "DEADLINE_S",
        "FIRST_BYTE_S",
        "STALL_S",
        "MAX_BODY_BYTES",
        "MAX_ITEMS",
        "ALLOW_UNAUTHENTICATED",
        "ALLOWED_HOSTS",
        "ALLOWED_ORIGINS",
    )
)


def waiting_for_restart(before: Settings, after: Settings) -> list[str]:
    """The variables that have changed and take effect only after a restart."""
    return [
        leaf.variable
        for leaf in leaves_of(Settings, PREFIX)
        if not _is_reloadable(leaf) and leaf.value_in(before) != leaf.value_in(after)
    ]


def _is_reloadable(leaf: Leaf) -> bool:
    return leaf.variable in RELOADABLE or leaf.path[0] in RELOADABLE_GROUPS
