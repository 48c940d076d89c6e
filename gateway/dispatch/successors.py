"""Who goes on with a stream that broke."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.dispatch.call import DispatchState, first_byte_deadline
from gateway.dispatch.continuation import How
from gateway.dispatch.race import Answer
from gateway.plugin import GatewayError, Task
from gateway.registry import Registry


class FailoverBackends:
    """Who may go on with a stream that broke: each backend but those that failed at it, at most once each way."""

    def __init__(
        self,
        serve: Callable[[DispatchState], Awaitable[Answer]],
        registry: Registry,
        call: DispatchState,
        answer: Answer,
    ) -> None:
        self._serve, self._registry, self._call, self._answer = serve, registry, call, answer
        self._failed = dict(call.tried)

    async def ask(self, task: Task, how: How, failure: GatewayError) -> Answer:
        """The answer of somebody who goes on. Raises GatewayError where there is nobody left."""
        self._failed[self._answer.backend] = failure.message
        tried = self._failed | (self._unfit() if how == "prefill" else {})
        until = first_byte_deadline(task, self._call.expected)
        call = replace(
            self._call, task=task, until=until, tried=tried, failure=failure, failed=self._answer.backend, how=how
        )
        while True:
            answer = await self._serve(call)
            if answer.result is None or answer.result.status < 400:
                call.watch.enter("edge" if answer.site == "edge" else "cloud")
                return answer
            answer.close()  # a refusal is its answer to the way it was asked, and says nothing of the other
            call.tried[answer.backend] = f"it refused to go on (status {answer.result.status})"

    def _unfit(self) -> dict[str, str]:
        members = self._registry.members.items()
        return {name: "it does not continue a turn" for name, member in members if not member.resumes}
