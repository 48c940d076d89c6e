"""On a real systemd: the package installs, serves within a second, survives a hung loop, an upgrade and a rollback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import systemd_container_checks
from support.systemd_container import build_deb, make_root, missing_prerequisites, run_in

pytestmark = [pytest.mark.box, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the box said, by word."""
    if (why := missing_prerequisites()) is not None:
        pytest.skip(f"a box with systemd: {why}")
    folder = tmp_path_factory.mktemp("box")
    root = make_root(folder)
    if root is None:
        pytest.skip("a box with systemd: debootstrap could not make a root here")
    for suffix in ("", ".1"):
        deb = build_deb(folder, suffix)
        deb.rename(root / "root" / deb.name)
    # The watchdog of the unit has half a minute; a test has not.
    drop_in = root / "etc/systemd/system/edge-gateway.service.d/test.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\n")
    done = run_in(root, Path(systemd_container_checks.__file__))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    heard: dict[str, Any] = {}
    for line in lines:
        heard |= json.loads(line)
    assert "purge" in heard, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return heard


def test_the_package_installs_and_serves_at_once(said: dict[str, Any]) -> None:
    assert said["active"], said
    assert json.loads(said["serves"]) == {"result": 30}
    assert min(said["start_s"]) <= 1.0


def test_systemd_finds_little_to_complain_about(said: dict[str, Any]) -> None:
    assert said["verify"] == ""
    assert float(said["security"].split(":")[-1].split()[0]) <= 1.4, said["security"]


def test_a_restart_under_load_refuses_none_of_a_hundred_clients(said: dict[str, Any]) -> None:
    assert said["restart"]["failed"] == []
    assert said["restart"]["served"] >= 200


def test_new_settings_take_hold_on_reload(said: dict[str, Any]) -> None:
    assert (said["reloaded"], said["reloaded_back"]) == (413, True)


def test_credentials_are_read_and_appear_nowhere(said: dict[str, Any]) -> None:
    assert said["credentials"] == {"directory": True, "serves": 200}
    assert said["canary"] == 0


def test_a_gateway_that_hangs_is_killed_and_started_again(said: dict[str, Any]) -> None:
    assert (said["hung_restarted"], said["hung_result"]) == (True, True)


def test_upgrade_and_rollback_keep_settings_and_state(said: dict[str, Any]) -> None:
    assert (said["upgrade"]["kept"], said["upgrade"]["serves"]) == (True, 200)
    assert said["upgrade"]["version"] == said["rollback"]["version"] + ".1"
    assert (said["rollback"]["kept"], said["rollback"]["serves"]) == (True, 200)


def test_a_purge_leaves_nothing(said: dict[str, Any]) -> None:
    assert said["purge"].splitlines()[-1] == "0"
