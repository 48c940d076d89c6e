"""Finds plugins, starts them, keeps an eye on them, stops them; and knows who serves what.

A backend that cannot be imported or started is left out by name while the others serve. Starting never
waits for the slowest: requests for what is not known yet are told to come back, not that it does not exist.

plugins.py     finds them, and makes backends of them
member.py      one backend in life
lives.py       opens it, watches it, closes it
directory.py   who serves what
succession.py  who comes after whom on a reload
registry.py    which backends there are
"""

from gateway.registry.loader import GROUP, BackendConfig, PluginBroken, PluginMissing, find_plugin, installed
from gateway.registry.lookup import Catalog, ServingBackends
from gateway.registry.managed_backend import AUTO, ManagedBackend
from gateway.registry.registry import Registry
from gateway.registry.reload import BackendResources

__all__ = [
    "AUTO",
    "GROUP",
    "BackendConfig",
    "BackendResources",
    "Catalog",
    "ManagedBackend",
    "PluginBroken",
    "PluginMissing",
    "Registry",
    "ServingBackends",
    "find_plugin",
    "installed",
]
