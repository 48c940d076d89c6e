"""Backends: finds their plugins, opens, checks, reloads and closes them, and looks up which serves a name.

A backend that cannot be imported or opened is left out, and its error is reported, while the others serve. The start
does not wait for the slowest backend: until its names are known, requests for unknown names get 503 with Retry-After,
not 404.

loader.py           finds plugins and creates backends
managed_backend.py  one backend, its declarations and its state
lifecycle.py        opens it, checks its health, closes it
lookup.py           which backends serve a model or task
reload.py           adds, removes and replaces backends when the configuration changes
registry.py         all of them together
"""

from gateway.registry.catalog import Catalog, ServingBackends
from gateway.registry.loader import (
    ENTRY_POINT_GROUP,
    BackendConfig,
    PluginBroken,
    PluginMissing,
    find_plugin,
    installed_plugins,
)
from gateway.registry.managed_backend import AUTO, ManagedBackend
from gateway.registry.registry import Registry
from gateway.registry.reload import BackendResources

__all__ = [
    "AUTO",
    "ENTRY_POINT_GROUP",
    "BackendConfig",
    "BackendResources",
    "Catalog",
    "ManagedBackend",
    "PluginBroken",
    "PluginMissing",
    "Registry",
    "ServingBackends",
    "find_plugin",
    "installed_plugins",
]
