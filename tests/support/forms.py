"""Forms (multipart/form-data) as browsers and httpx send them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from gateway.plugin import Upload

_ESCAPES = {"\\": "\\\\", '"': "%22", "\r": "%0D", "\n": "%0A"}


def encode(fields: Mapping[str, Any], files: Mapping[str, Upload]) -> tuple[str, bytes]:
    """Return a form as (content type, body). The boundary does not occur in any part."""
    chunks = [*_encoded_fields(fields), *_encoded_files(files)]
    boundary = secrets.token_hex(16)
    while any(boundary.encode() in chunk for chunk in chunks):
        boundary = secrets.token_hex(16)
    delimiter = b"--" + boundary.encode()
    body = b"".join([b"".join([delimiter, b"\r\n", chunk, b"\r\n"]) for chunk in chunks])
    return f"multipart/form-data; boundary={boundary}", body + delimiter + b"--\r\n"


def _encoded_fields(fields: Mapping[str, Any]) -> Iterator[bytes]:
    for name, value in fields.items():
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        for item in values:
            yield _head(name) + b"\r\n\r\n" + _field_text(item).encode()


def _encoded_files(files: Mapping[str, Upload]) -> Iterator[bytes]:
    for name, upload in files.items():
        head = _head(name, upload.filename)
        yield b"".join([head, b"\r\nContent-Type: ", upload.content_type.encode(), b"\r\n\r\n", upload.data])


def _head(name: str, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{_escape(filename)}"'
    return f'Content-Disposition: form-data; name="{_escape(name)}"{named}'.encode()


def _escape(text: str) -> str:
    """Quote as browsers and httpx do (HTML, "multipart/form-data encoding algorithm")."""
    return "".join(_ESCAPES.get(char, char) for char in text)


def _field_text(value: Any) -> str:
    booleans: dict[Any, Literal["true", "false"]] = {True: "true", False: "false"}
    return booleans[value] if isinstance(value, bool) else str(value)
