"""The configuration as one frozen tree, read from the environment once and checked as a whole.

loaded = load(os.environ, Path("/etc/edge-gateway/env"))    # raises SettingsError with every problem
loaded.settings.deadline_s, loaded.backends["cloud"].settings.url
"""

from __future__ import annotations

from gateway.registry import BackendConfig
from gateway.settings.load import Loaded, load
from gateway.settings.messages import Problem, SettingsError
from gateway.settings.network_addresses import Listener, TcpListener, UnixListener, parse_listener
from gateway.settings.tree import Log, Policy, Settings, Tls

__all__ = [
    "BackendConfig",
    "Listener",
    "Loaded",
    "Log",
    "Policy",
    "Problem",
    "Settings",
    "SettingsError",
    "TcpListener",
    "Tls",
    "UnixListener",
    "load",
    "parse_listener",
]
