"""Writing a form: what a multipart request becomes when one of its parts has changed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from gateway.plugin import Upload


def form(fields: Mapping[str, Any], files: Mapping[str, Upload]) -> tuple[str, bytes]:
    """A `multipart/form-data` body: its content type, and the bytes."""
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, value in fields.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            parts.append(_head(boundary, name) + b"\r\n\r\n" + str(text).encode() + b"\r\n")
    for name, upload in files.items():
        more = f'; filename="{_quoted(upload.filename)}"\r\nContent-Type: {_quoted(upload.content_type)}'
        parts.append(_head(boundary, name, more) + b"\r\n\r\n" + upload.data + b"\r\n")
    return f"multipart/form-data; boundary={boundary}", b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _head(boundary: str, name: str, more: str = "") -> bytes:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"{more}'.encode()


def _quoted(text: str) -> str:
    """HTML §4.10.21.8: what may not stand in a quoted name."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
