from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.workers import WorkerBackend
from support.worker_backends import Tool
from support.workers import children, of, state_of


@pytest.fixture
async def tool() -> AsyncIterator[WorkerBackend]:
    async with of(Tool) as backend:
        yield backend


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = children()
    yield
    for pid in children() - before:  # the kit makes this process a subreaper, so orphans of orphans end up here
        if state_of(pid) == "Z":
            os.waitpid(pid, os.WNOHANG)
    assert children() == before
