"""What a backend returns: a whole `Result`, or the `Part`s of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.plugin import checks
from gateway.plugin.errors import (
    BackendFailed,
)
from gateway.plugin.task import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole answer: `json` (any JSON value, rendered as the client asked), or `body` bytes, sent as they are.

    A wrong type is refused when it is made, as `plugin_error`, here as in a worker. status: an HTTP status from 200 to
    599, 200 but for an upstream's own refusal. headers: framing is the gateway's, and left out. confidence: 0 to 1,
    where the backend knows how sure it is. backend, site: who answered, filled in by the gateway for answers to
    subtasks.
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
        for name, check in checks.OF_RESULT.items():
            object.__setattr__(self, name, check(getattr(self, name)))

    def value(self) -> Any:
        """The answer as a JSON value, whichever way it was given. Raises BackendFailed when it is none."""
        if self.body is None:
            return self.json
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BackendFailed(f"the answer is not JSON: {exc}", code="upstream_bad_response") from exc


@dataclass(frozen=True, slots=True)
class Part:
    """A stream's part: `data` (a JSON value, a text, bytes; of a body, with `content_type`) or `raw`, an event."""

    data: Any = None
    raw: bytes | None = None
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.raw is not None:
            object.__setattr__(self, "raw", checks.checked_bytes("Part", "raw", self.raw))
