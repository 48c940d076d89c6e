"""One request and the answer to it, its time charged to the terms as it passes.

    connect | upload ............ | cloud, of which a part is network | download ........ |
            ^ first byte written  ^ last byte out (and acknowledged)  ^ first byte back   ^ last

The time between last byte out and first byte back is the cloud's as far as the upstream claims it, and
the network's for the rest; where it claims nothing, one round trip of it is the network's.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import aiohttp

from gateway.plugin import LinkSample, Task

from ..request import Outgoing
from .connection import ACKED_ABOVE_BYTES, Response, StampedBody

NEWS_S = 1.0  # what was last heard longer ago says nothing of the network of now
STALE_S = 1.0  # a kept-alive connection the upstream had closed already fails within a round trip
TOTAL = re.compile(r"(?:^|,)\s*total\s*;(?:[^,]*;)?\s*dur\s*=\s*\"?([0-9.]+)")
CLAIM_HEADERS = ("openai-processing-ms", "x-envoy-upstream-service-time")

CloudSource = Literal["server-timing", "header", "estimated"]


def claimed_s(headers: Mapping[str, str]) -> tuple[float, CloudSource] | None:
    """The time the upstream says it took, in seconds, and where it says so."""
    match = TOTAL.search(headers.get("Server-Timing", ""))
    if match is not None and (seconds := _ms(match[1])) is not None:
        return seconds, "server-timing"
    for name in CLAIM_HEADERS:
        if (seconds := _ms(headers.get(name))) is not None:
            return seconds, "header"
    return None


def _ms(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text) / 1e3
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


@dataclass(slots=True, kw_only=True)
class Exchange:
    """An answer whose head has arrived. Read it to its end, or close it."""

    response: Response
    body: StampedBody
    upload_bytes: int
    request: int  # on its connection, counted from 1
    first_byte_at: float
    rtt_s: float | None  # of this very exchange, where that can be told
    tcp_rtt_s: float | None
    received: int = 0
    heard_at: float = -math.inf  # when bytes of the answer, or its end, were last read
    is_whole: bool = False  # its end was read, or an event that says so
    ended_at: float | None = None

    async def read(self) -> bytes:
        """What has arrived since; empty at the answer's end."""
        chunk = await self.response.content.readany()
        self.received += len(chunk)
        self.heard_at = time.monotonic()
        if not chunk and self.ended_at is None:
            self.ended_at, self.is_whole = self.heard_at, True
            self.response.wire.finish(self.request)
        return chunk

    @property
    def is_news(self) -> bool:
        """Whether it is a sign of life: it came to its end, just now. One that was given up, or broke, is none."""
        return self.is_whole and time.monotonic() - self.heard_at < NEWS_S

    def close(self) -> None:
        """Done with it. A connection that still carries an answer, or a request, is dropped at once."""
        if self.ended_at is None:
            self.body.abort()
        self.response.close()

    def sample(self, *, whole: bool) -> LinkSample:
        """What the network did; of a download only where it was not spread over a stream's generation."""
        began, ended = self.body.began_at, self.body.ended_at
        big = self.upload_bytes > ACKED_ABOVE_BYTES and began is not None and ended is not None
        timed = whole and self.ended_at is not None
        return LinkSample(
            rtt_s=self.rtt_s,
            tcp_rtt_s=self.tcp_rtt_s,
            upload_bytes=self.upload_bytes,
            upload_s=ended - began if big and ended is not None and began is not None else None,
            download_bytes=self.received if timed else 0,
            download_s=self.ended_at - self.first_byte_at if timed and self.ended_at is not None else None,
        )


async def ask(
    session: aiohttp.ClientSession, task: Task, what: Outgoing, *, rtt_s: float | None, may_repeat: bool
) -> Exchange:
    """Send the request and wait for the answer's head. Raises what aiohttp raises.

    Sent again once where a kept-alive connection turns out to be closed, nothing has come back, and
    `may_repeat` says that running twice is harmless.
    """
    while True:
        body = StampedBody(what.body, what.content_type, task.terms)
        task.terms.enter("connect")
        try:
            response = await session.post(what.url, data=body, headers=what.headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            body.abort()
            if not (may_repeat and _was_stale(body)):
                raise
            may_repeat = False
        except BaseException:
            body.abort()
            raise
        else:
            assert isinstance(response, Response)
            return _begin(task, response, body, len(what.body), rtt_s)


def _was_stale(body: StampedBody) -> bool:
    wire, began = body.wire, body.began_at
    if wire is None or began is None:
        return False
    return wire.requests > 1 and wire.first_byte_at is None and time.monotonic() - began < STALE_S


def _begin(task: Task, response: Response, body: StampedBody, size: int, rtt_s: float | None) -> Exchange:
    """Close the account up to the first byte of the answer."""
    wire = response.wire
    first = wire.first_byte_at or time.monotonic()
    waited = first - body.answered(first)
    claim = claimed_s(response.headers)
    _charge(task, first, waited, claim, rtt_s)
    told = claim is not None and claim[1] == "server-timing" and claim[0] <= waited
    own_rtt = waited - claim[0] if claim and told and wire.requests > 1 and size <= ACKED_ABOVE_BYTES else None
    return Exchange(
        response=response,
        body=body,
        upload_bytes=size,
        request=wire.requests,
        first_byte_at=first,
        rtt_s=own_rtt or None,
        tcp_rtt_s=wire.tcp_rtt_s(),
    )


def _charge(
    task: Task, first: float, waited: float, claim: tuple[float, CloudSource] | None, rtt_s: float | None
) -> None:
    terms = task.terms
    terms.enter("download", at=first)
    cloud, source = claim if claim is not None else (max(0.0, waited - (rtt_s or 0.0)), "estimated")
    if waited > 0:
        terms.divide("cloud", waited - min(cloud, waited), into="network")
    terms.note_cloud_source(source)
