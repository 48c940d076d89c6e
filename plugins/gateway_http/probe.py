"""Requests for the gateway itself: health probes, lists of models and tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping

import aiohttp
import msgspec
from yarl import URL

from gateway.plugin import BackendUnavailable, LinkSample

from .settings import BaseUrl
from .transport.connection import Response
from .transport.exceptions import bad_response, key_rejected
from .transport.exchange import claimed_s
from .transport.session import timeout_for

PROBE_S = 20.0  # as long as the gateway waits for a late answer
PROBE_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=PROBE_S)
MAX_PROBE_BYTES = 64 << 10
MAX_LIST_BYTES = 4 << 20
LIST_S = 20.0  # some upstreams query all their own upstreams first
NOT_NOW = frozenset({408, 425, 429})


class _ListEntry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_ListEntry]


class CaptivePortal(BackendUnavailable):
    """A web page, or a redirect to one, from an address that served an API before."""


class UpstreamClient:
    """Probes an upstream and fetches its lists.

    `rtt_s` is the round-trip time of the last probe, in seconds. on_silence: called if a probe begins and the
    previous one has no answer.
    """

    def __init__(self, session: aiohttp.ClientSession, base: BaseUrl, on_silence: Callable[[], None]) -> None:
        self._session = session
        self._base = base
        self._on_silence = on_silence
        self._is_silent = False
        self.rtt_s: float | None = None
        self._has_answered = False

    async def probe(self) -> AsyncGenerator[LinkSample]:
        """Measure one round trip on a warm connection; several probes may run at once.

        Yields a sample without figures first if the connection is cold: the upstream answers, but the first answer on a
        connection is no measure of the path. Raises exceptions of aiohttp, CaptivePortal, and BackendUnavailable for a
        5xx.
        """
        if self._is_silent:
            self._on_silence()
        async with asyncio.timeout(PROBE_S):
            sample, was_warm, status = await self._round_trip()
            if not was_warm:
                yield LinkSample(peer=sample.peer)
                sample, _, status = await self._round_trip()
        self.rtt_s = sample.rtt_s
        yield sample
        if status >= 500:
            raise bad_response(f"answered its health check /livez with status {status}")

    async def _round_trip(self) -> tuple[LinkSample, bool, int]:
        """Return the sample, whether the connection was warm, and the status."""
        self._is_silent = True
        response = await self._get(self._base.url("/livez"), PROBE_TIMEOUT)
        self._is_silent = False
        connection = response.upstream_connection
        first_byte_at = connection.first_byte_at or time.monotonic()
        # Read before the body: after it the connection may carry another request.
        began_at, was_warm = connection.began_at, connection.requests > 1
        tcp_rtt_s, peer = connection.tcp_rtt_s(), connection.peer()
        await _read_up_to(response, MAX_PROBE_BYTES)
        self._check_captive_portal(response)
        claim = claimed_s(response.headers)
        rtt_s = max(first_byte_at - began_at - (claim[0] if claim else 0.0), 0.0)
        return LinkSample(rtt_s=rtt_s, tcp_rtt_s=tcp_rtt_s, peer=peer), was_warm, response.status

    def _check_captive_portal(self, response: Response) -> None:
        """Raise CaptivePortal, unless the upstream has always answered with web pages."""
        is_page = response.status == 200 and response.content_type == "text/html"
        is_elsewhere = is_page or 300 <= response.status < 400
        if response.status == 511 or (is_elsewhere and self._has_answered):  # RFC 6585 §6
            raise CaptivePortal(
                f"{self._base.netloc} now answers with a web page (status {response.status}), perhaps that of a "
                "captive portal; sign in there, or check the network"
            )
        self._has_answered = self._has_answered or not is_elsewhere

    async def fetch_names(self, path: str) -> Mapping[str, str] | None:
        """Return the names listed under `path`.

        Empty if the upstream has no such list, None if it cannot return the list now.
        Raises exceptions of aiohttp, and BackendUnavailable if the upstream rejects the gateway's key.
        """
        async with asyncio.timeout(LIST_S):
            response = await self._get(self._base.url(path), timeout_for(self.rtt_s))
            body = await _read_up_to(response, MAX_LIST_BYTES)
        if response.status in (401, 403):
            raise key_rejected(response.status)
        if response.status >= 500 or response.status in NOT_NOW:
            return None
        if response.status != 200:
            return {}
        try:
            return parse_names(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None if "json" in response.content_type else {}  # a truncated list, or a web page

    async def _get(self, url: URL, timeout: aiohttp.ClientTimeout) -> Response:
        response = await self._session.get(url, allow_redirects=False, timeout=timeout)
        assert isinstance(response, Response)
        return response


def parse_names(body: bytes) -> Mapping[str, str]:
    """Return the names in a list.

    Leaves out a peer gateway's `auto` and pinned `<backend>/<model>` entries.
    Empty for JSON of another form. Raises msgspec.DecodeError or UnicodeDecodeError for a body that is not JSON.
    """
    try:
        names = [entry.id for entry in msgspec.json.decode(body, type=_List).data]
    except msgspec.ValidationError:
        return {}
    if "auto" in names:
        plain = {name for name in names if "/" not in name}
        pins = {name for name in names if name.partition("/")[2] in plain or name.endswith("/auto")}
        names = [name for name in names if name != "auto" and name not in pins]
    return {name: name for name in names}


async def _read_up_to(response: Response, max_bytes: int) -> bytes:
    """Return the body; above `max_bytes`, its beginning, and drop the connection."""
    request, chunks, size = response.upstream_connection.requests, [], 0
    try:
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                break
        else:
            response.upstream_connection.finish_response(request)
    finally:
        response.close()
    return b"".join(chunks)
