"""Structured logging to standard error: JSON lines, or a readable console on a terminal.

To the journal each line begins with its priority, `<4>` for a warning, which the journal keeps apart from the text.

One line is one event, written whole. Values are bounded and stripped of control characters by the JSON
encoder; prompts, answers, keys and file contents are never given to a logger in the first place.
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

from gateway.plugin import checks, result, task
from gateway.plugin.errors import frames_of
from gateway.telemetry.sink import Sink

Format = Literal["auto", "console", "json"]
Level = Literal["debug", "info", "warning", "error"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

INFO = 6
PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": INFO, "debug": 7}  # sd-daemon(3)

_encode = msgspec.json.Encoder(enc_hook=str).encode


def _stamp(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    head: dict[str, Any] = {
        "ts": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "event": event.pop("event"),
    }
    head.update(event)
    return head


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    return _encode(event)


def _prefix(_: Any, level: str, line: bytes) -> bytes:
    """sd-daemon(3): the journal takes a line's priority from its head, and takes the head away."""
    return b"<%d>%s" % (PRIORITIES.get(level, INFO), line)


def _as_bytes(_: Any, __: str, line: str) -> bytes:
    return line.encode(errors="backslashreplace")


def is_journal(stream: IO[Any] | None, named: str) -> bool:
    """Whether the stream is the journal's. named: `$JOURNAL_STREAM`, its device and inode (systemd.exec(5))."""
    if not named or stream is None:
        return False
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # a stream that is no file
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


@cache
def _standard_error() -> Sink:
    """The one sink of the process; nowhere, where it was started with standard error closed."""
    if sys.stderr is not None:
        return Sink(sys.stderr.fileno(), _tell_dropped)
    with open(os.devnull, "wb") as nowhere:
        return Sink(nowhere.fileno(), _tell_dropped)


def _tell_dropped(count: int) -> None:
    log.warning("log.dropped", lines=count)


def flush(within_s: float = 0.0) -> None:
    """Write lines that wait, which takes no time; or, at the end, at most so long."""
    _standard_error().flush_within(within_s)


def configure(form: Format = "auto", level: Level = "info", stream: BinaryIO | None = None) -> None:
    """Set up logging for the process. `auto` is console on a terminal, JSON otherwise.

    stream: for tests, which read there what else goes to standard error, by way of a `Sink`.
    Where standard error is the journal's, each line says its priority too, which `journalctl -p` goes by.
    What libraries log by the standard module is passed on from warning up, as event `library.logged`
    without tracebacks, so that a stranger's bytes cannot fill the disk.
    """
    out = structlog.BytesLogger(stream) if stream else _standard_error()
    is_console = form == "console" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())
    processors: list[Any] = [_stamp, structlog.dev.ConsoleRenderer(), _as_bytes] if is_console else [_stamp, _render]
    if is_journal(stream or sys.stderr, os.environ.get("JOURNAL_STREAM", "")):
        processors.append(_prefix)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: out,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(logging.WARNING)


class _Forward(logging.Handler):
    """Hands a library's warnings to structlog, at most a few a second."""

    def __init__(self) -> None:
        super().__init__()
        self._limited = RateLimitedEvent("library.logged", per_s=1.0, burst=5)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._limited.warning(
            logger=record.name,
            message=record.getMessage()[:300],
            error=None if error is None else type(error).__name__,
        )


# Where a value of a plugin's is refused; whoever gave it stands above.
_CHECKS = frozenset({"<string>", checks.__file__, result.__file__, task.__file__})


def raised(exc: BaseException | None) -> dict[str, str | None]:
    """What a line may say of an exception nobody expected: its type and its place. Its text might quote a request."""
    if exc is None:
        return {"error": None, "where": None}
    at = [each.rpartition(" ")[0] for each in frames_of(exc)]
    at = [place for place in at if place.rpartition(":")[0] not in _CHECKS]
    return {"error": type(exc).__name__, "where": at[-1] if at else None}


class RateLimitedEvent:
    """An event that strangers can cause: `burst` lines at once, `per_s` on average, the rest only counted."""

    def __init__(
        self, event: str, *, per_s: float = 1.0, burst: int = 10, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._event, self._per_s, self._burst, self._clock = event, per_s, burst, clock
        self._tokens, self._at, self._suppressed = float(burst), clock(), 0

    def warning(self, **keys: Any) -> None:
        """Log the event with `keys`, and `suppressed`, the number left out since the last line; or count it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            self._suppressed += 1
            return
        self._tokens -= 1
        log.warning(self._event, **keys, suppressed=self._suppressed)
        self._suppressed = 0
