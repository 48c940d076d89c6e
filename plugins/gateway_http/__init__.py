"""Use any HTTP service as a backend.

The service is an OpenAI-style API, a peer gateway, or a plain service with, for example, `POST /add`.
A request is sent unchanged, except that the model's name is replaced if the operator configured another. Each term of
its time is recorded at the socket. Responses are bounded and validated before the client sees them: a slow, broken or
hostile upstream fails its own requests only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from gateway.plugin import (
    Backend,
    BackendFailed,
    DeadlineExceeded,
    GatewayError,
    LinkSample,
    Part,
    Result,
    Services,
    Site,
    Task,
    TaskInvalid,
)

from .model_lists import ModelLists, Names
from .probe import CaptivePortal, UpstreamClient
from .request import build_request, new_pseudonym
from .response.operations import OPERATIONS
from .response.relay import relay
from .response.upstream_errors import UpstreamRejected, describe, error_body
from .response.validate import ResponseValidator, begins_stream
from .response.whole import read_whole, relay_pieces
from .settings import BaseUrl, HttpSettings
from .transport.connection import Connector
from .transport.exceptions import map_exceptions
from .transport.exchange import Exchange, send_request
from .transport.session import open_session

__all__ = ["Http", "HttpSettings"]

MAY_HAVE_MOVED = ("refused", "no route", "timed out")
LARGE_BODY_BYTES = 1 << 20
MODELS, TASKS = "/v1/models", "/v1/tasks"


class Http(Backend[HttpSettings]):
    """Sends tasks to an upstream and relays its responses."""

    site: Site = "cloud"
    slots = 16
    remote = True

    def __init__(self, settings: HttpSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.models = settings.models
        self.tasks = settings.tasks
        self.resumes = settings.resume == "prefill"
        self._base, self._pseudonym = BaseUrl(str(settings.url)), new_pseudonym()

    async def __aenter__(self) -> Self:
        """Open the connection pool; the upstream may still be unreachable."""
        self._session = await open_session(self.settings, slots=self.slots, only_private=self.site == "edge")
        self._client = UpstreamClient(self._session, self._base, self._forget_path)
        configured = {MODELS: self.settings.models, TASKS: self.settings.tasks}
        fetched = [path for path, names in configured.items() if names is None]
        self._lists = ModelLists(self._client, self._base.netloc, fetched, self._on_names)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self._lists.close()
        await self._session.close()

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Yield Parts for an event stream or a body of unknown length, else one Result."""
        task.terms.enter("connect", at=-math.inf)  # backdated: time before the upload counts as connect
        self._check_may_send(task)
        operation = OPERATIONS[task.kind]
        validator = operation.validator(task)
        exchange = await self._send(task)
        is_stream, has_begun = await self._is_stream(validator, exchange), False
        is_relayed = is_stream or validator.relays_pieces(exchange.response)
        deadline = task.parts_deadline if is_relayed else task.deadline
        watchdog = _close_at(deadline, exchange)
        try:
            with self._map_exceptions(deadline):
                if is_relayed:
                    task.terms.uploaded()
                    task.terms.enter("cloud")  # generation time is charged to `cloud`, not `download`
                    relayed: AsyncGenerator[bytes | Part | Result, None] = (
                        relay(operation.stream_state(validator), exchange)
                        if is_stream
                        else relay_pieces(validator, exchange)
                    )
                    async with aclosing(relayed) as items:
                        async for item in items:
                            has_begun = True
                            yield Part(raw=item) if isinstance(item, bytes) else item
                else:
                    yield self._without_key(await read_whole(validator, exchange))
        except UpstreamRejected as exc:
            if has_begun:
                raise TaskInvalid("the upstream rejected this request", detail=describe(exc.error)) from exc
            yield self._without_key(Result(body=error_body(exc.error), status=400))
        except GatewayError as exc:
            if (key := self.settings.api_key) is not None:
                exc.detail = exc.detail.replace(key.get_secret_value(), "…")
            raise
        finally:
            watchdog.cancel()
            exchange.close()
            task.terms.leave()
            if exchange.is_fresh:
                self._observe(exchange.sample(is_whole=not is_relayed))

    async def _is_stream(self, validator: ResponseValidator, exchange: Exchange) -> bool:
        """Return whether the response is a stream of events, from its label or else from its first bytes."""
        response = exchange.response
        if not validator.may_stream:  # an event stream is then an invalid whole response
            return False
        if 200 <= response.status < 300 and response.content_type == "text/event-stream":
            return True
        if not (validator.task.stream and validator.may_be_stream(response)):
            return False
        try:
            with self._map_exceptions(validator.task.deadline):
                async with asyncio.timeout_at(validator.task.deadline):
                    return begins_stream(await exchange.peek())
        except BaseException:
            exchange.close()
            validator.task.terms.leave()
            raise

    def _without_key(self, result: Result) -> Result:
        """Remove the gateway's API key from an error.

        An upstream that quotes the key would leak it to clients.
        """
        key = self.settings.api_key
        if key is None or result.status < 400 or result.body is None:
            return result
        return dataclasses.replace(result, body=result.body.replace(key.get_secret_value().encode(), b"..."))

    def _check_may_send(self, task: Task) -> None:
        if self.site != "edge" and not task.may_leave:
            raise BackendFailed(
                "this request may not leave the site, and this backend is not SITE=edge", code="forbidden"
            )
        if time.monotonic() >= task.deadline:
            raise DeadlineExceeded("the time was up before the request could be sent")

    async def _send(self, task: Task) -> Exchange:
        if len(task.body) > LARGE_BODY_BYTES:  # its rewriting would hold the event loop
            request = await asyncio.to_thread(build_request, task, self._base, self._pseudonym)
        else:
            request = build_request(task, self._base, self._pseudonym)
        try:
            with self._map_exceptions(task.deadline):
                async with asyncio.timeout_at(task.deadline):
                    return await send_request(
                        self._session, task, request, rtt_s=self._client.rtt_s, may_repeat=self._may_repeat(task)
                    )
        except BaseException:
            task.terms.leave()
            raise

    def _may_repeat(self, task: Task) -> bool:
        """Return whether sending the request twice is harmless.

        REPEATABLE decides; by default requests for models may be repeated and tasks may not.
        """
        repeatable = self.settings.repeatable
        return task.kind != "task" if repeatable is None else repeatable

    def _map_exceptions(self, deadline: float) -> map_exceptions:
        return map_exceptions(self._base.netloc, deadline, self._on_link_failure)

    def _forget_path(self) -> None:
        assert isinstance(self._session.connector, Connector)
        self._session.connector.forget_path()

    def _on_link_failure(self, fault: str) -> None:
        if fault in MAY_HAVE_MOVED:
            self._forget_path()
        self._observe(LinkSample(failed=fault))

    def _observe(self, sample: LinkSample) -> None:
        if self.settings.proxy is not None:  # the kernel's figure is that of the connection to the proxy
            sample = dataclasses.replace(sample, tcp_rtt_s=None)
        self.services.observe(sample)

    async def health(self) -> str | None:
        """Measure one round trip on a warm connection; refresh the lists when due."""
        try:
            with self._map_exceptions(math.inf):
                async with aclosing(self._client.probe()) as samples:
                    async for sample in samples:
                        self._observe(sample)
        except CaptivePortal as exc:
            self._on_link_failure("captive portal")
            return exc.message
        except GatewayError as exc:
            return exc.message
        return await self._lists.refresh()

    def _on_names(self, path: str, names: Names) -> None:
        if path == MODELS:
            self.models = names
        else:
            self.tasks = names


def _close_at(deadline: float, exchange: Exchange) -> asyncio.TimerHandle:
    """Close the exchange at its deadline: reading from it then raises."""
    return asyncio.get_running_loop().call_at(deadline, exchange.close)
