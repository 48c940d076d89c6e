"""Fixtures of the wire tests; process-wide state is restored after each test."""

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
def _frozen_imports() -> Iterator[None]:
    """Freeze the imported objects, as `serve` does.

    Without this, each full garbage collection stops the event loop for 0.1 s.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _restored_process_state() -> Iterator[None]:
    """Restore the logging handlers, the log level, structlog and the metrics."""
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
    """Contexts passed to the loop's exception handler; a test expects none."""
    told: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    return told


@pytest.fixture
async def desk() -> AsyncIterator[RunningGateway]:
    """A gateway with one backend of class Desk."""
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
