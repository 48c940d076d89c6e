from __future__ import annotations

import asyncio

import aiohttp
import pytest

from gateway.testing import FAULTS, FakeNetwork


async def test_fake_network_returns_configured_responses_and_records_requests() -> None:
    async with FakeNetwork() as network, aiohttp.ClientSession() as http:
        network.answer("/read", json={"text": "hello"}, headers={"x-id": "7"})
        async with http.post(f"{network.url}/read?page=1", json={"a": 1}) as answer:
            assert (answer.status, await answer.json(), answer.headers["x-id"]) == (200, {"text": "hello"}, "7")
        async with http.get(f"{network.url}/other") as answer:
            assert answer.status == 404
    assert [(request.method, request.path) for request in network.requests] == [
        ("POST", "/read?page=1"),
        ("GET", "/other"),
    ]
    assert network.requests[0].json == {"a": 1}


async def test_fake_network_streams_events() -> None:
    async with FakeNetwork() as network, aiohttp.ClientSession() as http:
        network.answer("/stream", events=["one", "[DONE]"])
        async with http.get(f"{network.url}/stream") as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.text() == "data: one\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("fault", FAULTS)
async def test_fake_network_fault_fails_requests_and_ends_with_its_block(fault: str) -> None:
    async with FakeNetwork() as network, aiohttp.ClientSession() as http:
        network.answer("/read", json=1)
        with network.failing(fault), pytest.raises((aiohttp.ClientError, TimeoutError, ValueError)):
            async with asyncio.timeout(0.1), http.get(f"{network.url}/read", raise_for_status=True) as answer:
                await answer.json()
        async with http.get(f"{network.url}/read") as answer:
            assert await answer.json() == 1


def test_unknown_fault_error_lists_the_known_faults() -> None:
    with (
        pytest.raises(ValueError, match="no fault is called 'rain'; there are: refused, cut"),
        FakeNetwork().failing("rain"),
    ):
        pass
