"""The systemd unit, and the notifications a gateway sends to systemd."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.service import DRAIN_S
from gateway.settings import load
from support.notify import NotifySocket
from support.programs import needs, program

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy" / "edge-gateway.service"
ENV_FILE = ROOT / "deploy" / "edge-gateway.env"
SERVE = [sys.executable, "-P", "-m", "gateway.cli", "serve"]


def setting(name: str) -> str:
    """Return a setting of the unit's [Service] section that occurs once."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    return unit["Service"][name]


# ── the unit ─────────────────────────────────────────────────────────────────────────────────────


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze"), "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@needs("systemd-analyze")
def test_systemd_analyze_verify_reports_nothing_about_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edge-gateway/bin/edge-gateway", sys.executable))
    done = systemd_analyze("verify", str(copy))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs("systemd-analyze")
def test_systemd_exposure_score_of_the_unit_is_low(tmp_path: Path) -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=12", str(UNIT))
    assert done.returncode == 0, done.stdout[-400:]


def test_unit_allows_no_core_file() -> None:
    assert setting("LimitCORE") == "0"


def test_unit_stop_timeout_exceeds_the_drain_time() -> None:
    assert float(setting("TimeoutStopSec")) > DRAIN_S


def test_unit_passes_the_env_file_option_and_sets_pythonsafepath() -> None:
    assert "EnvironmentFile" not in UNIT.read_text()
    assert setting("ExecStart").endswith(f" serve --env-file /etc/edge-gateway/{ENV_FILE.name}")
    assert setting("Environment") == "PYTHONSAFEPATH=1"


def test_shipped_environment_file_loads_unchanged() -> None:
    loaded = load({}, ENV_FILE)
    assert list(loaded.backends) == ["edge"]
    assert not loaded.broken


# ── the process ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(notify: NotifySocket, folder: Path, *prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | {
        "NOTIFY_SOCKET": str(notify.path),
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0",
        "GATEWAY_STATE_DIR": str(folder / "state"),
        "GATEWAY_BACKENDS__E__PLUGIN": "echo",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*prefix, *SERVE], env=environ, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "notify") as socket:
        yield socket


def test_gateway_notifies_systemd_of_ready_address_and_stop(notify: NotifySocket, tmp_path: Path) -> None:
    with serving(notify, tmp_path) as process:
        notify.wait_for("READY=1")
        assert any(re.fullmatch(r"STATUS=serving on 127\.0\.0\.1:\d+", line) for line in notify.received)
        process.send_signal(signal.SIGTERM)
        notify.wait_for("STOPPING=1")
        assert process.wait(20) == 0
    assert b'"service.stopped"' in (tmp_path / "log").read_bytes()


@needs("unshare")
def test_gateway_serves_in_an_empty_network_namespace(notify: NotifySocket, tmp_path: Path) -> None:
    apart = [program("unshare"), "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare may not create a network namespace here")
    with serving(notify, tmp_path, *apart):
        notify.wait_for("READY=1")
