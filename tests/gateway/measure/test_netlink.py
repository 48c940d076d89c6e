"""Routes and carrier state from the kernel; tests/net covers network namespaces."""

from __future__ import annotations

from pathlib import Path

from gateway.measure.netlink import CarrierWatch, source_address_for


def test_way_to_loopback_returns_its_source_address(tmp_path: Path) -> None:
    assert source_address_for("127.0.0.1", tmp_path) == "127.0.0.1"


def test_way_to_is_none_when_the_interface_has_no_carrier(tmp_path: Path) -> None:
    (tmp_path / "lo").mkdir()
    (tmp_path / "lo" / "carrier").write_text("0\n")
    assert source_address_for("127.0.0.1", tmp_path) is None
    (tmp_path / "lo" / "carrier").write_text("1\n")
    assert source_address_for("127.0.0.1", tmp_path) == "127.0.0.1"


def test_way_to_is_none_when_there_is_no_route() -> None:
    assert source_address_for("255.255.255.255") is None


def test_carrier_watch_reports_no_event_on_a_quiet_network() -> None:
    with CarrierWatch() as watch:
        watch.drain()
        assert watch.fileno() > 0
        assert not watch.drain()
