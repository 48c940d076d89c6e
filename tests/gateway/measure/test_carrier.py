"""What the kernel knows of the way to an address; in namespaces where root allows (tests/net)."""

from __future__ import annotations

from pathlib import Path

from gateway.measure.carrier import CarrierWatch, way_to


def test_there_is_a_way_to_this_host_and_its_source_is_told(tmp_path: Path) -> None:
    assert way_to("127.0.0.1", tmp_path) == "127.0.0.1"


def test_an_interface_without_a_carrier_is_no_way(tmp_path: Path) -> None:
    (tmp_path / "lo").mkdir()
    (tmp_path / "lo" / "carrier").write_text("0\n")
    assert way_to("127.0.0.1", tmp_path) is None
    (tmp_path / "lo" / "carrier").write_text("1\n")
    assert way_to("127.0.0.1", tmp_path) == "127.0.0.1"


def test_an_address_without_a_route_is_no_way() -> None:
    assert way_to("255.255.255.255") is None


def test_a_quiet_network_tells_nothing() -> None:
    with CarrierWatch() as watch:
        watch.drain()
        assert watch.fileno() > 0
        assert not watch.drain()
