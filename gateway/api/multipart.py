"""Split a complete multipart/form-data body into parts (RFC 2046 §5.1, RFC 7578).

The dependencies have no parser for this: aiohttp's reads from a stream on an event loop, and the standard library's
email parser decodes transfer encodings, accepts a missing end, and reads a body line by line (seconds for a recording).
This parser searches for the delimiter only, in time linear in the body. It rejects a truncated or malformed body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from gateway.plugin import TaskInvalid, Upload

MAX_PARTS = 64
MAX_HEADER_BYTES = 8192

# RFC 2046 §5.1.1: at most 70 bchars, the last of them not a space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(r';\s*([\w!#$&+.^`|~-]+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.ASCII)
_ESCAPED = re.compile(r'\\(["\\])|%(22|0[DdAa])')
_AFTER_DELIMITER = re.compile(rb"--|[ \t]*\r\n")
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormPart:
    """One part of the body.

    `filename` is None if the part has no such parameter; "" is a file name.
    """

    name: str
    data: bytes
    filename: str | None = None
    content_type: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the part has a file name, or a type that a text field never has."""
        return self.filename is not None or self.content_type.startswith(
            ("audio/", "image/", "video/", "application/octet-stream")
        )


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields and files.

    A field whose name ends in `[]` or is repeated holds a list.
    """

    fields: dict[str, Any]
    files: dict[str, Upload]


def is_multipart(content_type: str, body: bytes) -> bool:
    """Whether the body is a form.

    If the Content-Type is missing, the first delimiter shows it.
    """
    return content_type.lstrip()[:10].lower() == "multipart/" or body.startswith(b"--")


def parse(content_type: str, body: bytes) -> list[FormPart]:
    """Return the parts of a form in order.

    Raises TaskInvalid for a body that is not a complete form.
    """
    delimiter = b"--" + _boundary(content_type, body)
    edges = _edges(delimiter, body)
    if len(edges) - 1 > MAX_PARTS:
        raise _invalid_form(f"it has more than {MAX_PARTS} parts")
    return [_part(body, start, end) for (_, start), (end, _) in pairwise(edges)]


def collect(parts: Iterable[FormPart]) -> Form:
    """Return the parts by name.

    Raises TaskInvalid for a field that is not UTF-8, and for two files of the same name.
    """
    form = Form({}, {})
    for part in parts:
        if not part.is_file:
            _add_field(form.fields, part)
        elif part.name in form.files:
            raise TaskInvalid("the form has two files of one name; send one", param=part.name)
        else:
            kind = part.content_type or "application/octet-stream"
            form.files[part.name] = Upload(part.data, part.filename or "", kind)
    return form


# ── delimiters and headers ──────────────────────────────────────────────────────────────────────────


def _boundary(content_type: str, body: bytes) -> bytes:
    if content_type.lstrip()[:10].lower() == "multipart/":
        found = _parameters(content_type).get("boundary", "").encode("utf-8", "replace")
    else:
        found = body[2 : body.find(b"\r\n", 0, 80)].rstrip(b" \t")
    if not _BOUNDARY.fullmatch(found):
        raise _invalid_form("its Content-Type names no usable boundary (let your HTTP library set that header)")
    return found


def _edges(delimiter: bytes, body: bytes) -> list[tuple[int, int]]:
    """Return the end of the data before each delimiter, and the start after it."""
    edges: list[tuple[int, int]] = []
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter)
    while at >= 0:
        after = at + len(delimiter) + (2 if at or not body.startswith(delimiter) else 0)
        if follows := _AFTER_DELIMITER.match(body, after):
            edges.append((at, follows.end()))
            if follows[0] == b"--":
                return edges
            after = follows.end() - 2  # the line end may be the next delimiter's
        if len(edges) > MAX_PARTS:
            return [*edges, (at, at)]
        at = body.find(b"\r\n" + delimiter, after)
    raise _invalid_form("its final boundary is missing; was the upload cut?" if edges else "its boundary never occurs")


def _part(body: bytes, start: int, end: int) -> FormPart:
    head_end = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEADER_BYTES + 4))
    if head_end < 0:
        raise _invalid_form(f"a part has no end of headers within {MAX_HEADER_BYTES} bytes")
    headers = _headers(body[start:head_end])
    encoding = headers.get("content-transfer-encoding", "").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise _invalid_form(f"a part has Content-Transfer-Encoding {encoding[:40]!r}; send its bytes as they are")
    disposition = headers.get("content-disposition", "")
    parameters = _parameters(disposition)
    if disposition.partition(";")[0].strip().lower() != "form-data" or "name" not in parameters:
        raise _invalid_form('a part has no `Content-Disposition: form-data; name="…"`')
    return FormPart(
        name=parameters["name"],
        data=body[head_end + 4 : end],
        filename=parameters.get("filename"),
        content_type=headers.get("content-type", "").lower(),
    )


def _headers(head: bytes) -> dict[str, str]:
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise _invalid_form("a part's headers are not UTF-8") from None
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _parameters(header: str) -> dict[str, str]:
    """Return a header's `; name="value"` parameters.

    `name*=utf-8''…` (RFC 5987, which some clients send although it is not allowed in forms) wins over `name`.
    """
    plain: dict[str, str] = {}
    extended: dict[str, str] = {}
    for name, quoted, token in _PARAMETER.findall(header):
        if name.endswith("*"):
            extended[name[:-1].lower()] = unquote(token.rpartition("'")[2])
        else:
            plain.setdefault(name.lower(), _ESCAPED.sub(_unescape, quoted) if quoted else token)
    return plain | extended


def _unescape(found: re.Match[str]) -> str:
    return found[1] or chr(int(found[2], 16))


def _invalid_form(problem: str) -> TaskInvalid:
    return TaskInvalid(f"the multipart/form-data body cannot be read: {problem}")


# ── fields and files ─────────────────────────────────────────────────────────────────────────────


def _add_field(fields: dict[str, Any], part: FormPart) -> None:
    try:
        text = part.data.decode()
    except UnicodeDecodeError:
        problem = f"the form field {part.name!r} is not UTF-8; send a file with a file name"
        raise TaskInvalid(problem, param=part.name) from None
    before = fields.get(part.name)
    if isinstance(before, list):
        before.append(text)
    elif before is not None:
        fields[part.name] = [before, text]
    else:
        fields[part.name] = [text] if part.name.endswith("[]") else text
