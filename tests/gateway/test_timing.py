"""The time account, for any history and for the worked examples of docs/timing.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import timing
from gateway.timing import TERMS, Account, Watch, balance, rates
from support.clock import Clock


def assert_closes(account: Account) -> None:
    terms = account.terms_us.values()
    assert account.total_us == sum(terms) - account.overlap_us + account.other_us
    assert min(*terms, account.overlap_us, account.other_us, account.total_us) >= 0


@given(
    st.integers(0, 2_000_000).flatmap(
        lambda total: st.tuples(
            st.just(total),
            st.lists(st.tuples(st.sampled_from(TERMS), st.integers(0, total), st.integers(0, total)), max_size=40),
        )
    )
)
def test_account_balances_for_any_intervals(drawn: tuple[int, list[tuple[str, int, int]]]) -> None:
    total, spans = drawn
    intervals = [(term, min(a, b), max(a, b)) for term, a, b in spans if a != b]
    account = balance(intervals, total)
    assert_closes(account)
    for term in TERMS:
        covered = {us for name, a, b in intervals if name == term for us in (a, b - 1)}
        assert (account.terms_us[term] > 0) == bool(covered)


Step = st.tuples(
    st.sampled_from(["enter", "leave", "fork", "divide", "child", "stop child", "peek"]),
    st.sampled_from(TERMS),
    st.floats(0, 3, allow_nan=False),
)


@given(st.lists(Step, max_size=60))
def test_account_balances_for_any_history_of_a_watch_and_its_forks(steps: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    watch = Watch(clock)
    children: list[Watch] = []
    for action, term, seconds in steps:
        clock.now += seconds
        target = children[-1] if children else watch
        match action:
            case "enter":
                watch.enter(term)
            case "leave":
                watch.leave()
            case "fork":
                children.append(target.fork(only="edge" if seconds < 0.1 else None))
            case "divide":
                watch.divide(term, seconds, into="network")
            case "child":
                target.enter(term, at=clock.now - seconds)
            case "stop child":
                target.stop()
            case "peek":
                assert_closes(watch.so_far())
    before = watch.so_far()
    account = watch.close()
    assert account == before
    assert_closes(account)
    clock.now += 5
    watch.enter("edge")
    assert watch.close().total_us == account.total_us


@given(st.lists(Step, max_size=60))
def test_packed_history_gives_the_same_account(steps: list[tuple[str, str, float]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = account_of(steps)
        patch.setattr(timing, "MAX_INTERVALS", 3)
        packed = account_of(steps)
    assert_closes(packed)
    assert packed.total_us == whole.total_us
    assert packed.path == whole.path
    for term in TERMS:
        assert packed.terms_us[term] == pytest.approx(whole.terms_us[term], abs=len(steps) + 1)


def account_of(steps: list[tuple[str, str, float]]) -> Account:
    clock = Clock()
    watch = Watch(clock)
    child: Watch | None = None
    for action, term, seconds in steps:
        clock.now += round(seconds, 3)
        match action:
            case "fork" if child is None:
                child = watch.fork()
            case "child" if child is not None:
                child.enter(term)
            case "stop child" if child is not None:
                child.stop()
                child = None
            case "leave":
                watch.leave()
            case _:
                watch.enter(term)
    return watch.close()


def test_long_stream_keeps_a_bounded_number_of_intervals() -> None:
    clock = Clock()
    watch = Watch(clock)
    for _ in range(20_000):
        for term in ("write", "edge"):
            clock.now += 0.001
            watch.enter(term)
    assert len(watch._intervals) <= 2 * timing.MAX_INTERVALS
    account = watch.close()
    assert account.terms_us["write"] == pytest.approx(20_000_000, rel=1e-3)


def test_serial_work_adds_up_without_overlap() -> None:
    clock = Clock()
    watch = Watch(clock)
    for term, seconds in (("read", 0.001), ("queue", 0.002), ("edge", 0.5), ("write", 0.001)):
        watch.enter(term)
        clock.now += seconds
    account = watch.close()
    assert account.terms_us["edge"] == 500_000
    assert (account.total_us, account.overlap_us, account.other_us, account.path) == (504_000, 0, 0, "serial")


def test_parallel_work_counts_once_per_term_and_overlap_is_the_time_saved() -> None:
    clock = Clock()
    watch = Watch(clock)
    one, two = watch.fork(), watch.fork()
    one.enter("edge")
    two.enter("cloud")
    clock.now += 0.3
    two.stop()
    clock.now += 0.1
    one.stop()
    one.add_items("edge", 4)
    two.add_items("cloud", 6)
    account = watch.close()
    assert (account.total_us, account.overlap_us, account.path) == (400_000, 300_000, "parallel")
    found = rates(account, 10)
    assert found["r_edge_per_s"] == pytest.approx(10)
    assert found["r_cloud_per_s"] == pytest.approx(20)
    assert found["r_total_per_s"] == pytest.approx(30)


def test_serial_path_through_the_cloud_is_slower_than_each_part() -> None:
    account = balance([("network", 0, 100_000), ("cloud", 100_000, 200_000)], 200_000)
    found = rates(account, 1)
    assert found["r_total_per_s"] == pytest.approx(5)
    assert found["r_sum_per_s"] == pytest.approx(20)
    assert found["r_path"] == "serial"


def test_cloud_wait_is_divided_between_network_and_cloud() -> None:
    clock = Clock()
    watch = Watch(clock)
    watch.enter("cloud")
    clock.now += 0.1
    watch.leave()
    watch.divide("cloud", 0.04, into="network")
    account = watch.close()
    assert account.terms_us["network"] == 40_000
    assert account.terms_us["cloud"] == 60_000


def test_cloud_wait_without_a_response_is_divided_by_the_round_trip_estimate() -> None:
    clock = Clock()
    watch = Watch(clock)
    lost, _ = watch.fork(rtt_s=0.04), watch.fork(rtt_s=0.04)
    lost.enter("upload")
    clock.now += 0.1
    lost.enter("cloud")
    clock.now += 0.1
    so_far, account = watch.so_far(), watch.close()
    assert (account.terms_us["network"], account.terms_us["cloud"]) == (40_000, 60_000)
    assert account.cloud_source == "estimated"
    assert so_far.terms_us == account.terms_us


def test_cloud_time_from_a_header_is_not_overridden_by_an_unanswered_attempt() -> None:
    clock = Clock()
    watch = Watch(clock)
    won, lost = watch.fork(rtt_s=0.04), watch.fork(rtt_s=0.04)
    for each in (won, lost):
        each.enter("cloud")
        clock.now += 0.1
        each.leave()
    won.divide("cloud", 0.09, into="network")
    won.note_cloud_source("header")
    account = watch.close()
    assert account.cloud_source == "header"
    assert account.terms_us["network"] == 90_000 + 40_000


def test_unknown_term_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="lunch"):
        Watch().enter("lunch")


def test_service_on_the_edge_site_counts_all_its_time_as_edge() -> None:
    clock = Clock()
    watch = Watch(clock)
    inner = watch.fork(only="edge")
    for term in ("connect", "upload", "cloud", "download"):
        inner.enter(term)
        clock.now += 0.1
    account = watch.close()
    assert account.terms_us["edge"] == account.total_us == 400_000
