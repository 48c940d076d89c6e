"""Whole answers: which are passed on, which are failures, and how much of them is read.

An upstream's refusal of the request (400, 404, 409, 413, 422 and their like) is an answer and passes
as it is. That it will not or cannot serve (401, 403, 408, 425, 429, 5xx, a redirect) is a failure of
the backend, and another may be asked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from email.utils import parsedate_to_datetime

import msgspec

from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, NotServed, Part, Result, Task

from ..transport.connection import Response
from ..transport.exceptions import bad_response
from ..transport.exchange import Exchange
from .body import NotJson, pieces, read
from .json_scan import BOM
from .surrogates import without_halves
from .upstream_errors import Error, ErrorFields, body_of, code_of, error_as, error_in, is_answer, message_of
from .validate import (
    check_media,
    checked,
    is_json,
    is_opaque,
    max_bytes,
    may_be_error,
    needs_content,
    not_json,
    walk_for,
)

MAX_ERROR_BYTES = 256 << 10
MAX_RETRY_AFTER_S = 86400.0  # told to the client; how long the gateway itself pauses, its breaker and dispatcher bound

PASSED_HEADERS = ("Content-Disposition", "Content-Language", "OpenAI-Processing-Ms", "OpenAI-Version")
REFUSAL_HEADERS = (*PASSED_HEADERS, "Retry-After", "retry-after-ms", "x-should-retry")
NOT_SERVED = frozenset({401, 403, 408, 425, 429})
LACKING = frozenset({404, 405, 501})
PATH_UNKNOWN = frozenset({"Not Found", "Method Not Allowed"})
OF_A_PEER = "x-gateway-backend"  # a header of every answer of another edge-gateway


async def whole(task: Task, exchange: Exchange) -> Result:
    """The answer, read to its end. Raises BackendUnavailable where it is none, and what aiohttp raises."""
    status = exchange.response.status
    if 200 <= status < 300:
        return await _success(task, exchange)
    if status < 400:
        where = "redirects, which is never followed" if status >= 300 else "switches protocols"
        raise bad_response(f"{where} (status {status}); check the URL")
    body = await _error_body(exchange)
    if (
        status in LACKING
        and task.kind != "task"
        and _is_about_the_path(body, is_peer=OF_A_PEER in exchange.response.headers)
    ):
        what = f"the upstream has no {task.path.partition('?')[0]} (status {status})"
        raise NotServed(what, code="not_found", status=status, again=False)
    if 400 <= status < 500 and status not in NOT_SERVED:
        return _refusal(exchange, body)
    error = _error(body)
    if is_answer(error):
        return _refused(exchange, status if status < 500 else 400, body_of(error))
    raise _failure(exchange, error)


def comes_in_pieces(task: Task, response: Response) -> bool:
    """Whether the answer is relayed as it arrives: sound and the like of unknown length, so it is still being made."""
    if task.kind != "other" or task.stream or task.parent_id is not None or response.content_length is not None:
        return False
    return 200 <= response.status < 300 and response.status != 204 and is_opaque(task, response.content_type)


async def in_pieces(task: Task, exchange: Exchange) -> AsyncGenerator[Part | Result, None]:
    """The answer as it arrives; one Result where it ends as what may be an error and no more. Raises like `whole`."""
    content_type = _passed(exchange.response, ("Content-Type",)).get("Content-Type", "application/octet-stream")
    start: bytes | None = b""
    async with aclosing(pieces(exchange, max_bytes(task))) as found:
        async for piece in found:
            if start is None:
                yield Part(piece, content_type=content_type)
            elif may_be_error(start := start + piece):
                continue
            else:
                yield Part(start, content_type=content_type)
                start = None
    if start is not None:
        content_type = await checked(task, start, content_type)
        headers = _passed(exchange.response, PASSED_HEADERS)
        yield Result(body=start, status=exchange.response.status, content_type=content_type, headers=headers)


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


def _refusal(exchange: Exchange, body: bytes) -> Result:
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


def _of_a_peer(error: Error, status: int, wait_s: float | None) -> GatewayError | None:
    """Where a peer gateway's own code says more than the status: what its rules or a time limit forbid is no fault."""
    code, said = error.get("code"), message_of(error)
    if code == "no_backend":
        return NotServed("the peer may give this to nobody", status=status, again=False, detail=said)
    if code == "deadline_exceeded":
        return DeadlineExceeded("the peer could not do it within the time allowed", detail=said)
    if code in ("overloaded", "unavailable"):
        what = f"the peer is {code}"
        nothing_ran = code == "overloaded"
        return BackendUnavailable(
            what, code=code, status=status, retry_after_s=wait_s, began=not nothing_ran, detail=said
        )
    return None


def _failure(exchange: Exchange, error: Error) -> GatewayError:
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
    if OF_A_PEER in headers and (failure := _of_a_peer(error, status, wait_s)) is not None:
        return failure
    if status == 429:
        message = f"the upstream limits its rate ({what})"
        return BackendUnavailable(
            message, code="rate_limited", status=429, retry_after_s=wait_s, again=again, detail=said
        )
    return bad_response(f"failed ({what})", status=status, retry_after_s=wait_s, again=again, said=said)


def _is_about_the_path(body: bytes, *, is_peer: bool) -> bool:
    """Whether a 404 or its like is the web server's own: it is no JSON object, or FastAPI's for a path unknown.

    Or a peer gateway's own, which holds the request's id: what an upstream of it says passes it as it is.
    """
    error = _error(body)
    if is_peer and error.get("code") == "not_found" and error.get("request_id"):
        return True
    return not error or (error.get("message") in PATH_UNKNOWN and not error.get("type") and not error.get("code"))


def _error(body: bytes) -> Error:
    """What the upstream's error says, or nothing; never a page of HTML."""
    try:
        body.decode()
        said = msgspec.json.decode(body, type=ErrorFields)
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
