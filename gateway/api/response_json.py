"""JSON of responses: encode and decode it, and restore the client's model name.

An upstream's bytes pass unchanged. Only a member that must change is decoded; `msgspec.Raw` keeps the others byte for
byte. JSON that cannot be read here is the backend's fault: BackendUnavailable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.plugin import BackendFailed, BackendUnavailable

JSON = "application/json"

_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NESTED_IN = ("response", "message")  # members that hold the object an event of the Responses or Messages API is about


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseContext:
    """The members of an OpenAI response that the backend's content does not determine.

    model: the client's name for the model. served_as: the model name sent to the backend. If both are equal, the
    response's own `model` is kept, for example a dated version of it; if `served_as` differs or is unknown (None), the
    client's name replaces it. created: seconds since 1970.
    """

    request_id: str
    model: str
    backend: str = "the backend"
    served_as: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def failure(self, problem: str, detail: str = "") -> BackendUnavailable:
        """Return the error for a response that cannot be passed on.

        `detail` quotes the backend, for the client only.

        Another backend may be tried.
        """
        message = f"{self.backend} {problem}"
        return BackendUnavailable(message, code="upstream_bad_response", again=False, detail=detail)


def encode_json(value: Any) -> bytes:
    """Encode as JSON, bytes as base64.

    Raises BackendFailed for a value without a JSON form.
    """
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise BackendFailed(f"the backend's answer has no JSON form: {exc}") from exc


def decode_object(body: bytes, context: ResponseContext) -> dict[str, msgspec.Raw]:
    """Return a JSON object's members, undecoded.

    Raises BackendUnavailable for anything else.
    """
    try:
        return _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise context.failure(f"gave no JSON object: {exc}") from exc


def restore_model(body: bytes, context: ResponseContext) -> bytes:
    """Put the client's model name into a JSON object.

    Returns `body` itself if nothing changes.
    """
    if context.served_as == context.model or b'"model"' not in body:
        return body
    members = decode_object(body, context)
    ours = msgspec.json.encode(context.model)
    if "model" not in members or bytes(members["model"]) == ours:
        return body
    members["model"] = msgspec.Raw(ours)
    return msgspec.json.encode(members)


def restore_model_nested(body: bytes, context: ResponseContext) -> bytes:
    """As `restore_model`, for any body: also in the object an event carries.

    Other than a JSON object is unchanged.
    """
    if context.served_as in (None, context.model) or not context.model or b'"model"' not in body:
        return body
    try:
        members = _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    inner = {name: restore_model_nested(bytes(members[name]), context) for name in _NESTED_IN if name in members}
    if "model" in members:
        inner["model"] = msgspec.json.encode(context.model)
    changed = {name: msgspec.Raw(value) for name, value in inner.items() if value != bytes(members[name])}
    return msgspec.json.encode(members | changed) if changed else body
