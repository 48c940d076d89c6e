"""Any HTTP service as a backend: OpenAI-style, a peer gateway, or one that answers `POST /add`.

A request goes out as it came, but for the model's name where the operator gave it another. Each term
of its time is stamped where it happens, at the socket. What comes back is checked and bounded before
anybody sees it: an upstream may be slow, broken or hostile, and costs its own requests only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Self

import aiohttp

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

from .model_lists import Lists, Names
from .probe import CaptivePortal, Upstream
from .request import outgoing, pseudonym
from .response.relay import relay
from .response.upstream_errors import UpstreamRejected, body_of, told
from .response.whole import comes_in_pieces, in_pieces, whole
from .settings import Base, HttpSettings
from .transport.exceptions import map_exceptions
from .transport.exchange import Exchange, ask
from .transport.session import open_session

__all__ = ["Http", "HttpSettings"]

MODELS, TASKS = "/v1/models", "/v1/tasks"


class Http(Backend[HttpSettings]):
    """Sends tasks to an upstream and relays what it answers."""

    site: Site = "cloud"
    slots = 16
    remote = True

    def __init__(self, settings: HttpSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.models = settings.models
        self.tasks = settings.tasks
        self.resumes = settings.resume == "prefill"
        self._base, self._me = Base(str(settings.url)), pseudonym()

    async def __aenter__(self) -> Self:
        """Open the pool; the upstream need not be there."""
        self._session = await open_session(self.settings, slots=self.slots, only_private=self.site == "edge")
        self._upstream = Upstream(self._session, self._base)
        given = {MODELS: self.settings.models, TASKS: self.settings.tasks}
        left_open = [path for path, names in given.items() if names is None]
        self._lists = Lists(self._upstream, self._base.netloc, left_open, self._learn)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self._lists.close()
        await self._session.close()

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Parts for an SSE answer, else one Result."""
        task.terms.enter("connect", at=-math.inf)  # nothing of the way there is the cloud's
        self._check(task)
        exchange = await self._ask(task)
        is_stream, has_begun = _is_stream(task, exchange.response), False
        is_relayed = is_stream or comes_in_pieces(task, exchange.response)
        deadline = task.parts_deadline if is_relayed else task.deadline
        watchdog = _close_at(deadline, exchange)
        try:
            with self._translated(deadline):
                if is_relayed:
                    task.terms.uploaded()
                    task.terms.enter("cloud")  # what it generates is its own time, not the download's
                    async with aclosing(relay(task, exchange) if is_stream else in_pieces(task, exchange)) as items:
                        async for item in items:
                            has_begun = True
                            yield Part(raw=item) if isinstance(item, bytes) else item
                else:
                    yield self._without_key(await whole(task, exchange))
        except UpstreamRejected as exc:
            if has_begun:
                raise TaskInvalid("the upstream refuses this request", detail=told(exc.error)) from exc
            yield self._without_key(Result(body=body_of(exc.error), status=400))
        except GatewayError as exc:
            if (key := self.settings.api_key) is not None:
                exc.detail = exc.detail.replace(key.get_secret_value(), "…")
            raise
        finally:
            watchdog.cancel()
            exchange.close()
            task.terms.leave()
            if exchange.is_news:
                self._observe(exchange.sample(whole=not is_relayed))

    def _without_key(self, result: Result) -> Result:
        """An upstream that quotes the key it was shown tells it to us, not to our clients."""
        key = self.settings.api_key
        if key is None or result.status < 400 or result.body is None:
            return result
        return dataclasses.replace(result, body=result.body.replace(key.get_secret_value().encode(), b"..."))

    def _check(self, task: Task) -> None:
        if self.site != "edge" and not task.may_leave:
            raise BackendFailed("this request may not leave the site", code="forbidden")
        if time.monotonic() >= task.deadline:
            raise DeadlineExceeded("the time was up before the request could be sent")

    async def _ask(self, task: Task) -> Exchange:
        what = outgoing(task, self._base, self._me)
        try:
            with self._translated(task.deadline):
                async with asyncio.timeout_at(task.deadline):
                    return await ask(
                        self._session, task, what, rtt_s=self._upstream.rtt_s, may_repeat=self._may_repeat(task)
                    )
        except BaseException:
            task.terms.leave()
            raise

    def _may_repeat(self, task: Task) -> bool:
        """Whether sending it twice is harmless: what the operator says, else yes for models and no for tasks."""
        said = self.settings.repeatable
        return task.kind != "task" if said is None else said

    def _translated(self, deadline: float) -> map_exceptions:
        return map_exceptions(self._base.netloc, deadline, self._link_failed)

    def _link_failed(self, why: str) -> None:
        self._observe(LinkSample(failed=why))

    def _observe(self, sample: LinkSample) -> None:
        if self.settings.proxy is not None:  # the kernel knows the way to the proxy only
            sample = dataclasses.replace(sample, tcp_rtt_s=None)
        self.services.observe(sample)

    async def health(self) -> str | None:
        """One round trip on a warm connection; now and then what the upstream serves is asked for besides."""
        try:
            with map_exceptions(self._base.netloc, math.inf, self._link_failed):
                self._observe(await self._upstream.probe())
        except CaptivePortal as exc:
            self._link_failed("captive portal")
            return exc.message
        except GatewayError as exc:
            return exc.message
        return await self._lists.look()

    def _learn(self, path: str, names: Names) -> None:
        if path == MODELS:
            self.models = names
        else:
            self.tasks = names


def _is_stream(task: Task, response: aiohttp.ClientResponse) -> bool:
    if task.kind == "embeddings":  # there is no such thing: it will not pass for a whole answer either
        return False
    return 200 <= response.status < 300 and response.content_type == "text/event-stream"


def _close_at(deadline: float, exchange: Exchange) -> asyncio.TimerHandle:
    """Close the exchange when its time is up: whoever reads from it is told."""
    return asyncio.get_running_loop().call_at(deadline, exchange.close)
