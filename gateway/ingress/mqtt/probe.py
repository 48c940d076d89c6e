"""What a broker is like, found out by talking to it: for `doctor`, and for whoever wonders why it is slow."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gateway.ingress.mqtt.connection import Broker, Connection, ConnectionLost, Delivery, PublishRefused
from gateway.ingress.mqtt.properties import Publication
from gateway.ingress.mqtt.topics import Topics
from gateway.plugin import new_id

TRIPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found. problem: why a gateway could not serve by this broker, None where it could.

    round_trip_s: the quickest of TRIPS, QoS 1, to the broker and back; 0.04 or more on a near network means that it
    lacks TCP_NODELAY. receive_maximum, maximum_packet_bytes: what the broker takes; None: no limit told.
    """

    problem: str | None = None
    round_trip_s: float | None = None
    receive_maximum: int | None = None
    maximum_packet_bytes: int | None = None


async def probe(broker: Broker, topics: Topics) -> Findings:
    """Connect as somebody else, in no session; listen as a gateway does, and publish where one does."""
    name = f"{topics.client_id}-probe-{new_id()[:8]}"
    heard: asyncio.Queue[Delivery] = asyncio.Queue()
    connection = Connection(broker, name, heard.put_nowait, session_s=0)
    try:
        await connection.open()
        await connection.subscribe(tuple(f"$share/{name}/{topics.prefix}/{kind}/{name}" for kind in ("req", "call")))
        took = [await _publish(connection, f"{topics.prefix}/reply/{name}/0") for _ in range(TRIPS)]
    except (ConnectionLost, PublishRefused) as exc:
        return Findings(problem=str(exc))
    finally:
        await connection.close()
    limits = connection.broker_limits
    return Findings(
        problem=None if limits.get("SharedSubscriptionAvailable", 1) else "it offers no shared subscriptions",
        round_trip_s=min(took),
        receive_maximum=limits.get("ReceiveMaximum"),
        maximum_packet_bytes=limits.get("MaximumPacketSize"),
    )


async def _publish(connection: Connection, topic: str) -> float:
    began = time.perf_counter()
    await connection.publish(Publication(topic=topic, payload=b""))
    return time.perf_counter() - began
