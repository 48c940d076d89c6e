from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.workers import WorkerBackend
from support.worker_backends import Tool
from support.workers import children, of


@pytest.fixture
async def tool() -> AsyncIterator[WorkerBackend]:
    async with of(Tool) as backend:
        yield backend


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = children()
    yield
    assert children() == before
