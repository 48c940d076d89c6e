"""Placement policy: rules first, then cost; pure, with a reason for each decision."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import Candidate, Policy, Query, cost_s, decide

EDGE = Candidate("box", "edge", service_s=0.3, p95_s=0.5, samples=50)
CLOUD = Candidate("cloud", "cloud", upload_s=0.1, service_s=0.1, p95_s=0.2, samples=50)
QUERY = Query("task", "add")

NAMES = st.sampled_from(["a", "b", "c", "d"])
SECONDS = st.floats(0.0, 1e4)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=NAMES,
        site=st.sampled_from(["edge", "cloud", "hybrid"]),
        refused=st.none() | st.just("it is unhealthy"),
        wait_s=SECONDS,
        upload_s=SECONDS,
        service_s=SECONDS,
        p95_s=SECONDS,
        samples=st.integers(0, 100),
        usd=st.floats(0.0, 10.0),
        joule=st.floats(0.0, 1e3),
        others_s=SECONDS,
        utilisation=st.floats(0.0, 1.0),
        optimism=st.floats(0.01, 1.0),
    ),
    max_size=4,
    unique_by=lambda candidate: candidate.name,
)
QUERIES = st.builds(
    Query,
    kind=st.just("task"),
    name=st.just("add"),
    slack_s=st.floats(-10.0, 1e3) | st.just(math.inf),
    client_deadline=st.booleans(),
    may_leave=st.booleans(),
    pinned=st.none() | NAMES,
)
POLICIES = st.builds(
    Policy,
    usd=st.floats(0.0, 100.0),
    joule=st.floats(0.0, 10.0),
    lateness=st.floats(0.0, 10.0),
    hysteresis=st.floats(0.0, 0.5),
    price=st.floats(0.0, 2.0),
    routes=st.dictionaries(st.just("add"), NAMES),
)


@given(QUERIES, CANDIDATES, POLICIES, st.none() | NAMES)
def test_the_same_inputs_give_the_same_decision(
    query: Query, candidates: list[Candidate], policy: Policy, last: str | None
) -> None:
    assert decide(query, candidates, policy, last) == decide(query, list(candidates), policy, last)


@given(QUERIES, CANDIDATES, POLICIES, st.none() | NAMES)
def test_every_candidate_is_either_ordered_or_refused_with_a_reason(
    query: Query, candidates: list[Candidate], policy: Policy, last: str | None
) -> None:
    decision = decide(query, candidates, policy, last)
    names = {candidate.name for candidate in candidates}
    assert set(decision.order) | set(decision.refused) == names == set(decision.candidates)
    assert not set(decision.order) & set(decision.refused)
    assert len(decision.order) == len(set(decision.order))
    assert all(decision.refused.values())
    assert decision.why
    assert (decision.predicted_s is None) == (not decision.order)


@given(QUERIES, CANDIDATES, POLICIES, st.none() | NAMES)
def test_edge_only_requests_exclude_cloud_backends_and_pins_are_respected(
    query: Query, candidates: list[Candidate], policy: Policy, last: str | None
) -> None:
    order = decide(query, candidates, policy, last).order
    sites = {candidate.name: candidate.site for candidate in candidates}
    assert query.may_leave or all(sites[name] != "cloud" for name in order)
    assert query.pinned is None or set(order) <= {query.pinned}


def test_edge_only_task_stays_on_the_edge_when_the_cloud_is_faster() -> None:
    decision = decide(QUERY._replace(may_leave=False), [EDGE, CLOUD], Policy())
    assert decision.order == ("box",)
    assert decision.reason == "edge-only"
    assert "leave" in decision.refused["cloud"]


def test_fastest_backend_is_first_in_the_order() -> None:
    decision = decide(QUERY, [EDGE, CLOUD], Policy())
    assert (decision.order, decision.reason) == (("cloud", "box"), "fastest")
    assert decision.predicted_s == pytest.approx(0.2)
    assert decision.candidates["box"] == {"t_ms": 300.0, "j": 0.3}
    assert "200 ms" in decision.why


def test_money_energy_and_lateness_are_weighted_by_the_operators_policy() -> None:
    dear = CLOUD._replace(usd=0.01)
    assert decide(QUERY, [EDGE, dear], Policy(usd=20.0)).order[0] == "box"
    assert decide(QUERY, [EDGE, dear], Policy(usd=20.0)).reason == "cheapest"
    assert decide(QUERY, [EDGE, CLOUD._replace(joule=10.0)], Policy(joule=0.1)).order[0] == "box"
    erratic = CLOUD._replace(p95_s=5.0)
    assert decide(QUERY._replace(slack_s=1.0), [EDGE, erratic], Policy(lateness=1.0)).order[0] == "box"


def test_delay_to_other_requests_is_weighted_by_utilisation() -> None:
    idle = CLOUD._replace(others_s=1.0, utilisation=0.0)
    assert decide(QUERY, [EDGE, idle], Policy()).order[0] == "cloud"
    assert decide(QUERY, [EDGE, idle._replace(utilisation=1.0)], Policy()).order[0] == "box"


def test_last_backend_is_kept_while_the_other_is_only_slightly_faster() -> None:
    near = CLOUD._replace(upload_s=0.195)
    assert decide(QUERY, [EDGE, near], Policy(), last="box").reason == "kept"
    assert decide(QUERY, [EDGE, near], Policy(), last="box").order[0] == "box"
    assert decide(QUERY, [EDGE, CLOUD], Policy(), last="box").order[0] == "cloud"


def test_unmeasured_backend_is_tried_only_if_its_prior_is_close_enough() -> None:
    unknown = EDGE._replace(service_s=0.22, samples=0, optimism=0.8)
    assert decide(QUERY, [unknown, CLOUD], Policy()).reason == "optimistic"
    assert decide(QUERY, [unknown._replace(service_s=0.5), CLOUD], Policy()).order[0] == "cloud"


def test_unmeasured_backend_is_not_tried_when_the_deadline_is_near() -> None:
    unknown = EDGE._replace(service_s=0.22, samples=0, optimism=0.8)
    assert decide(QUERY._replace(slack_s=0.4), [unknown, CLOUD], Policy()).order[0] == "cloud"


def test_optimism_applies_to_service_time_and_not_to_queue_wait() -> None:
    crowded = EDGE._replace(wait_s=0.3, service_s=0.01, optimism=0.1)
    assert decide(QUERY, [crowded, CLOUD], Policy()).order[0] == "cloud"


def test_route_selects_the_configured_backend_and_a_pin_overrides_it() -> None:
    policy = Policy(routes={"add": "box"})
    assert decide(QUERY, [EDGE, CLOUD], policy).order == ("box",)
    assert decide(QUERY, [EDGE, CLOUD], policy).reason == "route"
    assert decide(QUERY._replace(pinned="cloud"), [EDGE, CLOUD], policy).order == ("cloud",)


def test_decision_lists_every_reason_when_no_backend_is_left() -> None:
    decision = decide(
        QUERY, [EDGE._replace(refused="it is unhealthy"), CLOUD._replace(refused="its link is down")], Policy()
    )
    assert (decision.order, decision.reason, decision.predicted_s) == ((), "none", None)
    assert "it is unhealthy" in decision.why
    assert "its link is down" in decision.why
    assert decide(QUERY, [], Policy()).why


@given(CANDIDATES, QUERIES, POLICIES)
def test_cost_is_at_least_the_time(candidates: list[Candidate], query: Query, policy: Policy) -> None:
    for candidate in candidates:
        assert cost_s(candidate, query, policy) >= candidate.t_s
