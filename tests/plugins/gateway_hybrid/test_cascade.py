"""Cascade: escalation to the cloud, cloud failures, and the edge's confidence."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from gateway.plugin import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    Kind,
    Result,
    Task,
    TaskInvalid,
    TaskRefused,
    Upload,
)
from gateway_hybrid import Hybrid, HybridSettings
from support.hybrid_services import HERE, THERE, HybridServices, Predictions, Side, answers, never, raises, takes
from support.virtual_time import virtual_time

SURE, UNSURE = Result(json={"text": "by the edge"}, confidence=0.9), Result(json={"text": "perhaps"}, confidence=0.2)
BETTER = Result(json={"text": "by the cloud"})
DOWN = BackendUnavailable("no route", began=False)


def is_long(answer: Any, asked: Any) -> bool:
    return len(answer["text"]) > 8


def raises_always(answer: Any, asked: Any) -> bool:
    raise RuntimeError("no opinion")


NOT_A_FUNCTION = 7


def ask(
    edge: Side,
    cloud: Side,
    *,
    deadline: float = 300.0,
    view: Predictions | None = None,
    task: Task | None = None,
    may_leave: bool = True,
    **settings: Any,
) -> tuple[float, HybridServices, Result]:
    """Return the seconds taken, the services with their dispatches, and the answer."""
    services = HybridServices(edge, cloud, view or Predictions(here=0.1, there=0.5))
    given = {"mode": "cascade", "edge": HERE, "cloud": THERE, "models": ["m"], **settings}
    hybrid = Hybrid(HybridSettings.model_validate(given), services)
    asked = task or Task(kind="transcription", name="m", deadline=deadline, fields={"model": "m"}, files={})
    asked = asked.replace(deadline=deadline, may_leave=may_leave)

    async def timed() -> tuple[float, Result]:
        async with hybrid:
            result = await hybrid.run(asked)
        return asyncio.get_running_loop().time(), result

    with virtual_time() as runner:
        took_s, result = runner.run(timed())
    return took_s, services, result


def mark(result: Result) -> str:
    return result.headers["x-gateway-cascade"]


def test_confident_edge_answer_is_returned_without_the_cloud() -> None:
    _, services, result = ask(answers(SURE), raises(AssertionError("dispatched to the cloud")))
    assert (result.json, mark(result)) == (SURE.json, "edge")
    assert result.headers["x-gateway-confidence"] == "0.9"
    assert services.dispatched_to(THERE) == []


def test_unsure_edge_answer_escalates_to_the_cloud() -> None:
    took_s, services, result = ask(takes(0.1, answers(UNSURE)), takes(0.5, answers(BETTER)))
    assert (result.json, mark(result)) == (BETTER.json, "cloud")
    assert result.headers["x-gateway-confidence"] == "0.2"
    assert took_s == pytest.approx(0.6)
    assert services.log.events == ["hybrid.escalated"]


def test_threshold_setting_decides_the_escalation() -> None:
    assert mark(ask(answers(UNSURE), answers(BETTER), threshold=0.2)[2]) == "edge"
    assert mark(ask(answers(SURE), answers(BETTER), threshold=0.95)[2]) == "cloud"


def test_answer_without_confidence_escalates() -> None:
    assert mark(ask(answers(Result(json={"text": ""})), answers(BETTER))[2]) == "cloud"


@pytest.mark.parametrize(
    "cloud",
    [raises(DOWN), raises(TaskRefused("busy")), raises(BackendFailed("broken")), answers(Result(status=404, json={}))],
)
def test_failed_cloud_leaves_the_edge_answer(cloud: Side) -> None:
    _, services, result = ask(answers(UNSURE), cloud)
    assert (result.json, mark(result)) == (UNSURE.json, "edge-kept")
    assert services.log.events == ["hybrid.escalated", "hybrid.kept_edge"]


def test_wait_for_the_cloud_ends_after_four_times_its_p95() -> None:
    took_s, services, result = ask(takes(0.1, answers(UNSURE)), never)
    assert (mark(result), services.cancelled) == ("edge-kept", 1)
    assert took_s == pytest.approx(0.1 + 4 * 2 * 0.5)


def test_wait_for_the_cloud_is_configurable() -> None:
    assert ask(takes(0.1, answers(UNSURE)), never, wait_s=0.7)[0] == pytest.approx(0.8)


def test_edge_answer_is_returned_before_the_deadline() -> None:
    took_s, _, result = ask(takes(0.1, answers(UNSURE)), never, deadline=2.0)
    assert mark(result) == "edge-kept"
    assert took_s < 2.0


def test_edge_only_task_never_escalates() -> None:
    _, services, result = ask(answers(UNSURE), answers(BETTER), may_leave=False)
    assert (result.json, mark(result)) == (UNSURE.json, "edge")
    assert services.dispatched_to(THERE) == []
    with pytest.raises(BackendUnavailable):
        ask(raises(DOWN), answers(BETTER), may_leave=False)


def test_failed_edge_falls_back_to_the_cloud() -> None:
    assert mark(ask(raises(BackendFailed("broken")), answers(BETTER))[2]) == "cloud"


def test_when_both_fail_the_cloud_error_wins_if_the_cloud_ran() -> None:
    with pytest.raises(BackendFailed, match="cloud"):
        ask(raises(BackendFailed("edge")), raises(BackendFailed("cloud")))
    with pytest.raises(BackendFailed, match="edge"):
        ask(raises(BackendFailed("edge")), raises(DOWN))


@pytest.mark.parametrize("error", [TaskInvalid("no file"), DeadlineExceeded("late")])
def test_task_invalid_or_missed_deadline_does_not_escalate(error: Exception) -> None:
    with pytest.raises(type(error)):
        ask(raises(error), raises(AssertionError("dispatched to the cloud")))


def test_client_error_from_the_edge_is_returned_without_the_cloud() -> None:
    refusal = Result(status=422, json={"error": "what is that"})
    _, services, result = ask(answers(refusal), raises(AssertionError("dispatched to the cloud")))
    assert (result.status, services.dispatched_to(THERE)) == (422, [])


def test_non_repeatable_task_is_not_escalated_after_it_may_have_run() -> None:
    with pytest.raises(BackendFailed):
        ask(raises(BackendFailed("broken")), answers(BETTER), repeatable=False)


# ── tight deadlines ──────────────────────────────────────────────────────────────────────────────

TIGHT = Predictions(here=0.4, there=0.5)


def test_tight_deadline_starts_both_sides_at_once() -> None:
    took_s, _, result = ask(takes(0.4, answers(UNSURE)), takes(0.5, answers(BETTER)), deadline=0.9, view=TIGHT)
    assert (mark(result), took_s) == ("cloud", pytest.approx(0.5))


def test_tight_deadline_confident_edge_wins_and_cancels_the_cloud() -> None:
    took_s, services, result = ask(takes(0.4, answers(SURE)), takes(0.5, answers(BETTER)), deadline=0.9, view=TIGHT)
    assert (mark(result), took_s, services.cancelled) == ("edge", pytest.approx(0.4), 1)


def test_tight_deadline_fast_cloud_wins_and_cancels_the_edge() -> None:
    took_s, services, result = ask(never, takes(0.2, answers(BETTER)), deadline=0.9, view=TIGHT)
    assert (mark(result), took_s, services.cancelled) == ("cloud", pytest.approx(0.2), 1)


def test_late_edge_starts_the_cloud_in_time_for_the_deadline() -> None:
    took_s, _, result = ask(never, takes(0.5, answers(BETTER)), deadline=5.0, view=TIGHT)
    assert mark(result) == "cloud"
    assert took_s < 5.0


# ── confidence ───────────────────────────────────────────────────────────────────────────────────


def chat(kind: Kind = "chat", **body: Any) -> Task:
    body = {"model": "m", **({"messages": []} if kind == "chat" else {"prompt": ""}), **body}
    stream = bool(body.get("stream"))
    return Task(kind=kind, name="m", deadline=300.0, body=msgspec.json.encode(body), stream=stream)


def completed(*logprobs: float) -> Result:
    content = [{"token": "x", "logprob": each} for each in logprobs]
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "logprobs": {"content": content}}
    return Result(body=msgspec.json.encode({"id": "c", "choices": [choice]}))


def test_chat_confidence_is_computed_from_token_log_probabilities() -> None:
    _, services, result = ask(answers(completed(-0.1, -0.3)), answers(BETTER), task=chat())
    assert mark(result) == "edge"
    assert float(result.headers["x-gateway-confidence"]) == pytest.approx(math.exp(-0.2), abs=1e-3)
    assert services.dispatched[0].json["logprobs"] is True
    assert mark(ask(answers(completed(-1.0, -2.0)), answers(BETTER), task=chat())[2]) == "cloud"


def test_unrequested_log_probabilities_are_removed() -> None:
    result = ask(answers(completed(-0.1)), answers(BETTER), task=chat())[2]
    assert result.value()["choices"][0]["logprobs"] is None


def test_requested_log_probabilities_are_kept() -> None:
    result = ask(answers(completed(-0.1)), answers(BETTER), task=chat(logprobs=True, top_logprobs=2))[2]
    assert result.value()["choices"][0]["logprobs"]["content"]


def test_completion_confidence_is_computed_from_token_log_probabilities() -> None:
    choice = {"index": 0, "text": "x", "logprobs": {"token_logprobs": [None, -0.05], "tokens": ["a", "b"]}}
    edge = answers(Result(json={"choices": [choice]}))
    assert mark(ask(edge, answers(BETTER), task=chat("completion"))[2]) == "edge"


def test_edge_without_log_probabilities_is_retried_without_them() -> None:
    async def edge(task: Task) -> Result:
        if "logprobs" in task.json:
            return Result(status=400, json={"error": "logprobs: unknown field"})
        return Result(json={"choices": [{"index": 0, "message": {"content": "hello"}}]})

    _, services, result = ask(edge, answers(BETTER), task=chat())
    assert mark(result) == "cloud"
    assert len(services.dispatched_to(HERE)) == 2


def test_stream_request_is_dispatched_as_a_whole_request() -> None:
    task = chat(stream=True, stream_options={"include_usage": True})
    _, services, _ = ask(answers(completed(-0.1)), answers(BETTER), task=task)
    assert all(each.stream is False and "stream" not in each.json for each in services.dispatched)


def test_stream_field_of_a_form_is_removed() -> None:
    fields = {"model": "m", "stream": "true"}
    files = {"file": Upload(b"RIFF")}
    task = Task(kind="transcription", name="m", deadline=300.0, fields=fields, files=files, stream=True)
    _, services, _ = ask(answers(UNSURE), answers(BETTER), task=task)
    assert [dict(each.fields or {}) for each in services.dispatched] == [{"model": "m"}] * 2


@pytest.mark.parametrize("answer", [{"result": 1, "confidence": 0.7}, {"result": {"label": "cat", "confidence": 0.7}}])
def test_task_answer_may_contain_its_confidence(answer: Any) -> None:
    task = Task(kind="task", name="m", deadline=300.0, body=b"{}")
    result = ask(answers(Result(json=answer)), answers(BETTER), task=task, tasks=["m"])[2]
    assert result.headers["x-gateway-confidence"] == "0.7"


@pytest.mark.parametrize(
    "answer", [{"result": 1, "confidence": 7}, {"result": 1, "confidence": True}, [1], "0.9", None]
)
def test_invalid_confidence_is_ignored(answer: Any) -> None:
    task = Task(kind="task", name="m", deadline=300.0, body=b"{}")
    assert mark(ask(answers(Result(json=answer)), answers(BETTER), task=task, tasks=["m"])[2]) == "cloud"


def test_transcript_confidence_is_computed_from_segment_log_probabilities() -> None:
    edge = answers(Result(json={"text": "hi", "segments": [{"avg_logprob": -0.1}, {"avg_logprob": -0.2}]}))
    assert mark(ask(edge, answers(BETTER))[2]) == "edge"


def test_validator_decides_the_escalation() -> None:
    validator = f"{__name__}:is_long"
    assert mark(ask(answers(UNSURE), answers(BETTER), validator=validator)[2]) == "cloud"
    assert mark(ask(answers(SURE), answers(BETTER), validator=validator)[2]) == "edge"


def test_validator_that_raises_escalates_and_is_logged() -> None:
    _, services, result = ask(answers(SURE), answers(BETTER), validator=f"{__name__}:raises_always")
    assert mark(result) == "cloud"
    assert services.log.keys[0]["error"] == "RuntimeError"


@pytest.mark.parametrize("target", ["no.such.module:f", f"{__name__}:no_such", f"{__name__}:NOT_A_FUNCTION"])
def test_missing_validator_prevents_opening(target: str) -> None:
    with pytest.raises(BackendUnavailable, match="VALIDATOR"):
        ask(answers(SURE), answers(BETTER), validator=target)


def test_validator_setting_must_be_module_and_function() -> None:
    with pytest.raises(ValidationError, match=r"package\.module:function"):
        ask(answers(SURE), answers(BETTER), validator="f")


# ── estimates ────────────────────────────────────────────────────────────────────────────────────


def test_estimate_is_edge_time_plus_escalation_share_of_cloud_time() -> None:
    view = Predictions(here=1.0, there=4.0)
    given = {"mode": "cascade", "edge": HERE, "cloud": THERE, "models": ["m"]}
    services = HybridServices(answers(SURE), answers(BETTER), view)
    hybrid = Hybrid(HybridSettings.model_validate(given), services)
    task = Task(kind="transcription", name="m", deadline=300.0, fields={})
    assert hybrid.estimate(task, view) == pytest.approx(1.0 + 0.5 * 4.0)

    async def often() -> None:
        for _ in range(200):
            await hybrid.run(task)

    with virtual_time() as runner:
        runner.run(often())
    assert hybrid.estimate(task, view) == pytest.approx(1.0, abs=0.01)
    planned = hybrid.plan(task, view)
    assert planned is not None
    assert planned["escalated_share"] == pytest.approx(0.0, abs=0.01)
