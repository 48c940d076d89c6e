"""The table of all log events and their keys. docs/log.md is generated from it; a test compares it with the code.

An event is named `area.what_happened`. `request.finished` and `subtask.finished` always carry all of REQUEST_KEYS: null
stands for unknown, 0 for a term that did not occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.plugin import TERMS


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its description, and the meaning of each of its keys."""

    doc: str
    keys: Mapping[str, str] = field(default_factory=dict)


COMMON_KEYS: Mapping[str, str] = {
    "ts": "wall time at which the line was written, RFC 3339, UTC",
    "level": "debug, info, warning or error",
    "event": "`area.what_happened`",
}

_TERM_DOCS: Mapping[str, str] = {
    "read": "reading the request's body",
    "admit": "checking the credentials and the request",
    "decide": "choosing the backend",
    "queue": "waiting in the gateway for a slot",
    "split": "dividing the work (hybrid)",
    "edge": "work on this site",
    "connect": "DNS, TCP and TLS to the backend; about 0 on a warm connection",
    "upload": "sending the request's body, until the backend's host has acknowledged it",
    "network": "from the last byte sent to the first byte received, minus the cloud's own time",
    "cloud": "the cloud's own time; for a stream, including generation",
    "download": "reading the response body after its first byte",
    "aggregate": "combining the parts (hybrid)",
    "write": "waiting for the client to receive the response",
}

REQUEST_KEYS: Mapping[str, str] = {
    "request_id": "also in `x-request-id`",
    "trace_id": "from the client's `traceparent`",
    "parent_id": "for a subtask: the request it belongs to",
    "door": "`http` or `mqtt`",
    "kind": "`chat`, `completion`, `embeddings`, `transcription`, `task`, `models` or `other`",
    "model": "the model or task, as the client sent it",
    "backend": "the backend that answered, or `none`",
    "site": "`edge`, `cloud`, `hybrid` or `none`",
    "outcome": "`served`, `refused`, `failed`, `timed_out` or `cancelled`",
    "status": "the HTTP status",
    "reason": "why this backend was chosen, or the error's code",
    "attempts": "number of attempts, each at one backend",
    "items": "units of work in the request",
    "bytes_in": "size of the request's body, bytes",
    "bytes_out": "size of the response body, bytes; for a stream including comments and the error it ended in",
    "candidates": "per backend `{t_ms, j}`, its predicted time and score, or `{refused}`, why it was excluded",
    "predicted_ms": "predicted time from the decision to the last byte; for a stream, to the first content",
    "prediction_error_ratio": "|predicted - actual| / actual",
    "rtt_ms": "HTTP round trip to the backend on a warm connection, smoothed",
    "rtt_min_ms": "the smallest recent HTTP round trip",
    "tcp_rtt_ms": "the kernel's own estimate (TCP_INFO)",
    "uplink_bytes_per_s": "measured upload rate to the backend",
    "downlink_bytes_per_s": "measured download rate from the backend",
    "link_state": "`up`, `degraded`, `down`, or null without a link or a sample",
    "load": "`{cpu, psi, mem, temp_c}` of the device at the decision: ratios 0 to 1, and degrees Celsius",
    "queue": "per backend, the number of waiting tasks at the decision",
    **{f"t_{term}_ms": doc for term, doc in _TERM_DOCS.items()},
    "t_overlap_ms": "sum of all terms minus their union: the time saved by parallel work",
    "t_other_ms": "time that no term covers",
    "t_total_ms": "from the request's head to the last byte passed to the kernel",
    "t_first_byte_ms": "from the request's head until the first content was written",
    "t_cloud_source": "source of `t_cloud_ms`: `server-timing`, `header` or `estimated`",
    "r_edge_per_s": "items / T_edge",
    "r_cloud_per_s": "items / T_cloud",
    "r_network_per_s": "items / T_network",
    "r_total_per_s": "the rate of the whole path",
    "r_sum_per_s": "R_cloud + R_network, the index used in textbooks; not a rate",
    "r_path": "`serial`, `pipelined`, `parallel` or null",
    "error": "the error message that the client received, if any",
}
assert tuple(_TERM_DOCS) == TERMS

EVENTS: Mapping[str, Event] = {
    "request.finished": Event("A request ended; exactly one line per request.", REQUEST_KEYS),
    "subtask.finished": Event("A subtask, one part of a divided request, ended.", REQUEST_KEYS),
    "service.started": Event(
        "The gateway accepts requests.",
        {
            "version": "of edge-gateway",
            "listen": "data listeners",
            "admin": "admin listener",
            "backends": "their names",
        },
    ),
    "service.stopping": Event(
        "The gateway was asked to stop; it finishes the requests in flight.", {"signal": "its name"}
    ),
    "service.reloaded": Event(
        "The configuration was read again and applied, except for changes that need a restart.",
        {"backends": "their names", "waiting_for_restart": "changed variables that take effect at the next start"},
    ),
    "service.reload_failed": Event(
        "The configuration was read again and is invalid: the old one stays in effect, except that API keys which were "
        "removed from their file are revoked.",
        {"problems": "each with its variable and a fix; at the end, the keys that were revoked"},
    ),
    "service.abandoned": Event(
        "The gateway ends although a plugin's task, its start or stop, or a thread has not ended.",
        {
            "backends": "backends with a task, start or stop that ignored its cancellation",
            "threads": "each with its name and place: `NAME at FILE:LINE`",
        },
    ),
    "service.stopped": Event("All listeners and backends are closed.", {}),
    "service.failed": Event("The gateway could not start, or could not continue.", {"error": "why"}),
    "service.state_unreadable": Event(
        "The learned measurements could not be read; the gateway starts without them.",
        {"path": "the file", "error": "why"},
    ),
    "service.state_not_saved": Event(
        "The learned measurements could not be written; a restart loses them.", {"path": "the file", "error": "why"}
    ),
    "service.unhandled": Event(
        "A bug: an unexpected exception in a task or a background step of the gateway. Everything else continues. "
        "Rate-limited.",
        {
            "error": "the operation that failed, and the exception's type",
            "where": "file and line, or null",
            "suppressed": "lines left out since the last one",
        },
    ),
    "memory.pressed": Event(
        "Memory is short (85 % of the limit): new requests are refused with 503.",
        {"ratio": "used memory, as a share of the limit"},
    ),
    "memory.relieved": Event(
        "Enough memory is free again: new requests are accepted.", {"ratio": "used memory, as a share of the limit"}
    ),
    "memory.stopped_accepting": Event(
        "Memory is almost used up (95 % of the limit): new connections are not accepted; open ones continue.",
        {"ratio": "used memory, as a share of the limit"},
    ),
    "memory.accepting_again": Event(
        "New connections are accepted again.", {"ratio": "used memory, as a share of the limit"}
    ),
    "log.dropped": Event(
        "Log lines were dropped: they could not be written for a while, and the buffer (1 MiB) was full.",
        {"lines": "number of dropped lines"},
    ),
    "library.logged": Event(
        "A library logged a warning or an error. Rate-limited.",
        {
            "logger": "the library's logger",
            "message": "its text",
            "error": "the exception's type, or null",
            "suppressed": "lines left out since the last one",
        },
    ),
    "http.rejected": Event(
        "A client sent bytes that are not an HTTP request; it got an error and was disconnected. Rate-limited.",
        {
            "why": "the fault",
            "peer": "the client's address",
            "request_id": "in its error; the lines left out share it",
            "suppressed": "lines left out since the last one",
        },
    ),
    "loop.stalled": Event(
        "Code blocks the event loop, by computing or by waiting. Logged once per place.",
        {
            "where": "file and line that block it: those of a plugin if one is on the stack",
            "backend": "the backend of that plugin, or null",
            "stalled_ms": "how long it has been blocked so far",
            "stack": "places and functions, innermost first",
        },
    ),
    "backend.quarantined": Event(
        "A plugin raised many exceptions in a row without one success: the backend gets no work for a while.",
        {"backend": "its name", "why": "the exception's type, and how many", "seconds": "duration of the quarantine"},
    ),
    "dispatch.leaked": Event(
        "A cancelled attempt has not ended; its slot stays occupied. Logged once per attempt.",
        {"request_id": "of the request", "backend": "its name", "where": "file and line it waits at, or null"},
    ),
    "egress.sent": Event(
        "A request body is passed to a backend off this site: the audit trail of data that may have left. Logged "
        "before the first byte is sent, once per attempt, also if the backend then cannot be reached. Not logged again "
        "if `http` sends the body anew because a connection was stale.",
        {
            "request_id": "of the request",
            "parent_id": "for a subtask: the request it belongs to",
            "backend": "its name",
            "bytes": "size of the body",
        },
    ),
    "egress.refused": Event(
        "Data that must not leave the site was about to; the last check before the backend refused it. A bug; please "
        "report it.",
        {"request_id": "of the request", "backend": "the backend that did not get it"},
    ),
    "http.full": Event(
        "The limit of connections, set by the number of file descriptors, is reached; one more client got 503. "
        "Rate-limited.",
        {
            "peer": "the client's address",
            "request_id": "in its 503; the lines left out share it",
            "suppressed": "lines left out since the last one",
        },
    ),
    "door.broke": Event(
        "The gateway's own code failed on a request: a bug; please report it.",
        {"error": "the exception's type", "where": "file and line", "request_id": "of the request"},
    ),
    "backend.opened": Event(
        "A backend is ready.",
        {"backend": "its name", "plugin": "its plugin", "seconds": "duration of the start"},
    ),
    "backend.failed_to_open": Event(
        "A backend could not be imported or started; it is left out, the others serve. It is tried again after a "
        "failure that may pass; a line is logged only if the error changes.",
        {"backend": "its name", "plugin": "its plugin", "error": "why, with the exception's text"},
    ),
    "backend.ended": Event(
        "A backend closed without a request to stop; the others serve, and a reload opens it again.",
        {"backend": "its name", "error": "why"},
    ),
    "backend.unwell": Event(
        "A backend's health check reports a fault or raised, or a declaration of its plugin cannot be read.",
        {"backend": "its name", "error": "the fault"},
    ),
    "backend.problem": Event(
        "A backend opened, but not all of it can be served: a file of tasks cannot be imported, for example.",
        {"backend": "its name", "error": "the fault; its tasks get 503 with this reason"},
    ),
    "backend.well": Event("A backend's health check passes again.", {"backend": "its name"}),
    "backend.close_failed": Event(
        "A backend raised while it was closed.",
        {"backend": "its name", "error": "its own message, or the exception's type"},
    ),
    "dispatch.fell_back": Event(
        "A backend could not serve the request; the next backend is tried.",
        {"request_id": "of the request", "backend": "the one that failed", "error": "why", "next": "the next backend"},
    ),
    "dispatch.waited": Event(
        "The only backend that could serve the request failed; it is tried once more after a pause.",
        {"request_id": "of the request", "seconds": "duration of the pause"},
    ),
    "dispatch.resumed": Event(
        "A stream broke off after its first content; another backend continues it.",
        {
            "request_id": "of the request",
            "backend": "the one that broke off",
            "error": "why",
            "next": "the next backend",
            "how": "`prefill`: it continues the text so far; `restart`: it starts from the beginning",
        },
    ),
    "dispatch.raised": Event(
        "A plugin raised an exception that is not one of the gateway's errors, or returned a result of a wrong type.",
        {
            "request_id": "of the request",
            "backend": "its name",
            "error": "the exception's type (its text might quote the request), or the field that is wrong",
            "where": "file and line",
        },
    ),
    "breaker.opened": Event(
        "The circuit breaker opened: the backend gets no requests for a while.", {"backend": "its name", "why": "cause"}
    ),
    "breaker.closed": Event(
        "The circuit breaker closed: the backend gets requests again.", {"backend": "its name", "why": "cause"}
    ),
    "breaker.half_opened": Event(
        "The circuit breaker is half open: one request passes as a trial.", {"backend": "its name", "why": "cause"}
    ),
    "link.state_changed": Event(
        "The link to a backend changed state.",
        {"backend": "its name", "before": "old state", "after": "new state", "why": "cause"},
    ),
    "lane.rebound": Event(
        "A waiting request was moved to another backend's lane.",
        {"request_id": "of the request", "before": "the old backend", "after": "the new backend"},
    ),
    "dispatch.rescued": Event(
        "A stalled upload was hedged: the request was also sent to another backend.",
        {"request_id": "of the request", "backend": "the one that stalled", "next": "the other backend"},
    ),
    "hybrid.group_moved": Event(
        "One side could not serve a part of a divided request; the other side is tried.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "before": "the side that failed",
            "after": "the side that is tried",
            "error": "the error's code",
        },
    ),
    "hybrid.escalated": Event(
        "The edge was not confident in its answer, or did not answer; the cloud is tried.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "confidence": "of the edge, 0 to 1, or null",
            "threshold": "the confidence from which the edge's answer is accepted",
        },
    ),
    "hybrid.kept_edge": Event(
        "The cloud failed or was late; the edge's answer was returned despite its low confidence.",
        {"backend": "the hybrid's name", "parent_id": "of the request", "error": "the error's code, or `late`"},
    ),
    "local.raised": Event(
        "A function that `local` serves raised an exception.",
        {
            "backend": "its name",
            "request_id": "of the request",
            "error": "the exception's type",
            "traceback": "its end: file, line and function of each frame, the innermost last, without source text",
            "suppressed": "lines for the same place left out since the last one: at most one a minute is logged",
        },
    ),
    "hybrid.hedged": Event(
        "The first side was slower than usual; the second side is tried as well.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "before": "the slow side",
            "after": "the second side",
            "delay_ms": "time between the two",
        },
    ),
    "hybrid.validator_raised": Event(
        "The validator raised an exception; that counts as low confidence.",
        {"backend": "the hybrid's name", "parent_id": "of the request", "error": "the exception's type"},
    ),
    "worker.ready": Event(
        "A worker process of a backend has opened it.",
        {"backend": "its name", "pid": "of the worker", "start_ms": "from exec to ready"},
    ),
    "worker.start_failed": Event(
        "A worker process could not open its backend; the start is retried.",
        {"backend": "its name", "error": "why, with the exception's text", "retry_s": "seconds until the next try"},
    ),
    "worker.died": Event(
        "A worker process ended, or was killed; it is replaced.",
        {"backend": "its name", "pid": "of the worker", "how": "signal, exit status, or why it was killed"},
    ),
    "worker.raised": Event(
        "In a worker process, a plugin raised an exception that is not one of the gateway's errors.",
        {
            "backend": "its name",
            "request_id": "of the request; null while starting",
            "error": "the exception's type, or the field that is wrong; while starting, its text too",
            "traceback": "its end: file, line and function of each frame, the innermost last, without source text",
        },
    ),
    "worker.output": Event(
        "A worker process printed a line. Rate-limited.",
        {
            "backend": "its name",
            "pid": "of the worker",
            "line": "at most 500 characters of it",
            "suppressed": "lines left out since the last one",
        },
    ),
    "mqtt.connected": Event(
        "Connected to the broker and subscribed; requests are accepted.",
        {"broker": "its address", "resumed": "true if the broker kept the session"},
    ),
    "mqtt.disconnected": Event(
        "The connection to the broker could not be made, or was lost; it is retried. Rate-limited.",
        {
            "broker": "its address",
            "why": "the error of the broker, of TLS or of the network",
            "retry_s": "seconds until the next try",
            "suppressed": "lines left out since the last one",
        },
    ),
    "mqtt.rejected": Event(
        "A message was acknowledged but not served: it is not a request, or its answer would do harm. Rate-limited.",
        {
            "why": "the fault",
            "topic": "its first 200 characters",
            "suppressed": "lines left out since the last one",
        },
    ),
    "mqtt.expired": Event(
        "An expired request was dropped. Rate-limited.",
        {"topic": "its first 200 characters", "suppressed": "lines left out since the last one"},
    ),
    "mqtt.repeated": Event(
        "A request came a second time; it was not run again.",
        {
            "how": "`joined`: it gets the answer of the running request; `remembered`: answered from memory",
            "topic": "its first 200 characters",
        },
    ),
    "mqtt.answer_refused": Event(
        "The broker refused an answer; the request is acknowledged all the same.",
        {"why": "the broker's reason, or its limit", "bytes": "size of the answer's body"},
    ),
    "mqtt.broke": Event(
        "The gateway's own code failed on a message: a bug. The message is acknowledged.",
        {"error": "the exception's type", "where": "file and line", "topic": "its first 200 characters"},
    ),
}
