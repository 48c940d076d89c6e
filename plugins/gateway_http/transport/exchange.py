"""One request and its response; charges the terms as it proceeds.

    connect | upload ............ | cloud, of which a part is network | download ........ |
            ^ first byte written  ^ last byte out (and acknowledged)  ^ first byte back   ^ last

Of the time between the last byte out and the first byte back, the part that the upstream claims is charged to `cloud`
and the rest to `network`. If the upstream claims nothing, one round trip of it is charged to `network`.
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

from ..request import OutgoingRequest
from .connection import ACKED_ABOVE_BYTES, Response, StampedBody
from .session import timeout_for

PEEKED_BYTES = 8
MAX_SAMPLE_AGE_S = 1.0  # older bytes do not show the present state of the network
STALE_S = 1.0  # a kept-alive connection that the upstream had already closed fails within a round trip
TOTAL_DURATION = re.compile(r"(?:^|,)\s*total\s*;(?:[^,]*;)?\s*dur\s*=\s*\"?([0-9.]+)")  # Server-Timing, in ms
CLAIM_HEADERS = ("openai-processing-ms", "x-envoy-upstream-service-time")

CloudSource = Literal["server-timing", "header", "estimated"]
Claim = tuple[float, CloudSource]


def claimed_s(headers: Mapping[str, str]) -> Claim | None:
    """Return the processing time that the upstream claims, in seconds.

    The second value is the source of that figure.
    """
    match = TOTAL_DURATION.search(headers.get("Server-Timing", ""))
    if match is not None and (seconds := _seconds(match[1])) is not None:
        return seconds, "server-timing"
    for name in CLAIM_HEADERS:
        if (seconds := _seconds(headers.get(name))) is not None:
            return seconds, "header"
    return None


def _seconds(text_ms: str | None) -> float | None:
    if text_ms is None:
        return None
    try:
        value = float(text_ms) / 1e3
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request and its response, from the response head on.

    Read the body to its end, or close the exchange.
    request: its number on the connection, from 1. rtt_s: measured by this exchange, or None.
    received_bytes: of the body. last_read_at: when bytes or the end were last read. is_complete: its end was read, or
    an event that ends the stream.
    """

    response: Response
    body: StampedBody
    upload_bytes: int
    request: int
    first_byte_at: float
    rtt_s: float | None
    tcp_rtt_s: float | None
    received_bytes: int = 0
    last_read_at: float = -math.inf
    is_complete: bool = False
    ended_at: float | None = None
    peeked: bytes = b""

    async def peek(self) -> bytes:
        """Return the start of the body; the next `read` returns it again."""
        start = b""
        while len(start.lstrip()) < PEEKED_BYTES and (more := await self.read()):
            start += more
        self.peeked = start
        return start

    async def read(self) -> bytes:
        """Return the bytes received since the last call; empty at the end of the body."""
        if self.peeked:
            chunk, self.peeked = self.peeked, b""
            return chunk
        chunk = await self.response.content.readany()
        self.received_bytes += len(chunk)
        self.last_read_at = time.monotonic()
        if not chunk and self.ended_at is None:
            self.ended_at, self.is_complete = self.last_read_at, True
            self.response.upstream_connection.finish_response(self.request)
        return chunk

    @property
    def has_proper_end(self) -> bool:
        """Whether the body was read to an end that its framing declares, which a closed connection does not imitate."""
        headers = self.response.headers
        return self.ended_at is not None and ("Transfer-Encoding" in headers or "Content-Length" in headers)

    @property
    def is_fresh(self) -> bool:
        """Whether it shows that the link works now.

        It was complete a moment ago, neither closed early nor broken.
        """
        return self.is_complete and time.monotonic() - self.last_read_at < MAX_SAMPLE_AGE_S

    def close(self) -> None:
        """Release the connection; drop it if it still carries a response or request."""
        if self.ended_at is None:
            self.body.abort()
        self.response.close()

    def sample(self, *, is_whole: bool) -> LinkSample:
        """Return the network's figures; those of the download only for a whole response.

        The download of a stream lasts as long as its generation.
        """
        began, ended = self.body.began_at, self.body.ended_at
        is_large = self.upload_bytes > ACKED_ABOVE_BYTES
        has_download = is_whole and self.ended_at is not None
        return LinkSample(
            rtt_s=self.rtt_s,
            tcp_rtt_s=self.tcp_rtt_s,
            upload_bytes=self.upload_bytes,
            upload_s=ended - began if is_large and ended is not None and began is not None else None,
            download_bytes=self.received_bytes if has_download else 0,
            download_s=self.ended_at - self.first_byte_at if has_download and self.ended_at is not None else None,
        )


async def send_request(
    session: aiohttp.ClientSession, task: Task, request: OutgoingRequest, *, rtt_s: float | None, may_repeat: bool
) -> Exchange:
    """Send the request and wait for the response head. Raises exceptions of aiohttp.

    Sends it once more if a kept-alive connection turns out to be closed before any byte of the response, and
    `may_repeat` states that running the request twice is harmless.
    """
    timeout = timeout_for(rtt_s)
    while True:
        body = StampedBody(request.body, request.content_type, task.terms)
        task.terms.enter("connect")
        try:
            response = await session.post(
                request.url, data=body, headers=request.headers, allow_redirects=False, timeout=timeout
            )
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
            return _begin(task, response, body, len(request.body), rtt_s)


def _was_stale(body: StampedBody) -> bool:
    connection, began = body.connection, body.began_at
    if connection is None or began is None:
        return False
    return connection.requests > 1 and connection.first_byte_at is None and time.monotonic() - began < STALE_S


def _begin(task: Task, response: Response, body: StampedBody, size: int, rtt_s: float | None) -> Exchange:
    """Charge the terms up to the first byte of the response."""
    connection = response.upstream_connection
    first = connection.first_byte_at or time.monotonic()
    waited = first - body.on_response(first)
    claim = claimed_s(response.headers)
    _charge(task, first, waited, claim, rtt_s)
    is_exact = claim is not None and claim[1] == "server-timing" and claim[0] <= waited
    has_rtt = is_exact and connection.requests > 1 and size <= ACKED_ABOVE_BYTES
    return Exchange(
        response=response,
        body=body,
        upload_bytes=size,
        request=connection.requests,
        first_byte_at=first,
        rtt_s=(waited - claim[0] if claim and has_rtt else None) or None,
        tcp_rtt_s=connection.tcp_rtt_s(),
    )


def _charge(task: Task, first: float, waited: float, claim: Claim | None, rtt_s: float | None) -> None:
    terms = task.terms
    terms.enter("download", at=first)
    cloud, source = claim if claim is not None else (max(0.0, waited - (rtt_s or 0.0)), "estimated")
    if waited > 0:
        terms.divide("cloud", waited - min(cloud, waited), into="network")
    terms.note_cloud_source(source)
