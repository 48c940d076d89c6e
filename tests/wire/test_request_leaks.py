"""A failed request is freed by reference counting, without the cycle collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, Result, Task
from gateway.testing import running_gateway
from support.wiring import backend


class Held:
    """An object the backend holds when it fails, for example a large response."""

    alive: ClassVar[weakref.WeakSet[Held]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


class Fails(Backend[BackendSettings]):
    tasks: Any = ("fail",)

    async def run(self, task: Task) -> Result:
        held = Held()
        try:
            raise ValueError(f"cannot be read: {held}")
        except ValueError as exc:
            raise BackendUnavailable("its answer cannot be read", code="upstream_bad_response") from exc


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("backends", [1, 3])
async def test_failed_request_leaves_no_reference_cycle(backends: int) -> None:
    environ: dict[str, str] = {}
    for n in range(backends):
        environ |= backend(f"b{n}", f"{__name__}:Fails", REPEATABLE="true")
    async with running_gateway(**environ) as gateway, gateway.session() as http:
        async with http.post(f"{gateway.url}/v1/tasks/fail", json={}) as got:
            assert (got.status, got.headers["x-gateway-attempts"]) == (502, str(max(backends, 2)))
        await gateway.line()
        assert len(Held.alive) == 0
