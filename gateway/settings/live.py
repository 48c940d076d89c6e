"""Which settings take hold when the gateway is told to read its configuration again, and which wait for a restart."""

from __future__ import annotations

from typing import Any

from gateway.settings.model import Leaf, leaves_of
from gateway.settings.tree import PREFIX, Settings

# Groups by their name, settings by their variable.
LIVE_GROUPS = ("policy", "log", "tls")
LIVE = frozenset(
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
    """The variables that have changed and do not take hold now."""
    return [leaf.variable for leaf in leaves_of(Settings, PREFIX) if _waits(leaf, before, after)]


def _waits(leaf: Leaf, before: Settings, after: Settings) -> bool:
    is_live = leaf.variable in LIVE or leaf.path[0] in LIVE_GROUPS
    return not is_live and _value(before, leaf) != _value(after, leaf)


def _value(settings: Any, leaf: Leaf) -> Any:
    for name in leaf.path:
        settings = getattr(settings, name)
    return settings
