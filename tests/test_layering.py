"""The layers of gateway/: imports go to lower layers only. docs/architecture.md explains the layers.

A module belongs to its top-level package or file: `gateway/measure/link_state.py` to *measure*, `gateway/timing.py` to
*timing*. LAYERS gives each package its layer. A package imports itself and packages in strictly lower layers. Two
packages in the same layer do not import each other. An import inside a function or under `TYPE_CHECKING` counts like
any other, because the rule limits knowledge, not load time. Import cycles are not allowed, inside a package either. A
plugin imports `gateway.plugin` and no other module of the gateway.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gateway"
PLUGIN_API = "gateway.plugin"
ANYTHING = 99

LAYERS = {
    "__init__": -1,  # imported by every module, so it imports none of ours
    "plugin": 0,
    "exception_hooks": 0,
    "memory_privacy": 0,
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
    candidates = [layer for layer in LAYERS if name == layer or name.startswith(f"{layer}_")]
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
    if not is_gateway(module) or layer_of(module) in LAYERS:
        return None
    return (
        f"{path}:1: {module} belongs to a package without a layer. Move it into one of the packages "
        f"({', '.join(LAYERS)}), or give its package a layer: LAYERS in tests/test_layering.py, "
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
    return complaint_about_layers(found)


def complaint_about_plugin(found: Import) -> str | None:
    same_plugin = found.importer.split(".")[0] == found.imported.split(".")[0]
    if same_plugin or found.imported == PLUGIN_API:
        return None
    return (
        f"{found}: the plugin {found.importer} imports {found.imported}. "
        f"A plugin imports {PLUGIN_API} and nothing else of ours: add there what is missing"
    )


def complaint_about_layers(found: Import) -> str | None:
    above, below = layer_of(found.importer), layer_of(found.imported)
    if above == below or above not in LAYERS or below not in LAYERS or LAYERS[below] < LAYERS[above]:
        return None
    return (
        f"{found}: {above} (layer {LAYERS[above]}) imports {below} (layer {LAYERS[below]}). "
        f"Imports go to lower layers only: pass the value in from above, or move what both need down"
    )


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


def test_imports_go_to_lower_layers_only() -> None:
    found = complaints(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_plugin_interface_is_among_the_checked_modules() -> None:
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


def with_layer(package: str) -> str:
    return f"{package} (layer {LAYERS[package]})"


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
def test_import_of_a_higher_layer_is_reported_with_its_line(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"gateway/timing.py": text, "gateway/dispatch.py": ""})
    complaint = only(complaints(root))
    assert complaint.startswith(
        f"gateway/timing.py:{text.count(chr(10)) + 1}: {with_layer('timing')} imports {with_layer('dispatch')}"
    )


@pytest.mark.parametrize("text", ["from ..lanes import Lane", "from .. import lanes", "from gateway.lanes import Lane"])
def test_module_inside_a_package_has_the_layer_of_the_package(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"gateway/measure/__init__.py": "", "gateway/measure/link.py": text, "gateway/lanes.py": ""})
    assert f"{with_layer('measure')} imports {with_layer('lanes')}" in only(complaints(root))


def test_packages_in_one_layer_do_not_import_each_other(tmp_path: Path) -> None:
    root = tree(tmp_path, {"gateway/lanes.py": "import gateway.admit", "gateway/admit.py": ""})
    assert f"{with_layer('lanes')} imports {with_layer('admit')}" in only(complaints(root))


def test_package_may_import_itself_and_lower_layers(tmp_path: Path) -> None:
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


def test_testing_package_is_not_imported_by_the_gateway(tmp_path: Path) -> None:
    root = tree(tmp_path, {"gateway/testing.py": "", "gateway/service.py": "from gateway.testing import FakeClock"})
    assert "imports testing" in only(complaints(root))


def test_module_without_a_layer_is_reported_with_a_remedy(tmp_path: Path) -> None:
    complaint = only(complaints(tree(tmp_path, {"gateway/helpers.py": ""})))
    assert complaint.startswith("gateway/helpers.py:1: gateway.helpers belongs to a package without a layer")


def test_gateway_does_not_import_a_plugin(tmp_path: Path) -> None:
    files = {"gateway/demo.py": "from gateway_echo import Echo", "plugins/gateway_echo/__init__.py": ""}
    assert "demo imports the plugin gateway_echo" in only(complaints(tree(tmp_path, files)))


@pytest.mark.parametrize("text", ["from gateway.lanes import Lane", "import gateway", "from gateway_http import Http"])
def test_plugin_imports_only_the_plugin_interface(tmp_path: Path, text: str) -> None:
    files = {
        "gateway/lanes.py": "",
        "plugins/gateway_echo/__init__.py": f"import gateway.plugin\nimport gateway_echo.tone\n{text}",
        "plugins/gateway_echo/tone.py": "",
        "plugins/gateway_http/__init__.py": "",
    }
    complaint = only(complaints(tree(tmp_path, files)))
    assert complaint.startswith("plugins/gateway_echo/__init__.py:3: the plugin gateway_echo imports")


def test_import_cycle_inside_a_package_is_reported_with_every_step(tmp_path: Path) -> None:
    files = {
        "gateway/health/__init__.py": "",
        "gateway/health/a.py": "from gateway.health import b",
        "gateway/health/b.py": "from .c import thing",
        "gateway/health/c.py": "def later():\n    from gateway.health.a import thing",
    }
    complaint = only(complaints(tree(tmp_path, files)))
    assert "gateway.health.a → gateway.health.b → gateway.health.c → gateway.health.a" in complaint
    assert "gateway/health/c.py:2" in complaint


def test_submodule_that_imports_its_own_package_is_a_cycle(tmp_path: Path) -> None:
    files = {
        "gateway/health/__init__.py": "from gateway.health.breaker import Breaker\nLIMIT = 1",
        "gateway/health/breaker.py": "from gateway.health import LIMIT",
    }
    assert "import cycle" in only(complaints(tree(tmp_path, files)))
