"""The documents match the code in both directions, and their examples run.

A fenced block marked `runnable` is run here; the blocks of a page run in order, in one session. If a `text` block
follows directly, the output must equal it, where `…` matches any text. `sh runnable gateway` and `sh runnable service
PORT` keep running. A block marked `sh settings` must load as a configuration.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway import plugin
from gateway.api.errors import ERRORS
from gateway.api.routes import ROUTES
from gateway.cli import COMMANDS
from gateway.commands.plugins_new import create
from gateway.ingress.http import body, response_writer, server
from gateway.plugin import TERMS, Backend, GatewayError, Services
from gateway.policy import decide
from gateway.settings import load
from gateway.telemetry.events import COMMON_KEYS, EVENTS, REQUEST_KEYS
from gateway.telemetry.metrics import REGISTRY
from support.documents import PAGES, ROOT, Block, BlockRunner, anchors, blocks, links, matches
from support.log_emissions import Emission, emissions
from support.programs import needs

EMITTED = emissions(ROOT)
REGENERATE = "the code has changed: run `.venv/bin/python docs/generate.py`"


def page(name: str) -> str:
    return (ROOT / name).read_text()


def by_page(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ── generated parts ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_parts_are_up_to_date(generator: dict[str, Any]) -> None:
    stale = [by_page(file) for file, text in generator["current"]() if file.read_text() != text]
    assert not stale, REGENERATE


def test_every_generated_part_is_used_in_a_page(generator: dict[str, Any]) -> None:
    used = set(re.findall(r"<!-- generated: ([\w ]+) -->", "".join(path.read_text() for path in PAGES)))
    assert used == set(generator["PARTS"])


# ── the code and the tables ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("emission", EMITTED, ids=lambda e: f"{e.event} at {e.where}")
def test_event_is_emitted_with_its_declared_keys(emission: Emission) -> None:
    assert emission.event in EVENTS, f"{emission.where}: declare {emission.event} in gateway/telemetry/events.py"
    if emission.keys is not None:
        assert emission.keys == set(EVENTS[emission.event].keys), f"{emission.where}: keys differ from the table's"


def test_every_declared_event_is_emitted() -> None:
    assert set(EVENTS) == {emission.event for emission in EMITTED}


def test_documented_events_keys_metrics_errors_and_endpoints_match_the_code() -> None:
    log, interface = page("docs/log.md"), page("docs/http.md")
    assert set(re.findall(r"^### `([\w.]+)`$", log, re.MULTILINE)) == set(EVENTS)
    assert set(re.findall(r"^\| `(edge_gateway_\w+)` \|", log, re.MULTILINE)) == {metric.name for metric in REGISTRY}
    keys = {key for event in EVENTS.values() for key in event.keys} | set(COMMON_KEYS)
    assert keys <= set(re.findall(r"^\| `(\w+)` \|", log, re.MULTILINE))
    assert set(re.findall(r"^\| \d{3} \| `(\w+)` \|", interface, re.MULTILINE)) == set(ERRORS)
    served = set(re.findall(r"^\| `((?:GET|POST) /\S+)` \|", interface, re.MULTILINE))
    assert {f"{route.method} {route.path}" for route in ROUTES} <= served


def test_documented_admin_endpoints_match_the_code() -> None:
    source = page("gateway/admin.py")
    pages = dict(re.findall(r'"(/\w+)": \("([A-Z]+)", self\._\w+\)', source))
    section = page("docs/http.md").partition("## The admin listener")[2]
    assert {path: method for method, path in re.findall(r"^\| `(\w+) (/\w+)", section, re.MULTILINE)} == pages


def test_documented_client_limits_match_the_code() -> None:
    text = " ".join(page("docs/http.md").split())
    assert f"head must be there within {server.HEAD_TIMEOUT_S:g} s" in text
    assert f"body within {body.BODY_TIMEOUT_S:g} s and {body.BODY_S_PER_BYTE * 1000:g} s more for each kB" in text
    assert f"reads nothing of its answer for {response_writer.WRITE_TIMEOUT_S:g} s" in text
    assert f"{response_writer.MANY} and more" in text
    assert f"each have {response_writer.CROWDED_S:g} s" in text


def assigned_reasons() -> set[str]:
    """Return the reasons that dispatch adds to the policy's in `record.reason`."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "gateway" / "dispatch").glob("*.py"))
    values = (
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(ast.unparse(target).endswith(".reason") for target in node.targets)
    )
    constants = (node.value for value in values for node in ast.walk(value) if isinstance(node, ast.Constant))
    return {reason for reason in constants if isinstance(reason, str)}


def test_documented_decision_reasons_match_the_code() -> None:
    section = page("docs/log.md").partition("### Reasons")[2].partition("## Events")[0]
    documented = set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE))
    assert documented == set(decide.__globals__["_SENTENCES"]) | assigned_reasons()


def test_plugin_attributes_methods_services_and_errors_are_documented() -> None:
    text = page("docs/plugins.md")
    declared = {name for name in Backend.__annotations__ if name != "Settings"}
    methods = {name for name, member in vars(Backend).items() if inspect.isfunction(member) and name[0] != "_"}
    services = {name for name in vars(Services) if name[0] != "_"}
    errors = {error.__name__ for error in GatewayError.__subclasses__() if error.__name__ in plugin.__all__}
    wanted = declared | methods | services | errors
    assert {name for name in wanted if not re.search(rf"`{name}\b", text)} == set()


def test_documented_time_terms_match_the_code() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \|", page("docs/timing.md"), re.MULTILINE)) == TERMS


def test_every_mentioned_command_exists() -> None:
    known = {command.name for command in COMMANDS} | {"demo", "test", "lint", "bench"}
    for path in PAGES:
        mentioned = set(re.findall(r"(?:\./run|`edge-gateway) ([a-z]\w*)", path.read_text()))
        assert mentioned <= known, f"{path.name} mentions {mentioned - known}"


# ── links ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", PAGES, ids=by_page)
def test_link_targets_exist(path: Path) -> None:
    for link in links(path):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{path.name}: {link}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in links(ROOT / "README.md") if "://" not in link}
    assert set((ROOT / "docs").glob("*.md")) <= linked


# ── examples ─────────────────────────────────────────────────────────────────────────────────────


def ran(path: Path, language: str) -> list[Block]:
    return [block for block in blocks(path) if block.is_runnable and block.info_words[0] == language]


def test_some_blocks_are_marked_runnable() -> None:
    assert any(ran(path, "sh") for path in PAGES)
    assert any(ran(path, "python") for path in PAGES)


@pytest.mark.parametrize("path", [path for path in PAGES if ran(path, "python")], ids=by_page)
def test_python_examples_print_the_documented_output(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "documented"}
    for block in ran(path, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, str(block), "exec"), namespace)
        if block.expected is not None:
            assert printed.getvalue() == block.expected, str(block)


@needs("curl")
@pytest.mark.timeout(120)
def test_readme_commands_print_the_documented_output(tmp_path: Path) -> None:
    with BlockRunner(tmp_path) as terminals:
        for block in ran(ROOT / "README.md", "sh"):
            came = terminals.run(block)
            if came is not None and block.expected is not None:
                assert matches(block.expected, came), f"{block} documents\n{block.expected}\nbut printed\n{came}"


def as_typed(text: str, places: str) -> str:
    """Add the checkout, which is not installed, to the path.

    Repeat a grep until the log line is written.
    """
    text = text.replace("PYTHONPATH=.", f"PYTHONPATH=.:{places}")
    return f"until {text.strip()}; do sleep 0.05; done" if text.startswith("grep ") else text


@needs("curl")
@pytest.mark.timeout(120)
def test_tutorial_commands_print_the_documented_output_in_an_empty_folder(tmp_path: Path) -> None:
    """`cd` persists between blocks.

    A `python` block is written to the file it names.
    """
    page = ROOT / "docs" / "plugins.md"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    places = f"{ROOT}:{ROOT / 'plugins'}"  # the checkout is not installed
    (tmp_path / "empty").mkdir()
    with BlockRunner(tmp_path, {"PATH": path, "PYTHONPATH": places}, tmp_path / "empty") as terminals:
        for block in [block for block in blocks(page) if block.is_runnable]:
            if block.info_words[0] == "python":
                (terminals.cwd / block.info_words[-1]).write_text(block.text)
                continue
            came = terminals.run(block._replace(text=as_typed(block.text, places)))
            if folder := re.search(r"^cd (\S+)$", block.text, re.MULTILINE):
                terminals.cwd /= folder[1]
            if came is not None and block.expected is not None:
                assert matches(block.expected, came), f"{block} documents\n{block.expected}\nbut printed\n{came}"


def settings_blocks() -> list[Block]:
    return [block for path in PAGES for block in blocks(path) if block.info_words == ("sh", "settings")]


@pytest.mark.parametrize("block", settings_blocks(), ids=str)
def test_settings_examples_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gateway_words" in block.text:  # created by `plugins new words`
        monkeypatch.syspath_prepend(create("words", tmp_path).folder)
    secret = tmp_path / "secret"
    secret.write_text("sk-0123456789abcdef\n")
    file = tmp_path / "gateway.env"
    file.write_text(re.sub(r"(_FILE=)\S+", rf"\g<1>{secret}", block.text))
    assert not load({}, file).broken


def shown_lines() -> list[Mapping[str, Any]]:
    shown = [json.loads(b.text) for path in PAGES for b in blocks(path) if b.info_words == ("json",)]
    return [line for line in shown if line.get("event") == "request.finished"]


def test_documented_log_line_has_every_key_and_its_time_terms_add_up() -> None:
    for line in shown_lines():
        assert list(line) == [*COMMON_KEYS, *REQUEST_KEYS]
        terms = sum(line[f"t_{term}_ms"] for term in TERMS)
        assert line["t_total_ms"] == pytest.approx(terms - line["t_overlap_ms"] + line["t_other_ms"], abs=1e-6)
    assert shown_lines()
