"""Errors of an upstream: error objects, and the meaning of each error status.

| the upstream reports | outcome |
|---|---|
| 400, 404, 409, 413, 422 and most other 4xx | passed on: it rejects the request |
| 401, 402, and 4xx whose code, type or text names the gateway's own account | failure of the backend, which rests |
| 404 for a model that the upstream does not have | `NotServed`; this model rests |
| 403, 408, 425, 429, 5xx, a redirect | failure of the backend; another may be tried |
| 404, 405, 501 for the path itself | `NotServed`; another backend may be tried |
| text too long for the model, or stopped by a filter | passed on, under any status and in streams |

The last group are rejections by content: no other backend would accept the request. They do not count against the
backend.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, NotServed, Result, Task

from ..transport.connection import Response
from ..transport.exceptions import bad_response, key_rejected
from .json_scan import is_json

Error = dict[str, Any]

# ── error objects ────────────────────────────────────────────────────────────────────────────────

MAX_MESSAGE_CHARS = 300
MAX_BUILT_BYTES = 4096  # per member of an error; a larger member that is not a text is ignored
MAX_MEMBERS = 64
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,40}")
NULL = msgspec.Raw(b"null")
EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"false", b"0", b""})

# OpenAI, Azure, llama.cpp, OpenRouter; as `code` or as `type`.
REJECTION_CODES = frozenset(
    {
        "ResponsibleAIPolicyViolation", "content_filter", "content_policy_violation", "context_length_exceeded",
        "exceed_context_size_error", "invalid_prompt", "moderation_blocked", "string_above_max_length",
    }
)  # fmt: skip

# Servers without a code for it: vLLM and OpenAI, llama.cpp, Anthropic, TGI.
TOO_LONG = re.compile(
    r"maximum context length (is|of) \d|exceeds? the (available |model's )?(maximum )?context (size|length|window)"
    r"|context length exceeded|prompt is too long: \d|tokens \+ `max_new_tokens` must be <="
    r"|input( \(\d+ tokens\))? is too large to process",
    re.IGNORECASE,
)
# A chat template or a server that cannot take this request's messages or values, reported as 500: vLLM, llama.cpp.
UNSUPPORTED = re.compile(
    r"conversation roles must alternate|value is not callable: null|only supports .{0,20}roles"
    r"|(unsupported|invalid) value:? .{0,20}reasoning_effort|reasoning_effort.{0,40}(not supported|unsupported)",
    re.IGNORECASE,
)


# OpenAI, Anthropic, OpenRouter, one-api, DeepSeek; as `code` or as `type`.
QUOTA_CODES = frozenset(
    {
        "billing_error", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance",
        "insufficient_credits", "insufficient_quota", "insufficient_user_quota",
    }
)  # fmt: skip
KEY_CODES = frozenset({"account_deactivated", "authentication_error", "invalid_api_key"})
MODEL_CODES = frozenset({"model_not_found"})
NO_CREDIT = re.compile(
    r"credit balance is too low|insufficient (credits?|balance|funds|quota)|exceeded your current quota"
    r"|specified api usage limits",
    re.IGNORECASE,
)
BAD_KEY = re.compile(r"(incorrect|invalid) api key|api key (is )?(not valid|expired|invalid)", re.IGNORECASE)
NO_MODEL = re.compile(  # Ollama, vLLM, llama-swap
    r"^model ['\"`][^'\"`]*['\"`] not found|^the model [`'\"][^'\"`]*['\"`] does not exist|could not find real modelid",
    re.IGNORECASE,
)
MAX_SEARCHED_BYTES = 1 << 20


class UpstreamRejected(Exception):
    """The upstream rejects the request's content under status 200 or in a stream."""

    def __init__(self, error: Error) -> None:
        super().__init__("the upstream rejected the request")
        self.error = error


class ErrorFields(msgspec.Struct):
    """The members of an object by which servers report errors."""

    error: msgspec.Raw = NULL
    object: msgspec.Raw = NULL
    type: msgspec.Raw = NULL
    code: msgspec.Raw = NULL
    error_code: msgspec.Raw = NULL  # FastChat
    message: msgspec.Raw = NULL
    detail: msgspec.Raw = NULL  # FastAPI
    text: msgspec.Raw = NULL


def begins(raw: msgspec.Raw, start: bytes) -> bool:
    """Return whether the value's JSON begins with `start`, without copying it."""
    return memoryview(raw)[: len(start)] == start


def is_empty(raw: msgspec.Raw) -> bool:
    """Return whether the value is null or an empty value."""
    return len(memoryview(raw)) <= len(b"false") and bytes(raw) in EMPTY


def is_string(raw: msgspec.Raw, text: bytes) -> bool:
    """Return whether the value is the string `text`."""
    return memoryview(raw) == b'"' + text + b'"'


def error_in(fields: ErrorFields) -> Error | None:
    """Return the error in the member `error`; None if that is empty.

    The member is an object or a text.
    """
    if is_empty(fields.error):
        return None
    value = _value_of(fields.error)
    return value if isinstance(value, dict) else {"message": value}


def error_from(fields: ErrorFields) -> Error:
    """Return the error that the object itself is."""
    texts = (_value_of(raw) for raw in (fields.message, fields.detail, fields.text))
    codes = (_value_of(raw) for raw in (fields.code, fields.error_code))
    return {
        "message": next(filter(None, texts), None),
        "type": _value_of(fields.type),
        "code": next(filter(None, codes), None),
    }


def _value_of(raw: msgspec.Raw) -> Any:
    """Return the value; of an object, its texts and small members.

    A larger value is returned as None, unbuilt.
    """
    if not begins(raw, b"{"):
        return _small_value(raw)
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return {}
    return {name: _small_value(value) for name, value in members.items()} if len(members) <= MAX_MEMBERS else {}


def _small_value(raw: msgspec.Raw) -> Any:
    if len(memoryview(raw)) > MAX_BUILT_BYTES and not begins(raw, b'"'):
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):  # a lone surrogate
        return None


def is_rejection(error: Error) -> bool:
    """Return whether the error rejects the request's content.

    Any other error is a fault of the upstream.
    """
    inner, metadata = error.get("innererror"), error.get("metadata")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    if any(isinstance(code, str) and code in REJECTION_CODES for code in codes):
        return True
    if isinstance(metadata, dict) and ("flagged_input" in metadata or "reasons" in metadata):  # OpenRouter
        return True
    message = error.get("message")
    if not isinstance(message, str):
        return False
    text = message[:MAX_BUILT_BYTES]
    return TOO_LONG.search(text) is not None or UNSUPPORTED.search(text) is not None


def exception_for(error: Error, fault: str) -> UpstreamRejected | BackendUnavailable:
    """Return the exception for an error object in place of a response.

    fault: as in `bad_response`.
    """
    if is_rejection(error):
        return UpstreamRejected(error)
    return bad_response(f"{fault}{_code_suffix(error)}", detail=_message_of(error))


def describe(error: Error) -> str:
    """Return code and message, for places that cannot pass the error object on."""
    return f"{_code_suffix(error)[2:] or 'refused'}: {_message_of(error)}"


def error_body(error: Error) -> bytes:
    """Return a response body that consists of this error."""
    return msgspec.json.encode({"error": error})


def _code_suffix(error: Error) -> str:
    """Return `, CODE` if the error holds a plain code or type, else an empty text."""
    codes = (error.get("code"), error.get("type"))
    return next((f", {code}" for code in codes if isinstance(code, str) and PLAIN.fullmatch(code)), "")


def _message_of(error: Error) -> str:
    text = error.get("message")
    text = text if isinstance(text, str) and text.strip() else "no message"
    return " ".join(text[: 4 * MAX_MESSAGE_CHARS].split())[:MAX_MESSAGE_CHARS]


# ── error statuses ───────────────────────────────────────────────────────────────────────────────

PASSED_HEADERS = ("Content-Disposition", "Content-Language", "OpenAI-Processing-Ms", "OpenAI-Version")
REJECTION_HEADERS = (*PASSED_HEADERS, "Retry-After", "retry-after-ms", "x-should-retry")
PEER_HEADER = "x-gateway-backend"  # every response of another edge-gateway has it
FAILURES = frozenset({401, 403, 408, 425, 429})  # of the 4xx
MISSING = frozenset({404, 405, 501})
MISSING_PATH_TEXTS = frozenset({"Not Found", "Method Not Allowed"})  # FastAPI
MAX_RETRY_AFTER_S = 86400.0  # for the client; breaker and dispatcher have their own bounds for the gateway's pause


def result_for_status(task: Task, response: Response, body: bytes) -> Result:
    """Return the rejection to pass on for a status from 400.

    Raises NotServed, BackendUnavailable and DeadlineExceeded if the backend did not serve the request.
    """
    status, error = response.status, _error_of(body)
    if status in MISSING and task.kind != "task" and _is_missing_path(error, is_peer=PEER_HEADER in response.headers):
        message = f"the upstream has no {task.path.partition('?')[0]} (status {status})"
        raise NotServed(message, code="not_found", status=status, again=False)
    if 400 <= status < 500 and not is_rejection(error) and (fault := account_fault(task, status, error)) is not None:
        raise fault
    if 400 <= status < 500 and status not in FAILURES:
        return _rejection(response, status, body if is_json(body) else b"")  # the gateway writes its own error body
    if is_rejection(error):
        return _rejection(response, status if status < 500 else 400, error_body(error))
    raise _failure(response, error)


def account_fault(task: Task, status: int, error: Error) -> GatewayError | None:
    """Return the failure if a 4xx is about the gateway's account or the upstream's models, not about the request.

    Status, code and type count. A known phrase in the text counts only if the request does not contain it: an upstream
    that quotes one prompt must not rest for every client.
    """
    codes = {code for code in (error.get("code"), error.get("type")) if isinstance(code, str)}
    message = error.get("message")
    text = message[:MAX_BUILT_BYTES] if isinstance(message, str) else ""
    cause, detail = f"status {status}{_code_suffix(error)}", _message_of(error)
    if status == 404 and task.kind != "task" and (codes & MODEL_CODES or NO_MODEL.search(text)):
        return NotServed(
            f"the upstream does not have this model ({cause})",
            code="not_found", status=404, again=False, detail=detail, rests="model",
        )  # fmt: skip
    if status == 402 or codes & QUOTA_CODES or _has_phrase(NO_CREDIT, text, task):
        message = f"the gateway's account at the upstream has no credit left ({cause})"
        return BackendUnavailable(message, code="upstream_quota", again=False, detail=detail, rests="backend")
    if status == 401 or codes & KEY_CODES or _has_phrase(BAD_KEY, text, task):
        fault = key_rejected(status)
        fault.rests = "backend"
        return fault
    return None


def _has_phrase(phrases: re.Pattern[str], text: str, task: Task) -> bool:
    """Return whether the text holds one of the phrases, and the request does not."""
    found = phrases.search(text)
    if found is None:
        return False
    request = task.body
    if b"\\u" in request:  # escapes could hide the phrase
        if len(request) > MAX_SEARCHED_BYTES:
            return False
        try:
            request = msgspec.json.encode(msgspec.json.decode(request))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
    return found[0].lower().encode() not in request.lower()


def _rejection(response: Response, status: int, body: bytes) -> Result:
    headers = response.printable_headers(REJECTION_HEADERS)
    return Result(body=body, status=status, content_type="application/json", headers=headers)


def _error_of(body: bytes) -> Error:
    """Return the error in the body; empty if that is not JSON, as a web page."""
    try:
        body.decode()
        fields = msgspec.json.decode(body, type=ErrorFields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return error_in(fields) or error_from(fields)


def _is_missing_path(error: Error, *, is_peer: bool) -> bool:
    """Return whether a 404, 405 or 501 is the web server's own.

    That is a body that is not a JSON object, or FastAPI's error for an unknown path.
    Or a peer gateway's own, which holds the request's id. A 404 of the peer's upstreams passes the peer unchanged.
    """
    if is_peer and error.get("code") == "not_found" and error.get("request_id"):
        return True
    return not error or (error.get("message") in MISSING_PATH_TEXTS and not error.get("type") and not error.get("code"))


def _failure(response: Response, error: Error) -> GatewayError:
    headers, status = response.headers, response.status
    if status in (401, 403):
        return key_rejected(status)
    again = headers.get("x-should-retry") != "false"
    cause = f"status {status}{_code_suffix(error)}" + ("" if again else "; it asks for no retry: x-should-retry: false")
    detail = _message_of(error)
    wait_s = retry_after_s(headers.get("retry-after-ms"), headers.get("Retry-After"))
    if PEER_HEADER in headers and (failure := _failure_of_peer(error, status, wait_s)) is not None:
        return failure
    if status == 429:
        message = f"the upstream limits the request rate ({cause})"
        return BackendUnavailable(
            message, code="rate_limited", status=429, retry_after_s=wait_s, again=again, detail=detail
        )
    return bad_response(f"failed ({cause})", status=status, retry_after_s=wait_s, again=again, detail=detail)


def _failure_of_peer(error: Error, status: int, wait_s: float | None) -> GatewayError | None:
    """Return the error if a peer gateway's own code is more exact than the status.

    A request that its rules exclude, or that passes a time limit, is not a fault of the peer.
    """
    code, detail = error.get("code"), _message_of(error)
    if code == "no_backend":
        message = "the peer gateway's rules exclude every backend for this request"
        return NotServed(message, status=status, again=False, detail=detail)
    if code == "deadline_exceeded":
        return DeadlineExceeded("the peer gateway could not finish within the time allowed", detail=detail)
    if code in ("overloaded", "unavailable"):
        began = code != "overloaded"  # an overloaded peer ran nothing
        message = f"the peer gateway is {code}"
        return BackendUnavailable(message, code=code, status=status, retry_after_s=wait_s, began=began, detail=detail)
    return None


def retry_after_s(ms: str | None, text: str | None) -> float | None:
    """Return the wait in seconds, a day at most.

    `retry-after-ms` counts, else Retry-After as a number or a date.
    """
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
