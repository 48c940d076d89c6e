"""The table of error codes and HTTP statuses, and the error envelope."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.plugin import GatewayError, Result

DEFAULT_RATE_LIMIT_S = 1.0  # Retry-After if an upstream limits its rate without a wait of its own


class ErrorRow(NamedTuple):
    """The HTTP status, OpenAI error type and cause of one error code.

    retryable: a retry may help. when: the cause.
    """

    status: int
    type: str
    retryable: bool
    when: str


ERRORS: Mapping[str, ErrorRow] = {
    "bad_request": ErrorRow(400, "invalid_request_error", False, "malformed HTTP or JSON, wrong arguments"),
    "unauthorized": ErrorRow(401, "authentication_error", False, "no API key, or a wrong key"),
    "forbidden": ErrorRow(403, "permission_error", False, "the key or the browser's origin is not allowed"),
    "not_found": ErrorRow(404, "invalid_request_error", False, "no such path or task; the nearest is named"),
    "model_not_found": ErrorRow(404, "invalid_request_error", False, "no such model; the nearest is named"),
    "method_not_allowed": ErrorRow(405, "invalid_request_error", False, "the path exists, but not with this method"),
    "request_timeout": ErrorRow(408, "timeout_error", True, "the request arrived too slowly"),
    "body_too_large": ErrorRow(413, "invalid_request_error", False, "more than `GATEWAY_MAX_BODY_BYTES`"),
    "unsupported_encoding": ErrorRow(415, "invalid_request_error", False, "a `Content-Encoding`"),
    "misdirected_request": ErrorRow(421, "invalid_request_error", False, "a Host that is not this gateway's"),
    "rate_limited": ErrorRow(429, "rate_limit_error", True, "more than the key allows or the upstream accepts"),
    "plugin_error": ErrorRow(500, "server_error", False, "a plugin raised, and no other backend could serve"),
    "upstream_bad_response": ErrorRow(502, "upstream_error", True, "the upstream's response is malformed or cut off"),
    "upstream_tls_error": ErrorRow(502, "upstream_error", False, "the upstream's certificate is not valid"),
    "upstream_auth": ErrorRow(502, "upstream_error", False, "the upstream rejects the gateway's key"),
    "upstream_quota": ErrorRow(
        502, "upstream_error", False, "the gateway's account at the upstream has no credit left"
    ),
    "overloaded": ErrorRow(503, "server_error", True, "too many requests are queued; `Retry-After` is computed"),
    "unavailable": ErrorRow(503, "server_error", True, "no backend for this can be reached, or the gateway stops"),
    "no_backend": ErrorRow(503, "server_error", False, "policy excludes every backend; each reason is named"),
    "deadline_exceeded": ErrorRow(504, "timeout_error", True, "a time limit passed before the first content"),
}


def status_of(error: GatewayError) -> int:
    """Return an upstream's own 429 or 5xx, else the table's HTTP status."""
    return error.status or ERRORS[error.code].status


def envelope(error: GatewayError, request_id: str, *, has_debug: bool = False) -> dict[str, Any]:
    """Return the body of an error response, in the shape OpenAI's clients parse.

    has_debug: add the traceback behind the error, if there is one; only for a developer on this host.
    """
    row = ERRORS[error.code]
    debug = {"debug": error.debug} if has_debug and error.debug else {}
    return {
        "error": {
            "message": f"{error.message}: {error.detail}" if error.detail else error.message,
            "type": row.type,
            "code": error.code,
            "param": error.param,
            "request_id": request_id,
            "retryable": row.retryable,
            **debug,
        }
    }


_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_encoding"}


def with_error_body(result: Result, backend: str, request_id: str) -> Result:
    """Add the envelope to a backend's error response without a body; its status stays."""
    if result.status < 400 or result.body or result.json is not None:
        return result
    message = f"backend {backend} refused the request (status {result.status}) and gave no reason that can be passed on"
    error = GatewayError(message, code=_CODE_OF_STATUS.get(result.status, "bad_request"))
    body = msgspec.json.encode(envelope(error, request_id))
    return dataclasses.replace(result, body=body, content_type="application/json")


def error_headers(error: GatewayError, attempts: int) -> dict[str, str]:
    """Return the headers by which a client decides whether and when to retry.

    After attempts of the gateway, `x-should-retry: false` stops retries by SDKs: 3 of 3 attempts each would be 9.
    """
    headers: dict[str, str] = {}
    wait_s = error.retry_after_s
    if wait_s is None and error.code == "rate_limited":
        wait_s = DEFAULT_RATE_LIMIT_S
    if wait_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
    if attempts:
        headers["x-should-retry"] = "false"
    if allow := getattr(error, "allow", None):
        headers["Allow"] = ", ".join(allow)
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return headers
