"""Encode and read `multipart/form-data` bodies (RFC 7578, RFC 2046 §5.1).

There is one parser of forms. The gateway judges a form by it, and a plugin that changes a form uses it, so that what
was judged is what is sent. It rejects what other parsers read differently (parser differential): a second boundary,
bytes outside the parts, line ends other than CRLF, folded or repeated headers, unknown parameters, backslashes in
names. It searches for the delimiter only, in time linear in the body.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import msgspec

from gateway.plugin.checks import Upload
from gateway.plugin.errors import TaskInvalid
from gateway.plugin.spelling import is_like

MAX_PARTS = 64
MAX_HEADER_BYTES = 8192
_SEARCHED_BYTES = 1 << 20

# HTML §4.10.21.8, and backslashes as in a quoted string (RFC 9110 §5.6.4)
_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A", "\\": "\\\\"})

_TOKEN = r"[\w!#$%&'*+.^`|~-]+"
_VALUE = rf'"(?:[^"\\]|\\.)*"|{_TOKEN}'
# RFC 2046 §5.1.1: at most 70 bchars, the last of them not a space. Unquoted, some clients send them all the same.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_CHARSET = r'(?:\s*;\s*charset\s*=\s*"?(?:utf-?8|us-ascii)"?)?'
_MULTIPART = re.compile(
    rf'multipart/form-data{_CHARSET}\s*;\s*boundary\s*=\s*("[^"\\]*"|[^\s;"\\]*){_CHARSET}', re.ASCII | re.IGNORECASE
)
_HEADER = re.compile(r"([A-Za-z0-9-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
_DISPOSITION = re.compile(
    rf"form-data(?:[ \t]*;[ \t]*(?:name|filename)\*?[ \t]*=[ \t]*(?:{_VALUE}))+", re.ASCII | re.IGNORECASE
)
_PARAMETER = re.compile(rf";[ \t]*([a-z]+\*?)[ \t]*=[ \t]*({_VALUE})", re.ASCII | re.IGNORECASE)
_ESCAPED = re.compile(r'\\(["\\])|%(22|0[DdAa])')
_LONE_BACKSLASH = re.compile(r'(?<!\\)(?:\\\\)*\\(?!["\\])')
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")
_CHARSETS = ("", "utf-8", "utf8", "us-ascii", "ascii")
_FILE_TYPES = ("audio/", "image/", "video/", "application/octet-stream")


def encode_form(fields: Mapping[str, Any], files: Mapping[str, Upload]) -> tuple[bytes, str]:
    """Return a `multipart/form-data` body with these parts, and its content type with the boundary.

    fields: values by name. A list becomes one part for each item, None is left out, and a value that is neither a
    string nor bytes is sent as JSON. files: uploads by name. Quotes and line ends in names are percent-encoded.
    """
    boundary = secrets.token_hex(16)
    pieces: list[bytes] = []
    for name, value in fields.items():
        for text in _texts(value):
            pieces += (_part_head(boundary, name), b"\r\n\r\n", text.encode(), b"\r\n")
    for name, upload in files.items():
        pieces += (_part_head(boundary, name, upload), b"\r\n\r\n", upload.data, b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


def _part_head(boundary: str, name: str, upload: Upload | None = None) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name.translate(_ESCAPES)}"'
    if upload is not None:
        content_type = upload.content_type.translate(_ESCAPES)
        head += f'; filename="{upload.filename.translate(_ESCAPES)}"\r\nContent-Type: {content_type}'
    return head.encode()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, Iterable) and not isinstance(value, Mapping):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield msgspec.json.encode(value).decode()


# ── reading a form ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FormSpan:
    """One part of a form: its name, and where its data begins and ends in the body.

    `filename` is None if the part has no such parameter; "" is a file name.
    """

    name: str
    filename: str | None
    content_type: str
    start: int
    end: int

    @property
    def is_file(self) -> bool:
        """Whether the part has a file name, or a type that a text field never has."""
        return self.filename is not None or self.content_type.startswith(_FILE_TYPES)


@dataclass(frozen=True, slots=True)
class FormLayout:
    """A form as the gateway reads it."""

    boundary: str
    spans: tuple[FormSpan, ...]

    @property
    def content_type(self) -> str:
        """The media type with the boundary and no other parameter, so that every parser reads the same boundary."""
        is_token = re.fullmatch(r"[\w'+.-]+", self.boundary, re.ASCII) is not None
        return "multipart/form-data; boundary=" + (self.boundary if is_token else f'"{self.boundary}"')


def is_form(content_type: str, body: bytes) -> bool:
    """Whether the body is a form. Without a multipart Content-Type, a delimiter as its first line shows it."""
    return content_type.lstrip()[:10].lower() == "multipart/" or body.startswith(b"--")


def form_layout(content_type: str, body: bytes) -> FormLayout:
    """Return the parts of a form in order.

    Raises TaskInvalid for a form that is incomplete, or that another parser may read differently.
    """
    boundary = _boundary(content_type, body)
    edges = _edges(b"--" + boundary, body)
    spans = tuple(_span(body, start, end) for (_, start), (end, _) in pairwise(edges))
    files = {span.name for span in spans if span.is_file}
    for span in spans:
        if span.name in files and not span.is_file:
            raise _invalid_form(f"a field and a file are both named {span.name[:40]!r}")
        if is_like(span.name, "_charset_"):
            raise _invalid_form("it has a field `_charset_`; forms are UTF-8")
    return FormLayout(boundary.decode(), spans)


def check_model_part(layout: FormLayout) -> None:
    """Raise TaskInvalid for a part that some servers read as `model`, unless it is the one field of that name."""
    named = [span for span in layout.spans if is_like(span.name, "model")]
    if any(span.name != "model" or span.is_file for span in named) or len(named) > 1:
        shown = ", ".join(f"`{span.name}`" + (" (a file)" if span.is_file else "") for span in named[:3])
        raise TaskInvalid(f"the body names its model by {shown}; write one text field `model`", param="model")


def set_form_model(body: bytes, content_type: str, name: str) -> tuple[bytes, str]:
    """Return the form with `name` as its field `model`, and its content type; all other bytes stay the same.

    Raises TaskInvalid for a form that another parser may read differently: it must not be sent.
    """
    layout = form_layout(content_type, body)
    check_model_part(layout)
    value = name.encode()
    for span in layout.spans:
        if span.name == "model":
            if body[span.start : span.end] != value:
                body = body[: span.start] + value + body[span.end :]
            return body, layout.content_type
    first = body.index(b"--")  # at 0, or after one line end
    part = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (layout.boundary.encode(), value)
    return body[:first] + part + body[first:], layout.content_type


def _boundary(content_type: str, body: bytes) -> bytes:
    if content_type.lstrip()[:10].lower() != "multipart/":
        found = body[2 : max(body.find(b"\r\n", 0, 80), 2)].decode("latin-1")
    else:
        matched = _MULTIPART.fullmatch(content_type.strip())
        if matched is None:
            raise _invalid_form("its Content-Type names no usable boundary: write `multipart/form-data; boundary=…`")
        found = _unquoted(matched[1])
    if not _BOUNDARY.fullmatch(found):
        raise _invalid_form("its Content-Type names no usable boundary (let your HTTP library set that header)")
    return found.encode()


def _edges(delimiter: bytes, body: bytes) -> list[tuple[int, int]]:
    """Return the end of the data before each delimiter, and the start after it.

    The delimiter may occur nowhere else: parsers differ in which line ends and spaces may stand beside it.
    """
    edges: list[tuple[int, int]] = []
    at = _find(body, delimiter, 0)
    if at < 0:
        raise _invalid_form("its boundary never occurs")
    if at > 0 and body[:at] != b"\r\n":
        raise _invalid_form("bytes stand before its first boundary")
    while at >= 0:
        after = at + len(delimiter)
        if edges and body[at - 2 : at] != b"\r\n":
            raise _invalid_form("a boundary stands within a line, or after a line end other than CRLF")
        follows = body[after : after + 2]
        if len(follows) < 2:
            break
        edges.append((max(at - 2, 0), after + 2))
        if follows == b"--":
            if body[after + 2 :] not in (b"", b"\r\n"):
                raise _invalid_form("bytes follow its final boundary")
            return edges
        if follows != b"\r\n":
            raise _invalid_form("a line begins with its boundary and goes on")
        if len(edges) > MAX_PARTS:
            raise _invalid_form(f"it has more than {MAX_PARTS} parts")
        at = _find(body, delimiter, after)
    raise _invalid_form("its final boundary is missing; was the upload cut?")


def _find(body: bytes, delimiter: bytes, at: int) -> int:
    """As bytes.find, in steps: a thread that searches a large body does not hold the event loop."""
    while at < len(body):
        if (found := body.find(delimiter, at, at + _SEARCHED_BYTES + len(delimiter))) >= 0:
            return found
        at += _SEARCHED_BYTES
    return -1


def _span(body: bytes, start: int, end: int) -> FormSpan:
    head_end = body.find(b"\r\n\r\n", start, min(end, start + MAX_HEADER_BYTES + 4))
    if head_end < 0:
        raise _invalid_form(f"a part has no end of headers within {MAX_HEADER_BYTES} bytes")
    headers = _headers(body[start:head_end])
    encoding = headers.get("content-transfer-encoding", "").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise _invalid_form(f"a part has Content-Transfer-Encoding {encoding[:40]!r}; send its bytes as they are")
    content_type = headers.get("content-type", "").lower()
    charset = content_type.partition("charset=")[2].partition(";")[0].strip(' "')
    if charset not in _CHARSETS:
        raise _invalid_form(f"a part has the charset {charset[:40]!r}; send UTF-8")
    name, filename = _names_in(headers.get("content-disposition", ""))
    return FormSpan(name, filename, content_type, head_end + 4, end)


def _headers(head: bytes) -> dict[str, str]:
    """Return the headers of a part. Raises TaskInvalid for folded lines, bare line ends and repeated headers."""
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise _invalid_form("a part's headers are not UTF-8") from None
    headers: dict[str, str] = {}
    for line in lines if head else ():
        if (found := _HEADER.fullmatch(line)) is None:
            raise _invalid_form("a part has a line that is not a header, or a folded one")
        if (name := found[1].lower()) in headers:
            raise _invalid_form(f"a part has the header {name[:40]} twice")
        headers[name] = found[2].strip(" \t")
    return headers


def _names_in(disposition: str) -> tuple[str, str | None]:
    """Return the name and the file name in a Content-Disposition."""
    if not _DISPOSITION.match(disposition):
        raise _invalid_form('a part has no `Content-Disposition: form-data; name="…"`')
    if not _DISPOSITION.fullmatch(disposition):
        raise _invalid_form("a part's Content-Disposition has more than `name` and `filename`, or is malformed")
    found: dict[str, str] = {}
    for parameter, value in _PARAMETER.findall(disposition):
        if found.setdefault(parameter.lower(), value) is not value:
            raise _invalid_form(f"a part's Content-Disposition has `{parameter}` twice")
    # Some parsers end a quoted string at `\"`, and would read parameters in what follows.
    if '\\"' in disposition and disposition.count(";") > len(found):
        raise _invalid_form('a name has `\\"` and a semicolon; write a quote as `%22`')
    if ("name" in found) == ("name*" in found):
        raise _invalid_form('a part has no `Content-Disposition: form-data; name="…"`')
    if _LONE_BACKSLASH.search(found.get("name", "")):
        raise _invalid_form("a name has a backslash; some parsers remove it")
    name = _extended(found["name*"]) if "name*" in found else _unquoted(found["name"])
    filename = _extended(found["filename*"]) if "filename*" in found else None
    if filename is None and "filename" in found:
        filename = _unquoted(found["filename"])
    return name, filename


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(_unescape, value[1:-1]) if value.startswith('"') else value


def _unescape(found: re.Match[str]) -> str:
    return found[1] or chr(int(found[2], 16))


def _extended(value: str) -> str:
    """Return the value of `name*=utf-8''…` (RFC 5987), which some clients send although forms do not allow it."""
    return unquote(value.rpartition("'")[2])


def _invalid_form(problem: str) -> TaskInvalid:
    return TaskInvalid(f"the multipart/form-data body cannot be read: {problem}")
