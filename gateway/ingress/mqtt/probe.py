"""Measures a broker: can a gateway serve by it, how fast it is, and its limits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gateway.ingress.mqtt.connection import Broker, Connection, ConnectionLost, Delivery, PublishRefused
from gateway.ingress.mqtt.messages import Publication
from gateway.ingress.mqtt.request import Topics
from gateway.plugin import new_id

ROUND_TRIPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerReport:
    """The result of `probe`. problem: why a gateway cannot serve by this broker; None if it can.

    round_trip_s: the fastest of ROUND_TRIPS publications at QoS 1; 0.04 or more on a local network means that the
    broker does not set TCP_NODELAY. receive_maximum, maximum_packet_bytes: the broker's limits; None: unlimited or
    unknown.
    """

    problem: str | None = None
    round_trip_s: float | None = None
    receive_maximum: int | None = None
    maximum_packet_bytes: int | None = None


async def probe(broker: Broker, topics: Topics) -> BrokerReport:
    """Connect under another client id without a session; subscribe and publish as a gateway does."""
    name = f"{topics.client_id}-probe-{new_id()[:8]}"
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    connection = Connection(broker, name, deliveries.put_nowait, session_s=0)
    try:
        await connection.open()
        await connection.subscribe(tuple(f"$share/{name}/{topics.prefix}/{kind}/{name}" for kind in ("req", "call")))
        round_trips_s = [await _round_trip_s(connection, f"{topics.prefix}/reply/{name}/0") for _ in range(ROUND_TRIPS)]
    except (ConnectionLost, PublishRefused) as exc:
        return BrokerReport(problem=str(exc))
    finally:
        await connection.close()
    limits = connection.broker_limits
    return BrokerReport(
        problem=None
        if limits.get("SharedSubscriptionAvailable", 1)
        else "the broker does not support shared subscriptions",
        round_trip_s=min(round_trips_s),
        receive_maximum=limits.get("ReceiveMaximum"),
        maximum_packet_bytes=limits.get("MaximumPacketSize"),
    )


async def _round_trip_s(connection: Connection, topic: str) -> float:
    began = time.perf_counter()
    await connection.publish(Publication(topic=topic, payload=b""))
    return time.perf_counter() - began
