"""Cascade: the edge first, the cloud only where the edge is not sure; where time is short, both at once.

The edge's answer is kept. It is given at once where it is sure enough, or where nothing may leave the site; and in the
end where the cloud fails or takes too long. `x-gateway-cascade` says which it was: `edge`, `cloud` or `edge-kept`, and
`x-gateway-confidence` how sure the edge was.
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
from gateway_hybrid.confidence import Validator, confidence_of, judged
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import PASSED_ON, EdgeCloudPair, may_have_run, whole

TIGHT = 1.5  # predicted times of the cloud that must be left when it is asked
PATIENCE, MIN_PATIENCE_S = 4.0, 1.0  # of its p95, and at least so long
RESERVE_S = 0.05  # before the deadline, for the kept answer to go out
SHARE_GAIN = 0.05
REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the edge came to: an answer and how sure it is, or how it failed."""

    answer: Result | None = None
    confidence: float | None = None
    error: GatewayError | None = None

    def is_sure(self, threshold: float) -> bool:
        """Whether that will do."""
        if self.answer is not None and self.answer.status in PASSED_ON:
            return True
        return self.confidence is not None and self.confidence >= threshold


class Cascade:
    """The mode `cascade`."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self._validator: Validator | None = None
        self._escalated: dict[tuple[str, str], float] = {}
        self._without_logprobs: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Import the validator. Raises BackendUnavailable."""
        if self.settings.validator is not None:
            self._validator = load_function(self.settings.validator, "VALIDATOR")

    async def run(self, task: Task) -> Result:
        """The edge's answer where it is sure, else the cloud's, else the edge's all the same."""
        task.terms.leave()
        edge = asyncio.ensure_future(self._ask_edge(task))
        cloud: asyncio.Future[Result] | None = None
        try:
            if task.may_leave and await self._is_late(edge, task):
                cloud = asyncio.ensure_future(self.sides.ask(self.sides.cloud, whole(task)))
                await asyncio.wait({edge, cloud}, return_when=asyncio.FIRST_COMPLETED)
                if _is_good(cloud):
                    return self._marked(cloud.result(), "cloud", None)
            verdict = self._verdict(task, await edge)
            return await self._decided(task, verdict, cloud)
        finally:
            await _stop(edge, cloud)
            task.terms.enter("aggregate")

    async def _is_late(self, edge: asyncio.Future[Any], task: Task) -> bool:
        """Wait for the edge, as long as the cloud could still be asked after it; whether it took longer than that."""
        view = self.services.view
        cloud_s = view.seconds(self.sides.cloud, task)
        if cloud_s is None:
            return False
        loop = asyncio.get_running_loop()
        latest = task.deadline - RESERVE_S - TIGHT * cloud_s
        edge_s = view.seconds(self.sides.edge, task) or 0.0
        if loop.time() + edge_s < latest:
            await asyncio.wait({edge}, timeout=latest - loop.time())
        return not edge.done()

    async def _decided(self, task: Task, verdict: Verdict, cloud: asyncio.Future[Result] | None) -> Result:
        sure = verdict.is_sure(self.settings.threshold)
        self._learn(task, escalates=not sure)
        if verdict.answer is not None and (sure or not task.may_leave):
            return self._marked(verdict.answer, "edge", verdict.confidence)
        if verdict.error is not None and not self._may_ask_cloud(verdict.error, task):
            raise verdict.error
        self.services.log.info(
            "hybrid.escalated", parent_id=task.id, confidence=verdict.confidence, threshold=self.settings.threshold
        )
        return await self._escalated_to(cloud, task, verdict)

    async def _escalated_to(self, cloud: asyncio.Future[Result] | None, task: Task, verdict: Verdict) -> Result:
        asked = cloud or asyncio.ensure_future(self.sides.ask(self.sides.cloud, whole(task)))
        try:
            await asyncio.wait({asked}, timeout=None if verdict.answer is None else self._patience_s(task))
            if _is_good(asked):
                return self._marked(asked.result(), "cloud", verdict.confidence)
            if verdict.answer is None:
                return _raised(asked, verdict.error)
            self.services.log.info("hybrid.kept_edge", parent_id=task.id, error=_why(asked))
            return self._marked(verdict.answer, "edge-kept", verdict.confidence)
        finally:
            await _stop(asked)

    def _patience_s(self, task: Task) -> float:
        """How long the cloud may take while the edge's answer waits."""
        left_s = task.deadline - RESERVE_S - asyncio.get_running_loop().time()
        if self.settings.wait_s is not None:
            return max(0.0, min(left_s, self.settings.wait_s))
        p95_s = self.services.view.p95_s(self.sides.cloud, task)
        max_s = math.inf if p95_s is None else max(PATIENCE * p95_s, MIN_PATIENCE_S)
        return max(0.0, min(left_s, max_s))

    def _may_ask_cloud(self, error: GatewayError, task: Task) -> bool:
        if not task.may_leave or isinstance(error, TaskInvalid | DeadlineExceeded):
            return False
        return self.settings.repeatable is not False or not may_have_run(error)

    # ── the edge ─────────────────────────────────────────────────────────────────────────────────

    async def _ask_edge(self, task: Task) -> Result | GatewayError:
        """Its answer, with what tells how sure it is; asked for again without, where it does not know that."""
        key = (task.kind, task.name)
        with_logprobs = self._with_logprobs(task) if key not in self._without_logprobs else None
        try:
            if with_logprobs is None:
                return await self.sides.ask(self.sides.edge, whole(task))
            answer = await self.sides.ask(self.sides.edge, with_logprobs)
            if answer.status in PASSED_ON:
                plain = await self.sides.ask(self.sides.edge, whole(task))
                if plain.status < 400:
                    self._without_logprobs.add(key)
                return plain
            return answer
        except GatewayError as exc:
            return exc

    def _with_logprobs(self, task: Task) -> Task | None:
        """The task asking for log-probabilities; None where the client does already, or nobody would know any."""
        if not self.settings.logprobs or self._validator is not None or not _lacks_logprobs(task):
            return None
        return whole(task, logprobs=True if task.kind == "chat" else 1)

    def _verdict(self, task: Task, came: Result | GatewayError) -> Verdict:
        if isinstance(came, GatewayError):
            return Verdict(error=came)
        if came.status >= 400 and came.status not in PASSED_ON:
            return Verdict(error=BackendUnavailable(f"the edge refused it with status {came.status}"))
        try:
            confidence = self._confidence(task, came)
            return Verdict(_without(came) if _lacks_logprobs(task) else came, confidence)
        except GatewayError as exc:
            return Verdict(error=exc)

    def _confidence(self, task: Task, answer: Result) -> float | None:
        if self._validator is None:
            return confidence_of(task, answer)
        try:
            return judged(self._validator, answer, task)
        except Exception as exc:
            self.services.log.warning("hybrid.validator_raised", parent_id=task.id, error=type(exc).__name__)
            return None

    def _marked(self, answer: Result, who: str, confidence: float | None) -> Result:
        headers = {**answer.headers, "x-gateway-cascade": who}
        if confidence is not None:
            headers["x-gateway-confidence"] = f"{confidence:.4g}"
        return replace(answer, headers=headers)

    # ── for the policy ───────────────────────────────────────────────────────────────────────────

    def _learn(self, task: Task, *, escalates: bool) -> None:
        key = (task.kind, task.name)
        if len(self._escalated) >= REMEMBERED:
            self._escalated.clear()
        share = self._escalated.get(key, 0.5)
        self._escalated[key] = share + SHARE_GAIN * (escalates - share)

    def estimate(self, task: Task, view: View) -> float | None:
        """The edge's time, and the cloud's for the share that goes on."""
        known = self.sides.seconds(task, view)
        if not known:
            return None
        share = self._escalated.get((task.kind, task.name), 0.5) if self.sides.edge in known else 1.0
        return known.get(self.sides.edge, 0.0) + share * known.get(self.sides.cloud, 0.0)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """From which confidence on the edge's answer is taken, and how often it was not."""
        share = self._escalated.get((task.kind, task.name))
        return {"mode": "cascade", "threshold": self.settings.threshold, "escalated_share": share}


def _lacks_logprobs(task: Task) -> bool:
    return (
        task.kind in ("chat", "completion")
        and isinstance(task.json, dict)
        and task.json.get("logprobs") in (None, False, 0)
    )


def _without(answer: Result) -> Result:
    """The answer without the log-probabilities the client did not ask for."""
    value = answer.value()
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not any(isinstance(one, dict) and one.get("logprobs") for one in choices):
        return answer
    bare = [{**one, "logprobs": None} for one in choices]
    return replace(answer, json={**value, "choices": bare}, body=None)


def _is_good(asked: asyncio.Future[Result] | None) -> bool:
    """Whether it is back with an answer that stands."""
    if asked is None or not asked.done() or asked.cancelled() or asked.exception() is not None:
        return False
    return asked.result().status < 400


def _raised(asked: asyncio.Future[Result], edge: GatewayError | None) -> Result:
    """The cloud's refusal; raises its failure, or the edge's where the cloud did not get to fail."""
    if isinstance(error := asked.exception(), GatewayError) and error.began:
        raise error
    if error is None:
        return asked.result()
    raise edge or error


def _why(asked: asyncio.Future[Result]) -> str:
    if not asked.done():
        return "late"
    error = asked.exception()
    if error is None:
        return f"status {asked.result().status}"
    return error.code if isinstance(error, GatewayError) else type(error).__name__


async def _stop(*asked: asyncio.Future[Any] | None) -> None:
    """End what nobody waits for any more."""
    left = [each for each in asked if each is not None]
    for each in left:
        each.cancel()
    if left:
        await asyncio.wait(left)
        for each in left:
            each.cancelled() or each.exception()
