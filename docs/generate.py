"""Generate the parts of the documentation that describe the code.

    .venv/bin/python docs/generate.py           rewrites outdated parts and prints their files
    .venv/bin/python docs/generate.py --check   only prints the files, and exits 1

A generated part is between two marks, `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a key of PARTS.
deploy/edge-gateway.env is the output of `edge-gateway config --env`. docs/configuration.md has a generator of its own,
gateway/settings/docs.py.
"""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from gateway import plugin, testing
from gateway.api.errors import ERRORS
from gateway.api.routes import ROUTES
from gateway.commands import plugins_new
from gateway.health import breaker
from gateway.ingress import response
from gateway.ingress.mqtt import deduplication
from gateway.measure import link_state
from gateway.registry import managed_backend
from gateway.settings.docs import declared_plugins
from gateway.settings.report import render_env
from gateway.telemetry.events import COMMON_KEYS, EVENTS, REQUEST_KEYS
from gateway.telemetry.metrics import REGISTRY
from gateway.workers import process as worker

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md")
ENV_FILE = ROOT / "deploy" / "edge-gateway.env"

_PART = re.compile(r"(<!-- generated: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table, line by line."""
    for row in (head, ("---" for _ in head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


# ── the log and the metrics ──────────────────────────────────────────────────────────────────────


def keys(described: Mapping[str, str]) -> Iterator[str]:
    """Log keys and their meaning."""
    return table(("key", "meaning"), ((f"`{key}`", doc) for key, doc in described.items()))


def events() -> Iterator[str]:
    """Every event; the two that carry the request line's keys refer to them."""
    for name, event in EVENTS.items():
        yield from (f"### `{name}`", "", event.doc, "")
        if event.keys is REQUEST_KEYS:
            yield "Its keys are those of [the request line](#the-request-line)."
        elif event.keys:
            yield from keys(event.keys)
        yield ""


def metrics() -> Iterator[str]:
    """Every metric."""
    rows = (
        (f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.doc)
        for m in sorted(REGISTRY, key=lambda m: m.name)
    )
    return table(("metric", "kind", "labels", "meaning"), rows)


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────


def endpoints() -> Iterator[str]:
    """Every endpoint of the data listener."""
    rows = (
        (f"`{r.method} {r.path}`", "health" if r.is_health else r.kind, "yes" if r.is_openai else "", r.summary)
        for r in ROUTES
    )
    return table(("endpoint", "kind", "also without `/v1`", "does"), rows)


def errors() -> Iterator[str]:
    """Every error code."""
    rows = (
        (str(row.status), f"`{code}`", f"`{row.type}`", "yes" if row.retryable else "no", row.when)
        for code, row in ERRORS.items()
    )
    return table(("status", "code", "type", "retryable", "when"), rows)


# ── architecture ─────────────────────────────────────────────────────────────────────────────────


def layers() -> Iterator[str]:
    """The packages of the layering test, lowest layer last, each with the first line of its docstring."""
    layering = runpy.run_path(str(ROOT / "tests" / "test_layering.py"))
    by_layer = sorted(layering["LAYERS"].items(), key=lambda entry: (-entry[1], entry[0]))
    rows = (
        ("any" if layer == layering["ANYTHING"] else str(layer), f"`{file.relative_to(ROOT)}`", first_sentence(file))
        for package, layer in by_layer
        if not package.startswith("__") and (file := package_file(package)) is not None
    )
    return table(("layer", "package", "purpose"), rows)


def package_file(package: str) -> Path | None:
    """The file with the docstring of a package; None if the package does not exist."""
    candidates = (ROOT / "gateway" / f"{package}.py", ROOT / "gateway" / package / "__init__.py")
    return next((path for path in candidates if path.exists()), None)


def first_sentence(file: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


# ── plugins ──────────────────────────────────────────────────────────────────────────────────────


def source(text: str) -> Iterator[str]:
    """The source of a module, unchanged."""
    yield from ("```python", *text.rstrip().splitlines(), "```")


def recipe(path: str) -> Iterator[str]:
    """The source of an example."""
    return source((ROOT / "docs" / "examples" / path).read_text())


def new_plugin() -> Iterator[str]:
    """The module that `plugins new words` creates."""
    return source(dict(plugins_new.render_files("words"))["gateway_words.py"])


def checks() -> Iterator[str]:
    """Every check of the conformance kit."""
    return table(("check", "the promise"), ((f"`{name}`", paragraph(check)) for name, check in testing.CHECKS.items()))


def reference() -> Iterator[str]:
    """Every public name of `gateway.plugin` and `gateway.testing`."""
    for module in (plugin, testing):
        for name in sorted(module.__all__, key=str.lower):
            yield from entry(module.__name__, name, getattr(module, name))


def entry(module: str, name: str, what: Any) -> Iterator[str]:
    """A public name with its docstring and its public methods."""
    yield from (f"### `{name}`", "")
    if not (inspect.isclass(what) or inspect.isroutine(what)):
        values = get_args(what) or (sorted(what) if isinstance(what, frozenset) else tuple(what))
        yield from (f"`{module}.{name}`, one of: {', '.join(f'`{value}`' for value in values)}.", "")
        return
    arguments = shape(what) if inspect.isroutine(what) else ""
    yield from (f"`{module}.{name}{arguments}`", "", inspect.getdoc(what) or "", "")
    described = [*members(what)] if inspect.isclass(what) else []
    yield from (*described, "") if described else ()


def members(cls: type) -> Iterator[str]:
    """Every public method and property of a class that has a docstring."""
    for name, value in vars(cls).items():
        is_property = isinstance(value, property)
        if name[0] != "_" and value.__doc__ and (is_property or inspect.isroutine(value)):
            yield f"- `{name}{'' if is_property else shape(value)}`: {paragraph(value)}"


def shape(function: Any) -> str:
    """A function's arguments without `self` and types; a default that is not a plain value is `…`."""
    found = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    plain = (str, int, float, type(None), type(inspect.Parameter.empty))
    return "(" + ", ".join(
        f"{p.replace(annotation=p.empty)}" if isinstance(p.default, plain) else f"{p.name}=…" for p in found
    ) + ")"  # fmt: skip


def paragraph(what: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(what) or "").partition("\n\n")[0].split())


def transitions(states: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """A state machine: one row for each state, one column for each event; an empty cell cannot happen."""
    columns = list(dict.fromkeys(event for row in states.values() for event in row))
    rows = ([f"**{state}**", *(row.get(event, "") for event in columns)] for state, row in states.items())
    return table(["", *columns], rows)


def benchmarks() -> Iterator[str]:
    """Every benchmark, with the first line of its docstring."""
    files = sorted((ROOT / "bench").glob("[!_]*.py"))
    return table(("command", "measures"), ((f"`./run bench {file.stem}`", first_sentence(file)) for file in files))


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "common keys": partial(keys, COMMON_KEYS),
    "request keys": partial(keys, REQUEST_KEYS),
    "events": events,
    "metrics": metrics,
    "endpoints": endpoints,
    "errors": errors,
    "layers": layers,
    "benchmarks": benchmarks,
    "new plugin": new_plugin,
    "checks": checks,
    "reference": reference,
    "recipe wrap function": partial(recipe, "plugins/wrap_function.py"),
    "recipe vendor api": partial(recipe, "plugins/vendor_api.py"),
    "recipe serial device": partial(recipe, "plugins/serial_device.py"),
    "recipe stream tokens": partial(recipe, "plugins/stream_tokens.py"),
    "recipe confidence": partial(recipe, "plugins/confidence.py"),
    "recipe split work": partial(recipe, "plugins/split_work.py"),
    "recipe picture": partial(recipe, "picture_to_text/gateway_picture.py"),
    "link states": partial(transitions, link_state.TRANSITIONS),
    "breaker states": partial(transitions, breaker.TRANSITIONS),
    "backend states": partial(transitions, managed_backend.TRANSITIONS),
    "response states": partial(transitions, response.TRANSITIONS),
    "mqtt request states": partial(transitions, deduplication.TRANSITIONS),
    "worker states": partial(transitions, worker.TRANSITIONS),
}


def refreshed(text: str) -> str:
    """A page with its generated parts renewed. Raises KeyError for an unknown part."""

    def anew(found: re.Match[str]) -> str:
        return f"{found[1]}\n{chr(10).join(PARTS[found[2]]()).rstrip()}\n\n{found[3]}"

    return _PART.sub(anew, text)


def current() -> Iterator[tuple[Path, str]]:
    """Every file with generated parts, and its current text."""
    for page in PAGES:
        yield page, refreshed(page.read_text())
    yield ENV_FILE, render_env(declared_plugins(ROOT))


def main(arguments: list[str]) -> int:
    """Rewrite the outdated files; with `--check` only print them."""
    stale = {file: text for file, text in current() if not file.exists() or text != file.read_text()}
    for file, text in stale.items():
        print(file.relative_to(ROOT))
        if "--check" not in arguments:
            file.write_text(text)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
