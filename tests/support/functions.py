"""Functions an operator might serve by `local`, for tests that kill them at work."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stumble(marker: str) -> str:
    """The first call says in `marker` who it is, and never returns; any later one does."""
    if Path(marker).exists():
        return "served"
    ready = Path(marker).with_suffix(".new")
    ready.write_text(str(os.getpid()))
    ready.rename(marker)
    while True:
        signal.pause()


def add(a: int, b: int) -> int:
    return a + b


def read_aloud(text: str) -> int:
    """Takes as long as its text: 20 ms, and 40 µs a character."""
    time.sleep(0.02 + 40e-6 * len(text))
    return len(text)
