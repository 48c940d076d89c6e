"""The two backends of a hybrid, and the subtasks it sends to them."""

from __future__ import annotations

from typing import Any

from gateway.plugin import BackendFailed, BackendUnavailable, GatewayError, Result, Services, Task, View, encode_form
from gateway_hybrid.settings import HybridSettings

CLIENT_ERROR_STATUSES = frozenset({400, 422})  # an error in the request: the other side would return it too


class EdgeCloudPair:
    """Dispatches subtasks to the edge or the cloud backend. A task that may not leave the site has one side only."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.edge, self.cloud = settings.edge, settings.cloud
        self.services = services

    def eligible(self, task: Task) -> tuple[str, ...]:
        """Return the sides that may serve the task."""
        return (self.edge, self.cloud) if task.may_leave else (self.edge,)

    def other(self, side: str) -> str:
        return self.cloud if side == self.edge else self.edge

    async def dispatch(self, side: str, part: Task) -> Result:
        """Dispatch a subtask to `side`. Raises GatewayError."""
        return await self.services.dispatch(part.replace(pin=side))

    def seconds(self, task: Task, view: View) -> dict[str, float]:
        """Return the predicted seconds of each side that can serve the task."""
        found = {side: view.seconds(side, task) for side in self.eligible(task)}
        return {side: seconds for side, seconds in found.items() if seconds is not None}


def may_have_run(error: GatewayError) -> bool:
    """Whether the task may have run before the failure. A refusal (busy side, link known to be down) ran nothing."""
    return error.began and isinstance(error, BackendUnavailable | BackendFailed)


def as_whole_subtask(task: Task, **members: Any) -> Task:
    """Return the task as a subtask that requests a whole answer, even if the client requested a stream.

    members: members to set in its JSON body.
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
    """Whether the answer is returned without trying the other side."""
    return answer.status < 400 or answer.status in CLIENT_ERROR_STATUSES
