"""Values that come from clients and plugins, checked where they come in. Part of `gateway.plugin`, in its own file."""

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


def names_of(value: Any) -> Any:
    """`a,b`, `["a","b"]`, `("a",)` or `{"a":"b"}` as a map from the client's name to the backend's."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text[:1] in ("[", "{") else [n.strip() for n in text.split(",") if n.strip()]
    if isinstance(value, Mapping):
        return {str(k): str(v) for k, v in value.items()}
    if isinstance(value, Iterable):
        return {str(n): str(n) for n in value}
    return value


def decode_json(body: bytes) -> Any:
    """JSON, strictly: UTF-8, no NaN, bounded depth. Raises TaskInvalid."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise TaskInvalid(f"the body is not valid JSON: {exc}") from exc
    except RecursionError:
        raise TaskInvalid("the body is nested too deeply") from None


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file of a multipart request."""

    data: bytes
    filename: str = ""
    content_type: str = "application/octet-stream"


def checked_status(status: Any) -> int:
    """The status of a whole answer: the others are no answers, or none that the protocol has. Raises PluginRaised."""
    if not isinstance(status, int) or isinstance(status, bool):
        raise _wrong("Result", "status", f"is {_type(status)}, not a whole number")
    if not 200 <= status <= 599:
        raise _wrong("Result", "status", f"is {status}, not 200 to 599")
    return int(status)


def checked_bytes(of: str, field: str, given: Any) -> bytes | None:
    """Bytes, or None. Raises PluginRaised."""
    if given is None or isinstance(given, bytes):
        return given
    if not isinstance(given, bytearray | memoryview):
        raise _wrong(of, field, f"is {_type(given)}, not bytes")
    return bytes(given)


def checked_content_type(given: Any) -> str:
    """What can stand in that header. Raises PluginRaised."""
    if not isinstance(given, str):
        raise _wrong("Result", "content_type", f"is {_type(given)}, not a text")
    if _CONTROL.search(given):
        raise _wrong("Result", "content_type", "holds a control character")
    return given


def checked_headers(given: Any) -> Mapping[str, str]:
    """Names and values that can be headers. Raises PluginRaised, which quotes neither."""
    if not isinstance(given, Mapping):
        raise _wrong("Result", "headers", f"is {_type(given)}, not a mapping")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise _wrong("Result", "headers", f"maps {_type(name)} to {_type(value)}, not a text to a text")
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            raise _wrong(
                "Result", "headers", "holds what cannot be a header: a name that is no token, or a control character"
            )
    return given


def checked_confidence(given: Any) -> float | None:
    """A number, or None. Raises PluginRaised."""
    if given is None:
        return None
    if not isinstance(given, Real) or isinstance(given, bool) or math.isnan(given):
        raise _wrong("Result", "confidence", f"is {_type(given)}, not a number from 0 to 1")
    return float(given)


# Its fields that the gateway handles itself; `json` is whatever can be encoded.
OF_RESULT: Mapping[str, Callable[[Any], Any]] = {
    "status": checked_status,
    "body": partial(checked_bytes, "Result", "body"),
    "content_type": checked_content_type,
    "headers": checked_headers,
    "confidence": checked_confidence,
}


def _type(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _wrong(of: str, field: str, what: str) -> PluginRaised:
    return PluginRaised(f"the plugin gave a {of} whose `{field}` {what}", raised=f"{of}.{field}")
