"""Cascade: the edge first, the cloud only if the edge is not confident; both at once if time is short.

The edge's answer is returned at once if its confidence reaches the threshold or if the data may not leave the site. It
is also returned if the cloud fails or takes too long. The header `x-gateway-cascade` is `edge`, `cloud` or `edge-kept`;
`x-gateway-confidence` is the confidence of the edge.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.plugin import (
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    Result,
    Services,
    Task,
    TaskInvalid,
    View,
    load_function,
)
from gateway_hybrid.confidence import Validator, confidence_of, rate_answer
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import CLIENT_ERROR_STATUSES, EdgeCloudPair, as_whole_subtask, may_have_run

CLOUD_TIME_FACTOR = 1.5  # predicted times of the cloud that must be left when it is called
WAIT_P95_FACTOR, MIN_WAIT_S = 4.0, 1.0  # wait for the cloud: four times its p95, at least 1 s
RESERVE_S = 0.05  # kept before the deadline, to send the edge's answer
SHARE_GAIN = 0.05
MAX_CLASSES = 1024


@dataclass(frozen=True, slots=True)
class EdgeOutcome:
    """The result of the edge: an answer with its confidence, or an error."""

    answer: Result | None = None
    confidence: float | None = None
    error: GatewayError | None = None

    def is_sure(self, threshold: float) -> bool:
        """Whether the edge's answer is returned without the cloud."""
        if self.answer is not None and self.answer.status in CLIENT_ERROR_STATUSES:
            return True
        return self.confidence is not None and self.confidence >= threshold


class Cascade:
    """The mode `cascade`."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self._validator: Validator | None = None
        self._escalated_share: dict[tuple[str, str], float] = {}
        self._without_logprobs: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Import the validator. Raises BackendUnavailable."""
        if self.settings.validator is not None:
            self._validator = load_function(self.settings.validator, "VALIDATOR")

    async def run(self, task: Task) -> Result:
        """The edge's answer where it is is_confident, else the cloud's, else the edge's all the same."""
        task.terms.leave()
        edge = asyncio.ensure_future(self._call_edge(task))
        cloud: asyncio.Future[Result] | None = None
        try:
            if task.may_leave and await self._edge_is_late(edge, task):
                cloud = asyncio.ensure_future(self.sides.dispatch(self.sides.cloud, as_whole_subtask(task)))
                await asyncio.wait({edge, cloud}, return_when=asyncio.FIRST_COMPLETED)
                if _has_succeeded(cloud):
                    return self._with_headers(cloud.result(), "cloud", None)
            outcome = self._outcome(task, await edge)
            return await self._decide(task, outcome, cloud)
        finally:
            await _cancel_calls(edge, cloud)
            task.terms.enter("aggregate")

    async def _edge_is_late(self, edge: asyncio.Future[Any], task: Task) -> bool:
        """Wait for the edge while the cloud could still be called afterwards; True if the edge takes longer."""
        view = self.services.view
        cloud_s = view.seconds(self.sides.cloud, task)
        if cloud_s is None:
            return False
        loop = asyncio.get_running_loop()
        latest = task.deadline - RESERVE_S - CLOUD_TIME_FACTOR * cloud_s
        edge_s = view.seconds(self.sides.edge, task) or 0.0
        if loop.time() + edge_s < latest:
            await asyncio.wait({edge}, timeout=latest - loop.time())
        return not edge.done()

    async def _decide(self, task: Task, outcome: EdgeOutcome, cloud: asyncio.Future[Result] | None) -> Result:
        is_confident = outcome.is_sure(self.settings.threshold)
        self._learn(task, escalates=not is_confident)
        if outcome.answer is not None and (is_confident or not task.may_leave):
            return self._with_headers(outcome.answer, "edge", outcome.confidence)
        if outcome.error is not None and not self._may_call_cloud(outcome.error, task):
            raise outcome.error
        self.services.log.info(
            "hybrid.escalated", parent_id=task.id, confidence=outcome.confidence, threshold=self.settings.threshold
        )
        return await self._escalate(cloud, task, outcome)

    async def _escalate(self, cloud: asyncio.Future[Result] | None, task: Task, outcome: EdgeOutcome) -> Result:
        call = cloud or asyncio.ensure_future(self.sides.dispatch(self.sides.cloud, as_whole_subtask(task)))
        try:
            await asyncio.wait({call}, timeout=None if outcome.answer is None else self._cloud_wait_s(task))
            if _has_succeeded(call):
                return self._with_headers(call.result(), "cloud", outcome.confidence)
            if outcome.answer is None:
                return _cloud_error_response(call, outcome.error)
            self.services.log.info("hybrid.kept_edge", parent_id=task.id, error=_failure_reason(call))
            return self._with_headers(outcome.answer, "edge-kept", outcome.confidence)
        finally:
            await _cancel_calls(call)

    def _cloud_wait_s(self, task: Task) -> float:
        """Seconds that the cloud may take while the edge's answer waits."""
        left_s = task.deadline - RESERVE_S - asyncio.get_running_loop().time()
        if self.settings.wait_s is not None:
            return max(0.0, min(left_s, self.settings.wait_s))
        p95_s = self.services.view.p95_s(self.sides.cloud, task)
        max_s = math.inf if p95_s is None else max(WAIT_P95_FACTOR * p95_s, MIN_WAIT_S)
        return max(0.0, min(left_s, max_s))

    def _may_call_cloud(self, error: GatewayError, task: Task) -> bool:
        if not task.may_leave or isinstance(error, TaskInvalid | DeadlineExceeded):
            return False
        return self.settings.repeatable is not False or not may_have_run(error)

    # ── the edge ─────────────────────────────────────────────────────────────────────────────────

    async def _call_edge(self, task: Task) -> Result | GatewayError:
        """Call the edge with log-probabilities requested; call again without them if the backend rejects that."""
        key = (task.kind, task.name)
        with_logprobs = self._with_logprobs(task) if key not in self._without_logprobs else None
        try:
            if with_logprobs is None:
                return await self.sides.dispatch(self.sides.edge, as_whole_subtask(task))
            answer = await self.sides.dispatch(self.sides.edge, with_logprobs)
            if answer.status in CLIENT_ERROR_STATUSES:
                plain = await self.sides.dispatch(self.sides.edge, as_whole_subtask(task))
                if plain.status < 400:
                    self._without_logprobs.add(key)
                return plain
            return answer
        except GatewayError as exc:
            return exc

    def _with_logprobs(self, task: Task) -> Task | None:
        """Return the task with log-probabilities requested; None if they are requested already or are of no use."""
        if not self.settings.logprobs or self._validator is not None or not _lacks_logprobs(task):
            return None
        return as_whole_subtask(task, logprobs=True if task.kind == "chat" else 1)

    def _outcome(self, task: Task, response: Result | GatewayError) -> EdgeOutcome:
        if isinstance(response, GatewayError):
            return EdgeOutcome(error=response)
        if response.status >= 400 and response.status not in CLIENT_ERROR_STATUSES:
            return EdgeOutcome(error=BackendUnavailable(f"the edge returned status {response.status}"))
        try:
            confidence = self._confidence(task, response)
            return EdgeOutcome(_without_logprobs_of(response) if _lacks_logprobs(task) else response, confidence)
        except GatewayError as exc:
            return EdgeOutcome(error=exc)

    def _confidence(self, task: Task, answer: Result) -> float | None:
        if self._validator is None:
            return confidence_of(task, answer)
        try:
            return rate_answer(self._validator, answer, task)
        except Exception as exc:
            self.services.log.warning("hybrid.validator_raised", parent_id=task.id, error=type(exc).__name__)
            return None

    def _with_headers(self, answer: Result, who: str, confidence: float | None) -> Result:
        headers = {**answer.headers, "x-gateway-cascade": who}
        if confidence is not None:
            headers["x-gateway-confidence"] = f"{confidence:.4g}"
        return replace(answer, headers=headers)

    # ── for the policy ───────────────────────────────────────────────────────────────────────────

    def _learn(self, task: Task, *, escalates: bool) -> None:
        key = (task.kind, task.name)
        if len(self._escalated_share) >= MAX_CLASSES:
            self._escalated_share.clear()
        share = self._escalated_share.get(key, 0.5)
        self._escalated_share[key] = share + SHARE_GAIN * (escalates - share)

    def estimate(self, task: Task, view: View) -> float | None:
        """The time of the edge, and that of the cloud for the share of escalated requests."""
        known = self.sides.seconds(task, view)
        if not known:
            return None
        share = self._escalated_share.get((task.kind, task.name), 0.5) if self.sides.edge in known else 1.0
        return known.get(self.sides.edge, 0.0) + share * known.get(self.sides.cloud, 0.0)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """The threshold, and the share of requests that were escalated."""
        share = self._escalated_share.get((task.kind, task.name))
        return {"mode": "cascade", "threshold": self.settings.threshold, "escalated_share": share}


def _lacks_logprobs(task: Task) -> bool:
    return (
        task.kind in ("chat", "completion")
        and isinstance(task.json, dict)
        and task.json.get("logprobs") in (None, False, 0)
    )


def _without_logprobs_of(answer: Result) -> Result:
    """Remove log-probabilities that the client did not request."""
    value = answer.value()
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not any(isinstance(one, dict) and one.get("logprobs") for one in choices):
        return answer
    bare = [{**one, "logprobs": None} for one in choices]
    return replace(answer, json={**value, "choices": bare}, body=None)


def _has_succeeded(call: asyncio.Future[Result] | None) -> bool:
    """Whether the call has returned a status below 400."""
    if call is None or not call.done() or call.cancelled() or call.exception() is not None:
        return False
    return call.result().status < 400


def _cloud_error_response(call: asyncio.Future[Result], edge: GatewayError | None) -> Result:
    """Return the cloud's error response, or raise its failure; the edge's if the cloud never started."""
    if isinstance(error := call.exception(), GatewayError) and error.began:
        raise error
    if error is None:
        return call.result()
    raise edge or error


def _failure_reason(call: asyncio.Future[Result]) -> str:
    if not call.done():
        return "late"
    error = call.exception()
    if error is None:
        return f"status {call.result().status}"
    return error.code if isinstance(error, GatewayError) else type(error).__name__


async def _cancel_calls(*call: asyncio.Future[Any] | None) -> None:
    """Cancel superseded calls and wait for their end."""
    left = [each for each in call if each is not None]
    for each in left:
        each.cancel()
    if left:
        await asyncio.wait(left)
        for each in left:
            each.cancelled() or each.exception()
