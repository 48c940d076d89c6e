"""Checks that a response is an error of the contract."""

from __future__ import annotations

import re

from gateway.api.errors import ERRORS
from support.raw import Answer

OURS = ("x-request-id", "x-gateway-backend", "x-gateway-site", "x-gateway-reason", "x-gateway-attempts")
MEMBERS = {"message", "type", "code", "param", "request_id", "retryable"}


def check_error(
    found: Answer, code: str, *, attempts: int = 0, param: str | None = None, status: int | None = None
) -> str:
    """Assert that a response is the error of the contract; return its message."""
    assert found.status == (status or ERRORS[code].status), found
    error = found.json["error"]
    assert set(found.json) == {"error"}
    assert set(error) == MEMBERS
    assert (error["code"], error["type"], error["param"]) == (code, ERRORS[code].type, param)
    assert error["retryable"] is ERRORS[code].retryable
    assert error["request_id"] == found.headers["x-request-id"]
    assert found.headers["content-type"] == "application/json"
    assert "Traceback" not in error["message"]
    assert all(name in found.headers for name in OURS), found.headers
    assert found.headers["x-gateway-attempts"] == str(attempts)
    assert found.headers.get("x-should-retry") == ("false" if attempts else None)
    assert re.fullmatch(r"(\w+;dur=[\d.e-]+, )*total;dur=[\d.e-]+", found.headers["server-timing"])
    message: str = error["message"]
    return message
