"""`Backend`, the class that a plugin subclasses."""

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
    """Serves tasks. Subclass it as `Backend[YourSettings]`; only `run` is required.

    Class attributes, all optional:

    - site: where the work is done: `edge`, `cloud` or `hybrid`.
    - kinds: the operations that its models serve.
    - models, tasks: the names that it serves, a list or a map from the client's name to the backend's; None while
      they are not known yet. They can be set on `self` at any time.
    - problems: faults that do not keep it out of service, such as a file that cannot be read; for `/status` and the
      log.
    - slots: the number of tasks that it runs at once.
    - isolation: `loop` to run in the gateway's event loop, `process` to run in worker processes, one per slot.
    - repeatable: whether running a task twice is harmless; None: yes for models, no for tasks.
    - remote: whether it is reached over a network; None: yes if the site is `cloud`.
    - resumes: whether it can continue an assistant message from a given beginning.
    - examples: for each name, the JSON of a request that it answers, for `edge-gateway plugins test`.
    - Settings: the class of its settings; set by `Backend[YourSettings]`.
    """

    site: Site = "edge"
    kinds: frozenset[Kind] = MODEL_KINDS
    models: Mapping[str, str] | Iterable[str] | None = ()
    tasks: Mapping[str, str] | Iterable[str] | None = ()
    problems: Iterable[str] = ()
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
        """Store both; the operator's settings replace the values that the class declares.

        A constructor must be cheap and start nothing: with `isolation = "process"` the gateway also makes an instance
        that it never enters.
        """
        self.settings = settings
        self.services = services
        for name in ("site", "slots", "models", "tasks", "repeatable"):
            if (chosen := getattr(settings, name)) is not None:
                setattr(self, name, chosen)

    async def __aenter__(self) -> Self:
        """Start: load models, open connections. Return `self`.

        An exception keeps the backend out of service; its message is shown to the operator. A cancelled start must
        release what it took, because `__aexit__` is not called then.
        """
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop: release everything that `__aenter__` took."""

    @abstractmethod
    def run(self, task: Task) -> Awaitable[Result] | AsyncIterator[Part | Result]:
        """Serve `task`: an `async def` that returns a Result, or an async generator that yields Parts.

        A generator may yield a Result as its first and only item, if it has no stream to give. Raises TaskInvalid for
        a mistake of the client, BackendUnavailable if another backend may be tried, BackendFailed if not; the client
        gets `plugin_error` for any other exception. After a cancellation the result is not needed: stop,
        and let CancelledError through.
        """

    def size(self, task: Task) -> float:
        """Return the size of the task in the unit that its duration grows with.

        By default it is the number of items of a list task, else the number of bytes of the body. Override it if
        another unit predicts the duration better. It must be finite, at least 0, and not raise for any body.
        """
        is_list = task.kind == "task" and b'"items"' in task.body
        return float(task.items if is_list else len(task.body))

    def estimate(self, task: Task, view: View) -> float | None:
        """Return the predicted seconds for this task; None: the gateway uses its learned model."""
        return None

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """Return what the backend would do with the task, as a JSON object for `explain`; None: no details.

        Must not run any work.
        """
        return None

    async def health(self) -> str | None:
        """Return None if the backend is healthy, else a text that describes the fault.

        If a subclass overrides it, the gateway calls it every `GATEWAY_POLICY__PROBE_S` seconds.
        """
        return None
