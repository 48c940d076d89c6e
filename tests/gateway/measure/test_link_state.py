"""Links: state transitions, round-trip times, transfer rates and probe timing."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.measure.link_state import TRANSITIONS, Event, Link, LinkChange, Rate, State
from gateway.plugin import LinkSample

ANSWER = LinkSample(rtt_s=0.05)
MISS = LinkSample(failed="timed out")


def test_transition_table_covers_every_pair_of_state_and_event() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    for row in TRANSITIONS.values():
        assert set(row) == set(get_args(Event))
        assert set(row.values()) <= set(get_args(State))


@pytest.mark.parametrize("state", get_args(State))
def test_response_means_up_and_two_misses_mean_down_from_every_state(state: State) -> None:
    link = Link(0.0)
    link.state = state
    link.observe(MISS, 1.0)
    link.observe(MISS, 2.0)
    assert link.state == "down"
    link.observe(ANSWER, 3.0)
    assert link.state == "up"


def test_link_degrades_on_one_miss_and_simultaneous_misses_count_once() -> None:
    link = Link(0.0)
    link.observe(ANSWER, 0.0)
    for step in range(100):
        link.observe(MISS, 1.0 + step * 0.002)
    assert link.state == "degraded"


def test_link_is_down_when_the_carrier_is_lost_and_unknown_when_it_returns() -> None:
    changes: list[LinkChange] = []
    link = Link(0.0, changes.append)
    link.observe(ANSWER, 0.0)
    link.on_carrier_lost()
    link.on_carrier_back()
    assert [change.after for change in changes] == ["up", "down", "unknown"]
    assert link.probe_due_s(0.0, 1.0) <= 0.0
    assert link.view(0.0).state is None


def test_link_degrades_when_round_trips_far_exceed_the_minimum() -> None:
    link = Link(0.0)
    for at in range(5):
        link.observe(ANSWER, float(at))
    for at in range(5, 25):
        link.observe(LinkSample(rtt_s=1.0), float(at))
    assert link.state == "degraded"


def test_round_trip_time_is_smoothed_as_in_rfc_6298() -> None:
    link = Link(0.0)
    link.observe(LinkSample(rtt_s=0.1), 0.0)
    link.observe(LinkSample(rtt_s=0.2), 1.0)
    view = link.view(2.0)
    assert view.rtt.value == pytest.approx(0.1 + 0.1 / 8)
    assert view.rtt_min.value == pytest.approx(0.1)
    assert (view.rtt.samples, view.rtt.age_s) == (2, 1.0)


def test_minimum_round_trip_expires_after_two_windows() -> None:
    link = Link(0.0)
    link.observe(LinkSample(rtt_s=0.01), 0.0)
    for at in range(1, 200):
        link.observe(LinkSample(rtt_s=0.1), float(at))
    assert link.view(200.0).rtt_min.value == pytest.approx(0.1)


def test_all_measurements_are_none_before_the_first_sample() -> None:
    view = Link(0.0).view(5.0)
    for measured in (view.rtt, view.rtt_min, view.tcp_rtt, view.uplink_bytes_per_s, view.downlink_bytes_per_s):
        assert (measured.value, measured.age_s, measured.samples) == (None, None, 0)
    assert view.state is None


def test_small_bodies_do_not_update_the_rate() -> None:
    link = Link(0.0)
    link.observe(LinkSample(upload_bytes=10_000, upload_s=0.00001, download_bytes=65_535, download_s=0.1), 0.0)
    assert link.view(0.0).uplink_bytes_per_s.samples == 0
    assert link.view(0.0).downlink_bytes_per_s.samples == 0


def test_low_rate_estimate_recovers_while_idle() -> None:
    rate = Rate()
    for at in range(20):
        rate.learn(1e6, 1.0, float(at))
    for at in range(20, 24):
        rate.learn(1e5, 10.0, float(at))
    just_now, later = rate.bytes_per_s(24.0), rate.bytes_per_s(124.0)
    assert just_now is not None
    assert later is not None
    assert just_now < 1e5
    assert later > 3e5


def test_first_sample_after_a_network_change_replaces_the_rate() -> None:
    link = Link(0.0)
    for at in range(20):
        link.observe(LinkSample(upload_bytes=1_000_000, upload_s=0.3), float(at))
    link.on_carrier_lost()
    link.on_carrier_back()
    link.observe(LinkSample(upload_bytes=1_000_000, upload_s=8.0), 21.0)
    assert link.view(21.0).uplink_bytes_per_s.value == pytest.approx(125_000.0, rel=0.01)


def test_probe_interval_is_constant_under_demand_and_grows_while_idle() -> None:
    link = Link(0.0)
    link.observe(ANSWER, 100.0)
    link.on_demand(100.0)
    assert link.probe_due_s(100.0, 1.0) == pytest.approx(1.0)
    spacings = [link.probe_due_s(100.0 + idle, 1.0) + idle for idle in (1, 10, 60, 600, 6000)]
    assert all(a <= b for a, b in pairwise(spacings))
    assert spacings[-1] == pytest.approx(60.0)


def test_traffic_postpones_probes() -> None:
    link = Link(0.0)
    for at in range(10):
        link.on_demand(at * 0.5)
        link.observe(ANSWER, at * 0.5)
        assert link.probe_due_s(at * 0.5, 1.0) > 0.9


def test_missed_response_triggers_an_immediate_probe() -> None:
    link = Link(0.0)
    link.observe(ANSWER, 0.0)
    link.on_probe_sent(50.0)
    link.observe(MISS, 50.5)
    assert link.probe_due_s(50.5, 1.0) <= 0.0


def test_link_is_down_within_two_and_a_half_seconds_of_losing_probes() -> None:
    link = Link(0.0)
    for at in range(8):
        link.observe(ANSWER, float(at))
        link.on_demand(float(at))
    now = 7.0
    while link.state != "down":
        now += max(link.probe_due_s(now, 1.0), 0.0)
        link.on_probe_sent(now)
        now += link.probe_timeout_s(now)
        link.observe(MISS, now)
    assert now - 7.0 <= 2.5


def test_probe_timeout_doubles_from_the_second_miss_and_resets_on_the_first_answer() -> None:
    link = Link(0.0)
    link.observe(ANSWER, 0.0)
    timeouts_s = []
    for at in range(1, 9):
        timeouts_s.append(link.probe_timeout_s(float(at)))
        link.observe(MISS, float(at))
    assert timeouts_s == [0.5, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0]
    link.observe(ANSWER, 10.0)
    assert link.probe_timeout_s(10.0) == 0.5


@pytest.mark.parametrize(("rtt_s", "warm_s", "cold_s"), [(0.4, 1.2, 2.4), (3.0, 9.0, 18.0)])
def test_probe_timeout_leaves_time_for_the_last_round_trip_and_a_cold_connection(
    rtt_s: float, warm_s: float, cold_s: float
) -> None:
    link = Link(0.0)
    link.observe(LinkSample(rtt_s=0.01), 0.0)
    link.observe(LinkSample(rtt_s=rtt_s), 1.0)
    assert link.probe_timeout_s(1.0) >= warm_s
    assert link.probe_timeout_s(100.0) >= cold_s
    link.observe(MISS, 101.0)
    assert link.probe_timeout_s(101.0) >= cold_s


def test_probe_timeout_is_no_miss_if_a_request_was_answered_meanwhile() -> None:
    link = Link(0.0)
    link.on_probe_sent(1.0)
    link.observe(ANSWER, 2.0)
    assert not link.on_probe_timeout(1.0, 2.0, 3.0)
    assert (link.misses, link.state) == (0, "up")


def test_state_names_the_cause_that_holds_the_link_down_now() -> None:
    link = Link(0.0)
    for at, why in enumerate(["refused", "reset"]):
        link.observe(LinkSample(failed=why), float(at))
    assert (link.state, link.why) == ("down", "reset")
    link.on_probe_timeout(2.0, 0.5, 2.5)
    assert (link.state, link.why) == ("down", "probe timed out after 0.5 s")
    link.on_carrier_lost()
    assert link.why == "no carrier"
    link.observe(ANSWER, 4.0)
    assert (link.state, link.why) == ("up", "answers")


@pytest.mark.parametrize("event", ["misses", "carrier lost"])
def test_link_that_is_down_is_probed_at_a_bounded_pace_with_and_without_traffic(event: str) -> None:
    link = Link(0.0)
    link.observe(ANSWER, 0.0)
    link.on_demand(0.0)
    if event == "carrier lost":
        link.on_carrier_lost()
    now, sent = 0.0, []
    while now < 3600.0:
        now += max(link.probe_due_s(now, 1.0), 0.01)
        link.on_probe_sent(now)
        sent.append(now)
        link.observe(MISS, now + 0.2)
    gaps_s = [(at, after - at) for at, after in pairwise(sent)]
    assert all(gap_s <= 3.3 for at, gap_s in gaps_s if at < 590.0)
    assert all(gap_s <= 60.3 for _, gap_s in gaps_s)
    assert len(sent) < 300


@given(
    st.lists(
        st.builds(
            LinkSample,
            rtt_s=st.none() | st.floats(),
            tcp_rtt_s=st.none() | st.floats(),
            upload_bytes=st.integers(-10, 10**12),
            upload_s=st.none() | st.floats(),
            download_bytes=st.integers(-10, 10**12),
            download_s=st.none() | st.floats(),
            failed=st.none() | st.just("reset"),
        ),
        max_size=30,
    ),
    st.lists(st.floats(-1e6, 1e6), min_size=30, max_size=30),
)
def test_link_values_stay_finite_for_any_samples(samples: list[LinkSample], instants: list[float]) -> None:
    link = Link(0.0)
    for sample, now in zip(samples, instants, strict=False):
        link.observe(sample, now)
        view = link.view(now)
        for measured in (view.rtt, view.rtt_min, view.tcp_rtt, view.uplink_bytes_per_s, view.downlink_bytes_per_s):
            assert measured.value is None or 0.0 < measured.value < math.inf
        assert math.isfinite(link.probe_timeout_s(now))
        assert link.probe_due_s(now, 1.0) <= 60.0 or instants != sorted(instants)
