from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.dispatch.retry import BURST_TOKENS, TOKENS_PER_REQUEST, RetryBudget


@given(st.lists(st.sampled_from(["request", "failure"])))
def test_second_tries_are_never_more_than_a_fifth_of_the_requests_and_a_burst(events: list[str]) -> None:
    budget = RetryBudget()
    requests = taken = 0
    for event in events:
        if event == "request":
            budget.on_request()
            requests += 1
        else:
            taken += budget.take()
        assert taken <= BURST_TOKENS + TOKENS_PER_REQUEST * requests + 1e-9


def test_an_empty_budget_fills_again_with_the_requests_that_come() -> None:
    budget = RetryBudget()
    while budget.take():
        pass
    for _ in range(round(1 / TOKENS_PER_REQUEST) + 1):
        budget.on_request()
    assert [budget.take(), budget.take()] == [True, False]
