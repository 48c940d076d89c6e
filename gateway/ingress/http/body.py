"""Reads a request's body within its limits of size, time and memory."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.ingress.http.response_writer import HttpResponseWriter
from gateway.ingress.load_shedding import BodyBudget, BodyReservation
from gateway.plugin import GatewayError, TaskInvalid

BODY_TIMEOUT_S = 20.0
BODY_S_PER_BYTE = 1.0 / 1000


async def read_body(request: web.BaseRequest, writer: HttpResponseWriter, limit: int, budget: BodyBudget) -> bytes:
    """Read the whole body.

    Raises GatewayError if the body exceeds `limit` bytes or the memory budget, arrives too slowly (slowloris), or its
    framing is invalid.
    """
    declared = request.content_length
    if declared is not None and declared > limit:
        raise _too_large(limit)
    with budget.reserve(declared or 0) as reservation:
        return await _read(request, writer, limit, reservation)


async def _read(
    request: web.BaseRequest, writer: HttpResponseWriter, limit: int, reservation: BodyReservation
) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    pieces: list[bytes] = []
    size = 0
    until = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    try:
        async with asyncio.timeout_at(until) as deadline:
            async for piece in request.content.iter_any():
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                reservation.consume(len(piece))
                pieces.append(piece)
                deadline.reschedule(until + size * BODY_S_PER_BYTE)
    except TimeoutError:
        raise GatewayError(
            f"the body came too slowly: {size} bytes in the time allowed (20 s and 1 s for each kB)",
            code="request_timeout",
        ) from None
    except web.RequestPayloadError as exc:
        writer.close_after = True  # the start of the next request is unknown (request smuggling)
        raise TaskInvalid("the body's framing is broken: check the lengths of its chunks and their line ends") from exc
    finally:
        writer.is_body_read = request.content.is_eof()
    return b"".join(pieces)


def _too_large(limit: int) -> GatewayError:
    return GatewayError(
        f"the body is larger than {limit} bytes, which is the limit of GATEWAY_MAX_BODY_BYTES or of the API key",
        code="body_too_large",
    )
