"""Device load read from kernel files; values of missing files are unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.measure.device_load import UNKNOWN, LoadSampler
from gateway.measure.measurements import Measurements
from support.clock import Clock


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_load_is_unknown_when_the_host_has_no_kernel_files(tmp_path: Path) -> None:
    assert LoadSampler(Clock(), root=str(tmp_path)).sample() == UNKNOWN


def test_second_reading_gives_ratios_since_the_first(tmp_path: Path) -> None:
    clock = Clock(0.0)
    write(tmp_path, "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\n")
    write(tmp_path, "proc/pressure/cpu", "some avg10=9.99 avg60=9.99 avg300=9.99 total=1000000\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n")
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48500\n")
    write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "61000\n")
    sampler = LoadSampler(clock, root=str(tmp_path))
    first = sampler.sample()
    assert (first["cpu"], first["psi"]) == (None, None)
    clock.now = 0.5
    write(tmp_path, "proc/stat", "cpu  130 0 120 850 0 0 0 0 0 0\n")
    write(tmp_path, "proc/pressure/cpu", "some avg10=9.99 avg60=9.99 avg300=9.99 total=1100000\n")
    second = sampler.sample()
    assert second == pytest.approx({"cpu": 0.5, "psi": 0.2, "mem": 0.75, "temp_c": 61.0})
    sampler.close()


def test_load_of_this_host_is_read_without_errors() -> None:
    sampler = LoadSampler(Clock())
    measurements = Measurements(Clock(), sampler=sampler)
    assert measurements.load() == UNKNOWN
    measurements.sample_load()
    assert set(measurements.load()) == set(UNKNOWN)
    for name in ("cpu", "psi", "mem"):
        value = measurements.load()[name]
        assert value is None or 0.0 <= value <= 1.0
    sampler.close()
    assert sampler.sample()["mem"] is None
