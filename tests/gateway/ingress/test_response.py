"""The response to a request as a state machine."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from gateway.ingress.mqtt import deduplication
from gateway.ingress.response import TRANSITIONS, GatewayStops, Response, merge_headers
from gateway.plugin import Result
from gateway.request_log import RequestRecord
from gateway.timing import Watch


class Recorder:
    """A transport's response writer that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.headers: dict[str, str] = {}

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.calls.append(("send", status))
        self.headers = dict(headers)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.calls.append(("begin", status))

    async def write(self, data: bytes) -> None:
        self.calls.append(("write", data))

    async def end(self) -> None:
        self.calls.append(("end", None))

    async def abort(self, data: bytes) -> None:
        self.calls.append(("abort", data))


def response_to(writer: Recorder, record: RequestRecord, *, is_trusted: bool = False) -> Response:
    return Response(writer, record, Watch(), is_trusted=is_trusted)


@pytest.mark.parametrize("table", [TRANSITIONS, deduplication.TRANSITIONS])
def test_every_state_is_reachable_and_has_a_row(table: Mapping[str, Mapping[str, str]]) -> None:
    reached = {after for row in table.values() for after in row.values()}
    assert reached | {next(iter(table))} == set(table)


async def test_second_response_to_a_request_raises() -> None:
    writer, record = Recorder(), RequestRecord(request_id="7")
    response = response_to(writer, record)
    await response.send_result(Result(json={"a": 1}))
    assert (response.state, record.status, record.outcome, record.bytes_out) == ("complete", 200, "served", 7)
    with pytest.raises(KeyError):
        await response.send(200, "", b"")
    assert writer.calls == [("send", 200)]


async def test_stop_while_a_response_is_pending_sends_an_error() -> None:
    writer, record = Recorder(), RequestRecord(request_id="7")
    response = response_to(writer, record)
    response.on_stop()
    response.on_stop()
    assert response.is_stopped
    await response.refuse(GatewayStops())
    assert (response.state, writer.calls) == ("complete", [("send", 503)])
    assert (record.outcome, record.status, record.reason) == ("failed", 503, "unavailable")


async def test_stop_while_a_whole_response_is_being_written_sends_no_error() -> None:
    writer, record = Recorder(), RequestRecord(request_id="7")
    response = response_to(writer, record)
    response.state = "sending"
    response.on_stop()
    await response.refuse(GatewayStops())
    assert (response.state, writer.calls, record.outcome) == ("cut_off", [], "failed")


async def test_server_timing_is_sent_to_trusted_clients_only() -> None:
    for is_trusted in (False, True):
        writer = Recorder()
        await response_to(writer, RequestRecord(request_id="7"), is_trusted=is_trusted).send(200, "text/plain", b"x")
        assert ("Server-Timing" in writer.headers) is is_trusted


def test_merged_headers_drop_hop_by_hop_headers_and_prefer_ours() -> None:
    backend = {"Connection": "x-hop", "X-Hop": "1", "Content-Length": "3", "X-Request-Id": "theirs", "x-more": "2"}
    assert merge_headers(backend, {"x-request-id": "7"}) == {"x-more": "2", "x-request-id": "7"}
