"""Call a function with the members of a JSON object, and convert its value to JSON.

Argument names are checked before the call, so a TypeError from inside the function is an error of the function. Values
are passed as decoded; annotations convert nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.plugin import BackendFailed, BackendUnavailable, TaskInvalid

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class BoundFunction:
    """A function with the task name. Raises BackendUnavailable if its arguments have no names."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError) as exc:
            raise BackendUnavailable(f"task `{name}`: its arguments have no names; wrap it in a function") from exc
        parameters = self._signature.parameters.values()
        self._takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self._named = {p.name: p for p in parameters if p.kind not in _SPREAD}

    @property
    def shape(self) -> str:
        """The signature, such as `add(a, b)`."""
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in self._signature.parameters.values()]
        return f"{self.name}{inspect.Signature(bare)}"

    def call(self, arguments: Any) -> Any:
        """Call with `arguments`, a JSON object.

        Raises TaskInvalid for wrong arguments; the function's exceptions pass.
        """
        self._check(arguments)
        by_position = [
            arguments[p.name] for p in self._named.values() if p.kind in _BY_POSITION and p.name in arguments
        ]
        by_name = {
            name: value
            for name, value in arguments.items()
            if name not in self._named or self._named[name].kind not in _BY_POSITION
        }
        return self._function(*by_position, **by_name)

    def _check(self, arguments: Any) -> None:
        if not isinstance(arguments, dict):
            raise TaskInvalid(f"`{self.shape}` takes a JSON object with its arguments, not {_json_type(arguments)}")
        for name in arguments:
            if name not in self._named and not self._takes_any:
                raise TaskInvalid(f"`{self.shape}` has no such argument", param=name, detail=f"`{name}`")
        for name, parameter in self._named.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                raise TaskInvalid(f"`{self.shape}` needs `{name}`, which is missing", param=name)


def as_json(value: Any, name: str) -> Any:
    """Convert `value` to JSON types. Raises BackendFailed if that is impossible."""
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_as_plain)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BackendFailed(
            f"`{name}` returned a value that has no JSON form ({exc}); return numbers, texts, bytes, lists, "
            "maps, dates or dataclasses of these"
        ) from exc


def _as_plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, without importing numpy
        return value.tolist()
    raise TypeError(f"a {type(value).__qualname__}")


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), type(value).__name__)
