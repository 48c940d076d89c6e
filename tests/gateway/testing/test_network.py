from __future__ import annotations

import asyncio

import aiohttp
import pytest

from gateway.testing import FAULTS, FakeNetwork


async def test_it_answers_as_told_and_keeps_what_it_was_asked() -> None:
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


async def test_it_streams_events() -> None:
    async with FakeNetwork() as network, aiohttp.ClientSession() as http:
        network.answer("/stream", events=["one", "[DONE]"])
        async with http.get(f"{network.url}/stream") as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.text() == "data: one\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_noticed_and_passes(fault: str) -> None:
    async with FakeNetwork() as network, aiohttp.ClientSession() as http:
        network.answer("/read", json=1)
        with network.failing(fault), pytest.raises((aiohttp.ClientError, TimeoutError, ValueError)):
            async with asyncio.timeout(0.1), http.get(f"{network.url}/read", raise_for_status=True) as answer:
                await answer.json()
        async with http.get(f"{network.url}/read") as answer:
            assert await answer.json() == 1


def test_an_unknown_fault_is_told_with_those_there_are() -> None:
    with (
        pytest.raises(ValueError, match="no fault is called 'rain'; there are: refused, cut"),
        FakeNetwork().failing("rain"),
    ):
        pass
