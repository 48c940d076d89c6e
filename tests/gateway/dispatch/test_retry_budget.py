from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.dispatch.retry import BURST_TOKENS, TOKENS_PER_REQUEST, RetryBudget


@given(st.lists(st.sampled_from(["request", "failure"])))
def test_retries_never_exceed_the_burst_plus_a_fifth_of_the_requests(events: list[str]) -> None:
    budget = RetryBudget()
    requests = taken = 0
    for event in events:
        if event == "request":
            budget.on_request()
            requests += 1
        else:
            taken += budget.take()
        assert taken <= BURST_TOKENS + TOKENS_PER_REQUEST * requests + 1e-9


def test_empty_retry_budget_refills_with_new_requests() -> None:
    budget = RetryBudget()
    while budget.take():
        pass
    for _ in range(round(1 / TOKENS_PER_REQUEST) + 1):
        budget.on_request()
    assert [budget.take(), budget.take()] == [True, False]
