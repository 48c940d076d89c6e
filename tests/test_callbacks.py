"""No callback is assigned into another object of gateway/: an object gets what it calls in its constructor.

Callbacks are dependencies that imports do not show (`test_layering.py`). gateway/ assigns no function, bound method,
lambda or `partial` to an attribute of an object other than `self` or `cls`. The callable is passed to a constructor,
or the object to be called is passed, under a Protocol.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gateway"
CALLBACK_ATTRIBUTES = ("_paho",)  # library objects that take their callbacks as attributes


def late_callbacks(root: Path) -> list[str]:
    """One complaint for each callable in gateway/ that is assigned to an attribute of another object."""
    trees = {path: ast.parse(path.read_text(), filename=str(path)) for path in sorted((root / PACKAGE).rglob("*.py"))}
    methods = method_names(trees.values())
    return [
        f"{path.relative_to(root)}:{line}: `{text}` puts a callback into another object. "
        f"Pass it to the constructor, or pass the object that is to be called"
        for path, tree in trees.items()
        for line, text in assigned_callables(tree, methods)
    ]


def method_names(trees: Iterable[ast.Module]) -> set[str]:
    """Names of methods, but not those that any class also uses for data or a property."""
    methods, data = set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    is_property = any("property" in ast.unparse(each) for each in member.decorator_list)
                    (data if is_property else methods).add(member.name)
                elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                    data.add(member.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            data.add(node.attr)
    return methods - data


def assigned_callables(tree: ast.Module, methods: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each assignment of a callable to an attribute of an object other than self or cls."""
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    imported = {alias.asname or alias.name.partition(".")[0]
                for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
    for node in ast.walk(tree):
        for target, value in attribute_assignments(node):
            names = ast.unparse(target).split(".")
            is_foreign = names[0] in imported or names[-1] in CALLBACK_ATTRIBUTES  # `sys.excepthook = …`
            if not is_own(target) and not is_foreign and is_callable(value, functions, methods):
                yield node.lineno, ast.unparse(node)


def attribute_assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(object, value) of each assignment to an attribute in one statement, `setattr` included."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
        yield node.args[0], node.args[2]
    for target, value in pairs:  # grows: `a.x, b.y = f, g` is two assignments
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs.extend(zip(target.elts, value.elts, strict=False))
        elif isinstance(target, ast.Attribute):
            yield target.value, value


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_callable(value: ast.expr, functions: set[str], methods: set[str]) -> bool:
    """Whether an expression is callable by its form: lambda, function, bound method, or a `partial`."""
    if isinstance(value, ast.IfExp):
        return any(is_callable(each, functions, methods) for each in (value.body, value.orelse))
    if isinstance(value, ast.BoolOp):
        return any(is_callable(each, functions, methods) for each in value.values)
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) in ("partial", "functools.partial")
    if isinstance(value, ast.Name):
        return value.id in functions
    return isinstance(value, ast.Lambda) or (isinstance(value, ast.Attribute) and value.attr in methods)


def test_no_callback_is_assigned_into_another_object() -> None:
    found = late_callbacks(ROOT)
    assert not found, "\n" + "\n".join(found)


# --- the checker itself, on small made-up trees -------------------------------------------------------------


def tree(tmp_path: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


CALLBACK_MODULE = """import sys
import functools
from functools import partial

def later(): ...

class Owner:
    ready: bool

    def grant(self): ...

    @property
    def name(self): ...

    def wire(self, work):
        {}
"""


@pytest.mark.parametrize(
    "text",
    [
        "work.start = lambda: None",
        "work.start = later",
        "work.start = self.grant",
        "work.owner.start = self.grant",
        "self.work.start = self.grant",
        "work.start: object = self.grant",
        "work.start = other.grant",
        "work.start = partial(print, 1)",
        "work.start = functools.partial(print, 1)",
        "work.start = self.grant if work else None",
        "work.start = work.start or later",
        "work.begun, work.start = True, self.grant",
        "first = work.start = later",
        "setattr(work, 'start', self.grant)",
    ],
)
def test_callback_assigned_into_another_object_is_reported_with_its_line(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"gateway/dispatch.py": CALLBACK_MODULE.format(text)})
    line = CALLBACK_MODULE.splitlines().index("        {}") + 1
    assert only(late_callbacks(root)).startswith(f"gateway/dispatch.py:{line}: `")


@pytest.mark.parametrize(
    "text",
    [
        "self.start = self.grant",
        "cls.start = later",
        "start = self.grant",
        "work.start = self.grant()",
        "work.ready = self.ready",
        "work.name = self.name",
        "work.start = 1",
        "sys.excepthook = later",
        "self._paho.on_message = later",
        "setattr(self, 'start', later)",
    ],
)
def test_other_assignments_are_not_reported(tmp_path: Path, text: str) -> None:
    assert late_callbacks(tree(tmp_path, {"gateway/dispatch.py": CALLBACK_MODULE.format(text)})) == []


def test_method_of_another_module_is_recognised_as_a_callback(tmp_path: Path) -> None:
    files = {
        "gateway/lanes.py": "class Work:\n    def grant(self): ...",
        "gateway/dispatch.py": "def wire(work, attempt):\n    work.start = attempt.grant",
    }
    assert only(late_callbacks(tree(tmp_path, files))).startswith("gateway/dispatch.py:2: ")


def test_callbacks_in_plugins_are_not_reported(tmp_path: Path) -> None:
    files = {"plugins/gateway_echo/__init__.py": CALLBACK_MODULE.format("work.start = self.grant")}
    assert late_callbacks(tree(tmp_path, files)) == []
