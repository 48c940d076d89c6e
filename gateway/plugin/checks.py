"""Validation of values that come from clients, operators and plugins."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import msgspec

from gateway.plugin.errors import PluginRaised, TaskInvalid

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def parse_names(value: Any) -> Any:
    """Return `a,b`, `["a","b"]`, `("a",)` or `{"a":"b"}` as a map from the client's name to the backend's.

    Values of other types are returned unchanged. Raises ValueError for a string that begins like JSON and is not.
    """
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text[:1] in ("[", "{") else [n.strip() for n in text.split(",") if n.strip()]
    if isinstance(value, Mapping):
        return {str(k): str(v) for k, v in value.items()}
    if isinstance(value, Iterable):
        return {str(n): str(n) for n in value}
    return value


def decode_json(body: bytes) -> Any:
    """Decode strict JSON: UTF-8, no NaN, bounded depth. Raises TaskInvalid."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise TaskInvalid(f"the body is not valid JSON: {exc}") from exc
    except RecursionError:
        raise TaskInvalid("the body is nested too deeply") from None


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file of a multipart request. data: its bytes. filename: as the client sent it, not sanitised."""

    data: bytes
    filename: str = ""
    content_type: str = "application/octet-stream"


def check_status(status: Any) -> int:
    """Return the status of a whole answer: 200 to 599. Raises PluginRaised for any other value."""
    if not isinstance(status, int) or isinstance(status, bool):
        raise _invalid_field("Result", "status", f"is {_type_name(status)}, not a whole number")
    if not 200 <= status <= 599:
        raise _invalid_field("Result", "status", f"is {status}, not 200 to 599")
    return int(status)


def check_bytes(owner: str, field: str, value: Any) -> bytes | None:
    """Return bytes, or None. Raises PluginRaised for a value of another type."""
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, bytearray | memoryview):
        raise _invalid_field(owner, field, f"is {_type_name(value)}, not bytes")
    return bytes(value)


def check_content_type(value: Any) -> str:
    """Return a string without control characters. Raises PluginRaised for any other value."""
    if not isinstance(value, str):
        raise _invalid_field("Result", "content_type", f"is {_type_name(value)}, not a string")
    if _CONTROL.search(value):
        raise _invalid_field("Result", "content_type", "holds a control character")
    return value


def check_headers(headers: Any) -> Mapping[str, str]:
    """Return a mapping of valid header names to valid values. Raises PluginRaised, without quoting either.

    Control characters are refused, because they would allow response splitting.
    """
    if not isinstance(headers, Mapping):
        raise _invalid_field("Result", "headers", f"is {_type_name(headers)}, not a mapping")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            types = f"{_type_name(name)} to {_type_name(value)}"
            raise _invalid_field("Result", "headers", f"maps {types}, not a string to a string")
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            problem = "holds an invalid header: a name that is not a token, or a control character"
            raise _invalid_field("Result", "headers", problem)
    return headers


def check_confidence(value: Any) -> float | None:
    """Return a float, or None. Raises PluginRaised for a value that is not a number, and for NaN."""
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
        raise _invalid_field("Result", "confidence", f"is {_type_name(value)}, not a number from 0 to 1")
    return float(value)


# The fields of Result that are validated when it is made; `json` is validated when it is encoded.
RESULT_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "status": check_status,
    "body": partial(check_bytes, "Result", "body"),
    "content_type": check_content_type,
    "headers": check_headers,
    "confidence": check_confidence,
}


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _invalid_field(owner: str, field: str, problem: str) -> PluginRaised:
    return PluginRaised(f"the plugin returned a {owner} whose `{field}` {problem}", raised=f"{owner}.{field}")
