"""The layers of gateway/: imports go to lower layers only. docs/architecture.md explains the layers.

A module belongs to the layer of its top-level package or file: `gateway/measure/link.py` belongs to *measure*,
`gateway/timing.py` to *timing*. A layer imports itself and layers on strictly lower floors. Two layers on the same
floor do not import each other. An import inside a function or under `TYPE_CHECKING` counts like any other, because the
rule limits knowledge, not load time. Import cycles are not allowed, inside a layer either. A plugin imports
`gateway.plugin` and no other module of the gateway.

Callbacks are dependencies too, which imports do not show. So gateway/ does not assign a function, a bound method, a
lambda or a `partial` to an attribute of another object: an object gets what it calls in its constructor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gateway"
PLUGIN_API = "gateway.plugin"
ANYTHING = 99

CALLBACK_ATTRIBUTES = ("_paho",)  # library objects that take their callbacks as attributes

FLOORS = {
    "__init__": -1,  # imported by every module, so it imports none of ours
    "plugin": 0,
    "exception_hooks": 0,
    "tls": 0,
    "telemetry": 1,
    "timing": 2,
    "measure": 2,
    "policy": 3,
    "health": 3,
    "workers": 3,
    "request_log": 4,
    "lanes": 4,
    "admit": 4,
    "registry": 4,
    "dispatch": 5,
    "api": 6,
    "settings": 6,
    "ingress": 7,
    "admin": 8,
    "service": 9,  # builds and connects the packages
    "demo": 10,  # runs a service
    "testing": 11,  # equipment for our tests and for plugin authors
    "commands": 12,
    "cli": 13,
    "__main__": 14,
}


class Import(NamedTuple):
    """`importer` names `imported` at this place; both are dotted module names that exist in the tree."""

    importer: str
    imported: str
    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


# --- reading a tree -----------------------------------------------------------------------------------------


def modules(source_root: Path) -> dict[str, Path]:
    """Dotted name → file, of every module below a source root; a package goes by its own name."""
    found = {}
    for path in sorted(source_root.rglob("*.py")):
        parts = path.relative_to(source_root).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def our_modules(root: Path) -> dict[str, Path]:
    """Every module of gateway/ and plugins/."""
    gateway = {f"{PACKAGE}.{name}": path for name, path in modules(root / PACKAGE).items()}
    top = gateway.pop(f"{PACKAGE}.__init__", None)
    if top is not None:
        gateway[PACKAGE] = top
    return gateway | modules(root / "plugins")


def imports(root: Path) -> list[Import]:
    """Every import of one of our modules by another, wherever in the file it stands."""
    known = our_modules(root)
    found = []
    for importer, path in known.items():
        tree = ast.parse(path.read_text(), filename=str(path))
        for node in ast.walk(tree):
            for name in sorted(set(imported_names(node, importer, path.name == "__init__.py"))):
                imported = nearest(name, known)
                if imported is not None and imported != importer:
                    found.append(Import(importer, imported, str(path.relative_to(root)), node.lineno))
    return found


def imported_names(node: ast.AST, importer: str, is_package: bool) -> Iterator[str]:
    """The absolute dotted names that one statement imports; `from a import b` imports a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            here = importer.split(".")
            above = here[: len(here) - node.level + (1 if is_package else 0)]
            base = ".".join([*above, base] if base else above)
        yield from (f"{base}.{alias.name}" for alias in node.names)


def nearest(name: str, known: Mapping[str, Path]) -> str | None:
    """The module that holds this name: itself or the closest existing parent; None if it is not ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


# --- the rules ----------------------------------------------------------------------------------------------


def layer_of(module: str) -> str:
    """The name of the layer; for a module that is not in the table, its top-level name."""
    name = "__init__" if module == PACKAGE else module.split(".")[1]
    candidates = [layer for layer in FLOORS if name == layer or name.startswith(f"{layer}_")]
    return max(candidates, key=len, default=name)


def is_gateway(module: str) -> bool:
    return module.split(".")[0] == PACKAGE


def complaints(root: Path) -> list[str]:
    """Every broken rule with its place and what to do about it."""
    found = imports(root)
    unknown = [complaint for module, path in our_modules(root).items()
               if (complaint := complaint_about_module(module, path.relative_to(root)))]  # fmt: skip
    return unknown + [c for each in found if (c := complaint_about(each))] + cycles(found)


def complaint_about_module(module: str, path: Path) -> str | None:
    if not is_gateway(module) or layer_of(module) in FLOORS:
        return None
    return (
        f"{path}:1: {module} is in no layer. Move it into one ({', '.join(FLOORS)}), name it after one "
        f"(workers_main belongs to workers), or give it a floor: FLOORS in tests/test_layering.py, "
        f"and docs/architecture.md"
    )


def complaint_about(found: Import) -> str | None:
    if not is_gateway(found.importer):
        return complaint_about_plugin(found)
    if not is_gateway(found.imported):
        return (
            f"{found}: {found.importer} imports the plugin {found.imported}. "
            f"The gateway finds plugins by entry point only: go through the registry"
        )
    return complaint_about_floors(found)


def complaint_about_plugin(found: Import) -> str | None:
    same_plugin = found.importer.split(".")[0] == found.imported.split(".")[0]
    if same_plugin or found.imported == PLUGIN_API:
        return None
    return (
        f"{found}: the plugin {found.importer} imports {found.imported}. "
        f"A plugin imports {PLUGIN_API} and nothing else of ours: add there what is missing"
    )


def complaint_about_floors(found: Import) -> str | None:
    above, below = layer_of(found.importer), layer_of(found.imported)
    if above == below or above not in FLOORS or below not in FLOORS or FLOORS[below] < FLOORS[above]:
        return None
    return (
        f"{found}: {above} (floor {FLOORS[above]}) imports {below} (floor {FLOORS[below]}). "
        f"Imports go to lower floors only: pass the value in from above, or move what both need down"
    )


# --- callbacks assigned into other objects ------------------------------------------------------------------


def late_callbacks(root: Path) -> list[str]:
    """One complaint for each callable in gateway/ that is assigned to an attribute of another object."""
    trees = {path: ast.parse(path.read_text(), filename=str(path)) for path in our_modules(root).values()}
    methods = method_names(trees.values())
    return [
        f"{path.relative_to(root)}:{line}: `{text}` puts a callback into another object. "
        f"Pass it to the constructor, or pass the object that is to be called"
        for path, tree in trees.items()
        if path.is_relative_to(root / PACKAGE)
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


def cycles(found: list[Import]) -> list[str]:
    """One complaint for each group of modules that import each other in a ring."""
    edges: dict[str, dict[str, Import]] = {}
    for each in found:
        edges.setdefault(each.importer, {}).setdefault(each.imported, each)
    reported: set[str] = set()
    complaints = []
    for module in sorted(edges):
        ring = [] if module in reported else ring_through(module, edges)
        if ring:
            reported.update(each.importer for each in ring)
            steps = " → ".join([each.importer for each in ring] + [module])
            places = ", ".join(map(str, ring))
            complaints.append(
                f"{ring[0]}: import cycle {steps} ({places}). Move what they share to a module below them"
            )
    return complaints


def ring_through(start: str, edges: Mapping[str, Mapping[str, Import]]) -> list[Import]:
    """The shortest ring of imports from a module back to itself, or an empty list."""
    paths: list[list[Import]] = [[each] for each in edges.get(start, {}).values()]
    seen = {start}
    for path in paths:  # grows while we walk it: breadth first
        here = path[-1].imported
        if here == start:
            return path
        if here not in seen:
            seen.add(here)
            paths.extend([*path, each] for each in edges.get(here, {}).values())
    return []


# --- our tree -----------------------------------------------------------------------------------------------


def test_imports_go_down_only() -> None:
    found = complaints(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_no_callback_is_assigned_into_another_object() -> None:
    found = late_callbacks(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_there_is_something_to_look_at() -> None:
    assert PLUGIN_API in our_modules(ROOT)


# --- the checker itself, on small made-up trees -------------------------------------------------------------


def tree(tmp_path: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"gateway/__init__.py": "", "gateway/plugin/__init__.py": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def floor(layer: str) -> str:
    return f"{layer} (floor {FLOORS[layer]})"


@pytest.mark.parametrize(
    "text",
    [
        "import gateway.dispatch",
        "from gateway import dispatch",
        "from gateway.dispatch import Dispatcher",
        "from . import dispatch",
        "from .dispatch import Dispatcher",
        "def later():\n    from gateway.dispatch import Dispatcher",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gateway.dispatch",
    ],
)
def test_an_import_that_goes_up_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"gateway/timing.py": text, "gateway/dispatch.py": ""})
    complaint = only(complaints(root))
    assert complaint.startswith(
        f"gateway/timing.py:{text.count(chr(10)) + 1}: {floor('timing')} imports {floor('dispatch')}"
    )


@pytest.mark.parametrize("text", ["from ..lanes import Lane", "from .. import lanes", "from gateway.lanes import Lane"])
def test_a_module_inside_a_room_is_held_to_its_rooms_floor(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"gateway/measure/__init__.py": "", "gateway/measure/link.py": text, "gateway/lanes.py": ""})
    assert f"{floor('measure')} imports {floor('lanes')}" in only(complaints(root))


def test_rooms_on_one_floor_do_not_know_each_other(tmp_path: Path) -> None:
    root = tree(tmp_path, {"gateway/lanes.py": "import gateway.admit", "gateway/admit.py": ""})
    assert f"{floor('lanes')} imports {floor('admit')}" in only(complaints(root))


def test_a_room_may_import_itself_and_what_lies_below(tmp_path: Path) -> None:
    files = {
        "gateway/measure/__init__.py": "from gateway.measure.board import Board",
        "gateway/measure/board.py": "from gateway.measure.link import Link\nfrom .link import Link",
        "gateway/measure/link.py": "from gateway.plugin import Task",
        "gateway/workers.py": "from gateway.plugin import Task",
        "gateway/workers_main.py": "from gateway.workers import frame",
        "gateway/testing.py": "import gateway.service",
        "gateway/service.py": "from gateway.measure import Board",
        "gateway/cli.py": "def main():\n    from gateway import service, __version__",
    }
    assert complaints(tree(tmp_path, files)) == []


def test_nobody_imports_the_testing_equipment(tmp_path: Path) -> None:
    root = tree(tmp_path, {"gateway/testing.py": "", "gateway/service.py": "from gateway.testing import FakeClock"})
    assert "imports testing" in only(complaints(root))


def test_a_module_in_no_room_is_told_where_to_go(tmp_path: Path) -> None:
    complaint = only(complaints(tree(tmp_path, {"gateway/helpers.py": ""})))
    assert complaint.startswith("gateway/helpers.py:1: gateway.helpers is in no layer. Move it into one")


def test_the_gateway_does_not_import_a_plugin(tmp_path: Path) -> None:
    files = {"gateway/demo.py": "from gateway_echo import Echo", "plugins/gateway_echo/__init__.py": ""}
    assert "demo imports the plugin gateway_echo" in only(complaints(tree(tmp_path, files)))


@pytest.mark.parametrize("text", ["from gateway.lanes import Lane", "import gateway", "from gateway_http import Http"])
def test_a_plugin_imports_the_plugin_interface_and_nothing_else_of_ours(tmp_path: Path, text: str) -> None:
    files = {
        "gateway/lanes.py": "",
        "plugins/gateway_echo/__init__.py": f"import gateway.plugin\nimport gateway_echo.tone\n{text}",
        "plugins/gateway_echo/tone.py": "",
        "plugins/gateway_http/__init__.py": "",
    }
    complaint = only(complaints(tree(tmp_path, files)))
    assert complaint.startswith("plugins/gateway_echo/__init__.py:3: the plugin gateway_echo imports")


def test_an_import_cycle_inside_a_room_is_told_with_every_step(tmp_path: Path) -> None:
    files = {
        "gateway/health/__init__.py": "",
        "gateway/health/a.py": "from gateway.health import b",
        "gateway/health/b.py": "from .c import thing",
        "gateway/health/c.py": "def later():\n    from gateway.health.a import thing",
    }
    complaint = only(complaints(tree(tmp_path, files)))
    assert "gateway.health.a → gateway.health.b → gateway.health.c → gateway.health.a" in complaint
    assert "gateway/health/c.py:2" in complaint


def test_a_submodule_that_imports_its_own_package_is_a_cycle(tmp_path: Path) -> None:
    files = {
        "gateway/health/__init__.py": "from gateway.health.breaker import Breaker\nLIMIT = 1",
        "gateway/health/breaker.py": "from gateway.health import LIMIT",
    }
    assert "import cycle" in only(complaints(tree(tmp_path, files)))


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
