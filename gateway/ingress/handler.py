"""The life of one request, whichever way it came in: read, understood, decided, served, answered, accounted.

HTTP and MQTT bring an `IncomingRequest` and a `ResponseWriter`; everything between is here, once. Whatever happens, the
request gets exactly one answer where one can be given, and exactly one line in the log.

Nothing is committed before the first content, with one exception: a stream that has been silent for
HEARTBEAT_S is begun with a comment, so that the client keeps waiting; errors from then on are in-stream.
A stream that cannot be completed ends in an error event and an aborted connection, never cleanly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import msgspec

from gateway.admit import ANYBODY, Caller, Gate
from gateway.api import answers, openapi, tasks
from gateway.api.continuation import continuation
from gateway.api.errors import envelope, error_headers, status_of
from gateway.api.parse import ParsedRequest, parse_request
from gateway.api.render import ResponseRenderer, StreamEncoder, has_content, streamed, wants_whole
from gateway.api.routes import Match, match
from gateway.api.sse import encode_json
from gateway.dispatch import IDLE, Answer, Dispatcher, ResponseSpec, cancel_and_close
from gateway.ingress.auth import authenticate, check_route, credentials_in, places_of
from gateway.ingress.body_budget import BodyBudget
from gateway.ingress.headers import merge_headers
from gateway.ingress.task import RequestLimits, build_task, has_own_limits, limits_of
from gateway.ingress.transport import IncomingRequest, ResponseWriter
from gateway.plugin import DeadlineExceeded, GatewayError, Result, Task, TaskRefused, new_id
from gateway.registry import AUTO
from gateway.request_log import Outcome, RequestRecord, log_request, outcome_of, server_timing, term_keys
from gateway.telemetry import log, metrics, raised
from gateway.timing import Watch

HEARTBEAT_S = 10.0
PRESSED_RETRY_S = 2.0
WAITED_S = 0.001  # shorter than that, writing is the copying of bytes


STOPPED = "the gateway stopped before this was done"
STOPPED_RETRY_S = 1.0


class GatewayStops(GatewayError):
    """It could not be finished in the time that a stop allows."""

    code = "unavailable"


class RequestHandler:
    """Serves requests. is_pressed: memory is short, and new work is refused before it takes any."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        rules: RequestLimits,
        version: str,
        is_ready: Callable[[], bool],
        gate: Gate | None = None,
    ) -> None:
        self.dispatcher, self.rules, self.is_ready = dispatcher, rules, is_ready
        self.gate = gate or Gate()
        self.is_pressed = False
        self.room = BodyBudget()
        self.open: set[_RequestCycle] = set()
        self.has_given_up = False
        self.openapi = msgspec.json.encode(openapi.build(version))

    def explain(self, target: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """What would be decided for `POST target` with these headers and this body, running nothing.

        Where the headers bring a key, its rules count. Raises GatewayError where the request itself would be refused.
        """
        found = match("POST", target)
        caller = self.gate.known(credentials_in(headers)) if any(credentials_in(headers)) else ANYBODY
        check_route(caller, found)
        draft = parse_request(found, headers.get("content-type", ""), body)
        caller.check(draft.kind, draft.name or AUTO)
        task = build_task(draft, headers, self.rules, request_id=new_id(), began=time.monotonic())
        task = task.replace(may_leave=caller.may_leave and not self.keeps(draft, target))
        return self.dispatcher.planner.explain(task, client_deadline="x-gateway-deadline-ms" in headers)

    def keeps(self, draft: ParsedRequest, target: str, topic: str | None = None) -> bool:
        """Whether the operator keeps on the site what the draft asks for, or what comes in where it did."""
        places = places_of(draft.path, target, topic)
        return self.dispatcher.planner.locality.is_edge_only(draft.kind, draft.name or AUTO, places)

    def give_up(self) -> None:
        """The gateway stops: answer what is open, and whatever comes now, that it will not be done.

        Not what came by MQTT: that is not acknowledged, and comes again.
        """
        self.has_given_up = True
        for visit in self.open:
            visit.give_up()

    async def serve(self, incoming: IncomingRequest, reply: ResponseWriter) -> None:
        """Serve one request from its head to its last byte. Raises only CancelledError: the client is gone."""
        watch = Watch()
        visit = _RequestCycle(self, incoming, reply, watch)
        try:
            await visit.run()
        except asyncio.CancelledError:
            visit.note_cancelled()
            raise
        finally:
            visit.close()
            if not visit.is_health:
                log_request(visit.record, watch)


class _RequestCycle:
    """One request's way through the door."""

    def __init__(self, door: RequestHandler, incoming: IncomingRequest, reply: ResponseWriter, watch: Watch) -> None:
        self.door, self.incoming, self.reply, self.watch = door, incoming, reply, watch
        self.record = RequestRecord(request_id=new_id(), door=incoming.door)
        self.is_health = False
        self.caller: Caller = ANYBODY
        self.answer: Answer | None = None
        self.stream: StreamEncoder | None = None
        self.has_begun = self.is_answering = self.is_given_up = False
        self.task = cast("asyncio.Task[None]", asyncio.current_task())

    def note_cancelled(self) -> None:
        """The client has left, or so much of the gateway has stopped that there is no answer any more."""
        self.record.outcome = "cancelled"
        if self.incoming.door == "mqtt":  # nobody but ourselves cancels those
            self.record.outcome, self.record.error, self.record.reason = "failed", STOPPED, "unavailable"

    def close(self) -> None:
        self.caller.leave()
        if self.answer is not None:
            self.answer.close()

    async def run(self) -> None:
        try:
            await self._serve_until_given_up()
        except GatewayError as exc:
            await self._refuse(exc)
        except ConnectionError:
            self.record.outcome = "cancelled"
        except Exception as exc:
            report_bug(exc, self.record.request_id)
            await self._refuse(GatewayError("the gateway failed on this request; its log says where"))

    async def _serve_until_given_up(self) -> None:
        """In the way of asyncio.timeout, at a part of its cost. Raises GatewayStops."""
        if self.incoming.door == "mqtt":
            await self._serve()
            return
        if self.door.has_given_up:
            raise GatewayStops(STOPPED, retry_after_s=STOPPED_RETRY_S)
        cancelled_before = self.task.cancelling()
        self.door.open.add(self)
        try:
            await self._serve()
        except asyncio.CancelledError:
            if not self.is_given_up or self.task.uncancel() > cancelled_before:
                raise
            raise GatewayStops(STOPPED, retry_after_s=STOPPED_RETRY_S) from None
        finally:
            self.door.open.discard(self)

    def give_up(self) -> None:
        """Have it answered that the gateway stops."""
        self.is_given_up = True
        self.task.cancel()

    async def _serve(self) -> None:
        self.watch.enter("admit")
        self.incoming.check()
        if self.incoming.preflight is not None:
            await self._send(204, "", b"", self.incoming.preflight)
            return
        found = match(self.incoming.method, self.incoming.target)
        self.record.kind = found.route.kind
        self.is_health = found.route.is_health
        if not self.is_health:
            self._admit(found)
        if not found.route.needs_body:
            await self._look_up(found)
            return
        self._check_head()
        self.watch.enter("read")
        body = await self.incoming.read(self.caller.max_bytes(self.door.rules.max_body_bytes))
        self.record.bytes_in = len(body)
        self.watch.enter("admit")
        draft = parse_request(found, self.incoming.headers.get("content-type", ""), body)
        self.record.model, self.record.items, self.record.is_stream = draft.name or None, draft.items, draft.stream
        self.caller.check(draft.kind, draft.name or AUTO)
        headers = self.incoming.headers
        task = build_task(draft, headers, self.door.rules, request_id=self.record.request_id, began=self.watch.began)
        stays = self.door.keeps(draft, self.incoming.target, self.incoming.topic)
        if stays or not self.caller.may_leave:
            task = task.replace(may_leave=False)
        if "traceparent" in task.headers:
            self.record.trace_id = task.headers["traceparent"].split("-")[1]
        await self._dispatch(task, draft)

    def _admit(self, found: Match) -> None:
        """Before the body is read: whose key it is, and whether that key may ask this, now."""
        caller = authenticate(self.door.gate, self.incoming.headers, self.incoming.key_id, self.incoming.certified)
        check_route(caller, found)
        if self.door.is_pressed and found.route.needs_body:
            raise TaskRefused("the gateway is short of memory; come back later", retry_after_s=PRESSED_RETRY_S)
        self.door.gate.enter(caller)
        self.caller = caller

    @property
    def _is_trusted(self) -> bool:
        return self.incoming.is_trusted or self.caller.is_known

    def _check_head(self) -> None:
        encoding = self.incoming.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise GatewayError(
                "a Content-Encoding is not supported; send the body as it is",
                code="unsupported_encoding",
                detail=f"this one is {encoding[:40]!r}",
            )

    # ── what needs no backend ────────────────────────────────────────────────────────────────────

    async def _look_up(self, found: Match) -> None:
        operation = found.route.operation
        if operation in ("livez", "healthz"):
            await self._send(200, "application/json", b'{"status":"ok"}')
        elif operation == "readyz":
            ready = self.door.is_ready()
            await self._send(200 if ready else 503, "application/json", b'{"ready":%s}' % str(ready).lower().encode())
        elif operation == "openapi":
            await self._send(200, "application/json", self.door.openapi)
        else:
            await self._send(200, "application/json", msgspec.json.encode(self._listing(found)))

    def _listing(self, found: Match) -> dict[str, Any]:
        registry = self.door.dispatcher.registry
        if registry.is_opening:  # half a list would be taken for a whole one
            raise GatewayError("the backends are still starting", code="unavailable", retry_after_s=1.0)
        allows = self.caller.allows
        if found.route.operation == "list_tasks":
            return tasks.tasks_list({name: who for name, who in registry.task_names().items() if allows("task", name)})
        models = {name: who for name, who in registry.names().items() if allows("models", name)}
        wanted = found.params.get("id")
        if wanted is None:
            return answers.models_list(models.items())
        if wanted not in models:
            self.caller.check("models", wanted)
            registry.offer("chat", wanted)  # names the nearest, or says that it is not known yet
        return answers.model(wanted, models.get(wanted, "edge-gateway"))

    # ── what does ────────────────────────────────────────────────────────────────────────────────

    async def _dispatch(self, task: Task, draft: ParsedRequest) -> None:
        self.stream = self._streamed(draft) if draft.stream else None
        headers = self.incoming.headers
        expected = ResponseSpec(
            limits=limits_of(headers, self.door.rules.limits),
            is_content=lambda part: has_content(draft, part),
            client_deadline="x-gateway-deadline-ms" in headers,
            has_own_limits=has_own_limits(headers, self.door.rules),
            heartbeat_s=HEARTBEAT_S if draft.stream or draft.kind in ("task", "other") else None,
            continuation=continuation(draft) if draft.stream else None,
            renderer=partial(ResponseRenderer, draft, self.record.request_id),
            collects=partial(wants_whole, draft, takes_pieces=self.incoming.door == "http"),
        )
        asked = self.door.dispatcher.dispatch(task, self.watch, self.record, expected)
        self.answer = answer = await (self._patiently(asked) if draft.stream else asked)
        self.watch.enter("write")
        result = answer.result
        if result is not None and (not draft.stream or result.status >= 400 or draft.kind == "other"):
            await self._whole(result)
        else:
            self.stream = self._streamed(draft, answer.served_as)
            await self._relay(self.stream, answer, result)

    def _streamed(self, draft: ParsedRequest, served_as: str | None = None) -> StreamEncoder:
        return streamed(draft, request_id=self.record.request_id, served_as=served_as)

    async def _whole(self, result: Result) -> None:
        if self.has_begun:
            await self._whole_late(result)
            return
        body = result.body if result.body is not None else encode_json(result.json)
        await self._send(result.status, result.content_type, body, result.headers)

    async def _whole_late(self, result: Result) -> None:
        """A whole answer where the stream has begun already: the client can only be told in it, in its own words."""
        said = result.value() if "json" in result.content_type else None
        if result.status < 400 or not isinstance(said, dict) or not said.get("error"):
            what = f"status {result.status} in {result.content_type}, which is no stream, after the stream had begun"
            raise GatewayError(f"the backend answered with {what}", code="upstream_bad_response")
        assert self.stream is not None
        self.record.error, self.record.outcome = f"refused with status {result.status}", outcome_of(result.status)
        await self._abort(self.stream.error(said))

    async def _send(
        self, status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.record.status, self.record.bytes_out = status, len(body)
        self.record.outcome = outcome_of(status)
        kind = {"Content-Type": content_type} if content_type else {}
        self.watch.first_byte_at = self.watch.enter("write")
        self.is_answering = True
        await self.reply.whole(status, merge_headers(headers or {}, kind, self._headers()), body)
        self.watch.leave()

    def _headers(self) -> dict[str, str]:
        record = self.record
        headers = {
            "x-request-id": record.request_id,
            "x-gateway-backend": record.backend,
            "x-gateway-site": record.site,
            "x-gateway-reason": record.reason or "none",
            "x-gateway-attempts": str(record.attempts),
        }
        if self._is_trusted:
            headers["Server-Timing"] = server_timing(self.watch.so_far())
        return headers

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    async def _relay(self, stream: StreamEncoder, answer: Answer, result: Result | None) -> None:
        if result is not None:
            await self._write(stream.whole(result))
        else:
            assert answer.parts is not None
            self.record.is_stream |= stream.draft.kind == "other"  # its first content is what is predicted, and learned
            self.watch.enter(_working(answer))
            async with aclosing(answer.parts) as parts:
                async for part in parts:
                    if part is IDLE:
                        await self._beat(stream)
                    else:
                        await self._write(stream.part(part))
        self.watch.enter("write")
        timing = term_keys(self.watch.so_far()) if self._is_trusted else {}
        await self._write(stream.end(timing))
        await self.reply.end()
        self.record.status, self.record.outcome = 200, "served"
        self.watch.leave()

    async def _write(self, data: bytes) -> None:
        """Write to the client. The account hears of it only where the client had to be waited for."""
        if not data:
            return
        await self._begin()
        if self.record.content_at is None:
            self.watch.first_byte_at = self.record.content_at = time.monotonic()
        self.record.bytes_out += len(data)
        await self._push(data)

    async def _push(self, data: bytes) -> None:
        began = time.monotonic()
        try:
            await self.reply.write(data)
        finally:
            if self.answer is not None and time.monotonic() - began > WAITED_S:
                self.watch.enter("write", at=began)
                self.watch.enter(_working(self.answer))

    async def _begin(self) -> None:
        if not self.has_begun:
            assert self.stream is not None
            whole = self.answer.result if self.answer is not None else None
            given = whole.headers if whole is not None else {}
            await self.reply.begin(200, merge_headers(given, self.stream.headers, self._headers()))
            self.has_begun, self.record.status = True, 200

    async def _beat(self, stream: StreamEncoder) -> None:
        await self._begin()
        if beat := stream.heartbeat():
            self.record.bytes_out += len(beat)
            await self._push(beat)

    async def _abort(self, data: bytes) -> None:
        self.record.bytes_out += len(data)
        await self.reply.abort(data)

    async def _patiently(self, asked: Awaitable[Answer]) -> Answer:
        """Wait for the answer, with a comment to the client every HEARTBEAT_S."""
        waiting = asyncio.ensure_future(asked)
        try:
            while not (await asyncio.wait({waiting}, timeout=HEARTBEAT_S))[0]:
                assert self.stream is not None
                await self._beat(self.stream)
            return waiting.result()
        except BaseException:
            cancel_and_close(waiting)
            raise

    # ── when it cannot be served ─────────────────────────────────────────────────────────────────

    def _outcome_of(self, status: int) -> Outcome:
        """What has begun and breaks off has failed, whatever that would have been before."""
        return "failed" if self.record.content_at is not None and status >= 500 else outcome_of(status)

    async def _refuse(self, error: GatewayError) -> None:
        self.watch.enter("write")
        record = self.record
        status = status_of(error)
        record.error, record.reason = error.message, error.code
        record.status = 200 if self.has_begun else status  # what the client was told
        record.outcome = "timed_out" if isinstance(error, DeadlineExceeded) else self._outcome_of(status)
        if isinstance(error, GatewayStops):
            record.outcome = "failed"
            if self.is_answering:  # to one who reads slowly; the connection goes in a moment
                return
        if isinstance(error, TaskRefused):
            metrics.SHED.inc(reason=error.code)
        body = envelope(error, record.request_id)
        try:
            if self.has_begun and self.stream is not None:
                await self._abort(self.stream.error(body))
            else:
                await self._send_error(error, msgspec.json.encode(body))
        except ConnectionError:
            record.outcome = "cancelled"

    async def _send_error(self, error: GatewayError, body: bytes) -> None:
        outcome = self.record.outcome
        more = error_headers(error, self.record.attempts)
        await self._send(status_of(error), "application/json", body, more)
        self.record.outcome = outcome


def _working(answer: Answer) -> str:
    return "edge" if answer.site == "edge" else "cloud"


def report_bug(exc: BaseException, request_id: str) -> None:
    """Our own code failed on a request: what, and where."""
    log.error("door.broke", **raised(exc), request_id=request_id)
