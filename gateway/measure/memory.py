"""How near the memory limit is: the cgroup's, where one is set, else the host's.

Counted is what cannot be taken back: a cgroup's usage without the file cache that is not in use, of a host what is
not available. A host's memory may be full of somebody else's model, so there only the last of it counts: a ratio of
1 - PLENTY's share is reached no sooner than when less than PLENTY_BYTES are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PLENTY_BYTES = 512 * 1024 * 1024
PLENTY_RATIO = 0.15
_UNLIMITED = 1 << 60  # v1 writes a number near 2^63 for no limit


class MemoryGauge:
    """Reads cgroup and host files under `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._cgroups = [*_v2(root), *_v1(root)]

    def ratio(self) -> float | None:
        """Used memory as a share of the limit; None where it is not known."""
        found = [share for cgroup in self._cgroups if (share := cgroup.ratio()) is not None]
        return max(found) if found else self._host()

    def free_bytes(self, up_to: float) -> float:
        """Bytes that may be used before `ratio` is `up_to`; infinite where nothing is known."""
        if self._cgroups:
            return min(max(0.0, cgroup.free_bytes(up_to)) for cgroup in self._cgroups)
        available, plenty = self._available()
        return float("inf") if available is None else max(0.0, available - plenty * (1.0 - up_to) / PLENTY_RATIO)

    def _host(self) -> float | None:
        available, plenty = self._available()
        return None if available is None else max(0.0, 1.0 - PLENTY_RATIO * (available / plenty))

    def _available(self) -> tuple[float | None, float]:
        """Bytes of the host that are to be had, and how many of them are plenty."""
        sizes = _numbers(self._meminfo)
        total, available = sizes.get("MemTotal:", 0) * 1024, sizes.get("MemAvailable:")
        if not total or available is None:
            return None, 0.0
        return available * 1024.0, min(PLENTY_BYTES, PLENTY_RATIO * total)


class _Cgroup:
    """One cgroup that has a limit."""

    def __init__(self, usage: Path, stat: Path, cache_key: str, limit: int) -> None:
        self._usage, self._stat, self._cache_key, self._limit = usage, stat, cache_key, limit

    def ratio(self) -> float | None:
        used = self._used()
        return None if used is None else used / self._limit

    def free_bytes(self, up_to: float) -> float:
        used = self._used()
        return float("inf") if used is None else up_to * self._limit - used

    def _used(self) -> int | None:
        usage = _number(self._usage)
        return None if usage is None else max(0, usage - _numbers(self._stat).get(self._cache_key, 0))


def _v2(root: Path) -> Iterator[_Cgroup]:
    mount = root / "sys/fs/cgroup"
    for folder in _lineage(mount, _path_of(root, "0::")):
        limit = _number(folder / "memory.max")
        if limit:
            yield _Cgroup(folder / "memory.current", folder / "memory.stat", "inactive_file", limit)


def _v1(root: Path) -> Iterator[_Cgroup]:
    mount = root / "sys/fs/cgroup/memory"
    for folder in _lineage(mount, _path_of(root, ":memory:")):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit and limit < _UNLIMITED:
            yield _Cgroup(folder / "memory.usage_in_bytes", folder / "memory.stat", "total_inactive_file", limit)


def _path_of(root: Path, mark: str) -> str:
    """This process's cgroup in the hierarchy that `mark` names, in /proc/self/cgroup."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        if mark in line:
            return line.partition(mark)[2].strip("/")
    return ""


def _lineage(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup and those above it; in a container only the mount itself may be there."""
    folder = mount / path
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """The `name number` lines of a file."""
    rows = (line.split()[:2] for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
