"""Chunked request bodies with invalid framing after a valid head."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.testing import RunningGateway
from support.error_envelope import check_error
from support.raw import connected, read_answer, read_to_end

CHUNKED = b"POST /v1/tasks/say HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "rest", [b"ZZ\r\n\r\n", b"5\r\nabcdeXX\r\n0\r\n\r\n", b"-5\r\nabc\r\n"], ids=["size", "end", "sign"]
)
async def test_invalid_chunk_framing_is_400_immediately_and_the_connection_closes(
    desk: RunningGateway, rest: bytes, unhandled: list[Any]
) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(CHUNKED.replace(b"Host", b"Expect: 100-continue\r\nHost"))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"2\r\n{}\r\n" + rest)
        found = await read_answer(reader)
        assert "framing" in check_error(found, "bad_request")
        assert found.headers["connection"] == "close"
        assert await read_to_end(reader) == b""
    line = await desk.line()
    assert (line["outcome"], line["status"]) == ("refused", 400)
    assert len(desk.lines.of("request.finished")) == 1
    assert desk.lines.of("http.rejected") == desk.lines.of("library.logged") == unhandled == []


async def test_invalid_chunk_framing_in_an_unread_body_closes_the_connection_without_a_log_line(
    desk: RunningGateway, unhandled: list[Any]
) -> None:
    async with connected(desk.url) as (reader, writer):
        writer.write(CHUNKED.replace(b"Host", b"Content-Encoding: gzip\r\nHost"))
        assert (await read_answer(reader)).status == 415
        writer.write(b"ZZ\r\n\r\n")
        assert await read_to_end(reader) == b""
    assert desk.lines.of("library.logged") == unhandled == []
