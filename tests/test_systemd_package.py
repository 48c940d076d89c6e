"""The Debian package on a real systemd: install, restart, watchdog, upgrade."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import systemd_container_checks
from support.systemd_container import build_deb, make_root, missing_prerequisites, run_in

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the checks in the container; returns their results by name."""
    if (why := missing_prerequisites()) is not None:
        pytest.skip(f"a container with systemd: {why}")
    folder = tmp_path_factory.mktemp("box")
    root = make_root(folder)
    if root is None:
        pytest.skip("a container with systemd: debootstrap could not create a root here")
    for suffix in ("", ".1"):
        deb = build_deb(folder, suffix)
        deb.rename(root / "root" / deb.name)
    # The unit's watchdog interval is 30 s; the test shortens it.
    drop_in = root / "etc/systemd/system/edge-gateway.service.d/test.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\n")
    done = run_in(root, Path(systemd_container_checks.__file__))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    results: dict[str, Any] = {}
    for line in lines:
        results |= json.loads(line)
    assert "purge" in results, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return results


def test_package_installs_and_serves_within_a_second(results: dict[str, Any]) -> None:
    assert results["active"], results
    assert json.loads(results["serves"]) == {"result": 30}
    assert min(results["start_s"]) <= 1.0


def test_installed_unit_verifies_with_a_low_exposure_score(results: dict[str, Any]) -> None:
    assert results["verify"] == ""
    assert float(results["security"].split(":")[-1].split()[0]) <= 1.4, results["security"]


def test_restart_under_load_fails_none_of_100_clients(results: dict[str, Any]) -> None:
    assert results["restart"]["failed"] == []
    assert results["restart"]["served"] >= 200


def test_reload_applies_new_settings(results: dict[str, Any]) -> None:
    assert (results["reloaded"], results["reloaded_back"]) == (413, True)


def test_credentials_are_read_and_not_logged(results: dict[str, Any]) -> None:
    assert results["credentials"] == {"directory": True, "serves": 200}
    assert results["canary"] == 0


def test_hung_gateway_is_restarted_by_the_watchdog(results: dict[str, Any]) -> None:
    assert (results["hung_restarted"], results["hung_result"]) == (True, True)


def test_upgrade_and_rollback_keep_settings_and_state_files(results: dict[str, Any]) -> None:
    assert (results["upgrade"]["kept"], results["upgrade"]["serves"]) == (True, 200)
    assert results["upgrade"]["version"] == results["rollback"]["version"] + ".1"
    assert (results["rollback"]["kept"], results["rollback"]["serves"]) == (True, 200)


def test_purge_removes_all_files(results: dict[str, Any]) -> None:
    assert results["purge"].splitlines()[-1] == "0"
