"""Log events the code can emit, read from its syntax trees.

Each has a location, a name and its keys.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LEVELS = {"debug", "info", "warning", "warning_with_id", "error"}
EVENT = re.compile(r"[a-z]+\.[a-z_]+")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Emission(NamedTuple):
    """A place that emits `event`.

    `keys` is None if the code passes a dictionary built elsewhere.
    """

    event: str
    keys: frozenset[str] | None
    where: str


def emissions(root: Path) -> list[Emission]:
    found = []
    for folder in ("gateway", "plugins"):
        for path in sorted((root / folder).rglob("*.py")):
            found += _in_file(path, str(path.relative_to(root)))
    return found


def _in_file(path: Path, name: str) -> Iterator[Emission]:
    tree = ast.parse(path.read_text())
    limited = dict(_limited(tree))
    for scope, call in _calls(tree):
        where = f"{name}:{call.lineno}"
        if _called(call) == "LogLine":  # a log line of a worker, sent to the gateway
            yield from (Emission(event, None, where) for event in sorted(_events(call.args[1], scope)))
        if not (isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS):
            continue
        logger = _last_name(call.func.value)
        keys = frozenset(word.arg for word in call.keywords if word.arg) if _all_named(call) else None
        if logger in limited and keys is not None:
            yield Emission(limited[logger], keys | {"suppressed"}, where)
        elif logger in ("log", "_log") and call.args:
            bound = set() if isinstance(call.func.value, ast.Name) else {"backend"}
            for event in sorted(_events(call.args[0], scope)):  # two workers of one run number the tests alike
                yield Emission(event, None if keys is None else keys | bound, where)


def _calls(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Yield every call with its enclosing function."""
    pending: deque[tuple[ast.AST, ast.AST]] = deque([(tree, tree)])
    while pending:
        node, scope = pending.popleft()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield scope, child
            pending.append((child, child if isinstance(child, FUNCTION) else scope))


def _events(name: ast.expr, scope: ast.AST) -> set[str]:
    """Return the event names of an expression.

    They are constants in it, or in the values assigned to its variable.
    """
    sources: list[ast.AST] = [name]
    if isinstance(name, ast.Name):
        sources = [
            node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and name.id in {_last_name(target) for target in node.targets}
        ]
    constants = (node for source in sources for node in ast.walk(source) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str) and EVENT.fullmatch(node.value)}


def _limited(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the last name and event of every variable that holds a `RateLimitedEvent`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and _called(node.value) == "RateLimitedEvent"
        ):
            first = node.value.args[0]
            assert isinstance(first, ast.Constant)
            yield _last_name(node.targets[0]), first.value


def _called(call: ast.Call) -> str:
    return _last_name(call.func)


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _all_named(call: ast.Call) -> bool:
    return all(word.arg for word in call.keywords)
