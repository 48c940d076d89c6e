"""`plugins new`: generated plugins pass their checks; files are never overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.plugins_new import NameInvalid, checked_name, create, rendered

ROOT = Path(__file__).resolve().parents[3]


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "PYTEST_"))}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    argv = [sys.executable, *args]
    return subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create("door-bell", tmp_path_factory.mktemp("made")).folder


def test_a_new_plugin_is_a_distribution_with_an_entry_point(made: Path) -> None:
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == [
        "README.md",
        "gateway_door_bell.py",
        "pyproject.toml",
        "tests/test_gateway_door_bell.py",
    ]
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["name"] == "gateway-door-bell"
    assert project["entry-points"] == {"gateway.backends": {"door-bell": "gateway_door_bell:DoorBell"}}
    assert len((made / "gateway_door_bell.py").read_text().splitlines()) <= 40  # one screen


def test_a_new_plugin_passes_its_own_tests(made: Path) -> None:
    done = python(made, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_plugin_is_typed_strictly(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    done = python(made, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "gateway_door_bell.py", "tests")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_plugin_passes_plugins_test_in_its_folder(made: Path) -> None:
    done = python(made, "-m", "gateway.cli", "plugins", "test", "gateway_door_bell:DoorBell", "--set", "most=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "14 of 14 promises kept"


def test_existing_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "gateway-ocr"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    assert cli.main(["plugins", "new", "ocr", "--into", str(tmp_path)]) == 1
    assert "gateway-ocr exists already; nothing was written" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == ["README.md"]
    assert (mine / "README.md").read_text() == "mine"


def test_plugins_new_prints_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "new", "ocr", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().err.endswith("gateway-ocr && edge-gateway plugins test gateway_ocr:Ocr\n")


@pytest.mark.parametrize(
    "name", ["", "Ocr", "1st", "a b", "../up", "a--b", "-a", "a-", "ümlaut", "x" * 41, "a.b", "a/b"]
)
def test_a_name_that_could_not_be_a_module_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid, match="cannot be a plugin's name"):
        checked_name(name, ())


@pytest.mark.parametrize("name", ["class", "auto", "none", "sample"])
def test_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid, match="reserved"):
        checked_name(name, ())


def test_the_name_of_an_installed_plugin_is_refused() -> None:
    with pytest.raises(NameInvalid, match="installed already"):
        checked_name("echo", ["echo"])


def test_plugin_name_that_contains_the_template_name_is_replaced_once() -> None:
    assert dict(rendered("resample"))["gateway_resample.py"].count("class Resample(") == 1
