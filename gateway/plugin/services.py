"""The services of the gateway for a backend: logging, subtasks, link samples, a view of the other backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.plugin.result import Result
from gateway.plugin.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSample:
    """A backend's measurement of its network link. Every field is optional; an unknown duration is None, never 0.

    rtt_s: seconds of an HTTP round trip on an established connection, without the upstream's processing time.
    tcp_rtt_s: the kernel's estimate (TCP_INFO) for the same connection, in seconds.
    upload_bytes, upload_s: the size of a request body, and the seconds until the kernel has it acknowledged.
    download_bytes, download_s: the size of a response body after its first byte, and the seconds it took.
    failed: why no response arrived, if the network is at fault (refused, reset, no route, timeout).
    peer: the IP address of the peer; the gateway watches whether a route to it exists.
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
    """A structured logger: an event name `area.what_happened`, and keys with plain values.

    Never log the content of requests or answers, nor credentials.
    """

    def debug(self, event: str, **keys: Any) -> Any:
        """Log a detail that helps to find a fault."""

    def info(self, event: str, **keys: Any) -> Any:
        """Log an ordinary event."""

    def warning(self, event: str, **keys: Any) -> Any:
        """Log an event that an operator should look at."""

    def error(self, event: str, **keys: Any) -> Any:
        """Log a fault that an operator has to repair."""


class Services(Protocol):
    """The services of the gateway for one backend.

    In a worker process `observe` drops its samples, and `view` raises BackendFailed.
    """

    @property
    def name(self) -> str:
        """The backend's name in the operator's settings."""
        ...

    @property
    def log(self) -> Log:
        """A logger that adds the backend's name to each event."""
        ...

    async def dispatch(self, task: Task) -> Result:
        """Run a subtask, made by `task.subtask(…)`, on a backend that the gateway chooses, and return its result.

        A subtask is limited, timed and logged like a request. It has no more time than its parent, and leaves the
        site only if its parent may. Raises GatewayError if it fails.
        """
        ...

    def observe(self, sample: LinkSample) -> None:
        """Give the gateway a measurement of the network. Never blocks or raises."""
        ...

    @property
    def view(self) -> View:
        """The current state of the other backends, for work that is divided while it runs."""
        ...


class View(Protocol):
    """The state of the other backends, for `Backend.estimate` and for dividing work."""

    def seconds(self, backend: str, task: Task) -> float | None:
        """Return the predicted seconds until `backend` would finish `task`; None if it cannot serve the task."""
        ...

    def p95_s(self, backend: str, task: Task) -> float | None:
        """Return the 95th percentile of these seconds for tasks of this class; None if it cannot serve the task."""
        ...

    def slots(self, backend: str) -> int:
        """Return the number of tasks that `backend` runs at once; 0 if no backend has that name."""
        ...
