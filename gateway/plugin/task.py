"""The unit of work that a backend receives: `Task`, and the account its time is charged to: `Terms`."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from gateway.plugin import checks
from gateway.plugin.checks import Upload
from gateway.plugin.errors import (
    TaskInvalid,
)

Kind = Literal["chat", "completion", "embeddings", "transcription", "task", "models", "other"]
Site = Literal["edge", "cloud", "hybrid"]

# The terms a request's time is charged to, in the order a simple request meets them.
TERMS: tuple[str, ...] = (
    "read", "admit", "decide", "queue", "split", "edge", "connect", "upload", "network", "cloud", "download",
    "aggregate", "write",
)  # fmt: skip


class Terms(Protocol):
    """The account of one task's time. At every instant one term is being charged, or none.

    A backend that computes need not touch it: the gateway charges `edge` while `run` works. One that
    talks over a network enters `connect`, `upload`, `cloud` and `download` as they happen; one that
    divides work enters `split` and `aggregate`, and leaves while its subtasks keep their own accounts.
    One that uploads calls `uploaded` after the last byte; without that call the request keeps its upload
    permit until `run` ends.
    """

    def uploaded(self) -> None:
        """Report that the request's last byte has been sent, so that the next large upload may start.

        Optional and idempotent. A backend that does not call it keeps its upload permit until `run` ends. In a worker
        process it has no effect.
        """

    def enter(self, term: str, at: float | None = None) -> float:
        """Charge `term` from now (or from the earlier instant `at`, in seconds) on; return that instant."""
        ...

    def leave(self) -> float:
        """Charge nothing from now on; return now, in seconds."""
        ...

    def divide(self, term: str, seconds: float, *, into: str) -> None:
        """Give `seconds` of the last closed interval of `term` to `into`: half of it at either end."""
        ...

    def note_cloud_source(self, source: Literal["server-timing", "header", "estimated"]) -> None:
        """Say where the figure for the cloud's own time came from."""
        ...


class _NoTerms:
    """Terms for tasks whose time somebody else accounts for."""

    def enter(self, term: str, at: float | None = None) -> float:
        return at or 0.0

    def leave(self) -> float:
        return 0.0

    def uploaded(self) -> None: ...

    def divide(self, term: str, seconds: float, *, into: str) -> None: ...

    def note_cloud_source(self, source: Literal["server-timing", "header", "estimated"]) -> None: ...


V = TypeVar("V")
_NAMED = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

_UNDECODED: Any = object()


def new_id() -> str:
    """A fresh request id: 128 random bits, hexadecimal."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work: authenticated, size-bounded, with a deadline.

    kind: what family of work it is. name: the task, or the model, as *this backend* calls it.
    path: the request's own path, such as `/v1/chat/completions`. body: the request's bytes, as they
    came. fields, files: the parts of a multipart body (None and {} for any other).
    headers: those of the client's headers that may travel, lower-cased; never credentials.
    items: how many units of work it holds (embedding inputs, list items), for the rates.
    deadline: the instant, on the monotonic clock in seconds, at which the answer is worthless.
    stream_deadline: the same once its first part is there, where that is another one.
    may_leave: whether its data may leave the site. stream: the client asked for parts.
    parent_id: of a subtask, the request it belongs to. terms: where its time is accounted for.
    pin: the one backend that may serve it. depth: 0 for a request, 1 for its subtasks, and so on.
    """

    kind: Kind
    name: str
    deadline: float
    id: str = field(default_factory=new_id)
    path: str = ""
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] | None = None
    files: Mapping[str, Upload] = field(default_factory=dict)
    items: int = 1
    stream: bool = False
    may_leave: bool = True
    parent_id: str | None = None
    terms: Terms = field(default_factory=_NoTerms, repr=False, compare=False)
    pin: str | None = None
    depth: int = 0
    stream_deadline: float | None = None
    _decoded: Any = field(default=_UNDECODED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"a task holds at least one item, not {self.items}")

    @property
    def parts_deadline(self) -> float:
        """By when the answer must have ended where it comes in parts."""
        return self.deadline if self.stream_deadline is None else self.stream_deadline

    @property
    def json(self) -> Any:
        """The body decoded (or a multipart body's fields); decoded once. Raises TaskInvalid."""
        if self._decoded is _UNDECODED:
            decoded = self.fields if self.fields is not None else checks.decode_json(self.body)
            object.__setattr__(self, "_decoded", decoded)
        return self._decoded

    def argument(self, name: str, of: type[V]) -> V:
        """A member of the body's JSON object. Raises TaskInvalid, with its name, where it is missing or no `of`."""
        given = self.json.get(name) if isinstance(self.json, dict) else None
        value = float(given) if of is float and type(given) is int else given
        if not isinstance(value, of) or (type(value) is bool and of is not bool):
            raise TaskInvalid(f"`{self.name}` needs `{name}`, {_NAMED.get(of, of.__name__)}", param=name)
        return value

    def subtask(
        self, *, backend: str | None = None, json: Any = _UNDECODED, items: int = 1, name: str | None = None
    ) -> Task:
        """A part of this task for `Services.dispatch`: same kind, deadline and locality, its own body.

        backend: give it to that backend and no other. json: the body; without it, this task's own, form and all.
        """
        whole = dataclasses.replace(
            self,
            id=new_id(),
            name=self.name if name is None else name,
            items=items,
            stream=False,
            stream_deadline=None,
            parent_id=self.id,
            pin=backend,
            depth=self.depth + 1,
        )
        if json is _UNDECODED:
            return whole
        body = msgspec.json.encode(json)
        return dataclasses.replace(
            whole, body=body, content_type="application/json", fields=None, files={}, _decoded=json
        )

    def replace(self, **changes: Any) -> Task:
        """This task with some fields changed; the deadline only ever shrinks, `may_leave` only turns off."""
        if "deadline" in changes:
            changes |= {"deadline": min(changes["deadline"], self.deadline), "stream_deadline": None}
        if "may_leave" in changes:
            changes["may_leave"] = changes["may_leave"] and self.may_leave
        if "body" in changes:
            changes.setdefault("_decoded", _UNDECODED)
        return dataclasses.replace(self, **changes)
