"""Read a whole response, or relay a body in pieces as it arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway.plugin import BackendUnavailable, Part, Result

from ..transport.exceptions import bad_response
from ..transport.exchange import Exchange
from .body import NotJson, read_body, read_pieces
from .json_scan import BOM, MAX_DECODED_BYTES, replace_not_finite
from .surrogates import replace_lone_surrogates
from .upstream_errors import PASSED_HEADERS, result_for_status
from .validate import ResponseValidator, may_be_error

MAX_ERROR_BYTES = 256 << 10


async def read_whole(validator: ResponseValidator, exchange: Exchange) -> Result:
    """Return the response, read to its end.

    Raises NotServed, BackendUnavailable, DeadlineExceeded and UpstreamRejected for a response that cannot be passed
    on, and exceptions of aiohttp.
    """
    status = exchange.response.status
    if 200 <= status < 300:
        return await _read_success(validator, exchange)
    if status < 400:
        action = "redirects, and redirects are never followed" if status >= 300 else "switches protocols"
        raise bad_response(f"{action} (status {status}); check the URL")
    return result_for_status(validator.task, exchange.response, await _read_error_body(exchange))


async def _read_success(validator: ResponseValidator, exchange: Exchange) -> Result:
    response = exchange.response
    content_type = response.printable_headers(("Content-Type",)).get("Content-Type", "")
    validator.check_content_type(content_type)
    if response.status == 204:
        if validator.needs_content:
            raise validator.bad_response("returned an empty response (status 204)")
        body = await read_body(exchange, MAX_ERROR_BYTES)
    else:
        body = await _read_content(validator, exchange, content_type)
        content_type = await validator.validate(body, content_type)
        body = validator.repaired(body) if validator.needs_repair else body
    headers = response.printable_headers(PASSED_HEADERS)
    return Result(body=body, status=response.status, content_type=content_type, headers=headers)


async def _read_content(validator: ResponseValidator, exchange: Exchange, content_type: str) -> bytes:
    scanner = validator.scanner(content_type)
    try:
        body = await read_body(exchange, validator.max_bytes, scanner)
    except NotJson as exc:
        raise validator.not_json(content_type) from exc
    if scanner is None:
        return body
    if scanner.has_not_finite:
        if len(body) > MAX_DECODED_BYTES:
            raise validator.not_json(content_type)
        body = replace_not_finite(body)
    return replace_lone_surrogates(body.removeprefix(BOM))


async def _read_error_body(exchange: Exchange) -> bytes:
    """Return the body; empty if it is too long or cannot be decompressed."""
    try:
        return await read_body(exchange, MAX_ERROR_BYTES)
    except BackendUnavailable:
        return b""


async def relay_pieces(validator: ResponseValidator, exchange: Exchange) -> AsyncGenerator[Part | Result, None]:
    """Yield the body as it arrives; one Result if all of it may be an error object.

    Raises like `read_whole`.
    """
    response = exchange.response
    content_type = response.printable_headers(("Content-Type",)).get("Content-Type", "application/octet-stream")
    start: bytes | None = b""
    async with aclosing(read_pieces(exchange, validator.max_bytes)) as pieces:
        async for piece in pieces:
            if start is None:
                yield Part(piece, content_type=content_type)
            elif may_be_error(start := start + piece):
                continue
            else:
                yield Part(start, content_type=content_type)
                start = None
    if start is not None:
        content_type = await validator.validate(start, content_type)
        headers = response.printable_headers(PASSED_HEADERS)
        yield Result(body=start, status=response.status, content_type=content_type, headers=headers)
