"""How sure a backend is of its answer, 0 to 1, by whatever it says of itself; None where it says nothing.

In this order: what the plugin gave with its Result (a decoder's probability); the mean log-probability of a language
model's tokens, as the probability of a token; a transcript's mean `avg_logprob`; a task's own `confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from gateway.plugin import Result, Task

Validator = Callable[..., Any]


def confidence_of(task: Task, answer: Result) -> float | None:
    """How sure the answer is of itself."""
    if answer.confidence is not None:
        return answer.confidence
    value = answer.value() if answer.body is None or "json" in answer.content_type else None
    if not isinstance(value, dict):
        return None
    if task.kind in ("chat", "completion"):
        return _probability(_logprobs(value))
    if task.kind == "transcription":
        return _probability(one.get("avg_logprob") for one in value.get("segments") or ())
    inner = value.get("result")
    return _ratio(inner.get("confidence") if isinstance(inner, dict) else None, value.get("confidence"))


def _logprobs(value: dict[str, Any]) -> Iterable[Any]:
    for choice in value.get("choices") or ():
        said = choice.get("logprobs") if isinstance(choice, dict) else None
        if isinstance(said, dict):
            yield from (token.get("logprob") for token in said.get("content") or ())  # chat
            yield from said.get("token_logprobs") or ()  # completions


def _probability(logprobs: Iterable[Any]) -> float | None:
    known = [float(each) for each in logprobs if isinstance(each, int | float) and each <= 0.0]
    return math.exp(sum(known) / len(known)) if known else None


def _ratio(*values: Any) -> float | None:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
            return float(value)
    return None


# ── an operator's own opinion ────────────────────────────────────────────────────────────────────


def judged(validator: Validator, answer: Result, task: Task) -> float:
    """What it says of an answer to a request: False and True are 0 and 1. Its own failure is no confidence."""
    asked = None if task.fields is not None else task.json
    verdict = validator(answer.value(), asked if asked is not None else dict(task.fields or {}))
    return min(max(float(verdict), 0.0), 1.0)
