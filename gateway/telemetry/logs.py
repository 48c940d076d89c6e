"""Structured logging to standard error: JSON lines, or a readable console on a terminal.

One line is one event, written whole. For the systemd journal each line begins with its priority (`<4>` for a warning),
which the journal stores apart from the text.

The JSON encoder escapes control characters in values. Prompts, answers, keys and file contents are never passed to a
logger.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from functools import cache
from typing import IO, Any, BinaryIO, Literal

import msgspec
import structlog

from gateway.telemetry.sink import Sink

Format = Literal["auto", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

INFO = 6
PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": INFO, "debug": 7}  # sd-daemon(3)

_encode = msgspec.json.Encoder(enc_hook=str).encode


def _add_common_keys(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    head: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "event": event.pop("event"),
    }
    head.update(event)
    return head


def _as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    return _encode(event)


def _add_priority(_: Any, level: str, line: bytes) -> bytes:
    """sd-daemon(3): the journal reads the priority from this prefix and removes the prefix."""
    return b"<%d>%s" % (PRIORITIES.get(level, INFO), line)


def _stack_as_text(logger: Any, method: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
    stack = event_dict.get("stack")
    if stack is not None and not isinstance(stack, str):  # ConsoleRenderer accepts only text under this key
        event_dict["stack"] = "\n".join(map(str, stack)) if isinstance(stack, list) else str(stack)
    return event_dict


def _as_bytes(_: Any, __: str, line: str) -> bytes:
    return line.encode(errors="backslashreplace")


def is_journal(stream: IO[Any] | None, journal_stream: str) -> bool:
    """True if the stream leads to the journal.

    journal_stream: `$JOURNAL_STREAM`, the device and inode of the journal's stream (systemd.exec(5)).
    """
    if not journal_stream or stream is None:
        return False
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # a stream without a file descriptor
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


@cache
def _stderr_sink() -> Sink:
    """The sink of the process; /dev/null if it was started with standard error closed."""
    if sys.stderr is not None:
        return Sink(sys.stderr.fileno(), _on_dropped)
    with open(os.devnull, "wb") as null:
        return Sink(null.fileno(), _on_dropped)


def _on_dropped(count: int) -> None:
    log.warning("log.dropped", lines=count)


def flush(within_s: float = 0.0) -> None:
    """Write buffered lines; retry for at most `within_s` if they cannot be written."""
    _stderr_sink().flush_within(within_s)


def configure(form: Format = "auto", level: Level = "info", stream: BinaryIO | None = None) -> None:
    """Set up logging for the process. `auto`: console on a terminal, JSON otherwise.

    stream: replaces standard error, for tests; it is written to directly, without a `Sink`.
    If standard error leads to the journal, each line carries its priority, by which `journalctl -p` filters.
    Warnings and errors that libraries log by the `logging` module become `library.logged` events, rate-limited and
    without tracebacks: log flooding by a remote peer must not fill the disk.
    """
    out = structlog.BytesLogger(stream) if stream else _stderr_sink()
    is_console = form == "console" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())
    processors: list[Any] = [_add_common_keys]
    processors += [_stack_as_text, structlog.dev.ConsoleRenderer(), _as_bytes] if is_console else [_as_json]
    if is_journal(stream or sys.stderr, os.environ.get("JOURNAL_STREAM", "")):
        processors.append(_add_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: out,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryLogHandler()]
    root.setLevel(logging.WARNING)


class _LibraryLogHandler(logging.Handler):
    """Passes log records of libraries to structlog, a few per second at most."""

    def __init__(self) -> None:
        super().__init__()
        self._event = RateLimitedEvent("library.logged", per_s=1.0, burst=5)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._event.warning(
            logger=record.name,
            message=record.getMessage()[:300],
            error=None if error is None else type(error).__name__,
        )


class RateLimitedEvent:
    """A log event limited to `burst` lines at once and `per_s` on average, against flooding; the rest is counted."""

    def __init__(
        self, event: str, *, per_s: float = 1.0, burst: int = 10, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._event, self._per_s, self._burst, self._clock = event, per_s, burst, clock
        self._tokens, self._at, self._suppressed = float(burst), clock(), 0
        self._request_id = ""

    def warning_with_id(self, request_id: str, **keys: Any) -> str:
        """Log as `warning`, with a request id. Returns the id for the client: that of the last line logged."""
        if self.warning(**keys, request_id=request_id):
            self._request_id = request_id
        return self._request_id

    def warning(self, **keys: Any) -> bool:
        """Log the event with `keys` and `suppressed`, the number left out since the last line; or only count it.

        Returns whether it was logged.
        """
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            self._suppressed += 1
            return False
        self._tokens -= 1
        log.warning(self._event, **keys, suppressed=self._suppressed)
        self._suppressed = 0
        return True
