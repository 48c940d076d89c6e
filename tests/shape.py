"""The shape of the code, as numbers: printed, and held to their bounds by `./run lint`.

    .venv/bin/python tests/shape.py

Functions are short, files tell one story, nothing imports itself in a ring (imports inside functions count), and every
public name says what it promises. The bounds are what code that is a pleasure to read stays within.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from test_layering import cycles, imports

ROOT = Path(__file__).resolve().parent.parent
MEDIAN_LINES, P95_LINES, FILE_LINES = 9, 40, 500
FOLDERS = ("gateway", "plugins", "bench", "tests", "docs", "requirements")
DOCUMENTED = ("gateway", "plugins")
# A file that tells one story and is longer for it, with why. One that no longer is must go from this table.
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
            yield f"{path}: {lines} lines, more than {FILE_LINES}: it tells more than one story, give each a file"
    for path in longer:
        if lengths.get(path, 0) <= FILE_LINES:
            yield f"{path}: no longer an exception; take it out of LONGER"


# ── documentation ────────────────────────────────────────────────────────────────────────────────


def undocumented(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Every public module, class, function and method without a docstring, where no base class has one for it."""
    classes = {c.name: c for tree in trees.values() for c in ast.walk(tree) if isinstance(c, ast.ClassDef)}
    for path, tree in trees.items():
        if not ast.get_docstring(tree):
            yield f"{path}:1 the module says nothing of itself"
        for node in tree.body:
            if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
                yield from _undocumented_in(path, node, classes)


def _undocumented_in(path: str, node: ast.ClassDef | Function, classes: Mapping[str, ast.ClassDef]) -> Iterator[str]:
    if not ast.get_docstring(node):
        yield f"{path}:{node.lineno} {node.name} says nothing of itself"
    for method in node.body if isinstance(node, ast.ClassDef) else []:
        is_public = isinstance(method, Function) and not method.name.startswith("_")
        if is_public and not _is_documented(node, method.name, classes):
            yield f"{path}:{method.lineno} {node.name}.{method.name} says nothing of itself"


def _is_documented(cls: ast.ClassDef, method: str, classes: Mapping[str, ast.ClassDef]) -> bool:
    own = (node for node in cls.body if isinstance(node, Function) and node.name == method)
    if any(ast.get_docstring(node) for node in own):
        return True
    bases = (base.value if isinstance(base, ast.Subscript) else base for base in cls.bases)
    names = (base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in bases)
    return any(_is_documented(classes[name], method, classes) for name in names if name in classes)


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
            complaints.append(f"{name}: functions are too long; the longest: {worst}")
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
