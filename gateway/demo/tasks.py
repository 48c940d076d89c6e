"""What the demo's edge offers besides `add`: a task that does nothing but keep a slot busy."""

from __future__ import annotations

import time
from collections.abc import Iterator

_STEP_S = 0.02


def occupy(seconds: float) -> Iterator[str]:
    """Hold a slot for `seconds`, in steps, so that it is free soon after the client has gone."""
    until = time.monotonic() + seconds
    yield "occupied"
    while time.monotonic() < until:
        time.sleep(_STEP_S)
        yield "still occupied"
