"""Functions served by a `local` backend, for tests that kill their worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stumble(marker: str) -> str:
    """On the first call, write the process id to `marker` and hang.

    On later calls, return.
    """
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
    """Sleep 20 ms plus 40 µs per character of the text."""
    time.sleep(0.02 + 40e-6 * len(text))
    return len(text)
