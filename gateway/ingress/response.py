"""The response to one request: written whole or as a stream, with its outcome in the request's record.

Theory of operation. `Response` is a state machine above a transport's `ResponseWriter`:

    pending       nothing is sent
    sending       a whole response is being written
    streaming     the head of a stream is sent; errors from now on are events in the stream
    refusing      the gateway stops, nothing is sent: the client gets an error
    cut_off       the gateway stops while a whole response is being written: it stays incomplete
    breaking_off  the gateway stops during a stream: the stream ends in an error
    complete      the client has the whole response
    aborted       the stream ended in an error; the client can see that it is incomplete
    lost          the client is gone, or the gateway has dropped the request

TRANSITIONS raises KeyError for an event that the state does not allow. A whole response with invalid headers (from
a backend) has not left the gateway, so `sending` allows a second `send`: the error response.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Literal

import msgspec

from gateway.api.errors import envelope, error_headers, status_of
from gateway.api.response_json import encode_json
from gateway.api.stream_encoder import StreamEncoder
from gateway.dispatch import IDLE, Answer
from gateway.ingress.transport import ResponseWriter
from gateway.plugin import DeadlineExceeded, GatewayError, Result, TaskRefused
from gateway.request_log import Outcome, RequestRecord, outcome_of, server_timing, term_keys
from gateway.telemetry import exception_fields, log, metrics
from gateway.timing import Watch

State = Literal[
    "pending", "sending", "streaming", "refusing", "cut_off", "breaking_off", "complete", "aborted", "lost"
]  # fmt: skip
Event = Literal["send", "sent", "begin", "end", "abort", "stop", "lose"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "pending": {"send": "sending", "begin": "streaming", "stop": "refusing", "lose": "lost"},
    "sending": {"send": "sending", "sent": "complete", "stop": "cut_off", "lose": "lost"},
    "streaming": {"end": "complete", "abort": "aborted", "stop": "breaking_off", "lose": "lost"},
    "refusing": {"send": "sending", "stop": "refusing", "lose": "lost"},
    "cut_off": {"stop": "cut_off", "lose": "lost"},
    "breaking_off": {"abort": "aborted", "stop": "breaking_off", "lose": "lost"},
    "complete": {},
    "aborted": {},
    "lost": {},
}

WAITED_S = 0.001  # a write that takes less time only copies bytes
STOPPED = "the gateway stopped before this was done"
STOPPED_RETRY_S = 1.0

# RFC 9110 §7.6.1: hop-by-hop headers, and those that frame the message. They concern one connection only.
HOP_BY_HOP = frozenset(
    {
        "connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip


class GatewayStops(GatewayError):
    """The gateway stops, and the request cannot be finished in the time that the stop allows."""

    code = "unavailable"

    def __init__(self) -> None:
        super().__init__(STOPPED, retry_after_s=STOPPED_RETRY_S)


class Response:
    """The response to one request."""

    def __init__(
        self, writer: ResponseWriter, record: RequestRecord, watch: Watch, *, is_trusted: bool, has_debug: bool = False
    ) -> None:
        self.state: State = "pending"
        self._writer, self._record, self._watch = writer, record, watch
        self._is_trusted, self._has_debug = is_trusted, has_debug
        self._encoder: StreamEncoder | None = None
        self._answer: Answer | None = None

    @property
    def is_stopped(self) -> bool:
        """The gateway stopped before the response was complete."""
        return self.state in ("refusing", "cut_off", "breaking_off")

    def trust(self) -> None:
        """Add `Server-Timing`: the client has authenticated itself."""
        self._is_trusted = True

    def expect_stream(self, encoder: StreamEncoder) -> None:
        """Let heartbeats, and an error after one, be encoded by `encoder`."""
        self._encoder = encoder

    def on_stop(self) -> None:
        self.state = TRANSITIONS[self.state]["stop"]

    def on_client_lost(self) -> None:
        self.state = TRANSITIONS[self.state]["lose"]
        self._record.outcome = "cancelled"

    # ── a whole response ─────────────────────────────────────────────────────────────────────────

    async def send(self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response. An empty `content_type` omits the header."""
        self._record.status, self._record.bytes_out = status, len(body)
        self._record.outcome = outcome_of(status)
        own = {"Content-Type": content_type} if content_type else {}
        self._watch.first_byte_at = self._watch.enter("write")
        self.state = TRANSITIONS[self.state]["send"]
        await self._writer.send(status, merge_headers(headers or {}, own, self._headers()), body)
        self.state = TRANSITIONS[self.state]["sent"]
        self._watch.leave()

    async def send_result(self, result: Result) -> None:
        """Send a backend's whole result. After a heartbeat, an error result becomes an event of the stream."""
        if self.state == "streaming":
            await self._abort_with_result(result)
            return
        body = result.body if result.body is not None else encode_json(result.json)
        await self.send(result.status, result.content_type, body, result.headers)

    async def _abort_with_result(self, result: Result) -> None:
        """End the stream in the backend's own error. Raises GatewayError for any other result."""
        error = result.value() if "json" in result.content_type else None
        if result.status < 400 or not isinstance(error, dict) or not error.get("error"):
            got = f"status {result.status} with {result.content_type}, not a stream"
            raise GatewayError(
                f"the backend sent {got}, after the stream to the client had begun", code="upstream_bad_response"
            )
        assert self._encoder is not None
        self._record.error, self._record.outcome = f"refused with status {result.status}", outcome_of(result.status)
        await self._abort(self._encoder.error(error))

    def _headers(self) -> dict[str, str]:
        record = self._record
        headers = {
            "x-request-id": record.request_id,
            "x-gateway-backend": record.backend,
            "x-gateway-site": record.site,
            "x-gateway-reason": record.reason or "none",
            "x-gateway-attempts": str(record.attempts),
        }
        if self._is_trusted:
            headers["Server-Timing"] = server_timing(self._watch.so_far())
        return headers

    # ── a stream ─────────────────────────────────────────────────────────────────────────────────

    async def relay(self, encoder: StreamEncoder, answer: Answer) -> None:
        """Send the backend's answer as a stream, to its end."""
        self._encoder, self._answer = encoder, answer
        if answer.result is not None:
            await self._write(encoder.whole(answer.result))
        else:
            await self._relay_parts(encoder, answer)
        self._watch.enter("write")
        timing = term_keys(self._watch.so_far()) if self._is_trusted else {}
        await self._write(encoder.end(timing))
        await self._writer.end()
        self.state = TRANSITIONS[self.state]["end"]
        self._record.status, self._record.outcome = 200, "served"
        self._watch.leave()

    async def _relay_parts(self, encoder: StreamEncoder, answer: Answer) -> None:
        assert answer.parts is not None
        self._record.is_stream |= encoder.is_relayed  # predictions and samples use its first content
        self._watch.enter(_work_term(answer))
        async with aclosing(answer.parts) as parts:
            async for part in parts:
                if part is IDLE:
                    await self.send_heartbeat()
                else:
                    await self._write(encoder.part(part))

    async def send_heartbeat(self) -> None:
        """Send a comment, so that the client and proxies keep the connection. Begins the stream."""
        assert self._encoder is not None
        if self.state != "streaming":
            await self._begin(self._encoder)
        if data := self._encoder.heartbeat():
            self._record.bytes_out += len(data)
            await self._push(data)

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        if self.state != "streaming":
            assert self._encoder is not None
            await self._begin(self._encoder)
        if self._record.content_at is None:
            self._watch.first_byte_at = self._record.content_at = time.monotonic()
        self._record.bytes_out += len(data)
        await self._push(data)

    async def _begin(self, encoder: StreamEncoder) -> None:
        result = self._answer.result if self._answer is not None else None
        backend_headers = result.headers if result is not None else {}
        await self._writer.begin(200, merge_headers(backend_headers, encoder.headers, self._headers()))
        self.state = TRANSITIONS[self.state]["begin"]
        self._record.status = 200

    async def _push(self, data: bytes) -> None:
        """Write to the client. Charges the `write` term only if the client was slow."""
        began = time.monotonic()
        try:
            await self._writer.write(data)
        finally:
            if self._answer is not None and time.monotonic() - began > WAITED_S:
                self._watch.enter("write", at=began)
                self._watch.enter(_work_term(self._answer))

    async def _abort(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        await self._writer.abort(data)
        self.state = TRANSITIONS[self.state]["abort"]

    # ── an error ─────────────────────────────────────────────────────────────────────────────────

    async def refuse(self, error: GatewayError) -> None:
        """Send an error: as the whole response, or as the last event of a stream that has begun."""
        self._watch.enter("write")
        record, status = self._record, status_of(error)
        has_begun = self.state in ("streaming", "breaking_off")
        record.error, record.reason = error.message, error.code
        record.status = 200 if has_begun else status  # the status that the client got
        record.outcome = self._outcome_of(error, status)
        if self.state == "cut_off":  # the connection is closed in a moment
            return
        if isinstance(error, TaskRefused):
            metrics.SHED.inc(reason=error.code)
        body = envelope(error, record.request_id, has_debug=self._has_debug)
        try:
            if has_begun:
                assert self._encoder is not None
                await self._abort(self._encoder.error(body))
            else:
                await self._send_error(error, status, msgspec.json.encode(body))
        except ConnectionError:
            self.on_client_lost()

    async def _send_error(self, error: GatewayError, status: int, body: bytes) -> None:
        outcome = self._record.outcome
        await self.send(status, "application/json", body, error_headers(error, self._record.attempts))
        self._record.outcome = outcome

    def _outcome_of(self, error: GatewayError, status: int) -> Outcome:
        if isinstance(error, DeadlineExceeded):
            return "timed_out"
        has_content = self._record.content_at is not None
        if isinstance(error, GatewayStops) or (has_content and status >= 500):  # content, then an error: it failed
            return "failed"
        return outcome_of(status)


def merge_headers(backend: Mapping[str, str], *ours: Mapping[str, str]) -> dict[str, str]:
    """Merge a backend's response headers with ours. Drops hop-by-hop headers; ours replace the backend's.

    Names are compared without regard to case.
    """
    given = {name.lower(): (name, value) for name, value in backend.items()}
    out = {name: value for headers in ours for name, value in headers.items()}
    _, connection = given.get("connection", ("", ""))
    dropped = HOP_BY_HOP | {name.strip().lower() for name in connection.split(",")} | {name.lower() for name in out}
    return dict(each for key, each in given.items() if key not in dropped) | out


def internal_error(exc: BaseException, request_id: str) -> GatewayError:
    """Log an exception of the gateway's own code; return the error for the client, without its text."""
    log.error("door.broke", **exception_fields(exc), request_id=request_id)
    return GatewayError("the gateway failed on this request; its log has the cause under this request id")


def _work_term(answer: Answer) -> str:
    return "edge" if answer.site == "edge" else "cloud"
