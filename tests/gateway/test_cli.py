"""The commands: output, exit codes, and few imports in the light commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

import gateway
from gateway import cli
from support.configurations import REMOTE, SHOUT, env_file, test_plugins  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("test_plugins")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def run_python(*args: str, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter with the same import path."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    argv = [sys.executable, *args]
    return subprocess.run(argv, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30, check=False)


# ── check ────────────────────────────────────────────────────────────────────────────────────────


def test_check_prints_a_line_per_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_all(monkeypatch, SHOUT | REMOTE)
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "e: plugin shout, site edge: ok",
        "r: plugin remote, site cloud: ok",
    ]


def test_check_prints_every_problem_with_a_fix_and_exits_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = env_file(tmp_path, "GATEWAY_STALL=1\nGATEWAY_DEADLINE_S=x\n")
    assert cli.main(["check", "--env-file", str(path)]) == 78
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "GATEWAY_BACKENDS__<NAME>__PLUGIN",
        "GATEWAY_DEADLINE_S",
        "GATEWAY_STALL",
    ]
    assert all(". Fix: " in line for line in lines)


def test_check_counts_a_broken_plugin_as_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, SHOUT | {"GATEWAY_BACKENDS__W__PLUGIN": "rotten"})
    assert cli.main(["check"]) == 78
    assert capsys.readouterr().out.startswith("GATEWAY_BACKENDS__W__PLUGIN: plugin 'rotten' cannot be imported")


# ── config ───────────────────────────────────────────────────────────────────────────────────────


def test_config_prints_the_effective_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, SHOUT)
    assert cli.main(["config"]) == 0
    assert "GATEWAY_BACKENDS__E__PLUGIN=shout" in capsys.readouterr().out


def test_config_of_an_invalid_configuration_prints_the_reason_and_exits_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 78
    told = capsys.readouterr()
    assert told.out == ""
    assert "no backend is configured" in told.err


def test_config_env_needs_no_configuration_and_includes_installed_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--env"]) == 0
    told = capsys.readouterr()
    assert "#GATEWAY_BACKENDS__REMOTE__API_KEY=\n" in told.out
    assert "left out: plugin 'rotten' cannot be imported" in told.err


# ── serve, demo ──────────────────────────────────────────────────────────────────────────────────


def test_serve_of_an_invalid_configuration_prints_every_problem_and_exits_78(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, {"GATEWAY_DEADLINE_S": "x", "GATEWAY_STALL_S": "y"} | SHOUT)
    assert cli.main(["serve"]) == 78
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 2


def test_demo_gets_its_own_arguments_and_help() -> None:
    asked = run_python("-m", "gateway.cli", "demo", "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "--self-test" in asked.stdout


def test_explain_names_the_file_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_all(monkeypatch, SHOUT)
    assert cli.main(["explain", "/v1/tasks/shout", "@missing"]) == 1
    told = capsys.readouterr().err
    assert ("missing" in told, "was not asked" in told) == (True, False)


# ── plugins, version ─────────────────────────────────────────────────────────────────────────────


def test_version_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"edge-gateway {gateway.__version__}\n"
    assert cli.main(["version", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["version"] == gateway.__version__
    assert about["python"].startswith("3.")


def test_version_imports_neither_the_gateway_nor_its_libraries() -> None:
    code = (
        "import sys; from gateway.cli import main; main(['version']);"
        "print(sorted({'aiohttp', 'pydantic', 'structlog', 'msgspec', 'asyncio'} & sys.modules.keys()))"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "argv", [[], ["sing"], ["serve", "--loud"], ["check", "extra"], ["plugins"], ["plugins", "eat"], ["version", "-x"]]
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: edge-gateway" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], *([command.name, "--help"] for command in cli.COMMANDS)])
def test_every_command_has_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert not caught.value.code
    assert "usage: " in capsys.readouterr().out


def test_closed_standard_output_exits_1_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody_reads:
        done = run_python("-m", "gateway.cli", "version", stdout=nobody_reads)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("wait", "waits", interrupt),))
    assert cli.main(["wait"]) == 130
