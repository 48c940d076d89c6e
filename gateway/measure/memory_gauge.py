"""Used memory as a share of the limit: the cgroup's limit if there is one, else the host's memory.

Only memory that the kernel cannot reclaim counts: a cgroup's usage without its inactive file cache; on a host, the
memory that is not available. A host's memory may be full because of another program's model, so only the last part of
it counts there: the ratio exceeds 1 - PLENTY_RATIO only when less than PLENTY_BYTES, and less than that
share of the total, are available.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PLENTY_BYTES = 512 * 1024 * 1024
PLENTY_RATIO = 0.15
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 without a limit


class MemoryGauge:
    """Reads the memory files of the cgroups and of the host under `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._cgroups = [*_cgroups_v2(root), *_cgroups_v1(root)]

    def ratio(self) -> float | None:
        """Used memory as a share of the limit; None if unknown."""
        found = [share for cgroup in self._cgroups if (share := cgroup.ratio()) is not None]
        return max(found) if found else self._host_ratio()

    def free_bytes(self, up_to: float) -> float:
        """Bytes that may be allocated before `ratio` reaches `up_to`; infinite if unknown."""
        if self._cgroups:
            return min(max(0.0, cgroup.free_bytes(up_to)) for cgroup in self._cgroups)
        available, plenty = self._available()
        return float("inf") if available is None else max(0.0, available - plenty * (1.0 - up_to) / PLENTY_RATIO)

    def _host_ratio(self) -> float | None:
        available, plenty = self._available()
        return None if available is None else max(0.0, 1.0 - PLENTY_RATIO * (available / plenty))

    def _available(self) -> tuple[float | None, float]:
        """Available bytes of the host, and the number of bytes from which memory counts as plenty."""
        sizes = _read_numbers(self._meminfo)
        total, available = sizes.get("MemTotal:", 0) * 1024, sizes.get("MemAvailable:")
        if not total or available is None:
            return None, 0.0
        return available * 1024.0, min(PLENTY_BYTES, PLENTY_RATIO * total)


class _Cgroup:
    """One cgroup with a memory limit."""

    def __init__(self, usage: Path, stat: Path, cache_key: str, limit: int) -> None:
        self._usage, self._stat, self._cache_key, self._limit = usage, stat, cache_key, limit

    def ratio(self) -> float | None:
        used = self._used()
        return None if used is None else used / self._limit

    def free_bytes(self, up_to: float) -> float:
        used = self._used()
        return float("inf") if used is None else up_to * self._limit - used

    def _used(self) -> int | None:
        usage = _read_number(self._usage)
        return None if usage is None else max(0, usage - _read_numbers(self._stat).get(self._cache_key, 0))


def _cgroups_v2(root: Path) -> Iterator[_Cgroup]:
    mount = root / "sys/fs/cgroup"
    for folder in _with_parents(mount, _own_cgroup(root, "0::")):
        limit = _read_number(folder / "memory.max")
        if limit:
            yield _Cgroup(folder / "memory.current", folder / "memory.stat", "inactive_file", limit)


def _cgroups_v1(root: Path) -> Iterator[_Cgroup]:
    mount = root / "sys/fs/cgroup/memory"
    for folder in _with_parents(mount, _own_cgroup(root, ":memory:")):
        limit = _read_number(folder / "memory.limit_in_bytes")
        if limit and limit < _UNLIMITED:
            yield _Cgroup(folder / "memory.usage_in_bytes", folder / "memory.stat", "total_inactive_file", limit)


def _own_cgroup(root: Path, mark: str) -> str:
    """The path of this process's cgroup in the hierarchy of `mark`, from /proc/self/cgroup."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        if mark in line:
            return line.partition(mark)[2].strip("/")
    return ""


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and its parents up to the mount. In a container only the mount may exist."""
    folder = mount / path
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read_numbers(path: Path) -> dict[str, int]:
    """The `name number` lines of a file, as a dictionary."""
    rows = (line.split()[:2] for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
