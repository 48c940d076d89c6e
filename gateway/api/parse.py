"""Read a JSON request body as far as the gateway must know it before it decides.

A body is decoded once and goes to the backend unchanged: the structs of `schemas` name only the fields that route the
request or shape its response, and msgspec skips the others without building them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gateway.api.json_bounds import SLICE_BYTES, contains, count
from gateway.api.schemas import MAX_NAME_CHARS
from gateway.plugin import TaskInvalid

MAX_KEYS = 10_000  # of an object whose keys are checked, at 2 µs a key
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_ESCAPED_LETTER = re.compile(rb"\\u00[46][45cdfCDF]")  # of `model`, in either case
_FIELD = re.compile(r"(?:.*`\$\.|.*field `)(\w+)")

T = TypeVar("T")


class _Key:
    """A key of an object.

    Each instance is a different key, so that duplicates are counted.
    """


def checked_name(name: str, *, param: str = "model") -> str:
    """Return the name if it is safe in a log line and a header. Raises TaskInvalid."""
    if len(name) > MAX_NAME_CHARS or _CONTROL.search(name):
        problem = f"`{param}` must have at most {MAX_NAME_CHARS} characters, none of them control characters"
        raise TaskInvalid(problem, param=param)
    return name


def read_json(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode the fields of `decoder`'s type; checks that the whole body is JSON.

    Raises TaskInvalid.
    """
    if not body:
        raise TaskInvalid("the body is empty; send JSON")
    try:
        if not body.isascii():
            _check_utf8(body)  # msgspec does not check the encoding of fields it skips
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        found = _FIELD.search(str(exc))
        raise TaskInvalid(f"the body does not fit: {exc}", param=found and found[1]) from exc
    except UnicodeDecodeError as exc:
        raise TaskInvalid(f"the body is not UTF-8 (byte {exc.start})") from exc
    except RecursionError:
        raise TaskInvalid("the body is nested too deeply") from None
    except msgspec.DecodeError as exc:
        raise TaskInvalid(f"the body is not valid JSON: {_reason(exc, body)}") from exc


def read_json_with_model(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """As `read_json`, for a body that names its model: once, spelled exactly `model`.

    Raises TaskInvalid.
    """
    decoded = read_json(decoder, body)
    exactly = count(body, b'"model"')
    if exactly > 1 or count(body, b'"model"', ignores_case=True) > exactly or contains(body, _ESCAPED_LETTER, 6):
        check_model_key(_keys_of(body))
    return decoded


def _check_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError unless the body is UTF-8; slice by slice, so that a thread does not hold the loop."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), SLICE_BYTES):
        decoder.decode(body[start : start + SLICE_BYTES], final=start + SLICE_BYTES >= len(body))


def check_model_key(keys: Iterable[str]) -> None:
    """Reject duplicate or differently-cased `model` keys. Raises TaskInvalid.

    Parsers disagree on which of them counts (parser differential), so a model rule could be bypassed.
    """
    found = [key for key in keys if key.casefold() == "model"]
    if found not in ([], ["model"]):
        shown = ", ".join(f"`{key}`" for key in found[:3])
        raise TaskInvalid(f"the body names its model by {shown}; write `model`, once", param="model")


def _keys_of(body: bytes) -> list[str]:
    """Return a JSON object's own keys, duplicates included, escapes decoded."""
    keys: list[str] = []

    def note(_: type, key: str) -> _Key:
        keys.append(key)
        if len(keys) > MAX_KEYS:
            raise TaskInvalid(
                f"the body has more than {MAX_KEYS} keys, too many to check that `model` appears once; send fewer"
            )
        return _Key()

    msgspec.json.decode(body, type=dict[_Key, msgspec.Raw], dec_hook=note)
    return keys


def _reason(exc: msgspec.DecodeError, body: bytes) -> str:
    """Return msgspec's message; it calls a lone surrogate a truncation."""
    if "truncated" in str(exc) and _LONE_SURROGATE.search(body):
        return r"a \ud800–\udfff escape stands alone; write the character itself, or both halves"
    return str(exc)
