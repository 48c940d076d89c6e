"""The confidence of an answer, 0 to 1, from what the answer contains; None if it contains nothing usable.

The sources, in this order: the confidence of the Result (a decoder's probability); the mean log-probability of a
language model's tokens, as a probability; the mean `avg_logprob` of a transcript; a task's own `confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from gateway.plugin import Result, Task

Validator = Callable[..., Any]


def confidence_of(task: Task, answer: Result) -> float | None:
    """Return the confidence of the answer, or None."""
    if answer.confidence is not None:
        return answer.confidence
    value = answer.value() if answer.body is None or "json" in answer.content_type else None
    if not isinstance(value, dict):
        return None
    if task.kind in ("chat", "completion"):
        return _probability(_logprobs(value))
    if task.kind == "transcription":
        return _probability(segment.get("avg_logprob") for segment in value.get("segments") or ())
    inner = value.get("result")
    return _ratio(inner.get("confidence") if isinstance(inner, dict) else None, value.get("confidence"))


def _logprobs(value: dict[str, Any]) -> Iterable[Any]:
    for choice in value.get("choices") or ():
        logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
        if isinstance(logprobs, dict):
            yield from (token.get("logprob") for token in logprobs.get("content") or ())  # chat
            yield from logprobs.get("token_logprobs") or ()  # completions


def _probability(logprobs: Iterable[Any]) -> float | None:
    known = [float(each) for each in logprobs if isinstance(each, int | float) and each <= 0.0]
    return math.exp(sum(known) / len(known)) if known else None


def _ratio(*values: Any) -> float | None:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
            return float(value)
    return None


# ── validators ────────────────────────────────────────────────────────────────────


def rate_answer(validator: Validator, answer: Result, task: Task) -> float:
    """Return the validator's rating of an answer, from 0 to 1; False and True are 0 and 1."""
    request = None if task.fields is not None else task.json
    rating = validator(answer.value(), request if request is not None else dict(task.fields or {}))
    return min(max(float(rating), 0.0), 1.0)
