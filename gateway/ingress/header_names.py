"""Names that differ from a gateway header in spelling only: the client means the header, and would be ignored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache

from gateway.plugin import TaskInvalid
from gateway.plugin.spelling import folded

# The headers by which a request is marked. A mark that is ignored lets data leave, or work go on past its deadline.
MARKS = ("x-gateway-locality", "x-gateway-deadline-ms", "x-gateway-priority")
_IGNORED = re.compile(r"[^a-z0-9]")
_BARE = {_IGNORED.sub("", mark): mark for mark in MARKS}
_RESEMBLANCE = 0.9  # of `x-gateway-localty`; that of two marks is below 0.8


def check_header_names(names: Iterable[str]) -> None:
    """Raise TaskInvalid for a header or MQTT property that is almost a mark; capitals make no difference."""
    for name in names:
        if (meant := _mark_meant_by(name)) is not None:
            raise TaskInvalid(f"the header {name[:60]!r} is ignored; write it as {meant}", param=meant)


@lru_cache(maxsize=1024)
def _mark_meant_by(name: str) -> str | None:
    if len(name) > 200 or name.lower() in MARKS:
        return None
    bare = _IGNORED.sub("", folded(name))
    if bare in _BARE:
        return _BARE[bare]
    near = difflib.get_close_matches(bare, _BARE, n=1, cutoff=_RESEMBLANCE) if bare[:2] in ("xg", "ga") else []
    return _BARE[near[0]] if near else None
