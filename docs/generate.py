"""Keeps the generated parts of the documents in step with the code they describe.

    .venv/bin/python docs/generate.py           rewrites what is out of date, and names it
    .venv/bin/python docs/generate.py --check   only names it, and exits 1

A generated part stands between two marks, `<!-- generated: NAME -->` and `<!-- end -->`; NAME is one of PARTS.
deploy/edge-gateway.env is what `edge-gateway config --env` prints. docs/configuration.md has a generator of its own,
gateway/settings/docs.py.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from gateway.decide import breaker
from gateway.ingress.errors import ERRORS
from gateway.ingress.routes import ROUTES
from gateway.measure import link
from gateway.settings.docs import declared_plugins
from gateway.settings.report import render_env
from gateway.telemetry.events import COMMON_KEYS, EVENTS, REQUEST_KEYS
from gateway.telemetry.metrics import REGISTRY

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
    """Log keys and what they mean."""
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


# ── the house ────────────────────────────────────────────────────────────────────────────────────


def floors() -> Iterator[str]:
    """The rooms that exist, lowest floor last, as the layering test holds them, each with its own first sentence."""
    layering = runpy.run_path(str(ROOT / "tests" / "test_layering.py"))
    by_floor = sorted(layering["FLOORS"].items(), key=lambda entry: (-entry[1], entry[0]))
    rows = (
        ("any" if floor == layering["ANYTHING"] else str(floor), f"`{file.relative_to(ROOT)}`", first_sentence(file))
        for room, floor in by_floor
        if not room.startswith("__") and (file := room_file(room)) is not None
    )
    return table(("floor", "room", "what it is for"), rows)


def room_file(room: str) -> Path | None:
    """The file whose docstring speaks for a room; None where the room is not built."""
    candidates = (ROOT / "gateway" / f"{room}.py", ROOT / "gateway" / room / "__init__.py")
    return next((path for path in candidates if path.exists()), None)


def first_sentence(file: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def transitions(states: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """A state machine: one row for each state, one column for each event; an empty cell cannot happen."""
    columns = list(dict.fromkeys(event for row in states.values() for event in row))
    rows = ([f"**{state}**", *(row.get(event, "") for event in columns)] for state, row in states.items())
    return table(["", *columns], rows)


def benchmarks() -> Iterator[str]:
    """Every benchmark, with its own first sentence."""
    files = sorted((ROOT / "bench").glob("[!_]*.py"))
    return table(("command", "measures"), ((f"`./run bench {file.stem}`", first_sentence(file)) for file in files))


PARTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "common keys": partial(keys, COMMON_KEYS),
    "request keys": partial(keys, REQUEST_KEYS),
    "events": events,
    "metrics": metrics,
    "endpoints": endpoints,
    "errors": errors,
    "floors": floors,
    "benchmarks": benchmarks,
    "link states": partial(transitions, link.TRANSITIONS),
    "breaker states": partial(transitions, breaker.TRANSITIONS),
}


def refreshed(text: str) -> str:
    """A page with its generated parts made anew. Raises KeyError for a part that nothing here makes."""

    def anew(found: re.Match[str]) -> str:
        return f"{found[1]}\n{chr(10).join(PARTS[found[2]]()).rstrip()}\n\n{found[3]}"

    return _PART.sub(anew, text)


def current() -> Iterator[tuple[Path, str]]:
    """Every file with generated parts, and what it should hold."""
    for page in PAGES:
        yield page, refreshed(page.read_text())
    yield ENV_FILE, render_env(declared_plugins(ROOT))


def main(arguments: list[str]) -> int:
    """Rewrite, or with `--check` name, the files that are out of date."""
    stale = {file: text for file, text in current() if not file.exists() or text != file.read_text()}
    for file, text in stale.items():
        print(file.relative_to(ROOT))
        if "--check" not in arguments:
            file.write_text(text)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
