"""A bug in background work is logged and ends no other work.

Covers the ticker, the watcher of a backend, the MQTT connection and the steps of a stop.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.ingress.mqtt import session
from gateway.service import Service
from gateway.settings import load
from gateway.telemetry import configure
from gateway.testing import running_gateway
from gateway.testing.running import Lines
from support.broker import running_broker
from support.mqtt_backend import COUNTING_BACKEND
from support.mqtt_clients import device
from support.programs import needs
from support.raw import answered, post
from support.wiring import STUB


class Bug(Exception):
    pass


def breaking(times: int, then: Any) -> Any:
    """Return a function that raises `times` times and then calls `then`."""
    left = [times]

    def broken(*args: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise Bug("its text may quote a request")
        return then(*args, **named)

    return broken


async def test_ticker_continues_and_logs_after_one_step_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(**STUB) as gateway:
        ticked, sampled = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(gateway.service.measurements, "sample_load", sampled.set)
        monkeypatch.setattr(gateway.service.scheduler, "tick", breaking(1, ticked.set))
        (told,) = await gateway.lines.wait("service.unhandled")
        assert "Bug" in told["error"]
        assert "quote" not in str(told)
        await asyncio.wait_for(ticked.wait(), 10)
        await asyncio.wait_for(sampled.wait(), 10)


async def test_backend_keeps_serving_and_is_watched_again_after_its_watcher_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = asyncio.Event()

    async def look(*_: Any) -> None:
        looked.set()

    monkeypatch.setattr("gateway.registry.health_checks.HealthChecks.run_if_due", breaking(1, look))
    async with running_gateway(**STUB) as gateway:
        (told,) = await gateway.lines.wait("service.unhandled")
        assert "backend desk" in told["error"]
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 200
        await asyncio.wait_for(looked.wait(), 10)
        assert gateway.service.registry.members["desk"].state == "serving"


async def test_every_stop_step_runs_even_if_an_earlier_step_raises(tmp_path: Path) -> None:
    lines = Lines()
    loopback = {"GATEWAY_LISTEN": "127.0.0.1:0", "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"}
    loaded = load(STUB | loopback | {"GATEWAY_STATE_DIR": str(tmp_path)})
    configure("json", "debug", lines)  # type: ignore[arg-type]
    service = Service(loaded.settings, loaded.backends, loaded.keys)
    await service.start()
    assert service.listeners.http is not None
    drain, close = service.listeners.http.drain, service.dispatcher.close
    service.listeners.http.drain = breaking(1, drain)  # type: ignore[method-assign]
    service.dispatcher.close = breaking(1, close)  # type: ignore[method-assign]
    await service.stop()
    assert len(lines.of("service.unhandled")) == 2
    assert len(lines.of("service.stopped")) == 1
    assert service.registry.members["desk"].state == "closed"
    assert (tmp_path / "learned.json").exists()
    with pytest.raises(OSError, match="Connect call failed"):
        await answered(f"http://{service.bound[0]}", post("/v1/tasks/say", b"1"))


async def test_unreadable_state_file_is_discarded_and_the_gateway_serves(tmp_path: Path) -> None:
    for nothing in (b"{", b"[" * 100_000 + b"]" * 100_000, b"\xff"):
        (tmp_path / "learned.json").write_bytes(nothing)
        async with running_gateway(**STUB, GATEWAY_STATE_DIR=str(tmp_path)) as gateway:
            assert len(gateway.lines.of("service.state_unreadable")) == 1
            assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 200


@needs("mosquitto", "mosquitto_passwd")
async def test_mqtt_reconnects_and_logs_after_a_bug_in_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "telemetry_message", breaking(1, session.telemetry_message))
    async with (
        running_broker() as broker,
        running_gateway(**COUNTING_BACKEND, GATEWAY_MQTT__URL=broker.url) as gateway,
        device(broker.port) as client,
    ):
        (told,) = await gateway.lines.wait("service.unhandled")
        assert "Bug" in told["error"]
        await gateway.lines.wait("mqtt.connected", 2)
        assert (await client.ask("/v1/tasks/tally", {"id": "after"})).json == {"result": 1}
