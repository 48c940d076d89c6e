"""The request log: one line per request, with its facts and its account of time.

A `RequestRecord` is filled in while the request is served. `log_request` writes it exactly once, with all its keys,
however the request ends, and counts it in the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.measure.measurements import LinkView, Measured
from gateway.plugin import TERMS, Kind, Site
from gateway.telemetry import log, metrics
from gateway.timing import Account, Watch, rates

Outcome = Literal["served", "refused", "failed", "timed_out", "cancelled"]


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """The facts about a request that are known so far."""

    request_id: str
    door: str = "http"
    trace_id: str | None = None
    parent_id: str | None = None
    kind: Kind = "other"
    model: str | None = None
    backend: str = "none"
    site: Site | Literal["none"] = "none"
    outcome: Outcome = "failed"
    status: int | None = None
    reason: str | None = None
    attempts: int = 0
    items: int = 1
    bytes_in: int = 0
    bytes_out: int = 0
    candidates: Mapping[str, Any] = field(default_factory=dict)
    predicted_s: float | None = None
    decided_at: float | None = None
    content_at: float | None = None
    is_stream: bool = False
    link: LinkView | None = None
    load: Mapping[str, float | None] | None = None
    queue: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None


def outcome_of(status: int) -> Outcome:
    """Return the outcome that matches a response status."""
    if status < 400:
        return "served"
    if status in (408, 504):
        return "timed_out"
    return "refused" if status < 500 or status == 503 else "failed"


def log_request(record: RequestRecord, watch: Watch) -> Account:
    """Close the account, write the line and count it. Call it once, in a `finally`."""
    account = watch.close()
    line = _line(record, account, watch.began)
    log.info("subtask.finished" if record.parent_id else "request.finished", **line)
    _count(record, account, line["prediction_error_ratio"])
    return account


def _line(record: RequestRecord, account: Account, began: float) -> dict[str, Any]:
    error_ratio = _prediction_error(record, account, began)
    return {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "parent_id": record.parent_id,
        "door": record.door,
        "kind": record.kind,
        "model": record.model,
        "backend": record.backend,
        "site": record.site,
        "outcome": record.outcome,
        "status": record.status,
        "reason": record.reason,
        "attempts": record.attempts,
        "items": record.items,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "candidates": record.candidates,
        "predicted_ms": _ms(record.predicted_s),
        "prediction_error_ratio": None if error_ratio is None else round(error_ratio, 4),
        **_link_keys(record.link),
        "load": record.load,
        "queue": record.queue,
        **term_keys(account),
        **rates(account, record.items),
        "error": record.error,
    }


def term_keys(account: Account) -> dict[str, Any]:
    """Return the account by log key, in milliseconds."""
    return {
        **{f"t_{term}_ms": account.terms_us[term] / 1000 for term in TERMS},
        "t_overlap_ms": account.overlap_us / 1000,
        "t_other_ms": account.other_us / 1000,
        "t_total_ms": account.total_us / 1000,
        "t_first_byte_ms": None if account.first_byte_us is None else account.first_byte_us / 1000,
        "t_cloud_source": account.cloud_source,
    }


def server_timing(account: Account) -> str:
    """Return the account as a `Server-Timing` header: the terms that occurred, and the total."""
    spent = [f"{term};dur={us / 1000:g}" for term, us in account.terms_us.items() if us]
    if account.overlap_us:
        spent.append(f"overlap;dur={account.overlap_us / 1000:g}")
    return ", ".join([*spent, f"other;dur={account.other_us / 1000:g}", f"total;dur={account.total_us / 1000:g}"])


def _link_keys(link: LinkView | None) -> dict[str, Any]:
    if link is None:
        return dict.fromkeys(
            ("rtt_ms", "rtt_min_ms", "tcp_rtt_ms", "uplink_bytes_per_s", "downlink_bytes_per_s", "link_state")
        )
    return {
        "rtt_ms": _ms(link.rtt.value),
        "rtt_min_ms": _ms(link.rtt_min.value),
        "tcp_rtt_ms": _ms(link.tcp_rtt.value),
        "uplink_bytes_per_s": _whole(link.uplink_bytes_per_s),
        "downlink_bytes_per_s": _whole(link.downlink_bytes_per_s),
        "link_state": link.state,
    }


def _prediction_error(record: RequestRecord, account: Account, began: float) -> float | None:
    """Return the relative error of the predicted time; None if the request was not served, or not predicted.

    The actual time runs from the decision to the last byte; of a stream, to its first content.
    """
    if record.outcome != "served" or record.predicted_s is None or record.decided_at is None:
        return None
    ended = began + account.total_us / 1e6
    actual = (record.content_at or ended) - record.decided_at if record.is_stream else ended - record.decided_at
    return abs(record.predicted_s - actual) / actual if actual > 0 else None


def _count(record: RequestRecord, account: Account, error_ratio: float | None) -> None:
    if record.parent_id is None:
        metrics.REQUESTS.inc(door=record.door, kind=record.kind, backend=record.backend, outcome=record.outcome)
        metrics.DURATION.observe(account.total_us / 1e6, kind=record.kind, backend=record.backend)
        for term, us in account.terms_us.items():
            if us:
                metrics.STAGE.observe(us / 1e6, stage=term)
    if error_ratio is not None:
        metrics.PREDICTION_ERROR.observe(error_ratio, backend=record.backend)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _whole(measured: Measured) -> int | None:
    return None if measured.value is None else round(measured.value)
