"""Telemetry: log events, the request line and metrics. Every key is declared once, in this package.

from gateway.telemetry import log, metrics

log.info("breaker.opened", backend="cloud", why="5 failures in a row")
metrics.REQUESTS.inc(door="http", kind="chat", backend="cloud", outcome="served")
"""

from gateway.telemetry import metrics
from gateway.telemetry.exception_log import (
    exception_fields,
    log_bug,
    log_exceptions,
    log_python_warning,
    log_task_failure,
)
from gateway.telemetry.logs import RateLimitedEvent, configure, flush, log

__all__ = [
    "RateLimitedEvent",
    "configure",
    "exception_fields",
    "flush",
    "log",
    "log_bug",
    "log_exceptions",
    "log_python_warning",
    "log_task_failure",
    "metrics",
]
