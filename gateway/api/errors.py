"""The one table from an error's code to its status, and the one envelope every error travels in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.plugin import GatewayError, Result

LIMITED_S = 1.0  # when to come back, where an upstream limits its rate and does not say


class Row(NamedTuple):
    """One code: its HTTP status, the type OpenAI clients know it by, whether trying again may help, when it comes."""

    status: int
    type: str
    retryable: bool
    when: str


ERRORS: Mapping[str, Row] = {
    "bad_request": Row(400, "invalid_request_error", False, "malformed HTTP or JSON, wrong arguments"),
    "unauthorized": Row(401, "authentication_error", False, "no key, or a wrong one"),
    "forbidden": Row(403, "permission_error", False, "the key or the browser's origin may not"),
    "not_found": Row(404, "invalid_request_error", False, "no such path or task; the nearest is named"),
    "model_not_found": Row(404, "invalid_request_error", False, "no such model; the nearest is named"),
    "method_not_allowed": Row(405, "invalid_request_error", False, "the path exists, the method does not"),
    "request_timeout": Row(408, "timeout_error", True, "the request arrived too slowly"),
    "body_too_large": Row(413, "invalid_request_error", False, "more than `GATEWAY_MAX_BODY_BYTES`"),
    "unsupported_encoding": Row(415, "invalid_request_error", False, "a `Content-Encoding`"),
    "misdirected_request": Row(421, "invalid_request_error", False, "a Host that is not ours"),
    "rate_limited": Row(429, "rate_limit_error", True, "more than the key allows, or too many for the upstream"),
    "plugin_error": Row(500, "server_error", False, "a plugin raised, and nobody else could serve"),
    "upstream_bad_response": Row(502, "upstream_error", True, "the upstream's answer is broken"),
    "upstream_tls_error": Row(502, "upstream_error", False, "the upstream's certificate does not hold"),
    "upstream_auth": Row(502, "upstream_error", False, "the upstream refuses the gateway's key"),
    "overloaded": Row(503, "server_error", True, "too many requests wait; `Retry-After` is computed"),
    "unavailable": Row(503, "server_error", True, "nobody who serves this can be reached, or the gateway stops"),
    "no_backend": Row(503, "server_error", False, "the rules leave nobody; each refusal is named"),
    "deadline_exceeded": Row(504, "timeout_error", True, "a time limit passed before the first content"),
}


def status_of(error: GatewayError) -> int:
    """The HTTP status: an upstream's own 429 or 5xx is kept, all else is the table's."""
    return error.status or ERRORS[error.code].status


def envelope(error: GatewayError, request_id: str) -> dict[str, Any]:
    """What the client reads, in the shape OpenAI's clients parse."""
    row = ERRORS[error.code]
    return {
        "error": {
            "message": f"{error.message}: {error.detail}" if error.detail else error.message,
            "type": row.type,
            "code": error.code,
            "param": error.param,
            "request_id": request_id,
            "retryable": row.retryable,
        }
    }


_REFUSED = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_encoding"}


def with_error_body(result: Result, backend: str, request_id: str) -> Result:
    """The same; a refusal that came without a word is given our envelope, under the status it came with."""
    if result.status < 400 or result.body or result.json is not None:
        return result
    why = f"backend {backend} refused the request (status {result.status}) and gave no reason that can be passed on"
    error = GatewayError(why, code=_REFUSED.get(result.status, "bad_request"))
    body = msgspec.json.encode(envelope(error, request_id))
    return dataclasses.replace(result, body=body, content_type="application/json")


def error_headers(error: GatewayError, attempts: int) -> dict[str, str]:
    """What tells a client whether and when to try again.

    After tries of our own it should not (`x-should-retry: false`): a client's three times ours would be nine.
    """
    headers: dict[str, str] = {}
    wait_s = LIMITED_S if error.retry_after_s is None and error.code == "rate_limited" else error.retry_after_s
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
