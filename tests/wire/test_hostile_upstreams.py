"""Hostile upstreams: another backend serves; memory and loop stalls stay bounded."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import trustme

from gateway.testing import running_gateway
from support.chat_upstreams import CHAT, QUESTION, TEXT, ChatUpstream, asked, talking
from support.hostile_upstreams import STREAMS, WHOLE_ANSWERS
from support.measured_gateway import Cost, MeasuredGateway, measured_gateway
from support.upstream import CHUNKED, JSON, Script, Talk, Upstream, chunk, head, sse
from support.wiring import cloud

MAX_GROWTH_BYTES = 16 << 20
MAX_STALL_S = 0.020
ATTEMPTS = 3  # the best of several measurements counts: the machine may be loaded


async def drips(talk: Talk) -> None:
    """Send one byte every 10 ms until the connection closes."""
    await talk.send(head(200, [JSON, CHUNKED]))
    while not talk.writer.is_closing():
        await talk.send(chunk(b" "))
        await asyncio.sleep(0.01)


HOSTILE: dict[str, tuple[Script, bool]] = {
    **{name: (script, False) for name, script in WHOLE_ANSWERS.items()},
    **{name: (script, True) for name, script in STREAMS.items()},
    "a slow drip": (drips, False),
    "a flood of calls": (
        sse(*({"choices": [{"delta": {"tool_calls": [{"index": i}]}}]} for i in range(10_000))),
        False,
    ),
}


def pair(bad: str, good: str) -> dict[str, str]:
    first, second = cloud(bad, "bad", MODELS="gpt"), cloud(good, "good", MODELS="gpt", USD_PER_REQUEST="9")
    return first | second | {"GATEWAY_POLICY__USD": "1", "GATEWAY_POLICY__PROBE_S": "60"}


@asynccontextmanager
async def between() -> AsyncIterator[tuple[MeasuredGateway, Upstream]]:
    async with (
        Upstream(talking(ChatUpstream())) as bad,
        Upstream(talking(ChatUpstream(name="b"))) as good,
        measured_gateway(pair(bad.url, good.url)) as gateway,
    ):
        yield gateway, bad


async def ask(gateway: MeasuredGateway, *, stream: bool) -> tuple[str, str]:
    """Return the response text and the backend that served it."""
    body = {"model": "gpt", "messages": [QUESTION], "stream": stream}
    headers = {"x-gateway-deadline-ms": "4000"}  # half of it is available to the first backend
    async with aiohttp.ClientSession() as http, http.post(gateway.url + CHAT, json=body, headers=headers) as got:
        assert got.status == 200
        who = got.headers["x-gateway-backend"]
        if not stream:
            return (await got.json())["choices"][0]["message"]["content"], who
        return (TEXT if (await got.read()).endswith(b"data: [DONE]\n\n") else ""), who


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_upstream_falls_back_to_the_other_with_bounded_memory_and_stall(name: str) -> None:
    script, stream = HOSTILE[name]
    async with between() as (gateway, bad):
        for warm in (True, False):
            assert await ask(gateway, stream=warm) == (TEXT, "bad")
        before = await gateway.cost()
        costs: list[Cost] = []
        for _ in range(ATTEMPTS):
            bad.script = talking(script)
            assert await ask(gateway, stream=stream) == (TEXT, "good")
            costs.append(await gateway.cost())
            bad.script = talking(ChatUpstream())
            assert await ask(gateway, stream=stream) == (TEXT, "bad")  # it is used again immediately
            await gateway.cost()
    assert min(cost.longest_s for cost in costs) <= MAX_STALL_S
    assert min(cost.peak_bytes for cost in costs) - before.now_bytes <= MAX_GROWTH_BYTES


# ── certificates ─────────────────────────────────────────────────────────────────────────────────


def context(ca: trustme.CA, name: str, **options: object) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name, **options).configure_cert(made)  # type: ignore[arg-type]
    return made


YEAR = datetime.timedelta(days=365)
NOW = datetime.datetime.now(datetime.UTC)


@pytest.mark.parametrize("fault", ["expired", "wrong host", "unknown authority"])
async def test_upstream_with_an_invalid_certificate_receives_nothing_and_the_other_serves(fault: str) -> None:
    ca, other = trustme.CA(), trustme.CA()
    contexts = {
        "expired": lambda: context(ca, "localhost", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR),
        "wrong host": lambda: context(ca, "elsewhere.example"),
        "unknown authority": lambda: context(other, "localhost"),
    }
    with ca.cert_pem.tempfile() as ca_file:
        async with (
            Upstream(talking(ChatUpstream()), tls=contexts[fault](), name="localhost") as bad,
            Upstream(talking(ChatUpstream(name="b"))) as good,
            running_gateway(**pair(bad.url, good.url) | {
                "GATEWAY_BACKENDS__BAD__CA_FILE": ca_file}) as gateway,
            gateway.session() as http,
        ):  # fmt: skip
            body = {"model": "gpt", "messages": [QUESTION]}
            async with http.post(gateway.url + CHAT, json=body) as got:
                said = (await got.json())["choices"][0]["message"]["content"]
            async with http.post(gateway.url + CHAT, json=body | {"model": "bad/gpt"}) as got:
                error = (await got.json())["error"]
    assert said == TEXT
    assert (error["code"], error["retryable"]) == ("upstream_tls_error", False)
    assert asked(bad) == []
