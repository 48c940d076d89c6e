"""`plugins list`: what is installed, what is enabled, what the running gateway says, and why not."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from gateway import cli
from gateway.settings import load
from gateway.testing import running_gateway
from gateway.workshop.listing import Row, rows, table
from support.configurations import SHOUT, test_plugins  # noqa: F401

pytestmark = pytest.mark.usefixtures("test_plugins")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_ADMIN_LISTEN", "127.0.0.1:1")  # tcpmux; nobody serves it


def by_plugin(environ: dict[str, str], status: Any = None) -> dict[str, Row]:
    return {row.plugin: row for row in rows(load(environ).backends if environ else {}, status)}


def test_what_is_installed_is_listed_with_where_it_is_from_and_what_it_serves() -> None:
    row = by_plugin({})["shout"]
    assert (row.version, row.distribution, row.backend, row.state) == ("1.2.3", "test-plugins", "-", "off")
    assert row.serves == "tasks shout"


def test_a_broken_plugin_is_listed_with_why() -> None:
    row = by_plugin({})["rotten"]
    assert row.state == "broken"
    assert "cannot be imported: ModuleNotFoundError" in row.why


def test_what_the_environment_enables_is_listed_under_its_backends_name() -> None:
    row = by_plugin(SHOUT | {"GATEWAY_BACKENDS__E__TASKS": "loud"})["shout"]
    assert (row.backend, row.state, row.serves) == ("e", "enabled", "tasks loud")


def test_a_plugin_that_is_not_installed_is_listed_where_it_is_enabled() -> None:
    row = by_plugin({"GATEWAY_BACKENDS__E__PLUGIN": "support.configurations:Shout"})["support.configurations:Shout"]
    assert (row.distribution, row.state) == ("-", "enabled")


async def test_the_running_gateways_word_counts() -> None:
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


def test_the_table_aligns_and_tells_reasons_below() -> None:
    lines = list(table([Row(plugin="a"), Row(plugin="longer", state="broken", why="it is")]))
    assert lines[0].startswith("PLUGIN  VERSION  DISTRIBUTION")
    assert lines[1].startswith("a       -        -")
    assert lines[3] == "    it is"


def test_the_command_says_whom_it_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_BACKENDS__E__PLUGIN", "shout")
    assert cli.main(["plugins", "list"]) == 0
    told = capsys.readouterr()
    assert "shout" in told.out
    assert told.err == "no gateway answers at 127.0.0.1:1: the states are what this environment enables\n"


def test_the_gateway_is_asked_where_the_environment_says_even_if_that_enables_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["plugins", "list"]) == 0
    assert "no gateway answers at 127.0.0.1:1:" in capsys.readouterr().err
    monkeypatch.setenv("GATEWAY_ADMIN_LISTEN", "nowhere")
    assert cli.main(["plugins", "list"]) == 0
    assert "at 127.0.0.1:8081" in capsys.readouterr().err


def test_without_a_configuration_what_is_installed_is_listed_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "list", "--json"]) == 0
    found = {row["plugin"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["shout"]["distribution"] == "test-plugins"
    assert found["shout"]["backend"] is None
