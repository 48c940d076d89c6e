"""Backends without an endpoint, peers that exclude every backend, Retry-After."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.testing import RunningGateway, running_gateway
from support.broker import free_port
from support.chat_upstreams import CHAT, ChatUpstream, talking
from support.polling import wait_until
from support.upstream import Script, Upstream, answer, by_path
from support.wiring import cloud, relaying

RESPONSES = "/v1/responses"
SAID = {"id": "r", "object": "response", "output": []}
CHATTY = talking(ChatUpstream())


def posts(upstream: Upstream) -> list[str]:
    return [request.path for request in upstream.requests if request.method == "POST"]


@dataclass
class Got:
    status: int
    headers: Mapping[str, str]
    json: Any


async def say(gateway: RunningGateway, path: str = CHAT, **headers: str) -> Got:
    body = {"model": "gpt", "messages": [{"role": "user", "content": "hello"}], "input": "hello"}
    async with gateway.session() as http, http.post(gateway.url + path, json=body, headers=headers) as got:
        return Got(got.status, got.headers, await got.json())


@asynccontextmanager
async def two(
    first: Script, second: Script, *, peer: str | None = None
) -> AsyncIterator[tuple[RunningGateway, Upstream, Upstream]]:
    """Run a gateway with two upstreams.

    The first, or `peer` in its place, costs less and is tried first.
    """
    async with Upstream(first) as one, Upstream(second) as other:
        both = cloud(peer or one.url, "one", MODELS="gpt") | cloud(other.url, "two", MODELS="gpt", USD_PER_REQUEST="9")
        async with running_gateway(**both, GATEWAY_POLICY__USD="1") as gateway:
            yield gateway, one, other


# ── missing endpoints ────────────────────────────────────────────────────────────────────────────


async def test_backend_without_the_endpoint_is_skipped_for_it_afterwards() -> None:
    first = by_path({RESPONSES: answer(b"404 page not found", status=404)}, CHATTY)
    async with two(first, by_path({RESPONSES: answer(json=SAID)}, CHATTY)) as (gateway, one, other):
        for attempts in ("2", "1", "1"):
            got = await say(gateway, RESPONSES)
            assert (got.status, got.headers["x-gateway-attempts"]) == (200, attempts)
        assert (posts(one), posts(other)) == ([RESPONSES], [RESPONSES] * 3)
        assert (await say(gateway)).headers["x-gateway-backend"] == "one"
        assert not gateway.lines.of("breaker.opened")


async def test_404_is_returned_every_time_when_no_backend_has_the_endpoint() -> None:
    lacks = by_path({RESPONSES: answer(b"404 page not found", status=404)}, CHATTY)
    async with two(lacks, lacks) as (gateway, *_):
        for _ in range(7):
            got = await say(gateway, RESPONSES)
            assert (got.status, got.json["error"]["code"]) == (404, "not_found")
        assert (await say(gateway)).status == 200


FAILS: Any = answer(json={"error": {"message": "boom"}}, status=500)
PAUSES: Any = answer(json={"error": {"message": "slow down"}}, status=429, headers=[("Retry-After", "40")])


@pytest.mark.parametrize("trouble", [FAILS, PAUSES])
@pytest.mark.parametrize("lacks_first", [True, False])
async def test_failure_of_a_backend_with_the_endpoint_is_reported_over_a_404(
    trouble: Script, lacks_first: bool
) -> None:
    lacks, has = by_path({RESPONSES: answer(b"404 page not found", status=404)}, CHATTY), by_path({RESPONSES: trouble})
    told = (500, "upstream_bad_response", True) if trouble is FAILS else (429, "rate_limited", True)
    async with two(*((lacks, has) if lacks_first else (has, lacks))) as (gateway, *_):
        for _ in range(3):  # first unknown as missing, then known; the other breaker may be open by then
            got = await say(gateway, RESPONSES)
            assert (got.status, got.json["error"]["code"], got.json["error"]["retryable"]) == told
            assert got.headers["x-gateway-backend"] in ("two" if lacks_first else "one", "none")


async def test_endpoint_missing_behind_a_peer_is_tried_on_another_backend() -> None:
    has, lacks = by_path({RESPONSES: answer(json=SAID)}, CHATTY), by_path({RESPONSES: answer(b"none", status=404)})
    async with relaying(lacks, MODELS="gpt") as (peer, far), two(has, has, peer=peer.url) as (gateway, *_):
        for _ in range(2):
            got = await say(gateway, RESPONSES)
            assert (got.status, got.headers["x-gateway-backend"]) == (200, "two")
        assert posts(far) == [RESPONSES]


async def test_model_that_a_peer_does_not_have_is_tried_on_another_backend() -> None:
    has = by_path({RESPONSES: answer(json=SAID)}, CHATTY)
    async with relaying(CHATTY, MODELS="other") as (peer, _), two(has, has, peer=peer.url) as (gateway, _, other):
        for _ in range(2):
            got = await say(gateway, RESPONSES)
            assert (got.status, got.headers["x-gateway-backend"]) == (200, "two")
        assert posts(other) == [RESPONSES] * 2


async def test_not_found_of_an_upstream_behind_a_peer_is_returned_to_the_client() -> None:
    lost = by_path({RESPONSES: answer(json={"error": {"message": "no such one", "code": "not_found"}}, status=404)})
    async with relaying(lost, MODELS="gpt") as (peer, _), two(CHATTY, CHATTY, peer=peer.url) as (gateway, _, other):
        got = await say(gateway, RESPONSES)
        assert (got.status, got.json["error"]["message"], posts(other)) == (404, "no such one", [])


# ── a peer whose policy excludes every backend ───────────────────────────────────────────────────


async def test_no_backend_of_a_peer_does_not_open_its_breaker() -> None:
    async with (
        Upstream(CHATTY) as upstream,
        running_gateway(**cloud(upstream.url, MODELS="gpt")) as peer,
        running_gateway(**cloud(peer.url, "peer", MODELS="gpt", SITE="edge")) as gateway,
    ):
        for _ in range(6):
            got = await say(gateway, **{"x-gateway-locality": "edge-only"})
            assert (got.status, got.json["error"]["code"]) == (503, "no_backend")
        assert (await say(gateway)).status == 200
        assert posts(upstream) == [CHAT]


def attempted_requests(gateway: RunningGateway) -> list[dict[str, Any]]:
    return [line for line in gateway.lines.of("request.finished") if line["attempts"]]


async def test_peers_that_name_each_other_do_not_loop_a_request() -> None:
    port = free_port()
    async with (
        running_gateway(**cloud(f"http://127.0.0.1:{port}", "there", MODELS="gpt")) as gateway,
        running_gateway(**cloud(gateway.url, "here", MODELS="gpt"), GATEWAY_LISTEN=f"127.0.0.1:{port}") as other,
    ):
        got = await say(gateway, via="1.1 secret.host")
        assert (got.status, got.json["error"]["code"]) == (503, "no_backend")
        await wait_until(
            lambda: got.json["error"]["request_id"] in {line["request_id"] for line in attempted_requests(other)}
        )
        assert len(attempted_requests(other)) == 3  # both gateways: here, there, and here again


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────


def limits(*wait: tuple[str, str]) -> Script:
    return answer(json={"error": {"message": "slow down"}}, status=429, headers=list(wait))


async def test_request_during_an_upstream_pause_is_429_with_the_remaining_time() -> None:
    async with relaying(talking(limits(("Retry-After", "40"))), MODELS="gpt") as (gateway, upstream):
        assert (await say(gateway)).status == 429
        got = await say(gateway)
        assert (got.status, got.json["error"]["code"]) == (429, "rate_limited")
        assert 30 < int(got.headers["retry-after"]) <= 40
        assert 30_000 < int(got.headers["retry-after-ms"]) <= 40_000
        assert len(posts(upstream)) == 1


async def test_shortest_retry_after_of_several_backends_is_reported() -> None:
    failing: Any = answer(json={"error": {"message": "no"}}, status=503, headers=[("Retry-After", "20")])
    async with two(talking(limits(("Retry-After", "40"))), talking(failing)) as (gateway, *_):
        assert (await say(gateway)).status == 503
        got = await say(gateway)
        assert (got.status, got.json["error"]["code"]) == (503, "unavailable")
        assert 10 < int(got.headers["retry-after"]) <= 20


async def test_429_without_retry_after_gets_a_default() -> None:
    async with relaying(talking(limits()), MODELS="gpt") as (gateway, _):
        got = await say(gateway)
        assert (got.status, got.headers["retry-after"], got.headers["retry-after-ms"]) == (429, "1", "1000")
