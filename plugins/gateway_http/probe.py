"""What the gateway asks an upstream for itself: is it there, how far away is it, what does it serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import aiohttp
import msgspec
from yarl import URL

from gateway.plugin import BackendUnavailable, LinkSample

from .settings import Base
from .transport.connection import Response
from .transport.exceptions import bad_response
from .transport.exchange import claimed_s

PROBE_S = 5.0  # a probe that takes longer is an answer too
MAX_PROBE_BYTES = 64 << 10
MAX_LIST_BYTES = 4 << 20
LIST_S = 20.0  # some ask all their own upstreams first


class _Item(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Item]


class CaptivePortal(BackendUnavailable):
    """Somebody else answers in the upstream's place: a web page, or the way to one, where there was none before."""


class Upstream:
    """Probes, with `rtt_s` as the last one found it, and lists."""

    def __init__(self, session: aiohttp.ClientSession, base: Base) -> None:
        self._session = session
        self._base = base
        self.rtt_s: float | None = None
        self._was_itself = False

    async def probe(self) -> LinkSample:
        """One round trip on a warm connection. Raises what aiohttp raises, and BackendUnavailable for a 5xx."""
        async with asyncio.timeout(PROBE_S):
            sample, was_warm = await self._round_trip()
            if not was_warm:
                sample, _ = await self._round_trip()
        self.rtt_s = sample.rtt_s
        return sample

    async def _round_trip(self) -> tuple[LinkSample, bool]:
        response = await self._get(self._base.url("/livez"))
        wire, first = response.wire, response.wire.first_byte_at or time.monotonic()
        asked, warm, tcp_rtt_s, peer = wire.asked_at, wire.requests > 1, wire.tcp_rtt_s(), wire.peer()
        await _read_up_to(response, MAX_PROBE_BYTES)
        self._check_who_answers(response)
        if response.status >= 500:
            raise bad_response(f"answers its health check with status {response.status}")
        claim = claimed_s(response.headers)
        rtt_s = max(first - asked - (claim[0] if claim else 0.0), 0.0)
        return LinkSample(rtt_s=rtt_s, tcp_rtt_s=tcp_rtt_s, peer=peer), warm

    def _check_who_answers(self, response: Response) -> None:
        """Raises CaptivePortal. An upstream that has always answered with web pages is taken as it is."""
        is_page = response.status == 200 and response.content_type == "text/html"
        is_elsewhere = is_page or 300 <= response.status < 400
        if response.status == 511 or (is_elsewhere and self._was_itself):  # RFC 6585 §6
            raise CaptivePortal(f"{self._base.netloc} answers with a web page now: a captive portal, perhaps")
        self._was_itself = self._was_itself or not is_elsewhere

    async def names(self, path: str) -> Mapping[str, str] | None:
        """What it lists under `path`; empty where it has no such list; None where it cannot say now.

        Raises BackendUnavailable where it refuses our key, and what aiohttp raises.
        """
        async with asyncio.timeout(LIST_S):
            response = await self._get(self._base.url(path))
            body = await _read_up_to(response, MAX_LIST_BYTES)
        if response.status in (401, 403):
            raise BackendUnavailable(
                f"the upstream does not accept this gateway's key (status {response.status}); check API_KEY",
                code="upstream_auth",
            )
        if response.status >= 500 or response.status in (408, 425, 429):
            return None
        if response.status != 200:
            return {}
        try:
            return listed(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None if "json" in response.content_type else {}  # a cut list, or a page

    async def _get(self, url: URL) -> Response:
        response = await self._session.get(url, allow_redirects=False)
        assert isinstance(response, Response)
        return response


def listed(body: bytes) -> Mapping[str, str]:
    """The names in a list; without a peer gateway's `auto` and pinned `<backend>/<model>` entries.

    Empty for JSON that is no list. Raises msgspec.DecodeError or UnicodeDecodeError for what is no JSON.
    """
    try:
        names = [item.id for item in msgspec.json.decode(body, type=_Listing).data]
    except msgspec.ValidationError:
        return {}
    if "auto" in names:
        plain = {name for name in names if "/" not in name}
        pins = {name for name in names if name.partition("/")[2] in plain or name.endswith("/auto")}
        names = [name for name in names if name != "auto" and name not in pins]
    return {name: name for name in names}


async def _read_up_to(response: Response, cap: int) -> bytes:
    """The body, or what came of it before the cap, where the connection is dropped."""
    request, chunks, size = response.wire.requests, [], 0
    try:
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > cap:
                break
        else:
            response.wire.finish(request)
    finally:
        response.close()
    return b"".join(chunks)
