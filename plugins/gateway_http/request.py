"""What is sent: where, with which headers, and the body, touched only where the model's name differs."""

from __future__ import annotations

import math
import re
import secrets
import time
from dataclasses import dataclass

from yarl import URL

from gateway.plugin import NotServed, Task, encode_form

from .rewrite_model import form_naming, is_form, json_naming
from .settings import Base

# Ours to say, the connection's, or credentials: never taken from the client, whatever a task's headers hold.
NOT_FORWARDED = frozenset(
    {
        "accept-encoding", "api-key", "authorization", "connection", "content-encoding", "content-length",
        "content-type", "cookie", "expect", "host", "keep-alive", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade", "x-api-key", "x-gateway-deadline-ms", "x-gateway-locality", "x-request-id",
    }
)  # fmt: skip
_OURS = re.compile(r"edge-gateway-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, ready to be sent, any number of times."""

    url: URL
    headers: dict[str, str]
    body: bytes
    content_type: str


def pseudonym() -> str:
    """What a gateway calls itself in `Via`: it tells two apart, and nothing of either."""
    return f"edge-gateway-{secrets.token_hex(8)}"


def outgoing(task: Task, base: Base, me: str) -> Outgoing:
    """The request that asks the upstream for `task`. Raises NotServed where it has come by `me` before."""
    url = base.task_url(task.name) if task.kind == "task" else base.url(task.path)
    body, content_type = _body(task)
    return Outgoing(url, _headers(task) | {"via": _via(task, me)}, body, content_type)


def _headers(task: Task) -> dict[str, str]:
    headers = {name: value for name, value in task.headers.items() if name not in NOT_FORWARDED}
    headers["x-request-id"] = task.id
    if math.isfinite(task.parts_deadline):  # a peer's answer may be a stream, which only this may cut short
        left_ms = int((task.parts_deadline - time.monotonic()) * 1000)
        headers["x-gateway-deadline-ms"] = str(max(left_ms, 1))
    if not task.may_leave:
        headers["x-gateway-locality"] = "edge-only"  # a peer on this site has a cloud of its own
    return headers


def _via(task: Task, me: str) -> str:
    """RFC 9110 §7.6.3. Peers that name each other would send a request round for ever; others' hops are not told."""
    before = _OURS.findall(task.headers.get("via", ""))
    if me in before:
        what = "this request has come by here before: take one of two peers out of the other's backends"
        raise NotServed(what, code="no_backend", again=False)
    return ", ".join(f"1.1 {name}" for name in (*before, me))


def _body(task: Task) -> tuple[bytes, str]:
    """The body as it came, unless it names another model than this backend's; a form's, too."""
    if task.kind == "task" or not task.name:
        return task.body, task.content_type
    if task.fields is not None or is_form(task.content_type):
        if (form := form_naming(task.body, task.content_type, task.name)) is not None:
            return form
        if task.fields is not None:
            return encode_form({**task.fields, "model": task.name}, task.files)
        return task.body, task.content_type
    return json_naming(task.body, task.name), task.content_type
