"""The conformance kit: the contract of a backend as checks, in the manner of trio's check_one_way_stream.

    async def test_shout_conforms_to_the_backend_contract():
        await check_backend(Shout)

The same checks run on first-party plugins, on third-party plugins, and in `edge-gateway plugins test NAME`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.plugin import Backend, BackendSettings, Task
from gateway.testing import lifecycle_checks, request_checks, resource_snapshot
from gateway.testing.fake_services import Dispatch, echo_subtask
from gateway.testing.harness import BackendHarness, CheckAdvice, CheckFailed, CheckSkipped, describe_exception, plural
from gateway.testing.network import FakeNetwork

Check = Callable[[BackendHarness], Awaitable[None]]

CHECKS: Mapping[str, Check] = {
    "declaration": lifecycle_checks.declaration,
    "construction": lifecycle_checks.construction,
    "start and stop": lifecycle_checks.start_and_stop,
    "half start": lifecycle_checks.half_start,
    "site": lifecycle_checks.site,
    "questions": lifecycle_checks.questions,
    "run": request_checks.run,
    "stream": request_checks.stream,
    "cancel": request_checks.cancel,
    "deadline": request_checks.deadline,
    "concurrency": request_checks.concurrency,
    "errors": request_checks.errors,
    "growth": request_checks.growth,
    "responsive": request_checks.responsive,
}
# If one of these fails, the rest is not run: it would repeat the failure, or let more data leave the site.
_PRECONDITIONS = ("declaration", "construction", "start and stop", "site")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one check.

    state: `kept`, `broken` (the contract is violated), `advised` (it is kept, with advice), or `skipped`. message:
    the fault, the advice, or the reason for skipping. fix: how to fix it.
    """

    check: str
    state: Literal["kept", "broken", "advised", "skipped"]
    message: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.message}\n    fix: {self.fix}"


async def check_backend(
    cls: type[Backend[Any]],
    *,
    settings: Mapping[str, Any] | BackendSettings | None = None,
    tasks: Mapping[str, Any] | Sequence[Task] | None = None,
    network: FakeNetwork | None = None,
    dispatch: Dispatch = echo_subtask,
) -> None:
    """Check that a backend keeps the contract that the gateway relies on.

    Raises AssertionError that names each fault. Warns (UserWarning) about behaviour that is allowed but should improve.

    settings: the operator's settings, such as `{"isolation": "process"}`. tasks: requests that it should answer, or
    their JSON bodies by task or model; by default the `examples` of the class and, for models, a typical request of
    each kind. network: the service that the backend calls; each of its FAULTS is tried too. dispatch: serves subtasks.

    The backend is started and stopped many times, and each request is run dozens of times.
    """
    outcomes = [outcome async for outcome in examine(cls, settings, tasks, network, dispatch)]
    for outcome in outcomes:
        if outcome.state == "advised":
            warnings.warn(f"{cls.__name__}: {outcome}", stacklevel=2)
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    if broken:
        faults = "\n".join(f"  {outcome}" for outcome in broken)
        raise AssertionError(f"{cls.__name__} fails {plural(len(broken), 'conformance check')}:\n{faults}")


async def examine(
    cls: type[Backend[Any]],
    settings: Mapping[str, Any] | BackendSettings | None = None,
    tasks: Mapping[str, Any] | Sequence[Task] | None = None,
    network: FakeNetwork | None = None,
    dispatch: Dispatch = echo_subtask,
) -> AsyncIterator[Outcome]:
    """Run the checks and yield the outcome of each; the arguments are those of `check_backend`."""
    if not (isinstance(cls, type) and issubclass(cls, Backend)) or inspect.isabstract(cls):
        fix = "subclass gateway.plugin.Backend, with `run`"
        yield Outcome("declaration", "broken", f"{cls!r} is not a backend", fix)
        return
    chosen = settings if isinstance(settings, BackendSettings) else cls.Settings.model_validate(settings or {})
    harness = BackendHarness(cls, chosen, tasks, network, dispatch)
    resource_snapshot.adopt_orphans()
    for name, check in CHECKS.items():
        outcome = await _outcome(name, check(harness))
        yield outcome
        if outcome.state == "broken" and name in _PRECONDITIONS:
            return
    closed = await _outcome("stop", harness.close())
    if closed.state == "broken":
        yield closed


async def _outcome(name: str, check: Awaitable[None]) -> Outcome:
    try:
        await check
    except CheckFailed as failed:
        return Outcome(name, "broken", failed.message, failed.fix)
    except CheckAdvice as advice:
        return Outcome(name, "advised", advice.message, advice.fix)
    except CheckSkipped as skipped:
        return Outcome(name, "skipped", skipped.message, skipped.fix)
    except Exception as exc:
        return Outcome(name, "broken", f"it raised {describe_exception(exc)}", "see the message")
    return Outcome(name, "kept")
