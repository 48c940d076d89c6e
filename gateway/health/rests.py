"""Rests: keeps requests away from a backend, or from one of its models, that only its operator can repair.

An account without credit, a rejected key or a missing model fails every request, and no retry helps. The backend gets
no requests for REST_S, unless no other backend can serve them: a request then shows at once that it is repaired.
"""

from __future__ import annotations

import time
from collections.abc import Callable

REST_S = 300.0
MAX_MODELS = 32  # a bound, because a name comes from the client
ALL = ""  # in place of a model: the whole backend


class Rests:
    """The rests of one backend.

    clock: returns monotonic seconds. on_rest(model, why, seconds): called when a rest begins; model "" for all.
    entries: by model, the end of its rest and why; empty in most cases, which callers check first.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_rest: Callable[[str, str, float], None] = lambda model, why, seconds: None,
    ) -> None:
        self._clock, self._on_rest = clock, on_rest
        self.entries: dict[str, tuple[float, str]] = {}

    def record(self, model: str, why: str) -> None:
        """Begin a rest of this model, or of ALL; prolong a present one. The oldest of too many is dropped."""
        is_new = self._reason_of(model) is None
        self.entries.pop(model, None)
        if len(self.entries) >= MAX_MODELS:
            del self.entries[next(each for each in self.entries if each != ALL)]
        self.entries[model] = self._clock() + REST_S, why
        if is_new:
            self._on_rest(model, why, REST_S)

    def record_success(self, model: str) -> None:
        """The backend served this model: neither it nor the backend rests any more."""
        self.entries.pop(ALL, None)
        self.entries.pop(model, None)

    def reason(self, model: str) -> str | None:
        """Why the backend gets no requests for this model; None if it gets them."""
        why = self._reason_of(ALL) or self._reason_of(model)
        return why and f"it rests: {why}"

    def status(self) -> list[dict[str, object]]:
        """The present rests, for `/status`: `model` is null for the whole backend."""
        now = self._clock()
        return [
            {"model": model or None, "why": why, "seconds_left": round(until - now, 1)}
            for model, (until, why) in self.entries.items()
            if until > now
        ]

    def _reason_of(self, model: str) -> str | None:
        until, why = self.entries.get(model, (0.0, ""))
        return why if until > self._clock() else None
