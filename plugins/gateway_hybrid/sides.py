"""The two backends a hybrid works with, and how it asks them."""

from __future__ import annotations

from typing import Any

from gateway.plugin import BackendFailed, BackendUnavailable, GatewayError, Result, Services, Task, View, encode_form
from gateway_hybrid.settings import HybridSettings

PASSED_ON = frozenset({400, 422})  # the client's mistake: the other side would say the same


class EdgeCloudPair:
    """Asks one side or the other. What may not leave the site knows one side only."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.edge, self.cloud = settings.edge, settings.cloud
        self.services = services

    def of(self, task: Task) -> tuple[str, ...]:
        """The sides that may serve the task."""
        return (self.edge, self.cloud) if task.may_leave else (self.edge,)

    def other(self, side: str) -> str:
        """The one that is not `side`."""
        return self.cloud if side == self.edge else self.edge

    async def ask(self, side: str, part: Task) -> Result:
        """Have a subtask served there. Raises what a request can end in."""
        return await self.services.dispatch(part.replace(pin=side))

    def seconds(self, task: Task, view: View) -> dict[str, float]:
        """What each side that can serve the task is predicted to take."""
        found = {side: view.seconds(side, task) for side in self.of(task)}
        return {side: seconds for side, seconds in found.items() if seconds is not None}


def may_have_run(error: GatewayError) -> bool:
    """Whether work may have been done before it failed. Refusals (a busy side, a link known to be down) did none."""
    return error.began and isinstance(error, BackendUnavailable | BackendFailed)


def whole(task: Task, **members: Any) -> Task:
    """The task once more, as a subtask that asks for a whole answer even where the client asked for a stream.

    members: what its JSON is to have besides.
    """
    if not task.stream and not members:
        return task.subtask(items=task.items)
    if task.fields is not None:
        fields = {name: value for name, value in task.fields.items() if name != "stream"}
        body, content_type = encode_form(fields, task.files)
        return task.replace(fields=fields, body=body, content_type=content_type).subtask(items=task.items)
    kept = {name: value for name, value in task.json.items() if name not in ("stream", "stream_options")}
    return task.subtask(json=kept | members, items=task.items)


def is_final(answer: Result) -> bool:
    """Whether an answer stands, whatever the other side may say."""
    return answer.status < 400 or answer.status in PASSED_ON
