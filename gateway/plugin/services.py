"""What the gateway provides to a backend: logging, subtasks, link samples and a view of the other backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gateway.plugin.result import Result
from gateway.plugin.task import Task


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
