"""Everything the author of a backend imports; nothing else of the gateway is needed, or promised.

A backend is a class with one method, `run`. It receives a `Task` and returns a `Result`, or, as an
async generator, yields `Part`s. Queueing, slots, deadlines, cancellation, timing, learning and
isolation are the gateway's business, not the plugin's.

    class Shout(Backend[Settings]):
        site = "edge"
        tasks = ("shout",)

        async def run(self, task: Task) -> Result:
            return Result(json={"result": task.json["text"].upper() + self.settings.suffix})

Time is float seconds on the system's monotonic clock (`time.monotonic`), sizes are bytes.
"""

from __future__ import annotations

import dataclasses
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway import values
from gateway.errors import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    NotServed,
    TaskInvalid,
    TaskRefused,
    frames_of,
)
from gateway.values import Upload

__all__ = [
    "TERMS",
    "Backend",
    "BackendFailed",
    "BackendSettings",
    "BackendUnavailable",
    "DeadlineExceeded",
    "GatewayError",
    "Isolation",
    "Kind",
    "LinkSample",
    "NotServed",
    "Part",
    "Result",
    "Services",
    "Site",
    "Task",
    "TaskInvalid",
    "TaskRefused",
    "Terms",
    "Upload",
    "View",
    "frames_of",
]

Kind = Literal["chat", "completion", "embeddings", "transcription", "task", "models", "other"]
Site = Literal["edge", "cloud", "hybrid"]
Isolation = Literal["loop", "process"]

# The terms a request's time is charged to, in the order a simple request meets them.
TERMS: tuple[str, ...] = (
    "read", "admit", "decide", "queue", "split", "edge", "connect", "upload", "network", "cloud", "download",
    "aggregate", "write",
)  # fmt: skip
MODEL_KINDS: frozenset[Kind] = frozenset({"chat", "completion", "embeddings", "transcription", "other"})


# ── what a plugin is given ───────────────────────────────────────────────────────────────────────


class Terms(Protocol):
    """The account of one task's time. At every instant one term is being charged, or none.

    A backend that computes need not touch it: the gateway charges `edge` while `run` works. One that
    talks over a network enters `connect`, `upload`, `cloud` and `download` as they happen; one that
    divides work enters `split` and `aggregate`, and leaves while its subtasks keep their own accounts.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSample:
    """What a backend saw of its network. Every field is optional; unknown is None, never 0.

    rtt_s: an HTTP round trip on a warm connection, the upstream's own time taken off.
    tcp_rtt_s: the kernel's estimate (TCP_INFO) for the same connection.
    upload_bytes, upload_s: a request body and the time until the kernel had it acknowledged.
    download_bytes, download_s: a response body after its first byte, and the time it took.
    failed: why nothing came back, when the network is at fault (refused, reset, no route, time-out).
    peer: the IP address at the far end; the gateway watches whether there is still a way to it.
    """

    rtt_s: float | None = None
    tcp_rtt_s: float | None = None
    upload_bytes: int = 0
    upload_s: float | None = None
    download_bytes: int = 0
    download_s: float | None = None
    failed: str | None = None
    peer: str | None = None


class Log(Protocol):
    """A structured logger: an event name `room.what_happened`, and keys."""

    def debug(self, event: str, **keys: Any) -> Any:
        """What only who looks for a fault wants to know."""

    def info(self, event: str, **keys: Any) -> Any:
        """What happened."""

    def warning(self, event: str, **keys: Any) -> Any:
        """What an operator should look at."""

    def error(self, event: str, **keys: Any) -> Any:
        """What an operator has to repair."""


class Services(Protocol):
    """What the gateway does for a backend. In a worker process `name`, `log` and `dispatch` work."""

    @property
    def name(self) -> str:
        """The name the operator gave this backend."""
        ...

    @property
    def log(self) -> Log:
        """A logger that carries the backend's name."""
        ...

    async def dispatch(self, task: Task) -> Result:
        """Run a subtask (`task.subtask(…)`) like any request: decided, limited, timed, logged.

        Raises what a request can end in. A subtask never gets more time, nor leaves the site, where
        its parent may not.
        """
        ...

    def observe(self, sample: LinkSample) -> None:
        """Tell the gateway what the network did; never blocks, never raises."""
        ...

    @property
    def view(self) -> View:
        """The other backends, as they stand whenever it is asked; for work that is divided as it goes."""
        ...


class View(Protocol):
    """The state of the other backends at one instant, for `Backend.estimate`."""

    def seconds(self, backend: str, task: Task) -> float | None:
        """Predicted seconds until `backend` would have finished `task`, or None where it cannot serve it."""
        ...

    def p95_s(self, backend: str, task: Task) -> float | None:
        """The same, as it is exceeded by one task of this class in twenty."""
        ...

    def slots(self, backend: str) -> int:
        """How many tasks `backend` works on at once; 0 where there is no such backend."""
        ...


class _NoTerms:
    """Terms for tasks whose time somebody else accounts for."""

    def enter(self, term: str, at: float | None = None) -> float:
        return at or 0.0

    def leave(self) -> float:
        return 0.0

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
            decoded = self.fields if self.fields is not None else values.decode_json(self.body)
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


# ── what a plugin gives back ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole answer: `json` (any JSON value, rendered as the client asked), or `body` bytes, sent as they are.

    A wrong type is refused when it is made, as `plugin_error`, here as in a worker. status: an HTTP status from 200 to
    599, 200 but for an upstream's own refusal. headers: framing is the gateway's, and left out. confidence: 0 to 1,
    where the backend knows how sure it is. backend, site: who answered, filled in by the gateway for answers to
    subtasks.
    """

    json: Any = None
    body: bytes | None = None
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    confidence: float | None = None
    backend: str | None = None
    site: Site | None = None

    def __post_init__(self) -> None:
        for name, check in values.OF_RESULT.items():
            object.__setattr__(self, name, check(getattr(self, name)))

    def value(self) -> Any:
        """The answer as a JSON value, whichever way it was given. Raises BackendFailed when it is none."""
        if self.body is None:
            return self.json
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BackendFailed(f"the answer is not JSON: {exc}", code="upstream_bad_response") from exc


@dataclass(frozen=True, slots=True)
class Part:
    """A stream's part: `data` (a JSON value, a text, bytes; of a body, with `content_type`) or `raw`, an event."""

    data: Any = None
    raw: bytes | None = None
    content_type: str | None = None

    def __post_init__(self) -> None:
        if self.raw is not None:
            object.__setattr__(self, "raw", values.checked_bytes("Part", "raw", self.raw))


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


class BackendSettings(BaseModel):
    """What an operator may set for any backend, as `GATEWAY_BACKENDS__<NAME>__<FIELD>`; subclass it for your own.

    An unset field (None) means what the plugin declares.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    plugin: str = Field("", description="which plugin: an entry point's name, or `package.module:attribute`")
    site: Literal["edge", "cloud"] | None = Field(None, description="`edge`, or `cloud`: data leaves the site")
    slots: int | None = Field(None, ge=1, le=4096, description="tasks it works on at once")
    queue: int = Field(256, ge=0, le=65536, description="how many tasks may wait in the gateway")
    models: dict[str, str] | None = Field(
        None, description="models it serves: list, or map from the client's name to the backend's"
    )
    tasks: dict[str, str] | None = Field(
        None, description="tasks it serves: list, or map from the client's name to the backend's"
    )
    isolation: Isolation | None = Field(None, description="`loop`, or `process`: in worker processes, one per slot")
    usd_per_request: float = Field(0.0, ge=0, description="cost of one request, for the policy")
    watts: float = Field(0.0, ge=0, description="power drawn while it works, for the policy")
    repeatable: bool | None = Field(None, description="whether running a task twice is harmless")

    @field_validator("models", "tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return values.names_of(value)


S = TypeVar("S", bound=BackendSettings)


# ── the backend ──────────────────────────────────────────────────────────────────────────────────


class Backend(ABC, Generic[S]):
    """Serves tasks. Subclass as `Backend[YourSettings]`; only `run` is required.

    Class attributes, all optional:
    site: where the work is done. kinds: the kinds its models serve. models, tasks: the names it serves,
    a list or a map from the client's name to the backend's; None while they are not known yet (set them
    on `self` at any time). slots: tasks it works on at once. isolation: `process` to run in supervised
    worker processes, one per slot. repeatable: whether running twice is harmless; None: yes for models,
    no for tasks. remote: whether a network lies between, as it does where the site is `cloud` (None).
    resumes: whether it continues an assistant's turn whose beginning it is given.
    examples: by name, the JSON of a request that it answers, for `edge-gateway plugins test`.
    """

    site: Site = "edge"
    kinds: frozenset[Kind] = MODEL_KINDS
    models: Mapping[str, str] | Iterable[str] | None = ()
    tasks: Mapping[str, str] | Iterable[str] | None = ()
    slots: int = 1
    isolation: Isolation = "loop"
    repeatable: bool | None = None
    remote: bool | None = None
    resumes: bool = False

    examples: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    Settings: ClassVar[type[BackendSettings]] = BackendSettings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Backend and isinstance(settings := get_args(base)[0], type):
                cls.Settings = settings

    def __init__(self, settings: S, services: Services) -> None:
        """Keep both; what the operator set takes the place of what the class declares. Cheap: starts nothing."""
        self.settings = settings
        self.services = services
        for name in ("site", "slots", "models", "tasks", "repeatable"):
            if (chosen := getattr(settings, name)) is not None:
                setattr(self, name, chosen)

    async def __aenter__(self) -> Self:
        """Start: load models, open connections. Raise to be left out; the message is shown to the operator."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop: release what `__aenter__` took."""

    @abstractmethod
    def run(self, task: Task) -> Awaitable[Result] | AsyncIterator[Part | Result]:
        """Do the work: `async def` returning a Result, or an async generator yielding Parts.

        A generator may yield one Result as its first and only item, where no stream came about.
        Raises TaskInvalid, BackendUnavailable (another may be asked) or BackendFailed; anything else is
        reported as `plugin_error`. Cancellation means nobody waits any more: stop, and let it through.
        """

    def size(self, task: Task) -> float:
        """How big the task is, in the unit its duration grows with: the items of a list task, else bytes.

        Say otherwise where you know better.
        """
        is_list = task.kind == "task" and b'"items"' in task.body
        return float(task.items if is_list else len(task.body))

    def estimate(self, task: Task, view: View) -> float | None:
        """Predicted seconds for this task, where you know better than the learned model; None: use that."""
        return None

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """What it would do with the task, as JSON for `explain`; None: there is nothing to add. Runs nothing."""
        return None

    async def health(self) -> str | None:
        """None when well, else what is wrong. Override it to be asked every `GATEWAY_POLICY__PROBE_S` seconds."""
        return None
