from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo.link import Direction, Link

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the test broke the link
    finally:
        writer.close()


class Wire(Link):
    """A link that also closes its clients."""

    async def connect(self) -> Connection:
        connection = await asyncio.open_connection("127.0.0.1", self.port)
        self._clients.append(connection[1])
        return connection

    async def __aenter__(self) -> Self:
        self._clients: list[asyncio.StreamWriter] = []
        return await super().__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        for client in self._clients:
            client.close()
        await asyncio.gather(*(client.wait_closed() for client in self._clients), return_exceptions=True)
        await super().__aexit__(*exc)


@pytest.fixture
async def link() -> AsyncIterator[Wire]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Wire("127.0.0.1", server.sockets[0].getsockname()[1]) as link:
        yield link


async def round_trip_s(connection: Connection, data: bytes = b"ping") -> float:
    reader, writer = connection
    clock = asyncio.get_running_loop().time
    began = clock()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return clock() - began


# ── one direction, by value ──────────────────────────────────────────────────────────────────────


@given(
    delay_s=st.floats(0, 2),
    bytes_per_s=st.none() | st.floats(1e3, 1e9),
    sizes=st.lists(st.integers(1, 10**6), min_size=1),
)
def test_bytes_arrive_in_order_and_no_faster_than_the_rate(
    delay_s: float, bytes_per_s: float | None, sizes: list[int]
) -> None:
    direction = Direction(delay_s=delay_s, bytes_per_s=bytes_per_s)
    arrivals = [direction.arrival(100.0, size) for size in sizes]
    assert arrivals == sorted(arrivals)
    expected_s = sum(sizes) / bytes_per_s if bytes_per_s else 0.0
    assert arrivals[-1] == pytest.approx(100.0 + expected_s + delay_s)


def test_idle_transmitter_accumulates_no_burst_allowance() -> None:
    direction = Direction(bytes_per_s=1000)
    assert direction.arrival(0.0, 1000) == 1.0
    assert direction.arrival(50.0, 1000) == 51.0


# ── a real link ──────────────────────────────────────────────────────────────────────────────────


async def test_link_forwards_bytes_unchanged(link: Wire) -> None:
    data = bytes(range(256)) * 1000
    assert await round_trip_s(await link.connect(), data) < 5
    assert link.connections == 1


async def test_a_warm_connection_takes_one_round_trip_and_a_new_one_two(link: Wire) -> None:
    link.set_rtt(0.04)
    connection = await link.connect()
    assert await round_trip_s(connection) >= 0.08
    assert await round_trip_s(connection) >= 0.04


async def test_the_delay_changes_while_a_connection_is_open(link: Wire) -> None:
    connection = await link.connect()
    await round_trip_s(connection)
    link.set_rtt(0.05)
    assert await round_trip_s(connection) >= 0.05


async def test_the_rate_holds_for_both_directions(link: Wire) -> None:
    link.set_rate(1e6)
    assert await round_trip_s(await link.connect(), b"x" * 50_000) >= 0.05


async def test_link_taken_down_resets_open_connections(link: Wire) -> None:
    reader, writer = await link.connect()
    await round_trip_s((reader, writer))
    link.take_down()
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_link_taken_down_refuses_new_connections(link: Wire) -> None:
    link.take_down()
    with pytest.raises(ConnectionRefusedError):
        await link.connect()


async def test_a_link_comes_back_on_the_same_port(link: Wire) -> None:
    port = link.port
    for _ in range(3):
        link.take_down()
        await link.bring_up()
    assert link.port == port
    await round_trip_s(await link.connect())


async def test_bringing_up_a_link_that_is_up_changes_nothing(link: Wire) -> None:
    connection = await link.connect()
    await round_trip_s(connection)
    await link.bring_up()
    await round_trip_s(connection)


async def test_stalled_link_forwards_nothing_until_resumed(link: Wire) -> None:
    connection = await link.connect()
    await round_trip_s(connection)
    link.stall()
    waiting = asyncio.ensure_future(round_trip_s(connection))
    _, unfinished = await asyncio.wait([waiting], timeout=0.05)
    assert unfinished
    link.resume()
    await waiting


async def test_end_of_one_side_is_forwarded_to_the_other(link: Wire) -> None:
    reader, writer = await link.connect()
    writer.write(b"last words")
    writer.write_eof()
    assert await reader.read() == b"last words"


async def test_unreachable_upstream_closes_the_connection() -> None:
    async with Wire("127.0.0.1", 1) as link:
        reader, _ = await link.connect()
        assert await reader.read() == b""
