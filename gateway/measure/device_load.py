"""The device's load: processor, pressure, memory, temperature. None stands for a value that this host lacks.

Sampled twice a second by a timer, never per request. The files stay open and are read again from the start (1 µs each
on an open descriptor). PSI is the share of the last interval in which some task waited for a processor. It is computed
from the kernel's running total, because the kernel's own `avg10` lags by ten seconds.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

Readings = dict[str, float | None]
UNKNOWN: Readings = {"cpu": None, "psi": None, "mem": None, "temp_c": None}


class LoadSampler:
    """Reads /proc and /sys under `root`. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float], root: str = "/") -> None:
        self._clock = clock
        self._stat = _KernelFile(os.path.join(root, "proc/stat"))
        self._psi = _KernelFile(os.path.join(root, "proc/pressure/cpu"))
        self._mem = _KernelFile(os.path.join(root, "proc/meminfo"))
        zones = sorted(glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*/temp")))
        self._zones = [_KernelFile(path) for path in zones]
        self._cpu_before: tuple[float, float] | None = None
        self._psi_before: tuple[float, float] | None = None

    def sample(self) -> Readings:
        """One reading: cpu, psi and mem are ratios from 0 to 1; temp_c is the hottest zone, in degrees Celsius."""
        return {"cpu": self._cpu(), "psi": self._pressure(), "mem": self._memory(), "temp_c": self._hottest()}

    def _cpu(self) -> float | None:
        text = self._stat.read()
        if text is None or not text.startswith("cpu "):
            return None
        ticks = [float(n) for n in text.split("\n", 1)[0].split()[1:9]]
        idle, total = ticks[3] + ticks[4], sum(ticks)
        before, self._cpu_before = self._cpu_before, (idle, total)
        if before is None or total <= before[1]:
            return None
        return _ratio(1.0 - (idle - before[0]) / (total - before[1]))

    def _pressure(self) -> float | None:
        text = self._psi.read()
        if text is None or "total=" not in text:
            return None
        stalled_s = float(text.split("total=", 1)[1].split()[0]) / 1e6
        now = self._clock()
        before, self._psi_before = self._psi_before, (now, stalled_s)
        if before is None or now <= before[0]:
            return None
        return _ratio((stalled_s - before[1]) / (now - before[0]))

    def _memory(self) -> float | None:
        text = self._mem.read()
        if text is None:
            return None
        sizes = {}
        for line in text.splitlines()[:3]:
            name, _, rest = line.partition(":")
            sizes[name] = float(rest.split()[0])
        if not sizes.get("MemTotal") or "MemAvailable" not in sizes:
            return None
        return _ratio(1.0 - sizes["MemAvailable"] / sizes["MemTotal"])

    def _hottest(self) -> float | None:
        readings = [text for zone in self._zones if (text := zone.read())]
        degrees = [int(text) / 1000 for text in readings if text.strip().lstrip("-").isdigit()]
        return max((t for t in degrees if -50 < t < 200), default=None)

    def close(self) -> None:
        for file in (self._stat, self._psi, self._mem, *self._zones):
            file.close()


class _KernelFile:
    """A small kernel file that stays open. `read` returns None if it is missing or cannot be read."""

    def __init__(self, path: str) -> None:
        try:
            self._fd: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = None

    def read(self) -> str | None:
        if self._fd is None:
            return None
        try:
            return os.pread(self._fd, 4096, 0).decode("ascii", "replace")
        except OSError:  # a kernel with PSI disabled opens the file but does not read it
            return None

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _ratio(value: float) -> float:
    return min(max(value, 0.0), 1.0)
