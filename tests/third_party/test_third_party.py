"""A third-party plugin as a distribution, installed outside the checkout.

A path file gives the new environment access to the libraries of this one, but not to the checkout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.documents import free_port
from support.notify import NotifySocket

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path(__file__).parent / "gateway-redact"


class Place(NamedTuple):
    """A folder outside the checkout, with a virtual environment."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    @property
    def environ(self) -> dict[str, str]:
        dropped = ("GATEWAY_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "NOTIFY_")
        return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        argv = [str(part) for part in command]
        done = subprocess.run(
            argv, cwd=cwd or self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{argv} exits {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout


def installer(python: Path) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-compile"]
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    return [uv, "pip", "install", "-q", "--offline", "--python", str(python)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    pytest.importorskip("hatchling")
    place = Place(tmp_path_factory.mktemp("elsewhere"))
    wheels = place.folder / "wheels"
    for project in (ROOT, PLUGIN):
        place.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels, cwd=project)
    place.run(sys.executable, "-m", "venv", "--without-pip", place.folder / "venv")
    found = sorted(wheels.glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in found] == ["edge_gateway", "gateway_redact"]
    place.run(*installer(place.bin / "python"), "--no-deps", "--no-index", *found)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place.folder / "venv")}))
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return place


@contextmanager
def serving(place: Place, **settings: str) -> Iterator[tuple[str, Path]]:
    """Run the gateway; yields its URL and the path of its log."""
    log, port = place.folder / "gateway.log", free_port()
    listeners = {"GATEWAY_LISTEN": f"127.0.0.1:{port}", "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}"}
    with NotifySocket(place.folder / "notify") as notify, log.open("wb") as out:
        environ = place.environ | listeners | settings
        environ |= {"GATEWAY_STATE_DIR": str(place.folder / "state"), "NOTIFY_SOCKET": str(notify.path)}
        process = subprocess.Popen([place.bin / "edge-gateway", "serve"], env=environ, cwd=place.folder, stderr=out)
        try:
            notify.wait_for("READY=1")
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, log.read_text()


def asked(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_no_module_is_imported_from_the_checkout(place: Place) -> None:
    code = (
        "import gateway, gateway_echo, gateway_redact as g; print(gateway.__file__, gateway_echo.__file__, g.__file__)"
    )
    files = place.run(place.bin / "python", "-c", code).split()
    assert all(Path(file).is_relative_to(place.folder / "venv") for file in files), files


def test_installed_plugin_serves_after_one_variable_is_set(place: Place) -> None:
    with serving(place, GATEWAY_BACKENDS__PRIVACY__PLUGIN="redact", GATEWAY_BACKENDS__PRIVACY__MASK="*") as (url, log):
        answer = asked(f"{url}/v1/tasks/redact", {"text": "Write to ada@example.org."})
    assert answer == {"result": {"text": "Write to *.", "masked": {"email": 1}}}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "request.finished"]
    assert (line["backend"], line["site"], line["status"], line["model"]) == ("privacy", "edge", 200, "redact")


def test_installed_plugin_is_listed_with_its_distribution(place: Place) -> None:
    rows = json.loads(place.run(place.bin / "edge-gateway", "plugins", "list", "--json"))
    row = next(row for row in rows if row["plugin"] == "redact")
    assert (row["distribution"], row["version"], row["serves"]) == ("gateway-redact", "1.0.0", "tasks redact")


def test_installed_plugin_passes_the_conformance_kit_and_its_own_tests(place: Place) -> None:
    output = place.run(place.bin / "edge-gateway", "plugins", "test", "redact", "--set", "isolation=loop")
    assert "FAIL" not in output
    tests = shutil.copytree(PLUGIN / "tests", place.folder / "tests")
    place.run(place.bin / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests)


def test_plugin_scaffold_from_the_wheel_passes_the_conformance_kit(place: Place) -> None:
    place.run(place.bin / "edge-gateway", "plugins", "new", "ocr")
    output = place.run(
        place.bin / "edge-gateway", "plugins", "test", "gateway_ocr:Ocr", cwd=place.folder / "gateway-ocr"
    )
    assert "FAIL" not in output
