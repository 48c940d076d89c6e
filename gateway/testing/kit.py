"""The conformance kit: every promise of a backend as a check, in the manner of trio's check_one_way_stream.

    async def test_it_keeps_the_promises_of_a_backend():
        await check_backend(Shout)

The same checks run over first-party plugins, over anybody else's, and by `edge-gateway plugins test NAME`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.plugin import Backend, BackendSettings, Task
from gateway.testing import census, life, work
from gateway.testing.bench import Advice, Bench, Dispatch, Fault, Skipped, hand_back, named
from gateway.testing.network import FakeNetwork

Check = Callable[[Bench], Awaitable[None]]

CHECKS: Mapping[str, Check] = {
    "declaration": life.declaration,
    "construction": life.construction,
    "start and stop": life.start_and_stop,
    "half start": life.half_start,
    "site": life.site,
    "questions": life.questions,
    "run": work.run,
    "stream": work.stream,
    "cancel": work.cancel,
    "deadline": work.deadline,
    "concurrency": work.concurrency,
    "errors": work.errors,
    "growth": work.growth,
    "responsive": work.responsive,
}
# Where one of these is broken nothing more is run: the others could only repeat it, or let more data leave.
_NEEDED = ("declaration", "construction", "start and stop", "site")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check: `kept`, `broken` or `advised` (with what is wrong and a fix), or `skipped` (with why)."""

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
    dispatch: Dispatch = hand_back,
) -> None:
    """Check that a backend keeps every promise the gateway relies on. Raises AssertionError that names each fault,
    and warns of what is none and worth mending.

    settings: the operator's, `{"isolation": "process"}` for one. tasks: requests it should answer, or their JSON by
    task or model; without them the class's `examples`, and for models a usual request of each of its kinds.
    network: the service that it asks, so that it is also seen with each of that network's FAULTS. dispatch: what
    answers its subtasks. It is started and stopped many times, and its requests are run dozens of times.
    """
    outcomes = [outcome async for outcome in examine(cls, settings, tasks, network, dispatch)]
    for outcome in outcomes:
        if outcome.state == "advised":
            warnings.warn(f"{cls.__name__}: {outcome}", stacklevel=2)
    broken = [outcome for outcome in outcomes if outcome.state == "broken"]
    if broken:
        faults = "\n".join(f"  {outcome}" for outcome in broken)
        raise AssertionError(f"{cls.__name__} does not keep {len(broken)} of its promises:\n{faults}")


async def examine(
    cls: type[Backend[Any]],
    settings: Mapping[str, Any] | BackendSettings | None = None,
    tasks: Mapping[str, Any] | Sequence[Task] | None = None,
    network: FakeNetwork | None = None,
    dispatch: Dispatch = hand_back,
) -> AsyncIterator[Outcome]:
    """The outcome of each check in turn, for who wants to show them; the arguments are those of `check_backend`."""
    if not (isinstance(cls, type) and issubclass(cls, Backend)) or inspect.isabstract(cls):
        yield Outcome("declaration", "broken", f"{cls!r} is no backend", "subclass gateway.plugin.Backend, with `run`")
        return
    chosen = settings if isinstance(settings, BackendSettings) else cls.Settings.model_validate(settings or {})
    bench = Bench(cls, chosen, tasks, network, dispatch)
    census.adopt_orphans()
    for name, check in CHECKS.items():
        outcome = await _outcome(name, check(bench))
        yield outcome
        if outcome.state == "broken" and name in _NEEDED:
            return
    closed = await _outcome("stop", bench.close())
    if closed.state == "broken":
        yield closed


async def _outcome(name: str, check: Awaitable[None]) -> Outcome:
    try:
        await check
    except Fault as fault:
        return Outcome(name, "broken", fault.message, fault.fix)
    except Advice as advice:
        return Outcome(name, "advised", advice.message, advice.fix)
    except Skipped as why:
        return Outcome(name, "skipped", why.message, why.fix)
    except Exception as exc:
        return Outcome(name, "broken", f"it raised {named(exc)}", "see the message")
    return Outcome(name, "kept")
