"""Encodes `multipart/form-data` bodies (RFC 7578)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from gateway.plugin.checks import Upload

_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # HTML §4.10.21.8


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
