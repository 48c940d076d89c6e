"""Load an operator's functions: by `package.module:function`, and from every file of a folder.

What loads is served. What does not load is kept with its error: by file, and by the names of the tasks it would define.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.plugin import BackendUnavailable, load_function
from gateway_local.calling import BoundFunction

_DEFINITION = re.compile(r"^(?:async\s+)?def\s+([^\W_]\w*)\s*\(", re.MULTILINE)


@dataclass(slots=True)
class Functions:
    """The functions that were loaded, and what was not.

    served: by task. broken: by task, why it cannot be served. files: by task, the file that defines it. problems: why a
    file or a target could not be loaded.
    """

    served: dict[str, BoundFunction] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, function: Callable[..., Any], file: Path | None = None) -> None:
        """Serve `function` as `name`, unless another file defines that name too, or its arguments have no names."""
        if file is not None and (other := self.files.get(name)) not in (None, file):
            return self.reject([name], f"`{name}` is defined both in {other} and in {file}; rename one")
        if file is not None:
            self.files[name] = file
        try:
            self.served[name] = BoundFunction(name, function)
            self.broken.pop(name, None)
        except BackendUnavailable as exc:
            self.reject([name], exc.message)

    def reject(self, names: list[str], why: str) -> None:
        """Record a problem, because of which the tasks `names` cannot be served."""
        self.problems.append(why)
        for name in names:
            self.served.pop(name, None)
            self.broken[name] = why


def load_functions(targets: Mapping[str, str], into: Functions) -> None:
    """Load `targets`, a map from a task's name to `package.module:function`."""
    for name, target in targets.items():
        try:
            into.add(name, load_function(target, f"task `{name}`"))
        except BackendUnavailable as exc:
            into.reject([name], exc.message)
        except SystemExit as exc:
            into.reject([name], f"task `{name}`: `{target}` cannot be imported: {_text(exc)}")


def load_folder(folder: Path, into: Functions) -> None:
    """Load every public function of the `*.py` files in `folder`.

    Files may import each other. A file whose name begins with `_` can be imported but is not served; one that begins
    with `.` is ignored.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()
    _forget_modules_of(folder)
    for file in sorted(folder.glob("[!_.]*.py")):
        if file.is_file():
            load_file(file, into)


def load_file(file: Path, into: Functions) -> None:
    """Load the public functions of `file`, or record why it cannot be imported."""
    try:
        module = _import_file(file)
    except (Exception, SystemExit) as exc:
        names = _defined_in(file)
        into.files.update((name, file) for name in names if name not in into.files)
        mine = [name for name in names if into.files[name] == file]
        into.reject(mine, f"{file} cannot be imported: {_text(exc)}")
        return
    for name, function in _public(module, file).items():
        into.add(name, function, file)


def _import_file(file: Path) -> ModuleType:
    """Import `file` by its own name, under which other files and processes can import it too.

    A file that is named like another module, such as an operator's `queue.py`, gets a prefix, so that it does not
    replace the standard library's.
    """
    name = file.stem
    if _is_importable_as(name, file):
        return importlib.import_module(name)
    name = f"_task_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_importable_as(name: str, file: Path) -> bool:
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin) == file


def _forget_modules_of(folder: Path) -> None:
    """Have the files of `folder` imported again."""
    for name, module in list(sys.modules.items()):
        if (origin := getattr(module, "__file__", None)) and Path(origin).parent == folder:
            del sys.modules[name]


def _public(module: ModuleType, file: Path) -> dict[str, Callable[..., Any]]:
    """The functions that a module serves: those in its `__all__`, else the callables that it defines."""
    chosen = getattr(module, "__all__", None)
    defined = set(_defined_in(file)) if chosen is None else set(chosen)
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value)
        and not inspect.isclass(value)
        and (name in defined or (chosen is None and not name.startswith("_") and _is_defined_by(module, value)))
    }


def _is_defined_by(module: ModuleType, value: Any) -> bool:
    """Whether `value` is a function of the module, an instance of one of its classes, or a `functools.partial`."""
    if isinstance(value, functools.partial):
        return True
    owner = value if inspect.isfunction(value) else type(value)
    return getattr(owner, "__module__", None) == module.__name__


def _defined_in(file: Path) -> list[str]:
    """The names of public functions that the source of `file` defines, decorated ones too."""
    try:
        source = file.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return list(dict.fromkeys(_DEFINITION.findall(source)))
    return [name for name in _functions_in(tree.body) if not name.startswith("_")]


def _functions_in(body: list[ast.stmt]) -> list[str]:
    found: list[str] = []
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(statement.name)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                found += _functions_in(getattr(statement, block, []))
    return found


def _text(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
