"""A body made to name another model: the bytes of that one value change, and no others.

Where a body is such that this cannot be done (it is no object, no form, or is cut) it goes as it came: the
upstream is the one to refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import msgspec

Members = dict[str, msgspec.Raw]

# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


class _Peek(msgspec.Struct):
    model: str | None = None


def json_naming(body: bytes, name: str) -> bytes:
    """The object with `name` as its `model`, wherever that member stands, in place where it can be found."""
    try:
        if msgspec.json.decode(body, type=_Peek).model == name:
            return body
        members = msgspec.json.decode(body, type=Members)
    except (msgspec.DecodeError, RecursionError):
        return body
    value = msgspec.json.encode(name)
    if "model" not in members:
        at = body.index(b"{") + 1
        return body[:at] + b'"model":' + value + (b"," if members else b"") + body[at:]
    return _replaced(body, members, value)


def _replaced(body: bytes, members: Members, value: bytes) -> bytes:
    """Try the first and the last place that may be it; the other members, unchanged, prove which one it is."""
    is_sure = body.count(b'"model"') == 1 and b"\\u" not in body  # in a text it would be escaped, and no key is
    wanted = {**members, "model": msgspec.Raw(value)}
    member = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*(' + re.escape(bytes(members["model"])) + b")")
    for place in (member.search(body), member.match(body, body.rfind(b'"model"'))):
        if place is None:
            continue
        changed = body[: place.start(1)] + value + body[place.end(1) :]
        if is_sure or msgspec.json.decode(changed, type=Members) == wanted:
            return changed
    return msgspec.json.encode(wanted)  # nested ones before and after it, or its key is escaped


# ── multipart/form-data, RFC 2046 §5.1 and RFC 7578 ──────────────────────────────────────────────

MAX_PARTS = 256
MAX_HEADER_BYTES = 8192
_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.ASCII)
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)", re.IGNORECASE | re.MULTILINE)
_AFTER_DELIMITER = re.compile(rb"--|[ \t]*\r\n")


class _Line(NamedTuple):
    """A delimiter: `ends`, where the data before it ends; `starts`, the delimiter itself; `after`, what follows it."""

    ends: int
    starts: int
    after: int


def is_form(content_type: str) -> bool:
    """Whether this content type is a form's."""
    return content_type.lstrip()[:19].lower() == "multipart/form-data"


def form_naming(body: bytes, content_type: str, name: str) -> tuple[bytes, str] | None:
    """The form with `name` as its `model`, and its content type; None where the body is no whole form.

    The name becomes the value of each part that is called so, or a first part of its own.
    """
    boundary = _boundary(content_type, body)
    lines = _lines(b"--" + boundary, body)
    if not lines:
        return None
    if not is_form(content_type):
        content_type = f'multipart/form-data; boundary="{boundary.decode("latin-1")}"'
    value, spots = name.encode(), list(_values(body, lines))
    if not spots:
        first = lines[0].starts
        part = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, value)
        return body[:first] + part + body[first:], content_type
    for start, end in reversed(spots):
        if body[start:end] != value:
            body = body[:start] + value + body[end:]
    return body, content_type


def _boundary(content_type: str, body: bytes) -> bytes:
    """As the content type names it; where that was lost, as the first line does."""
    if is_form(content_type):
        return _parameters(content_type).get("boundary", "").encode()
    return body[2 : max(body.find(b"\r\n", 0, 80), 2)].rstrip(b" \t")


def _lines(delimiter: bytes, body: bytes) -> list[_Line]:
    """Every delimiter up to the last one; empty where there is no last one."""
    found: list[_Line] = []
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter)
    while at >= 0 and len(delimiter) > 2 and len(found) <= MAX_PARTS:
        starts = at if body.startswith(delimiter, at) else at + 2
        after = starts + len(delimiter)
        if follows := _AFTER_DELIMITER.match(body, after):
            found.append(_Line(at, starts, follows.end()))
            if follows[0] == b"--":
                return found
            after = follows.end() - 2  # the line end may be the next delimiter's
        at = body.find(b"\r\n" + delimiter, after)
    return []


def _values(body: bytes, lines: list[_Line]) -> Iterator[tuple[int, int]]:
    """Of each part that is the field `model`, where its value starts and ends."""
    for before, behind in pairwise(lines):
        end = body.find(b"\r\n\r\n", before.after - 2, min(behind.ends, before.after + MAX_HEADER_BYTES + 4))
        found = _DISPOSITION.search(body[before.after : end]) if end >= 0 else None
        parameters = _parameters(found[1].decode("utf-8", "replace")) if found else {}
        if parameters.get("name") == "model" and "filename" not in parameters:
            yield end + 4, behind.ends


def _parameters(header: str) -> dict[str, str]:
    """The `; name=value` and `; name="value"` of a header; the first of a name."""
    found: dict[str, str] = {}
    for name, quoted, token in _PARAMETER.findall(header):
        found.setdefault(name.lower(), re.sub(r'\\(["\\])', r"\1", quoted) if quoted else token)
    return found
