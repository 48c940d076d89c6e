"""The one table of events and keys; docs/log.md is generated from it, and a test holds both ways.

An event is named `room.what_happened`. `request.finished` and `subtask.finished` carry all of
REQUEST_KEYS, always: unknown is null, a term that did not occur is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.plugin import TERMS


@dataclass(frozen=True, slots=True)
class Event:
    """An event: what it says, and its keys with what they mean."""

    doc: str
    keys: Mapping[str, str] = field(default_factory=dict)


COMMON_KEYS: Mapping[str, str] = {
    "ts": "wall time the line was written, RFC 3339, UTC",
    "level": "debug, info, warning or error",
    "event": "`room.what_happened`",
}

_TERM_DOCS: Mapping[str, str] = {
    "read": "reading the request's body",
    "admit": "checking who asks and what",
    "decide": "choosing the backend",
    "queue": "waiting in the gateway for a slot",
    "split": "dividing the work (hybrid)",
    "edge": "work on this site",
    "connect": "DNS, TCP and TLS to the backend; about 0 on a warm connection",
    "upload": "sending the request's body until the kernel has it acknowledged",
    "network": "from the last byte sent to the first received, less the cloud's own time",
    "cloud": "the cloud's own time; of a stream, generation too",
    "download": "reading the answer's body after its first byte",
    "aggregate": "putting parts together (hybrid)",
    "write": "waiting for the client to take the answer",
}

REQUEST_KEYS: Mapping[str, str] = {
    "request_id": "also in `x-request-id`",
    "trace_id": "of the client's `traceparent`",
    "parent_id": "of a subtask: the request it belongs to",
    "door": "`http` or `mqtt`",
    "kind": "`chat`, `completion`, `embeddings`, `transcription`, `task`, `models` or `other`",
    "model": "the model or task, as the client wrote it",
    "backend": "who answered, or `none`",
    "site": "`edge`, `cloud`, `hybrid` or `none`",
    "outcome": "`served`, `refused`, `failed`, `timed_out` or `cancelled`",
    "status": "the HTTP status",
    "reason": "why this backend, or the error's code",
    "attempts": "how many backends were asked",
    "items": "units of work in the request",
    "bytes_in": "size of the request's body, bytes",
    "bytes_out": "size of the answer's body, bytes; of a stream with its comments, and the error it ended in",
    "candidates": "per backend `{t_ms, j}`, its prediction and score, or `{refused}`, why not",
    "predicted_ms": "predicted time from decision to last byte; of a stream, to first content",
    "prediction_error_ratio": "|predicted - actual| / actual",
    "rtt_ms": "HTTP round trip to the backend on a warm connection, smoothed",
    "rtt_min_ms": "the smallest recent one",
    "tcp_rtt_ms": "the kernel's own estimate (TCP_INFO)",
    "uplink_bytes_per_s": "measured upload rate to the backend",
    "downlink_bytes_per_s": "measured download rate from it",
    "link_state": "`up`, `degraded`, `down`, or null where there is no link or no sample",
    "load": "`{cpu, psi, mem, temp_c}` of the device at decision, ratios 0 to 1 and degrees",
    "queue": "per backend, how many waited at decision",
    **{f"t_{term}_ms": doc for term, doc in _TERM_DOCS.items()},
    "t_overlap_ms": "sum of all terms less their union: what parallel work saved",
    "t_other_ms": "what no term covers",
    "t_total_ms": "from the request's head to the last byte handed to the kernel",
    "t_first_byte_ms": "until the first content was written",
    "t_cloud_source": "where `t_cloud_ms` comes from: `server-timing`, `header` or `estimated`",
    "r_edge_per_s": "items / T_edge",
    "r_cloud_per_s": "items / T_cloud",
    "r_network_per_s": "items / T_network",
    "r_total_per_s": "the rate of the whole path",
    "r_sum_per_s": "R_cloud + R_network, the textbook's index; no rate",
    "r_path": "`serial`, `pipelined`, `parallel` or null",
    "error": "the message the client got, where it got an error",
}
assert tuple(_TERM_DOCS) == TERMS

EVENTS: Mapping[str, Event] = {
    "request.finished": Event("One request ended; exactly one line for each.", REQUEST_KEYS),
    "subtask.finished": Event("One part of a divided request ended.", REQUEST_KEYS),
    "service.started": Event(
        "The gateway accepts requests.",
        {"version": "of edge-gateway", "listen": "data listeners", "admin": "admin listener", "backends": "names"},
    ),
    "service.stopping": Event("A stop was asked for; what is in flight is finished.", {"signal": "which"}),
    "service.reloaded": Event(
        "The configuration was read again and holds, but for what waits for a restart.",
        {"backends": "names", "waiting_for_restart": "variables that changed and take hold at the next start"},
    ),
    "service.reload_failed": Event(
        "The configuration was read again and is wrong: the old one stays, but for keys that are gone from their file.",
        {"problems": "each with its variable and a fix; last, keys that were revoked nevertheless"},
    ),
    "service.abandoned": Event(
        "The gateway ends though a plugin's task, its start or stop, or a thread does not.",
        {
            "backends": "whose task, start or stop ignored that it was told to end",
            "threads": "each by its name and its place: `NAME at FILE:LINE`",
        },
    ),
    "service.stopped": Event("Everything is closed.", {}),
    "service.failed": Event("The gateway could not start, or go on.", {"error": "why"}),
    "service.state_unreadable": Event(
        "What was learned before could not be read; the gateway starts afresh.", {"path": "which file", "error": "why"}
    ),
    "service.state_not_saved": Event(
        "What was learned could not be written; it is lost at a restart.", {"path": "which file", "error": "why"}
    ),
    "service.unhandled": Event(
        "A bug: a task of the gateway, or a step beside requests, met an error nobody expected. The rest goes on. "
        "Rate-limited.",
        {
            "error": "what happened or what was being done, and the exception's type",
            "where": "file and line, or null",
            "suppressed": "lines left out since the last one",
        },
    ),
    "memory.pressed": Event(
        "Memory is short (85 % of the limit): new work is refused with 503.", {"ratio": "used, of the limit"}
    ),
    "memory.relieved": Event("There is memory again: new work is taken.", {"ratio": "used, of the limit"}),
    "memory.stopped_accepting": Event(
        "Hardly any memory is left (95 % of the limit): no connection is accepted; those there are go on.",
        {"ratio": "used, of the limit"},
    ),
    "memory.accepting_again": Event("Connections are accepted again.", {"ratio": "used, of the limit"}),
    "log.dropped": Event(
        "Lines of this log are missing: for a while they could not be written, and more came than are kept (1 MiB).",
        {"lines": "how many"},
    ),
    "library.logged": Event(
        "A library's warning; rate-limited.",
        {
            "logger": "whose",
            "message": "what",
            "error": "the exception's type, or null",
            "suppressed": "lines left out since the last one",
        },
    ),
    "http.rejected": Event(
        "Bytes that are no request were answered and the connection closed; rate-limited.",
        {"why": "what was wrong", "peer": "address", "suppressed": "lines left out since the last one"},
    ),
    "loop.stalled": Event(
        "The event loop stands still: somebody computes, or waits, where everybody is served. Each place is told once.",
        {
            "where": "file and line that hold it: a plugin's, where there is one on the stack",
            "backend": "whose plugin that is, or null",
            "stalled_ms": "for how long, so far",
            "stack": "places and functions, innermost first",
        },
    ),
    "backend.quarantined": Event(
        "A plugin raised and raised and answered nothing: it gets no work for a while.",
        {"backend": "its name", "why": "what it raised, how often", "seconds": "for how long"},
    ),
    "dispatch.leaked": Event(
        "An attempt was cancelled and does not end; its slot stays taken. Told once for each.",
        {"request_id": "of the request", "backend": "whose plugin", "where": "file and line it waits at, or null"},
    ),
    "egress.sent": Event(
        "A request's body is handed to a backend off this site: the audit trail of what may have left. Written before "
        "the first byte goes out, once for each attempt: also where then nobody could be reached, and not again where "
        "a stale connection makes `http` send it anew.",
        {
            "request_id": "of the request",
            "parent_id": "of a subtask: the request it belongs to",
            "backend": "who gets it",
            "bytes": "size of the body",
        },
    ),
    "egress.refused": Event(
        "What may not leave was about to: the last check before the backend held. A bug; please report it.",
        {"request_id": "of the request", "backend": "who would have got it"},
    ),
    "http.full": Event(
        "As many clients are connected as there are descriptors for; one more was told 503. Rate-limited.",
        {"peer": "address", "suppressed": "lines left out since the last one"},
    ),
    "door.broke": Event(
        "The gateway's own code failed on a request: a bug; please report it.",
        {"error": "the exception's type", "where": "file and line", "request_id": "of the request"},
    ),
    "backend.opened": Event(
        "A backend is ready.",
        {"backend": "its name", "plugin": "which", "seconds": "it took to start"},
    ),
    "backend.failed_to_open": Event(
        "A backend could not be imported or started; it is left out, others serve.",
        {"backend": "its name", "plugin": "which", "error": "why, with the words of what was raised"},
    ),
    "backend.ended": Event(
        "A backend was closed though nobody had asked for that; others serve, and a reload opens it again.",
        {"backend": "its name", "error": "why"},
    ),
    "backend.unwell": Event(
        "A backend's health check reports a fault or raised, or what it declares cannot be read.",
        {"backend": "its name", "error": "what"},
    ),
    "backend.well": Event("A backend's health check passes again.", {"backend": "its name"}),
    "backend.close_failed": Event(
        "A backend raised while it was stopped.",
        {"backend": "its name", "error": "what: its own word, or the exception's type"},
    ),
    "dispatch.fell_back": Event(
        "A backend could not serve; the next one is asked.",
        {"request_id": "of the request", "backend": "who failed", "error": "why", "next": "who is asked"},
    ),
    "dispatch.waited": Event(
        "The only backend that could serve has failed; it is asked once more, after a pause.",
        {"request_id": "of the request", "seconds": "how long"},
    ),
    "dispatch.resumed": Event(
        "A stream broke off after content; another backend goes on with it.",
        {
            "request_id": "of the request",
            "backend": "who broke off",
            "error": "why",
            "next": "who is asked",
            "how": "`prefill`: to go on from the text so far; `restart`: from the beginning",
        },
    ),
    "dispatch.raised": Event(
        "A plugin raised something that is not one of the gateway's errors, or gave an answer of a wrong type.",
        {
            "request_id": "of the request",
            "backend": "whose plugin",
            "error": "the exception's type (its text might quote the request), or the field that is wrong",
            "where": "file and line",
        },
    ),
    "breaker.opened": Event("A backend is not asked for a while.", {"backend": "its name", "why": "what led to it"}),
    "breaker.closed": Event("A backend is asked again.", {"backend": "its name", "why": "what led to it"}),
    "breaker.half_opened": Event("One try is let through.", {"backend": "its name", "why": "what led to it"}),
    "link.state_changed": Event(
        "The link to a backend changed state.",
        {"backend": "its name", "before": "state", "after": "state", "why": "the event that moved it"},
    ),
    "lane.rebound": Event(
        "A waiting request was moved to another backend's lane.",
        {"request_id": "of the request", "before": "backend", "after": "backend"},
    ),
    "dispatch.rescued": Event(
        "A stalled upload was duplicated on another backend.",
        {"request_id": "of the request", "backend": "who stalled", "next": "who is asked too"},
    ),
    "hybrid.group_moved": Event(
        "One side could not serve a part of a divided request; the other is asked.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "before": "who failed",
            "after": "who is asked",
            "error": "the error's code",
        },
    ),
    "hybrid.escalated": Event(
        "The edge was not sure of its answer, or had none; the cloud is asked.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "confidence": "how sure the edge was, 0 to 1, or null",
            "threshold": "from which on its answer would have been taken",
        },
    ),
    "hybrid.kept_edge": Event(
        "The cloud failed or was late; the edge's answer was given though it was not sure.",
        {"backend": "the hybrid's name", "parent_id": "of the request", "error": "the error's code, or `late`"},
    ),
    "local.raised": Event(
        "A function that `local` serves raised an exception, on this request.",
        {
            "backend": "its name",
            "request_id": "of the request",
            "error": "the exception's type",
            "traceback": "its end: file, line and function of each frame, the innermost last; no text of either",
            "suppressed": "how many of the same place were left out since the last line: there is one a minute",
        },
    ),
    "hybrid.hedged": Event(
        "The first side was later than usual; the second is asked too.",
        {
            "backend": "the hybrid's name",
            "parent_id": "of the request",
            "before": "who is late",
            "after": "who is asked too",
            "delay_ms": "after how long",
        },
    ),
    "hybrid.validator_raised": Event(
        "The validator raised; its answer counts as not sure.",
        {"backend": "the hybrid's name", "parent_id": "of the request", "error": "the exception's type"},
    ),
    "worker.ready": Event(
        "A worker process of a backend has opened it.",
        {"backend": "its name", "pid": "of the worker", "start_ms": "from exec to ready"},
    ),
    "worker.start_failed": Event(
        "A worker process could not open its backend; it is tried again.",
        {"backend": "its name", "error": "why, with the words of what was raised", "retry_s": "until the next try"},
    ),
    "worker.died": Event(
        "A worker process ended, or was killed; it is replaced.",
        {"backend": "its name", "pid": "of the worker", "how": "signal, exit status, or why it was killed"},
    ),
    "worker.raised": Event(
        "A plugin raised something that is not one of the gateway's errors, in a worker process.",
        {
            "backend": "its name",
            "request_id": "of the request; null while starting",
            "error": "the exception's type, or the field that is wrong; while starting, its text too",
            "traceback": "its end: file, line and function of each frame, the innermost last; no text of either",
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
        "Connected to the broker and subscribed; requests are taken.",
        {"broker": "which", "resumed": "whether the broker had kept our session"},
    ),
    "mqtt.disconnected": Event(
        "The connection to the broker could not be made, or was lost; it is tried again. Rate-limited.",
        {
            "broker": "which",
            "why": "what the broker, TLS or the network said",
            "retry_s": "seconds until the next try",
            "suppressed": "lines left out since the last one",
        },
    ),
    "mqtt.rejected": Event(
        "A message that is no request, or whose answer would do harm, was acknowledged and not served; rate-limited.",
        {
            "why": "what is wrong",
            "topic": "its first 200 characters",
            "suppressed": "lines left out since the last one",
        },
    ),
    "mqtt.expired": Event(
        "A request that had expired was dropped; rate-limited.",
        {"topic": "its first 200 characters", "suppressed": "lines left out since the last one"},
    ),
    "mqtt.repeated": Event(
        "A request that was known came again, and was not run again.",
        {
            "how": "`joined` the one that runs, or `remembered`: answered from memory",
            "topic": "its first 200 characters",
        },
    ),
    "mqtt.answer_refused": Event(
        "The broker will not take an answer; its request is acknowledged nevertheless.",
        {"why": "the broker's reason, or its limit", "bytes": "size of the answer's body"},
    ),
    "mqtt.broke": Event(
        "The gateway failed on a message: a bug. The message is acknowledged.",
        {"error": "the exception's type", "where": "file and line", "topic": "its first 200 characters"},
    ),
}
