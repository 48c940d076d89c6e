"""Load an operator's functions: by `package.module:function`, and from every file of a folder.

Errors name the function or the file.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.plugin import BackendUnavailable, load_function

Function = Callable[..., Any]


def load_functions(targets: Mapping[str, str]) -> dict[str, Function]:
    """Load `targets`, a map from a name to `package.module:function`. Raises BackendUnavailable."""
    return {name: load_function(target, f"task `{name}`") for name, target in targets.items()}


def load_folder(folder: Path) -> dict[str, Function]:
    """Load every public function defined in the `*.py` files of `folder`. Raises BackendUnavailable.

    Files may import each other. A file with a name that begins with `_` can be imported but is not served.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    found: dict[str, tuple[Path, Function]] = {}
    for file in sorted(folder.glob("[!_]*.py")):
        for name, function in _public(_import_file(file)).items():
            if name in found:
                raise BackendUnavailable(f"`{name}` is defined both in {found[name][0]} and in {file}; rename one")
            found[name] = file, function
    if not found:
        raise BackendUnavailable(f"no file in {folder} defines a public function")
    return {name: function for name, (_, function) in found.items()}


def _import_file(file: Path) -> ModuleType:
    name = (
        f"_task_file_{file.stem}"  # a prefix, so that an operator's `queue.py` does not replace the standard library's
    )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise BackendUnavailable(f"{file} cannot be imported: {_text(exc)}") from exc
    return module


def _public(module: ModuleType) -> dict[str, Function]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
    }


def _text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
