"""The values that a backend returns: a whole `Result`, or the `Part`s of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.plugin import checks
from gateway.plugin.errors import BackendFailed
from gateway.plugin.task import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole answer: either `json` or `body`.

    json: any JSON value; the gateway renders it in the format that the client requested. body: bytes that are sent
    unchanged, with `content_type`. status: an HTTP status from 200 to 599; anything but 200 is the status of an
    upstream's error response. headers: response headers; the gateway drops those that frame the message.
    confidence: the backend's confidence in its answer, from 0 to 1; None if it is not known. backend, site: the
    backend that answered, set by the gateway in answers to subtasks.

    A field of a wrong type raises an error when the Result is made, and the client gets `plugin_error`.
    """

    json: Any = None
    body: bytes | None = None
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    confidence: float | None = None
    backend: str | None = None
    site: Site | None = None

    def __post_init__(self) -> None:
        for name, check in checks.RESULT_CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name)))

    def value(self) -> Any:
        """Return the answer as a JSON value: `json`, or `body` decoded. Raises BackendFailed if `body` is not JSON."""
        if self.body is None:
            return self.json
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BackendFailed(f"the answer is not JSON: {exc}", code="upstream_bad_response") from exc


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a stream: either `data` or `raw`.

    data: a JSON value, a string, or bytes of a body of type `content_type`. raw: a complete server-sent event as
    bytes, with its blank line, which is sent unchanged.
    """

    data: Any = None
    raw: bytes | None = None
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.raw is not None:
            object.__setattr__(self, "raw", checks.check_bytes("Part", "raw", self.raw))
