"""`plugins list`: installed and enabled plugins, their state, and the reasons."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from gateway import cli
from gateway.commands.plugins_list import PluginRow, rows, table
from gateway.settings import load
from gateway.testing import running_gateway
from support.configurations import SHOUT, test_plugins  # noqa: F401

pytestmark = pytest.mark.usefixtures("test_plugins")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_ADMIN_LISTEN", "127.0.0.1:1")  # tcpmux: no listener


def by_plugin(environ: dict[str, str], status: Any = None) -> dict[str, PluginRow]:
    return {row.plugin: row for row in rows(load(environ).backends if environ else {}, status)}


def test_installed_plugin_is_listed_with_distribution_and_tasks() -> None:
    row = by_plugin({})["shout"]
    assert (row.version, row.distribution, row.backend, row.state) == ("1.2.3", "test-plugins", "-", "off")
    assert row.serves == "tasks shout"


def test_broken_plugin_is_listed_with_the_reason() -> None:
    row = by_plugin({})["rotten"]
    assert row.state == "broken"
    assert "cannot be imported: ModuleNotFoundError" in row.why


def test_enabled_plugin_is_listed_under_its_backend_name() -> None:
    row = by_plugin(SHOUT | {"GATEWAY_BACKENDS__E__TASKS": "loud"})["shout"]
    assert (row.backend, row.state, row.serves) == ("e", "enabled", "tasks loud")


def test_plugin_enabled_by_import_path_is_listed() -> None:
    row = by_plugin({"GATEWAY_BACKENDS__E__PLUGIN": "support.configurations:Shout"})["support.configurations:Shout"]
    assert (row.distribution, row.state) == ("-", "enabled")


async def test_state_is_taken_from_the_running_gateway() -> None:
    environ = {
        "GATEWAY_BACKENDS__FRONT__PLUGIN": "support.stub_backend:StubBackend",
        "GATEWAY_BACKENDS__FRONT__REFUSES_TO_OPEN": "1",
    }
    async with running_gateway(**SHOUT, **environ) as gateway, gateway.session() as http:
        await gateway.line("backend.failed_to_open")
        async with http.get(f"{gateway.admin_url}/status") as answer:
            found = by_plugin({}, await answer.json())
    assert found["shout"].state == "serving"
    assert found["support.stub_backend:StubBackend"].state == "failed"
    assert found["support.stub_backend:StubBackend"].why == "the desk is locked; set REFUSES_TO_OPEN=false"


def test_table_aligns_columns_and_prints_reasons_below() -> None:
    lines = list(table([PluginRow(plugin="a"), PluginRow(plugin="longer", state="broken", why="it is")]))
    assert lines[0].startswith("PLUGIN  VERSION  DISTRIBUTION")
    assert lines[1].startswith("a       -        -")
    assert lines[3] == "    it is"


def test_command_reports_that_no_gateway_answers_at_the_address(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_BACKENDS__E__PLUGIN", "shout")
    assert cli.main(["plugins", "list"]) == 0
    told = capsys.readouterr()
    assert "shout" in told.out
    assert told.err == "no gateway answers at 127.0.0.1:1: the states are those of this environment\n"


def test_gateway_address_is_read_from_an_environment_without_backends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["plugins", "list"]) == 0
    assert "no gateway answers at 127.0.0.1:1:" in capsys.readouterr().err
    monkeypatch.setenv("GATEWAY_ADMIN_LISTEN", "nowhere")
    assert cli.main(["plugins", "list"]) == 0
    assert "at 127.0.0.1:8081" in capsys.readouterr().err


def test_installed_plugins_are_listed_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "list", "--json"]) == 0
    found = {row["plugin"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["shout"]["distribution"] == "test-plugins"
    assert found["shout"]["backend"] is None
