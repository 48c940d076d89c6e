"""The shape of the code, as numbers: printed, and held to their bounds by `./run lint`.

    .venv/bin/python tests/shape.py

Functions are short, a file has one subject, there are no import cycles (imports inside functions count), and every
module and public class has a docstring. In gateway/plugin, which plugin authors read, public functions and methods have
one too. Elsewhere a function needs a docstring only where its name and signature leave something out.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from test_layering import cycles, imports

ROOT = Path(__file__).resolve().parent.parent
MEDIAN_LINES, P95_LINES, FILE_LINES = 12, 40, 450
FOLDERS = ("gateway", "plugins", "bench", "tests", "docs", "requirements")
DOCUMENTED = ("gateway", "plugins")
PLUGIN_API = "gateway/plugin/"  # every public name has a docstring
# Files that may exceed FILE_LINES, and the reason. An entry that is no longer needed must be removed.
LONGER: Mapping[str, str] = {
    "tests/support/netlink_emulator.py": "a network of namespaces, run by itself as one program",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path, folders: tuple[str, ...]) -> dict[str, ast.Module]:
    """Every Python file below these folders, parsed, by its path."""
    found = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return {str(path.relative_to(root)): ast.parse(path.read_text(), filename=str(path)) for path in found}


# ── lengths ──────────────────────────────────────────────────────────────────────────────────────


def function_lines(trees: Mapping[str, ast.Module]) -> list[tuple[int, str]]:
    """How long each function is, and where it stands; the shortest first."""
    return sorted(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )


def percentile(values: list[int], share: float) -> int:
    """The value that `share` of them do not exceed; `values` are sorted."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0


def file_complaints(lengths: Mapping[str, int], longer: Mapping[str, str]) -> Iterator[str]:
    """Files beyond the bound, and exceptions that are none any more."""
    for path, lines in lengths.items():
        if lines > FILE_LINES and path not in longer:
            yield f"{path}: {lines} lines, more than {FILE_LINES}: split it by subject"
    for path in longer:
        if lengths.get(path, 0) <= FILE_LINES:
            yield f"{path}: no longer exceeds the limit; remove it from LONGER"


# ── documentation ────────────────────────────────────────────────────────────────────────────────


def undocumented(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Modules and public classes without a docstring; under PLUGIN_API, public functions and methods too."""
    for path, tree in trees.items():
        if not ast.get_docstring(tree):
            yield f"{path}:1 the module has no docstring"
        for node in tree.body:
            if isinstance(node, ast.ClassDef) or (isinstance(node, Function) and path.startswith(PLUGIN_API)):
                yield from _undocumented_in(path, node)


def _undocumented_in(path: str, node: ast.ClassDef | Function) -> Iterator[str]:
    if node.name.startswith("_"):
        return
    if not ast.get_docstring(node):
        yield f"{path}:{node.lineno} {node.name} has no docstring"
    if isinstance(node, ast.ClassDef) and path.startswith(PLUGIN_API):
        for method in node.body:
            is_public = isinstance(method, Function) and not method.name.startswith("_")
            if is_public and not ast.get_docstring(method):
                yield f"{path}:{method.lineno} {node.name}.{method.name} has no docstring"


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


def measured(root: Path, longer: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The numbers as lines to print, and everything that is out of bounds."""
    trees = sources(root, FOLDERS)
    ours = {path: tree for path, tree in trees.items() if path.startswith(DOCUMENTED)}
    lengths = {path: len((root / path).read_text().splitlines()) for path in trees}
    rings, silent = cycles(imports(root)), list(undocumented(ours))
    numbers, complaints = [], [*file_complaints(lengths, longer), *rings, *silent]
    for name, some in (("gateway, plugins", ours), ("everything", trees)):
        lines = [number for number, _ in function_lines(some)]
        median, p95 = statistics.median(lines or [0]), percentile(lines, 0.95)
        numbers.append(f"{name}: {len(lines)} functions, median {median:g} lines (at most {MEDIAN_LINES}), "
                       f"p95 {p95} (at most {P95_LINES})")  # fmt: skip
        if median > MEDIAN_LINES or p95 > P95_LINES:
            worst = ", ".join(f"{where} ({number})" for number, where in function_lines(some)[-5:])
            complaints.append(f"{name}: functions are too long; the longest ones: {worst}")
    numbers.append(
        f"{len(lengths)} files, the longest {max(lengths.values(), default=0)} lines (at most {FILE_LINES}, "
        f"{len(longer)} excepted); {len(rings)} import cycles; {len(silent)} public names undocumented"
    )
    return numbers, complaints


def main() -> int:
    """Print the numbers, and what is out of bounds; 1 where anything is."""
    numbers, complaints = measured(ROOT, LONGER)
    print("\n".join([*numbers, *complaints]))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
