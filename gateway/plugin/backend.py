"""The class that a plugin subclasses: `Backend`, and what an operator or a subclass may declare for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Generic, Self, get_args, get_origin

from gateway.plugin.result import Part, Result
from gateway.plugin.services import Services, View
from gateway.plugin.settings import BackendSettings, Isolation, S
from gateway.plugin.task import Kind, Site, Task

MODEL_KINDS: frozenset[Kind] = frozenset({"chat", "completion", "embeddings", "transcription", "other"})


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
