"""Set the model name in a JSON or multipart body; every other byte stays the same.

A body that is malformed (not an object, not a form, truncated) is sent unchanged: the upstream rejects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import msgspec

Members = dict[str, msgspec.Raw]

# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


class _ModelMember(msgspec.Struct):
    model: str | None = None


def set_json_model(body: bytes, name: str) -> bytes:
    """Return the object with `name` as its `model`.

    The value is replaced in place if its position is certain.
    """
    try:
        if msgspec.json.decode(body, type=_ModelMember).model == name:
            return body
        members = msgspec.json.decode(body, type=Members)
    except (msgspec.DecodeError, RecursionError):
        return body
    value = msgspec.json.encode(name)
    if "model" not in members:
        at = body.index(b"{") + 1
        return body[:at] + b'"model":' + value + (b"," if members else b"") + body[at:]
    return _replace_value(body, members, value)


def _replace_value(body: bytes, members: Members, value: bytes) -> bytes:
    """Replace the first or the last candidate.

    The position is right if all other members decode unchanged.
    """
    is_certain = body.count(b'"model"') == 1 and b"\\u" not in body  # no escaped key; in a string `"` is escaped
    expected = {**members, "model": msgspec.Raw(value)}
    member = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*(' + re.escape(bytes(members["model"])) + b")")
    for candidate in (member.search(body), member.match(body, body.rfind(b'"model"'))):
        if candidate is None:
            continue
        changed = body[: candidate.start(1)] + value + body[candidate.end(1) :]
        if is_certain or msgspec.json.decode(changed, type=Members) == expected:
            return changed
    return msgspec.json.encode(expected)  # nested `model` members before and after it, or an escaped key


# ── multipart/form-data, RFC 2046 §5.1 and RFC 7578 ──────────────────────────────────────────────

MAX_PARTS = 256
MAX_HEADER_BYTES = 8192
_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.ASCII)
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE | re.MULTILINE)
_AFTER_DELIMITER = re.compile(rb"--|[ \t]*\r\n")


class _Delimiter(NamedTuple):
    """A boundary line from `start` to `end`.

    The data before it ends at `data_end`.
    """

    data_end: int
    start: int
    end: int


def is_form(content_type: str) -> bool:
    """Return whether the content type is `multipart/form-data`."""
    return content_type.lstrip()[:19].lower() == "multipart/form-data"


def set_form_model(body: bytes, content_type: str, name: str) -> tuple[bytes, str] | None:
    """Return the form with `name` as its `model`, and its content type.

    Returns None if the form is incomplete.
    Replaces the value of every part named `model`. Without such a part, inserts a first part.
    """
    boundary = _boundary(content_type, body)
    delimiters = _delimiters(b"--" + boundary, body)
    if not delimiters:
        return None
    if not is_form(content_type):
        content_type = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"'
    value, spans = name.encode(), list(_model_values(body, delimiters))
    if not spans:
        first = delimiters[0].start
        part = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, value)
        return body[:first] + part + body[first:], content_type
    for start, end in reversed(spans):
        if body[start:end] != value:
            body = body[:start] + value + body[end:]
    return body, content_type


def _boundary(content_type: str, body: bytes) -> bytes:
    """Return the boundary from the content type.

    If the content type was lost, the first line holds it.
    """
    if is_form(content_type):
        return _parameters(content_type).get("boundary", "").encode()
    return body[2 : max(body.find(b"\r\n", 0, 80), 2)].rstrip(b" \t")


def _delimiters(delimiter: bytes, body: bytes) -> list[_Delimiter]:
    """Return every delimiter up to the closing delimiter; empty if that is missing."""
    found: list[_Delimiter] = []
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter)
    while at >= 0 and len(delimiter) > 2 and len(found) <= MAX_PARTS:
        start = at if body.startswith(delimiter, at) else at + 2
        end = start + len(delimiter)
        if follows := _AFTER_DELIMITER.match(body, end):
            found.append(_Delimiter(at, start, follows.end()))
            if follows[0] == b"--":
                return found
            end = follows.end() - 2  # this line end may begin the next delimiter
        at = body.find(b"\r\n" + delimiter, end)
    return []


def _model_values(body: bytes, delimiters: list[_Delimiter]) -> Iterator[tuple[int, int]]:
    """Yield start and end of the value of each part that is the field `model`."""
    for before, after in pairwise(delimiters):
        header_end = body.find(b"\r\n\r\n", before.end - 2, min(after.data_end, before.end + MAX_HEADER_BYTES + 4))
        found = _DISPOSITION.search(body[before.end : header_end]) if header_end >= 0 else None
        parameters = _parameters(found[1].decode("utf-8", "replace")) if found else {}
        if parameters.get("name") == "model" and "filename" not in parameters:
            yield header_end + 4, after.data_end


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header; the first of a name counts.

    They have the form `; name=value` or `; name="value"`.
    """
    found: dict[str, str] = {}
    for name, quoted, token in _PARAMETER.findall(header):
        found.setdefault(name.lower(), re.sub(r'\\(["\\])', r"\1", quoted) if quoted else token)
    return found
