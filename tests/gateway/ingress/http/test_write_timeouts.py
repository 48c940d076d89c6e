"""Write timeouts of stalled clients."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway.ingress.http import response_writer
from gateway.ingress.http.response_writer import WriteTimeouts


async def test_write_timeouts_are_shortened_once_when_many_clients_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "MANY", 3)
    shortened = 0
    patience = WriteTimeouts()
    really = patience._shorten

    def counted() -> None:
        nonlocal shortened
        shortened += 1
        really()

    monkeypatch.setattr(patience, "_shorten", counted)
    now = asyncio.get_running_loop().time()
    async with AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(patience.wait())
        left = [(deadline.when() or 0.0) - now for deadline in patience._waiting]
        assert shortened == 1
        assert max(left) < (response_writer.CROWDED_S + response_writer.WRITE_TIMEOUT_S) / 2
    assert patience._waiting == {}
