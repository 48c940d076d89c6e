"""Whole answers: which are passed on, which are failures, and how much of them is read.

An upstream's refusal of the request (400, 404, 409, 413, 422 and their like) is an answer and passes
as it is. That it will not or cannot serve (401, 403, 408, 425, 429, 5xx, a redirect) is a failure of
the backend, and another may be asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

import msgspec

from gateway.plugin import BackendUnavailable, Result, Task

from .body import NotJson, read
from .exchange import Exchange
from .faults import bad_response
from .halves import without_halves
from .refusals import Error, Said, body_of, code_of, error_as, error_in, is_answer, message_of
from .shapes import check_media, checked, is_json, max_bytes, needs_content, not_json, walk_for
from .walk import BOM
from .wire import Response

MAX_ERROR_BYTES = 256 << 10
MAX_RETRY_AFTER_S = 86400.0  # told to the client; how long the gateway itself pauses, its breaker and dispatcher bound

PASSED_HEADERS = ("Content-Disposition", "Content-Language", "OpenAI-Processing-Ms", "OpenAI-Version")
REFUSAL_HEADERS = (*PASSED_HEADERS, "Retry-After", "retry-after-ms", "x-should-retry")
NOT_SERVED = frozenset({401, 403, 408, 425, 429})


async def whole(task: Task, exchange: Exchange) -> Result:
    """The answer, read to its end. Raises BackendUnavailable where it is none, and what aiohttp raises."""
    status = exchange.response.status
    if 200 <= status < 300:
        return await _success(task, exchange)
    if 400 <= status < 500 and status not in NOT_SERVED:
        return await _refusal(exchange)
    if status < 400:
        where = "redirects, which is never followed" if status >= 300 else "switches protocols"
        raise bad_response(f"{where} (status {status}); check the URL")
    error = await _error(exchange)
    if is_answer(error):
        return _refused(exchange, status if status < 500 else 400, body_of(error))
    raise _failure(exchange, error)


async def _success(task: Task, exchange: Exchange) -> Result:
    response = exchange.response
    content_type = _passed(response, ("Content-Type",)).get("Content-Type", "")
    check_media(task, content_type)
    body = await _body(task, exchange, content_type)
    if response.status != 204:
        content_type = await checked(task, body, content_type)
    headers = _passed(response, PASSED_HEADERS)
    return Result(body=body, status=response.status, content_type=content_type, headers=headers)


async def _body(task: Task, exchange: Exchange, content_type: str) -> bytes:
    if exchange.response.status == 204:
        if needs_content(task):
            raise bad_response("answered with nothing (status 204)")
        return await read(exchange, MAX_ERROR_BYTES)
    walk = walk_for(task, content_type)
    try:
        body = await read(exchange, max_bytes(task), walk)
    except NotJson as exc:
        raise not_json(task, content_type) from exc
    return body if walk is None else without_halves(body.removeprefix(BOM))


def _passed(response: Response, names: Iterable[str]) -> dict[str, str]:
    """Those of the headers that can be sent on: a control character would break our own head."""
    found = {name: response.headers.get(name) for name in names}
    return {name: value for name, value in found.items() if value is not None and value.isprintable()}


async def _refusal(exchange: Exchange) -> Result:
    body = await _error_body(exchange)
    return _refused(exchange, exchange.response.status, body if is_json(body) else b"")  # the door has words for it


async def _error_body(exchange: Exchange) -> bytes:
    """Nothing where it is longer than anybody reads, or cannot be unpacked."""
    try:
        return await read(exchange, MAX_ERROR_BYTES)
    except BackendUnavailable:
        return b""


def _refused(exchange: Exchange, status: int, body: bytes) -> Result:
    headers = _passed(exchange.response, REFUSAL_HEADERS)
    return Result(body=body, status=status, content_type="application/json", headers=headers)


def _failure(exchange: Exchange, error: Error) -> BackendUnavailable:
    headers, status = exchange.response.headers, exchange.response.status
    if status in (401, 403):
        return BackendUnavailable(
            f"the upstream does not accept this gateway's key (status {status}); check API_KEY",
            code="upstream_auth",
            again=False,
        )
    again = headers.get("x-should-retry") != "false"
    what = f"status {status}{code_of(error)}" + ("" if again else "; it says that trying again is of no use")
    said = message_of(error)
    wait_s = retry_after_s(headers.get("retry-after-ms"), headers.get("Retry-After"))
    if status == 429:
        message = f"the upstream limits its rate ({what})"
        return BackendUnavailable(
            message, code="rate_limited", status=429, retry_after_s=wait_s, again=again, detail=said
        )
    return bad_response(f"failed ({what})", status=status, retry_after_s=wait_s, again=again, said=said)


async def _error(exchange: Exchange) -> Error:
    """What the upstream's error says, or nothing; never a page of HTML."""
    try:
        body = await _error_body(exchange)
        body.decode()
        said = msgspec.json.decode(body, type=Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return error_in(said) or error_as(said)


def retry_after_s(ms: str | None, text: str | None) -> float | None:
    """When to come back, in seconds, a day at most: `retry-after-ms`, else Retry-After, a number or a date."""
    for value, scale in ((ms, 1e-3), (text, 1.0)):
        try:
            seconds = float(value or "") * scale
        except ValueError:
            continue
        if seconds >= 0:  # false for NaN
            return min(seconds, MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(at - time.time(), 0.0), MAX_RETRY_AFTER_S)
