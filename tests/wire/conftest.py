"""Gateways for these tests; what a gateway sets for the whole process is put back after each of them."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from gateway.telemetry import metrics
from gateway.testing import RunningGateway, running_gateway
from support.broker import Broker, running_broker
from support.mqtt_clients import Device, device
from support.wiring import STUB


@pytest.fixture(autouse=True, scope="session")
def _imports_are_no_garbage() -> Iterator[None]:
    """As `serve` does: what is imported stays, or each full collection stops the loop for a tenth of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    root, configured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    counted = [(metric, copy.deepcopy(_series(metric))) for metric in metrics.REGISTRY]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)
    for metric, series in counted:
        _series(metric).clear()
        _series(metric).update(series)


def _series(metric: metrics.Metric) -> dict:
    return metric.counts if isinstance(metric, metrics.Histogram) else metric.values


@pytest.fixture
async def unhandled() -> list[dict]:
    """What the loop's exception handler was told; empty in a good world."""
    told: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


@pytest.fixture
async def desk() -> AsyncIterator[RunningGateway]:
    """A gateway with one Desk."""
    async with running_gateway(**STUB) as gateway:
        yield gateway


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with running_broker() as broker:
        yield broker


@pytest.fixture
async def lamp(broker: Broker, gateway: RunningGateway) -> AsyncIterator[Device]:
    async with device(broker.port) as lamp:
        yield lamp
