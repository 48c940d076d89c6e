"""Call a function with the members of a JSON object, and convert its value to JSON.

Argument names are checked before the call, so a TypeError from inside the function is an error of the function.

JSON values are passed as decoded, unless the annotation is a type that JSON does not have: bytes, dates, dataclasses
and others. The fields of a form are texts, so every annotation converts them. A file is passed as its bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import inspect
import io
import os
import uuid
from collections.abc import Callable
from enum import Enum
from types import UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin

import msgspec

from gateway.plugin import BackendFailed, BackendUnavailable, Task, TaskInvalid

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
_BINARY = (bytes, bytearray, memoryview, io.BytesIO, BinaryIO)
_NOT_JSON = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
_URL_SAFE = str.maketrans("-_", "+/")
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class BoundFunction:
    """A function with the task name. Raises BackendUnavailable if its arguments have no names."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        try:
            self._signature = _signature_of(function)
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

    def arguments(self, task: Task) -> Any:
        """Return the arguments of a task, converted by the annotations. Raises TaskInvalid."""
        found = task.json
        if not isinstance(found, dict):
            return found
        is_form = task.fields is not None
        arguments = {**found, **{name: upload.data for name, upload in task.files.items()}}
        for name, value in arguments.items():
            if (parameter := self._named.get(name)) and parameter.annotation is not inspect.Parameter.empty:
                arguments[name] = convert(value, parameter.annotation, self.shape, name, is_form=is_form)
        return arguments

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


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (TypeError, ValueError):
        raise
    except Exception:  # an annotation that exists for type checkers only
        return inspect.signature(function)


def convert(value: Any, annotation: Any, shape: str, name: str, *, is_form: bool = False) -> Any:
    """Convert an argument to its annotation. Raises TaskInvalid, which names the argument and what it needs.

    bytes: a file, or base64 in a JSON text. Other types of JSON convert only the texts of a form.
    """
    wanted = _without_none(annotation)
    if value is None or not isinstance(wanted, type):
        return value
    try:
        if isinstance(value, bytes):
            return value.decode() if wanted is str else _wrapped(value, wanted)
        if wanted in _BINARY:
            return _wrapped(_decoded(value), wanted)
        if is_form and isinstance(value, str) and wanted in (bool, int, float):
            return msgspec.convert(value, wanted, strict=False)
        if is_form and isinstance(value, str) and wanted in (list, dict):
            return msgspec.json.decode(value, type=wanted)
        if wanted in _NOT_JSON or issubclass(wanted, Enum | msgspec.Struct) or dataclasses.is_dataclass(wanted):
            return msgspec.convert(value, wanted, strict=not is_form)
    except (ValueError, TypeError, msgspec.MsgspecError) as exc:
        text = "a file (-F name=@path), or base64 text in JSON" if wanted in _BINARY else f"{wanted.__name__}: {exc}"
        raise TaskInvalid(f"`{shape}` needs `{name}` as {text}", param=name) from exc
    return value


def _without_none(annotation: Any) -> Any:
    """The class in `T | None` or `list[T]`; another annotation unchanged."""
    if get_origin(annotation) in (Union, UnionType):
        others = [each for each in get_args(annotation) if each is not type(None)]
        return _without_none(others[0]) if len(others) == 1 else annotation
    return get_origin(annotation) or annotation


def _decoded(value: Any) -> bytes:
    """Decode base64: standard or URL-safe, with or without padding, also as a `data:` URL. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    text = value.partition(",")[2] if value.startswith("data:") else value
    plain = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _wrapped(data: bytes, wanted: type) -> Any:
    if wanted in (bytearray, memoryview):
        return wanted(data)
    return io.BytesIO(data) if wanted in (io.BytesIO, BinaryIO) else data


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
