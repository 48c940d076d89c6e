"""Memory pressure read from kernel files, by cgroup limit or host total."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.measure.memory_gauge import MemoryGauge

GIB = 1024**3


def write(root: Path, name: str, text: str | int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def host(root: Path, total: int, available: int) -> None:
    write(root, "proc/meminfo", f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB")


def v2(root: Path, folder: str, limit: str | int, usage: int, cache: int = 0) -> None:
    write(root, f"sys/fs/cgroup/{folder}/memory.max", limit)
    write(root, f"sys/fs/cgroup/{folder}/memory.current", usage)
    write(root, f"sys/fs/cgroup/{folder}/memory.stat", f"anon 1\ninactive_file {cache}\nactive_file 5")


def test_memory_ratio_is_none_when_the_host_has_no_kernel_files(tmp_path: Path) -> None:
    assert MemoryGauge(tmp_path).ratio() is None


def test_memory_ratio_uses_the_cgroup_limit_without_inactive_cache(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/system.slice/edge-gateway.service")
    v2(tmp_path, "system.slice/edge-gateway.service", 1000, 900, 400)
    assert MemoryGauge(tmp_path).ratio() == pytest.approx(0.5)


def test_memory_ratio_uses_the_tightest_limit_of_all_parent_cgroups(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b")
    v2(tmp_path, "a/b", "max", 10)
    v2(tmp_path, "a", 100, 90)
    v2(tmp_path, "", 1000, 100)
    assert MemoryGauge(tmp_path).ratio() == pytest.approx(0.9)


def test_memory_ratio_is_read_from_cgroup_v1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "9:name=systemd:/\n4:memory:/docker/x\n0::/")
    folder = "sys/fs/cgroup/memory"
    write(tmp_path, f"{folder}/memory.limit_in_bytes", 9223372036854771712)
    assert MemoryGauge(tmp_path).ratio() is None
    write(tmp_path, f"{folder}/memory.limit_in_bytes", 1000)
    write(tmp_path, f"{folder}/memory.usage_in_bytes", 990)
    write(tmp_path, f"{folder}/memory.stat", "cache 1\ntotal_inactive_file 290")
    assert MemoryGauge(tmp_path).ratio() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("total", "available", "ratio"),
    [
        (8 * GIB, 4 * GIB, 0.0),
        (8 * GIB, GIB // 2, 0.85),  # another program fills the rest
        (8 * GIB, GIB // 4, 0.925),
        (8 * GIB, 0, 1.0),
        (GIB, 157 * GIB // 1024, 0.85),  # a small host: 15 % of it
    ],
)
def test_memory_ratio_without_a_limit_rises_only_when_host_memory_is_nearly_full(
    tmp_path: Path, total: int, available: int, ratio: float
) -> None:
    host(tmp_path, total, available)
    assert MemoryGauge(tmp_path).ratio() == pytest.approx(ratio, abs=0.01)


def test_memory_ratio_of_this_host_is_read_without_errors() -> None:
    ratio = MemoryGauge().ratio()
    assert ratio is None or ratio >= 0.0
