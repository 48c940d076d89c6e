"""Values that come from clients and plugins, checked where they come in. Part of `gateway.plugin`, in its own file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import TaskInvalid


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
