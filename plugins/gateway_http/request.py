"""Build the request to the upstream: URL, headers, body with the model's name."""

from __future__ import annotations

import math
import re
import secrets
import time
from dataclasses import dataclass

from yarl import URL

from gateway.plugin import NotServed, Task, TaskInvalid, encode_form, set_form_model

from .rewrite_model import set_json_model
from .settings import BaseUrl

# Set by the gateway, hop-by-hop, or credentials: never forwarded, although a task's headers may hold them.
NOT_FORWARDED = frozenset(
    {
        "accept-encoding", "api-key", "authorization", "connection", "content-encoding", "content-length",
        "content-type", "cookie", "expect", "host", "keep-alive", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade", "x-api-key", "x-gateway-deadline-ms", "x-gateway-locality", "x-request-id",
    }
)  # fmt: skip
_PSEUDONYM = re.compile(r"edge-gateway-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A request to the upstream; it may be sent more than once."""

    url: URL
    headers: dict[str, str]
    body: bytes
    content_type: str


def new_pseudonym() -> str:
    """Return a random name for `Via`.

    It identifies this gateway without revealing its host name.
    """
    return f"edge-gateway-{secrets.token_hex(8)}"


def build_request(task: Task, base: BaseUrl, pseudonym: str) -> OutgoingRequest:
    """Return the request for `task`.

    Raises NotServed if the request has passed this gateway before.
    """
    url = base.task_url(task.name) if task.kind == "task" else base.url(task.path)
    body, content_type = _body(task)
    return OutgoingRequest(url, _headers(task) | {"via": _via(task, pseudonym)}, body, content_type)


def _headers(task: Task) -> dict[str, str]:
    headers = {name: value for name, value in task.headers.items() if name not in NOT_FORWARDED}
    headers["x-request-id"] = task.id
    if math.isfinite(task.parts_deadline):  # the later deadline: a peer may answer with a stream
        left_ms = int((task.parts_deadline - time.monotonic()) * 1000)
        headers["x-gateway-deadline-ms"] = str(max(left_ms, 1))
    if not task.may_leave:
        headers["x-gateway-locality"] = "edge-only"  # a peer on this site may have cloud backends
    return headers


def _via(task: Task, pseudonym: str) -> str:
    """Return the `Via` header (RFC 9110 §7.6.3).

    It names this gateway and the gateways before it, and leaves out all other hops.
    It stops request loops between gateways that are backends of each other.
    """
    earlier = _PSEUDONYM.findall(task.headers.get("via", ""))
    if pseudonym in earlier:
        message = (
            "this request has passed this gateway before (`Via` names it): two gateways are backends of each other; "
            "remove one of these backends"
        )
        raise NotServed(message, code="no_backend", again=False)
    return ", ".join(f"1.1 {name}" for name in (*earlier, pseudonym))


def _body(task: Task) -> tuple[bytes, str]:
    """Return body and content type.

    They are unchanged unless the backend has another name for the model.
    """
    if task.kind == "task" or not task.name:
        return task.body, task.content_type
    if task.fields is not None or task.content_type.lstrip()[:10].lower() == "multipart/":
        try:
            return set_form_model(task.body, task.content_type, task.name)
        except TaskInvalid:
            if task.fields is None:
                raise
            return encode_form({**task.fields, "model": task.name}, task.files)  # from the parts that were judged
    return set_json_model(task.body, task.name), task.content_type
