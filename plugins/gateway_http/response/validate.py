"""Validate a response with status 2xx.

An invalid response is a failure, and another backend may be tried.
The checks accept what existing servers send: they require only the members that every client needs. They decode
the body in one pass without building it, and stop at the first entry beyond the expected number.
`ResponseValidator` holds the checks for all requests; `operations` holds its subclasses, one for each operation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.plugin import BackendUnavailable, Task

from ..transport import exceptions
from ..transport.connection import Response
from .json_scan import BOM, MAX_DECODED_BYTES, OBJECT, JsonScanner, is_json
from .upstream_errors import (
    NULL,
    Error,
    ErrorFields,
    UpstreamRejected,
    error_from,
    error_in,
    exception_for,
    is_empty,
    is_string,
)

MAX_BYTES = 12 << 20  # longer JSON is accepted only from the operations that set a higher `max_bytes`
MAX_LARGE_BYTES = 64 << 20
# Some servers and proxies label JSON, and streams of events, in these ways. The body shows what it is.
LENIENT_TYPES = frozenset({"", "application/octet-stream", "application/x-ndjson", "application/ndjson", "text/plain"})
STREAM_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")
MAX_ERROR_OBJECT_BYTES = 64 << 10
MAX_EVENT_BYTES = 1 << 20


class Envelope(ErrorFields):
    """The members of an object that show whether it is a response or an error."""

    choices: msgspec.Raw = NULL
    data: msgspec.Raw = NULL
    status: msgspec.Raw = NULL


class _OnlyError(ErrorFields, forbid_unknown_fields=True):
    """An error and members that accompany errors.

    Any other member makes the object a response.
    """

    param: msgspec.Raw = NULL
    request_id: msgspec.Raw = NULL
    status: msgspec.Raw = NULL
    success: msgspec.Raw = NULL


class ResponseValidator:
    """Checks the response to one request, before, while and after its body is read.

    is_object: the body must be a JSON object. needs_content: an empty response (status 204) is a failure.
    may_stream: server-sent events are an acceptable response. max_bytes, max_event_bytes: longest body, longest event.
    expected_choices: how many the request asks for.
    """

    is_object = True
    may_stream = True
    needs_repair = False  # known after `validate`

    def __init__(self, task: Task) -> None:
        self.task = task
        self.path = task.path.partition("?")[0]

    @property
    def needs_content(self) -> bool:
        return self.is_object

    @property
    def max_bytes(self) -> int:
        return MAX_BYTES

    @property
    def max_event_bytes(self) -> int:
        return MAX_EVENT_BYTES

    @property
    def expected_choices(self) -> int:
        return 1

    def bad_response(self, fault: str) -> BackendUnavailable:
        """Return the error for an invalid response. `fault` is as in `exceptions.bad_response`.

        Only the client receives the request's path: the message also goes to the log and to other clients.
        """
        return exceptions.bad_response(fault, detail=f"POST {self.path}")

    # ── before and while the body is read ────────────────────────────────────────────────────────

    def check_content_type(self, content_type: str) -> None:
        """Raise BackendUnavailable if a response of this content type cannot be valid."""
        media = media_type(content_type)
        if self.is_object and media not in LENIENT_TYPES and not is_json_type(media):
            raise self.bad_response(f"returned {media[:60]} instead of JSON")
        if media == "text/html":
            raise self.bad_response("returned a web page; check the URL: a login page or a proxy may be in between")

    def scanner(self, content_type: str) -> JsonScanner | None:
        """Return a scanner for a body that must be JSON, else None."""
        if self.is_object:
            return JsonScanner(OBJECT)
        return JsonScanner() if is_json_type(media_type(content_type)) else None

    def may_be_stream(self, response: Response) -> bool:
        """Return whether the body may hold events under another label."""
        if not 200 <= response.status < 300:
            return False
        media = media_type(response.headers.get("Content-Type", ""))
        return media in LENIENT_TYPES or is_json_type(media)

    def relays_pieces(self, response: Response) -> bool:
        """Return whether the body is relayed as it arrives and not read whole."""
        return False

    def not_json(self, content_type: str) -> BackendUnavailable:
        """Return the error for a body that is not the expected JSON."""
        if self.is_object:
            return self.bad_response("returned a body that is not a JSON object")
        return self.bad_response(f"returned a body that is not JSON under Content-Type {media_type(content_type)[:60]}")

    # ── the body, in UTF-8 as the scanner has ensured ────────────────────────────────────────────

    async def validate(self, body: bytes, content_type: str) -> str:
        """Return the content type to pass on.

        Raises BackendUnavailable for an invalid body, and UpstreamRejected for an error that rejects the request.
        """
        if self.is_object:
            await self._check_object(body)
            return content_type if is_json_type(media_type(content_type)) else "application/json"
        if is_json_type(media_type(content_type)) and not is_json(body):
            raise self.not_json(content_type)
        self._check_other(body)
        return content_type or "application/octet-stream"

    def repaired(self, body: bytes) -> bytes:
        """Return the validated body with the members that clients expect."""
        return body

    async def _check_object(self, body: bytes) -> None:
        if len(body) <= MAX_DECODED_BYTES:
            self._check_members(body)

    def _check_members(self, body: bytes) -> None:
        """Check an object of at most MAX_DECODED_BYTES."""

    def _check_other(self, body: bytes) -> None:
        """Reject an error object under any content type.

        Any other body is valid.
        """
        only = _only_error(body) if may_be_error(body) else None
        if only is not None and (error := error_in(only) or _as_error(only, is_only=True)):
            raise exception_for(error, "responded with an error")

    def _decode(self, body: bytes, of: Any) -> Any:
        """Decode the body. Raises the exception that explains why it does not match."""
        try:
            return msgspec.json.decode(body, type=of)
        except msgspec.ValidationError:
            raise self._mismatch(body) from None
        except (msgspec.DecodeError, RecursionError):
            raise self.not_json("") from None

    def _mismatch(self, body: bytes) -> UpstreamRejected | BackendUnavailable:
        """Return the exception for an object without the expected members.

        It reports the error in the object, else the missing member.
        """
        try:
            envelope = msgspec.json.decode(body, type=Envelope)
        except (msgspec.DecodeError, RecursionError):
            return self.not_json("")
        return self._reported_error(body, envelope) or self._missing_member(envelope)

    def _missing_member(self, envelope: Envelope) -> BackendUnavailable:
        return self.not_json("")

    def _reported_error(self, body: bytes, envelope: Envelope) -> UpstreamRejected | BackendUnavailable | None:
        """Return the exception for an error reported in place of a response, or None."""
        only = _only_error(body)
        error: Error | None = None
        if only is not None or self._has_failed(envelope):
            error = error_in(envelope)
        if error is None:
            error = _as_error(envelope if only is None else only, is_only=only is not None)
        return None if error is None else exception_for(error, "responded with an error")

    def _has_failed(self, envelope: Envelope) -> bool:
        return is_string(envelope.status, b"failed")


def _as_error(fields: ErrorFields, *, is_only: bool) -> Error | None:
    """Return the error that the object itself is, as of vLLM, Anthropic and FastAPI."""
    is_error = is_string(fields.object, b"error") or is_string(fields.type, b"error")
    has_detail = is_only and not all(map(is_empty, (fields.detail, fields.error_code)))
    return error_from(fields) if is_error or has_detail else None


def _only_error(body: bytes) -> _OnlyError | None:
    try:
        found = msgspec.json.decode(body, type=_OnlyError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if is_empty(found.text) else None


def begins_stream(start: bytes) -> bool:
    """Return whether a body with this beginning is a stream of events."""
    return start.removeprefix(BOM).lstrip().lower().startswith(STREAM_STARTS)


def may_be_error(start: bytes) -> bool:
    """Return whether a body with this beginning may be an error object."""
    return len(start) <= MAX_ERROR_OBJECT_BYTES and start.lstrip()[:1] in (b"", b"{")


def media_type(content_type: str) -> str:
    """Return the media type in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json_type(media: str) -> bool:
    """Return whether this media type is JSON."""
    return media == "application/json" or media.endswith(("+json", "/json"))


def struct_with(name: str, of: Any) -> Any:
    """Return a struct with one required member, for a decode that skips all others."""
    return msgspec.defstruct("_Struct", [(name, of)])
