"""Quarantine: keeps work away from a plugin with broken code, for longer than the breaker does.

A plugin with a bug raises exceptions that are not the gateway's errors. After MAX_EXCEPTIONS of them in a row without
one success, the backend gets no work for one minute, then for twice as long, up to 15 minutes. One success resets all.

A backend is quarantined, too, while tasks that ignore their cancellation hold all of its slots.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_EXCEPTIONS = 20
FIRST_S, MAX_S = 60.0, 900.0


class Quarantine:
    """The quarantine of one backend.

    clock: returns monotonic seconds. on_change(why, seconds): called each time a quarantine begins.
    leaked: the number of cancelled tasks that have not ended.
    """

    def __init__(
        self, clock: Callable[[], float], on_change: Callable[[str, float], None] = lambda why, seconds: None
    ) -> None:
        self._clock, self._on_change = clock, on_change
        self._exceptions = 0
        self._seconds = FIRST_S
        self._until = float("-inf")
        self._why = ""
        self.leaked = 0

    def reason(self, slots: int) -> str | None:
        """Why the backend gets no work now; None if it gets work."""
        if self.leaked >= slots:
            return f"quarantined: {self.leaked} tasks hold its slots and do not end"
        return f"quarantined: {self._why}" if self._clock() < self._until else None

    def record_exception(self, what: str) -> None:
        """The plugin raised `what`, a type that is not one of the gateway's errors."""
        self._exceptions += 1
        if self._exceptions < MAX_EXCEPTIONS or self._clock() < self._until:
            return
        self._why = f"it raised {what} {self._exceptions} times without one success"
        self._until = self._clock() + self._seconds
        self._on_change(self._why, self._seconds)
        self._seconds = min(2 * self._seconds, MAX_S)
        self._exceptions = MAX_EXCEPTIONS - 1  # the next task after the quarantine is a trial: it ends or renews it

    def record_success(self) -> None:
        """The backend served a task."""
        self._exceptions, self._seconds, self._until = 0, FIRST_S, float("-inf")
