"""What the gateway says of itself: log events, the request line, metrics. Every key is declared once, here.

from gateway.telemetry import log, metrics

log.info("breaker.opened", backend="cloud", why="5 failures in a row")
metrics.REQUESTS.inc(door="http", kind="chat", backend="cloud", outcome="served")
"""

from gateway.telemetry import metrics
from gateway.telemetry.guards import log_bug, log_exceptions, log_task_failure, warned
from gateway.telemetry.logs import RateLimitedEvent, configure, flush, log, raised

__all__ = [
    "RateLimitedEvent",
    "configure",
    "flush",
    "log",
    "log_bug",
    "log_exceptions",
    "log_task_failure",
    "metrics",
    "raised",
    "warned",
]
