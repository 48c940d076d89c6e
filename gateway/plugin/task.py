"""`Task`, the unit of work that a backend receives, and `Terms`, the account of its time."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from gateway.plugin import checks
from gateway.plugin.checks import Upload
from gateway.plugin.errors import TaskInvalid

Kind = Literal["chat", "completion", "embeddings", "transcription", "task", "models", "other"]
Site = Literal["edge", "cloud", "hybrid"]

# The phases that a request's time is charged to, in the order of a simple request.
TERMS: tuple[str, ...] = (
    "read", "admit", "decide", "queue", "split", "edge", "connect", "upload", "network", "cloud", "download",
    "aggregate", "write",
)  # fmt: skip


class Terms(Protocol):
    """The account of one task's time: at each instant, at most one of TERMS is charged.

    A backend that computes locally does not need it: the gateway charges `edge` while `run` works. A backend that
    uses a network enters `connect`, `upload`, `cloud` and `download` as these phases begin. A backend that divides
    work enters `split` and `aggregate`, and calls `leave` while its subtasks run, because each subtask has an account
    of its own.
    One that uploads calls `uploaded` after the last byte; without that call the request keeps its upload
    permit until `run` ends.
    """

    def uploaded(self) -> None:
        """Report that the request's last byte has been sent, so that the next large upload may start.

        Optional and idempotent. A backend that does not call it keeps its upload permit until `run` ends. In a worker
        process it has no effect.
        """

    def enter(self, term: str, at: float | None = None) -> float:
        """Charge `term` from now on, or from the earlier instant `at` (seconds); return that instant."""
        ...

    def leave(self) -> float:
        """Stop charging the current term; return the current time in seconds."""
        ...

    def divide(self, term: str, seconds: float, *, into: str) -> None:
        """Move `seconds` of the last closed interval of `term` to `into`, half from each end of the interval."""
        ...

    def note_cloud_source(self, source: Literal["server-timing", "header", "estimated"]) -> None:
        """Record the source of the figure for the upstream's own processing time."""
        ...


class _NoTerms:
    """Terms that record nothing, for tasks that the gateway does not account for."""

    def enter(self, term: str, at: float | None = None) -> float:
        return at or 0.0

    def leave(self) -> float:
        return 0.0

    def uploaded(self) -> None: ...

    def divide(self, term: str, seconds: float, *, into: str) -> None: ...

    def note_cloud_source(self, source: Literal["server-timing", "header", "estimated"]) -> None: ...


V = TypeVar("V")
_TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

_UNDECODED: Any = object()


def new_id() -> str:
    """Return a new request id: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request, or a part of one, for a backend: authenticated, bounded in size, with a deadline.

    kind: the operation. name: the task or the model, by the name that *this backend* uses.
    path: the path of the request, such as `/v1/chat/completions`. body: the bytes of the request's body, unchanged.
    content_type: the media type of `body`. fields, files: the parts of a multipart body; None and {} for other bodies.
    headers: the client's end-to-end headers, names in lower case; credentials are never included.
    items: the number of units of work (embedding inputs, list items), from which rates are learned; at least 1.
    deadline: the instant at which the answer becomes worthless, in seconds on the monotonic clock.
    stream_deadline: the deadline that applies after the first part; None if `deadline` still applies.
    may_leave: whether the data may leave the site. stream: whether the client wants a stream of parts.
    id: the request id, or a new id for a subtask. parent_id: the id of the task that dispatched this subtask, or None.
    terms: the account of its time. pin: the only backend that may serve the task, or None.
    depth: 0 for a request, 1 for its subtasks, and so on. Raises ValueError if `items` is less than 1.
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
            raise ValueError(f"a task has at least one item, not {self.items}")

    @property
    def parts_deadline(self) -> float:
        """The instant at which a streamed answer must be complete, in seconds on the monotonic clock."""
        return self.deadline if self.stream_deadline is None else self.stream_deadline

    @property
    def json(self) -> Any:
        """The decoded JSON body, or the fields of a multipart body; decoded once.

        Raises TaskInvalid if the body is not valid JSON.
        """
        if self._decoded is _UNDECODED:
            decoded = self.fields if self.fields is not None else checks.decode_json(self.body)
            object.__setattr__(self, "_decoded", decoded)
        return self._decoded

    def argument(self, name: str, of: type[V]) -> V:
        """Return the member `name` of the body's JSON object, which must be of type `of`.

        An integer is accepted as a float. Raises TaskInvalid, with `param` set to `name`, if the member is missing or
        of another type, or if the body is not an object.
        """
        member = self.json.get(name) if isinstance(self.json, dict) else None
        value = float(member) if of is float and type(member) is int else member
        if not isinstance(value, of) or (type(value) is bool and of is not bool):
            raise TaskInvalid(f"`{self.name}` needs `{name}`, {_TYPE_NAMES.get(of, of.__name__)}", param=name)
        return value

    def subtask(
        self, *, backend: str | None = None, json: Any = _UNDECODED, items: int = 1, name: str | None = None
    ) -> Task:
        """Return a part of this task for `Services.dispatch`, with the same kind, deadline and locality.

        backend: the only backend that may serve it; None: the gateway chooses. json: the JSON value of its body;
        without it, the subtask has this task's body, form fields and files. items: the number of units of work in it.
        name: the task or model; None: this task's.
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
        """Return a copy with some fields changed.

        The copy's deadline is never later than this task's, and `may_leave` can be changed to False only.
        """
        if "deadline" in changes:
            changes |= {"deadline": min(changes["deadline"], self.deadline), "stream_deadline": None}
        if "may_leave" in changes:
            changes["may_leave"] = changes["may_leave"] and self.may_leave
        if "body" in changes:
            changes.setdefault("_decoded", _UNDECODED)
        return dataclasses.replace(self, **changes)
