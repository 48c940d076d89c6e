"""What the gateway says of itself: log events, the request line, metrics. Every key is declared once, here.

from gateway.telemetry import log, metrics

log.info("breaker.opened", backend="cloud", why="5 failures in a row")
metrics.REQUESTS.inc(door="http", kind="chat", backend="cloud", outcome="served")
"""

from gateway.telemetry import metrics
from gateway.telemetry.guards import broke, guarded, warned, watched
from gateway.telemetry.logs import Limited, configure, flush, log, raised

__all__ = [
    "Limited",
    "broke",
    "configure",
    "flush",
    "guarded",
    "log",
    "metrics",
    "raised",
    "warned",
    "watched",
]
