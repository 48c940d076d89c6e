"""`plugins test`: operator settings, a line per check, fixes, and the exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.plugins_test import configured, requests


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str], str]:
    code = cli.main(["plugins", "test", *args])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


def test_installed_plugin_is_tested_with_one_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "echo", "--set", "dimension=3")
    assert code == 0
    assert lines[0] == "ok    declaration"
    assert lines[-1] == "14 of 14 promises kept"


def test_failed_check_is_printed_with_a_fix_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "support.broken_backends:Raises")
    assert code == 1
    at = next(n for n, line in enumerate(lines) if line.startswith("FAIL  errors"))
    assert "`run` raised RuntimeError: no text" in lines[at]
    assert lines[at + 1].strip().startswith("fix: raise TaskInvalid")
    assert lines[-1] == "13 of 14 promises kept"


def test_advice_is_printed_with_a_fix_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "support.broken_backends:Untranslated")
    assert code == 0
    at = next(n for n, line in enumerate(lines) if line.startswith("note  errors"))
    assert "`run` raised KeyError: 'text'" in lines[at]
    assert lines[at + 1].strip().startswith("fix: raise TaskInvalid")


def test_requests_can_be_given_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "support.broken_backends:NoExamples"
    code, lines, _ = run(capsys, name)
    assert (code, sum(line.startswith("skip") for line in lines)) == (0, 8)
    (tmp_path / "say.json").write_text('{"text": "from a file"}')
    code, lines, _ = run(capsys, name, "--task", f"say=@{tmp_path}/say.json")
    assert (code, lines[-1]) == (0, "14 of 14 promises kept")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["eccho"], 78, "did you mean 'echo'?"),
        (["echo", "--set", "delay_s=long"], 78, "GATEWAY_BACKENDS__ECHO__DELAY_S: 'long'"),
        (["echo", "--set", "delay_s"], 1, "'delay_s' is not of the form NAME=VALUE"),
        (["echo", "--task", "echo={"], 1, "the request for 'echo' is not JSON"),
        (["no.such.module:Thing"], 1, "cannot be imported: ModuleNotFoundError"),
        (["support.broken_backends:caller_network"], 1, "not a subclass of gateway.plugin.Backend"),
    ],
)
def test_unusable_arguments_are_reported_with_a_fix(
    args: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    came, lines, err = run(capsys, *args)
    assert (came, lines) == (code, [])
    assert told in err


def test_command_line_settings_override_the_environment() -> None:
    environ = {
        "GATEWAY_BACKENDS__MINE__PLUGIN": "echo",
        "GATEWAY_BACKENDS__MINE__DELAY_S": "0.5",
        "GATEWAY_BACKENDS__MINE__DIMENSION": "4",
    }
    config = configured("echo", ["dimension=5"], environ)
    assert config.settings is not None
    assert config.settings.model_dump(include={"delay_s", "dimension"}) == {"delay_s": 0.5, "dimension": 5}


def test_other_backends_in_the_environment_are_ignored() -> None:
    environ = {"GATEWAY_BACKENDS__OTHER__PLUGIN": "no-such", "GATEWAY_BACKENDS__ECHO__DIMENSION": "6", "GATEWAY_X": "1"}
    config = configured("echo", [], environ)
    assert config.settings is not None
    assert config.settings.model_dump(include={"dimension"}) == {"dimension": 6}


def test_plugin_under_development_is_imported_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drafted_plugin.py").write_text("from support.broken_backends import Conforming as Draft\n")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "drafted_plugin:Draft")[0] == 0


def test_requests_is_none_when_no_request_is_given() -> None:
    assert requests([]) is None
    assert requests(["a=1", 'b={"c": 2}']) == {"a": 1, "b": {"c": 2}}
