"""The request handler: admits, parses, dispatches and logs each request, for every transport.

A transport calls `RequestHandler.serve` with an `IncomingRequest` and a `ResponseWriter`. Each request gets exactly one
response, if the client can still be reached, and exactly one line in the log.

The client gets nothing before the backend's first content, except in a stream that has been silent for HEARTBEAT_S:
it begins with a comment, so that the client keeps waiting. Errors from then on are events in the stream. A stream that
cannot be completed ends in an error event and a broken connection, so that the client can see that it is incomplete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

import msgspec

from gateway.admit import ANONYMOUS, Caller, Gate
from gateway.api import openapi, tasks
from gateway.api.json_bounds import SMALL_BYTES
from gateway.api.models import model, models_list
from gateway.api.operation import ParsedRequest
from gateway.api.operations import parse_request
from gateway.api.render import ResponseRenderer
from gateway.api.routes import Match, match
from gateway.api.stream_encoder import UNANSWERED
from gateway.dispatch import Answer, Dispatcher, ResponseSpec, cancel_and_close
from gateway.ingress.auth import authenticate, check_route, credentials_in
from gateway.ingress.load_shedding import LoadShedding
from gateway.ingress.response import STOPPED, GatewayStops, Response, internal_error
from gateway.ingress.task import RequestLimits, build_task, entry_points_of, has_own_limits, stream_limits_of
from gateway.ingress.transport import IncomingRequest, ResponseWriter, is_developer
from gateway.plugin import GatewayError, Task, new_id
from gateway.registry import AUTO
from gateway.request_log import RequestRecord, log_request
from gateway.timing import Watch

HEARTBEAT_S = 10.0


class RequestHandler:
    """Serves the requests of all transports. `shedding` is shared with the memory guard, which sets it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: RequestLimits,
        version: str,
        is_ready: Callable[[], bool],
        gate: Gate | None = None,
        shedding: LoadShedding | None = None,
    ) -> None:
        self.dispatcher, self.limits, self.is_ready = dispatcher, limits, is_ready
        self.gate = gate or Gate()
        self.shedding = shedding or LoadShedding()
        self.has_stopped = False
        self.open_requests: set[_RequestCycle] = set()
        self.openapi = msgspec.json.encode(openapi.build(version))

    def set_limits(self, limits: RequestLimits) -> None:
        """Use other limits for requests that arrive from now on."""
        self.limits = limits

    def explain(self, target: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The routing decision for `POST target` with these headers and this body; runs nothing.

        If the headers contain an API key, its rules apply. Raises GatewayError if the request would be refused.
        """
        matched = match("POST", target)
        caller = self.gate.authenticate(credentials_in(headers)) if any(credentials_in(headers)) else ANONYMOUS
        check_route(caller, matched)
        parsed = parse_request(matched, headers.get("content-type", ""), body, max_items=self.limits.max_items)
        caller.check(parsed.kind, parsed.name or AUTO)
        task = build_task(parsed, headers, self.limits, request_id=new_id(), began=time.monotonic())
        task = task.replace(may_leave=caller.may_leave and not self.is_edge_only(parsed, target))
        return self.dispatcher.planner.explain(task, client_deadline="x-gateway-deadline-ms" in headers)

    def is_edge_only(self, parsed: ParsedRequest, target: str, topic: str | None = None) -> bool:
        """Whether the operator's rules keep this model, task, path or topic on the site."""
        locality = self.dispatcher.planner.locality
        if not locality.has_rules:
            return False
        entry_points = entry_points_of(parsed.path, target, topic)
        return locality.is_edge_only(parsed.kind, parsed.name or AUTO, entry_points)

    def stop(self) -> None:
        """Answer every open request, and every later one, with an error: the gateway stops.

        Requests that the transport redelivers are excepted: they get no response, so that they are delivered again.
        """
        self.has_stopped = True
        for cycle in self.open_requests:
            cycle.stop()

    async def serve(self, request: IncomingRequest, writer: ResponseWriter) -> None:
        """Serve one request until its response is written. Raises CancelledError if the client leaves."""
        watch = Watch()
        cycle = _RequestCycle(self, request, writer, watch)
        try:
            await cycle.run()
        except asyncio.CancelledError:
            cycle.on_cancelled()
            raise
        finally:
            cycle.close()
            if not cycle.is_health:
                log_request(cycle.record, watch)


class _RequestCycle:
    """One request, from its head to the end of its response."""

    def __init__(self, handler: RequestHandler, request: IncomingRequest, writer: ResponseWriter, watch: Watch) -> None:
        self.handler, self.request, self.watch = handler, request, watch
        self.record = RequestRecord(request_id=new_id(), door=request.door)
        has_debug = handler.limits.debug and is_developer(request)
        self.response = Response(writer, self.record, watch, is_trusted=request.is_trusted, has_debug=has_debug)
        self.is_health = False
        self.caller: Caller = ANONYMOUS
        self.answer: Answer | None = None
        self.task = cast("asyncio.Task[None]", asyncio.current_task())

    def on_cancelled(self) -> None:
        """The client closed its connection, or the gateway stopped and the transport redelivers the request."""
        self.response.on_client_lost()
        if self.request.is_redelivered:
            self.record.outcome, self.record.error, self.record.reason = "failed", STOPPED, "unavailable"

    def close(self) -> None:
        if self.answer is not None:
            self.answer.close()
        if self.caller.key is not None:
            self.handler.dispatcher.release(self.caller, self.record.request_id)

    async def run(self) -> None:
        try:
            await self._serve_until_stopped()
        except GatewayError as exc:
            await self.response.refuse(exc)
        except ConnectionError:
            self.response.on_client_lost()
        except Exception as exc:
            await self.response.refuse(internal_error(exc, self.record.request_id))

    async def _serve_until_stopped(self) -> None:
        """Serve the request; raise GatewayStops if the gateway stops first. Like asyncio.timeout(), but cheaper."""
        if self.request.is_redelivered:
            await self._serve()
            return
        if self.handler.has_stopped:
            raise GatewayStops
        cancelled_before = self.task.cancelling()
        self.handler.open_requests.add(self)
        try:
            await self._serve()
        except asyncio.CancelledError:
            if not self.response.is_stopped or self.task.uncancel() > cancelled_before:
                raise
            raise GatewayStops from None
        finally:
            self.handler.open_requests.discard(self)

    def stop(self) -> None:
        """Interrupt the request: it ends in GatewayStops."""
        self.response.on_stop()
        self.task.cancel()

    async def _serve(self) -> None:
        request = self.request
        self.watch.enter("admit")
        request.check()
        if request.preflight is not None:
            await self.response.send(204, "", b"", request.preflight)
            return
        matched = match(request.method, request.target)
        self.record.kind = matched.route.kind
        self.is_health = matched.route.is_health
        if not self.is_health:
            self._admit(matched)
        if not matched.route.needs_body:
            await self._serve_local(matched)
            return
        if "content-encoding" in request.headers:
            _check_encoding(request.headers["content-encoding"])
        self.watch.enter("read")
        body = await request.read(self.caller.max_bytes(self.handler.limits.max_body_bytes))
        self.record.bytes_in = len(body)
        self.watch.enter("admit")
        parsed = await self._parsed(matched, body)
        self.record.model, self.record.items, self.record.is_stream = parsed.name or None, parsed.items, parsed.stream
        self.caller.check(parsed.kind, parsed.name or AUTO)
        await self._dispatch(self._task(parsed), parsed)

    async def _parsed(self, matched: Match, body: bytes) -> ParsedRequest:
        """Parse the body; a large one in a thread, so that no content of it can hold the event loop."""
        content_type = self.request.headers.get("content-type", "")
        parse = partial(parse_request, matched, content_type, body, max_items=self.handler.limits.max_items)
        return parse() if len(body) <= SMALL_BYTES else await asyncio.to_thread(parse)

    def _admit(self, matched: Match) -> None:
        """Authenticate and authorize the request, and check the rate, before the body is read."""
        request, handler = self.request, self.handler
        caller = authenticate(handler.gate, request.headers, request.key_id, request.certificate_names)
        check_route(caller, matched)
        if matched.route.needs_body:
            caller.check_any(matched.route.kind)
        if matched.route.needs_body and handler.shedding.is_active:
            raise handler.shedding.refusal()
        handler.gate.admit(caller)
        self.caller = caller
        if caller.key is not None:
            self.response.trust()

    def _task(self, parsed: ParsedRequest) -> Task:
        handler, request = self.handler, self.request
        task = build_task(
            parsed, request.headers, handler.limits, request_id=self.record.request_id, began=self.watch.began
        )
        if not self.caller.may_leave or handler.is_edge_only(parsed, request.target, request.topic):
            task = task.replace(may_leave=False)
        if "traceparent" in task.headers:
            self.record.trace_id = task.headers["traceparent"].split("-")[1]
        return task

    def _may_leave(self, parsed: ParsedRequest) -> bool:
        """Whether the request may leave the site by the rules and the key of this moment. Raises GatewayError."""
        caller = self.handler.gate.current(self.caller)
        caller.check(parsed.kind, parsed.name or AUTO)
        return caller.may_leave and not self.handler.is_edge_only(parsed, self.request.target, self.request.topic)

    # ── requests that need no backend ────────────────────────────────────────────────────────────

    async def _serve_local(self, matched: Match) -> None:
        operation = matched.route.operation
        status = 200
        if operation in ("livez", "healthz"):
            body = b'{"status":"ok"}'
        elif operation == "readyz":
            is_ready = self.handler.is_ready()
            status, body = (200, b'{"ready":true}') if is_ready else (503, b'{"ready":false}')
        elif operation == "openapi":
            body = self.handler.openapi
        else:
            body = msgspec.json.encode(self._listing(matched))
        await self.response.send(status, "application/json", body)

    def _listing(self, matched: Match) -> dict[str, Any]:
        registry = self.handler.dispatcher.registry
        if registry.is_opening:  # a client would take an incomplete list for the complete one
            raise GatewayError("the backends are still starting", code="unavailable", retry_after_s=1.0)
        allows = self.caller.allows
        if matched.route.operation == "list_tasks":
            found = registry.task_names().items()
            return tasks.tasks_list({name: backend for name, backend in found if allows("task", name)})
        models = {name: backend for name, backend in registry.owners().items() if allows("models", name)}
        name = matched.params.get("id")
        if name is None:
            return models_list(models.items())
        if name not in models:
            self.caller.check("models", name)
            registry.resolve(
                "chat", name
            )  # raises GatewayError: 404 with the nearest name, or 503 while one is loading
        return model(name, models.get(name, "edge-gateway"))

    # ── requests for a backend ───────────────────────────────────────────────────────────────────

    async def _dispatch(self, task: Task, parsed: ParsedRequest) -> None:
        operation, request_id = parsed.operation, self.record.request_id
        if parsed.stream:
            self.response.expect_stream(UNANSWERED)
        headers = self.request.headers
        expected = ResponseSpec(
            limits=stream_limits_of(headers, self.handler.limits.stream_limits),
            is_content=operation.has_content,
            client_deadline="x-gateway-deadline-ms" in headers,
            has_own_limits=has_own_limits(headers, self.handler.limits),
            heartbeat_s=HEARTBEAT_S if parsed.stream or operation.may_stream_unrequested else None,
            continuation=operation.continuation(parsed) if parsed.stream else None,
            renderer=partial(ResponseRenderer, parsed, request_id),
            collects=partial(operation.collects, parsed, takes_pieces=self.request.takes_pieces),
            may_leave=partial(self._may_leave, parsed),
        )
        dispatching = self.handler.dispatcher.dispatch(task, self.watch, self.record, expected)
        self.answer = answer = await (self._with_heartbeats(dispatching) if parsed.stream else dispatching)
        self.watch.enter("write")
        result = answer.result
        if result is not None and (not parsed.stream or result.status >= 400 or operation.is_relayed):
            await self.response.send_result(result)
        else:
            encoder = operation.encode_stream(parsed, request_id=request_id, served_as=answer.served_as)
            await self.response.relay(encoder, answer)

    async def _with_heartbeats(self, dispatching: Awaitable[Answer]) -> Answer:
        """Wait for the answer; send the client a heartbeat every HEARTBEAT_S."""
        waiting = asyncio.ensure_future(dispatching)
        try:
            while not (await asyncio.wait({waiting}, timeout=HEARTBEAT_S))[0]:
                await self.response.send_heartbeat()
            return waiting.result()
        except BaseException:
            cancel_and_close(waiting)
            raise


def _check_encoding(encoding: str) -> None:
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity"):
        raise GatewayError(
            "a Content-Encoding is not supported; send the body as it is",
            code="unsupported_encoding",
            detail=f"this one is {encoding[:40]!r}",
        )
