"""Lanes: queue order, slots, upload permits and predictions."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.plugin import LinkSample, TaskRefused
from support.lane_fixture import BIG, HERE, QUERY, LaneFixture


def test_work_starts_at_once_on_a_free_slot_and_its_end_is_idempotent() -> None:
    house = LaneFixture()
    work = house.submit("a", "box")
    assert house.started == [("a", "box")]
    for _ in range(3):
        house.lanes.on_answered(work, "box")
        house.lanes.on_finished(work, "box")
        house.lanes.withdraw(work)
    assert house.lanes.busy() == {"box": 0, "cloud": 0}
    assert house.board.predict("box", "task", "add", 1.0).samples == 0  # zero service time gives no sample


def test_shortest_work_starts_first() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    for name, size in (("long", 3.0), ("short", 1.0), ("middle", 2.0)):
        house.submit(name, "box", size, **HERE)
    for name in ("runs", "short", "middle", "long"):
        house.finish(name)
    assert house.names_started() == ["runs", "short", "middle", "long"]


def test_predicted_wait_includes_the_usual_duration_of_running_streams() -> None:
    house = LaneFixture()
    for turn in range(5):
        work = house.submit(f"stream {turn}", "box", **HERE)
        house.now += 0.5
        house.lanes.on_answered(work, "box")
        house.now += 9.5
        house.lanes.on_finished(work, "box")
    work = house.submit("now", "box", **HERE)
    house.now += 0.5
    house.lanes.on_answered(work, "box")
    (box,) = house.lanes.selector.candidates(house.work("next"), {"box": None})
    assert box.service_s == pytest.approx(0.5, rel=0.2)
    assert box.wait_s == pytest.approx(9.5, rel=0.2)


def test_long_waiting_work_starts_before_shorter_work() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("long", "box", 3.0, **HERE)
    house.now += 20.0
    house.submit("short", "box", 1.0, **HERE)
    house.finish("runs")
    assert house.names_started() == ["runs", "long"]


def test_client_deadline_takes_precedence_only_once_it_is_near() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.submit("short too", "box", 1.0, **HERE)
    house.submit("dated", "box", 3.0, deadline=house.now + 9.0, client_deadline=True, **HERE)
    house.finish("runs")
    house.now += 3.5
    house.finish("short")
    assert house.names_started() == ["runs", "short", "dated"]


def test_unreachable_deadline_gets_no_precedence() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("lost", "box", 3.0, deadline=house.now + 1.0, client_deadline=True, **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.finish("runs")
    assert house.names_started() == ["runs", "short"]


def test_full_queue_refuses_with_retry_after() -> None:
    house = LaneFixture(queue=2)
    house.teach()
    for name in "abc":
        house.submit(name, "box", **HERE)
    with pytest.raises(TaskRefused) as refused:
        house.submit("d", "box", **HERE)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_s is not None
    assert 1.0 <= refused.value.retry_after_s <= 60.0
    assert house.lanes.waiting()["box"] == 2


def test_withdrawn_work_frees_its_queue_entry() -> None:
    house = LaneFixture(queue=1)
    house.submit("a", "box", **HERE)
    waiting = house.submit("b", "box", **HERE)
    house.lanes.withdraw(waiting)
    house.submit("c", "box", **HERE)
    house.finish("a")
    assert house.names_started() == ["a", "c"]


def test_one_large_upload_runs_at_a_time_and_its_permit_is_freed_before_its_slot() -> None:
    house = LaneFixture()
    house.teach(uplink_bytes_per_s=1e5)
    first = house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("second", "cloud", body_bytes=BIG, allowed=("cloud",))
    assert house.names_started() == ["first"]
    house.lanes.on_uploaded(first, "cloud")
    house.lanes.on_uploaded(first, "cloud")
    assert house.names_started() == ["first", "second"]
    assert house.lanes.busy()["cloud"] == 2


def test_two_uploads_run_at_once_when_each_is_too_short_to_fill_the_path() -> None:
    house = LaneFixture()
    house.teach(uplink_bytes_per_s=1e8)
    for name in "abc":
        house.submit(name, "cloud", body_bytes=BIG, allowed=("cloud",))
    assert house.names_started() == ["a", "b"]


def test_queued_large_bodies_never_block_a_small_body() -> None:
    house = LaneFixture()
    house.teach(uplink_bytes_per_s=1e5)
    for number in range(60):
        house.submit(f"big {number}", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("small", "cloud", 3.0, body_bytes=100, allowed=("cloud",))
    assert house.names_started() == ["big 0", "small"]


def test_failed_upload_frees_its_permit() -> None:
    house = LaneFixture()
    house.teach(uplink_bytes_per_s=1e5)
    first = house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("second", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.lanes.on_finished(first, "cloud")
    assert house.names_started() == ["first", "second"]


# ── predictions ──────────────────────────────────────────────────────────────────────────────────


def predicted_s(house: LaneFixture, name: str, size: float = 1.0, body_bytes: int = 0) -> float:
    return house.lanes.selector.candidates(house.work("asked", size, body_bytes), {name: None})[0].t_s


def test_prediction_counts_only_work_ahead_in_the_queue() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.submit("long", "box", 3.0, **HERE)
    assert predicted_s(house, "box", 2.0) == pytest.approx(1.0 + 1.0 + 2.0, rel=0.1)


def test_overdue_work_is_predicted_to_need_a_quarter_more_then_half_its_age() -> None:
    house = LaneFixture()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.now += 1.0
    assert predicted_s(house, "box") == pytest.approx(1.25, rel=0.1)
    house.now += 19.0
    assert predicted_s(house, "box") == pytest.approx(11.0, rel=0.1)


def test_prediction_includes_upload_time_of_own_and_queued_bytes() -> None:
    house = LaneFixture()
    house.teach(uplink_bytes_per_s=1e5)
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(2.0 + 1.0, rel=0.1)
    house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(2.0 + 2.0 + 1.0, rel=0.1)
    house.now += 1.0
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(1.0 + 2.0 + 1.0, rel=0.1)


def test_burst_is_spread_instead_of_herding_onto_the_best_backend() -> None:
    house = LaneFixture(slots=2)
    house.teach(box_s=1.0, cloud_s=1.1)
    chosen = []
    for number in range(20):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
    assert 1 <= chosen.count("box") <= 6


def test_burst_of_an_unmeasured_task_does_not_queue_behind_the_first_trial() -> None:
    house = LaneFixture(slots=2)
    chosen = []
    for number in range(20):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 0.5
    assert chosen.count("box") <= 4


def test_fast_failures_do_not_lower_the_prediction() -> None:
    house = LaneFixture()
    house.teach(box_s=0.2, cloud_s=1.0)
    for number in range(50):
        work = house.submit(str(number), "cloud", allowed=("cloud",))
        house.now += 0.001
        house.lanes.on_finished(work, "cloud")  # as for an immediate 503: `answered` is never called
    assert predicted_s(house, "cloud") == pytest.approx(1.0, rel=0.2)


def test_timeouts_raise_the_prediction() -> None:
    house = LaneFixture()
    house.teach()
    before = predicted_s(house, "cloud")
    work = house.submit("lost", "cloud", allowed=("cloud",))
    house.now += 30.0
    house.lanes.on_timeout(work, "cloud")
    house.lanes.on_finished(work, "cloud")
    assert predicted_s(house, "cloud") > before


def test_upload_time_hidden_by_the_socket_buffer_is_not_service_time() -> None:
    house = LaneFixture()
    house.board.observe("cloud", LinkSample(upload_bytes=BIG, upload_s=2.0))
    work = house.submit("small", "cloud", body_bytes=50_000, allowed=("cloud",))
    house.lanes.on_uploaded(work, "cloud")  # the kernel buffered it at once; the link has not sent it
    house.now += 0.8
    house.finish("small")
    assert house.board.predict("cloud", "task", "add", 1.0).mean_s == pytest.approx(0.3, abs=0.01)


def test_slower_backend_is_tried_again_occasionally() -> None:
    house = LaneFixture(slots=4)
    house.teach(box_s=1.0, cloud_s=2.0)
    chosen = []
    for number in range(1200):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 1.0 if chosen[-1] == "box" else 2.0
        house.finish(str(number))
    assert 1 <= chosen.count("cloud") <= 12


def test_slower_backend_that_became_the_fastest_is_discovered() -> None:
    house = LaneFixture(slots=4)
    house.teach(box_s=1.0, cloud_s=2.0)
    chosen = []
    for number in range(1200):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 1.0 if chosen[-1] == "box" else 0.5
        house.finish(str(number))
    assert chosen[-100:].count("cloud") >= 95


def test_queued_work_does_not_move_to_a_backend_with_a_link_that_is_down() -> None:
    house = LaneFixture()
    house.teach(box_s=10.0, cloud_s=0.1)
    house.board.on_carrier_lost("cloud")
    for name in "ab":
        house.submit(name, "box")
    house.lanes.tick()
    assert house.moved == []
    house.board.on_carrier_back("cloud")
    house.lanes.tick()
    assert house.moved == [("b", "box", "cloud")]


@pytest.mark.parametrize("passes", [0, 5000])
@pytest.mark.parametrize("is_known_at_box", [False, True])
def test_untried_backend_is_never_predicted_faster_than_its_round_trip_and_upload(
    passes: int, is_known_at_box: bool
) -> None:
    house = LaneFixture()
    for _ in range(5):
        house.board.observe("cloud", LinkSample(rtt_s=1.5, upload_bytes=BIG, upload_s=BIG / 50_000))
    if is_known_at_box:
        house.board.learn("box", "task", "add", 1.0, 0.5)
    for _ in range(passes):
        house.board.on_passed_over("cloud", "task", "add")
    work = house.work("a", body_bytes=400_000)
    decision = house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None})
    rank_s, *_, cloud = next(entry for entry in decision.ranked if entry[1] == "cloud")
    assert cloud.samples == 0
    assert cloud.upload_s == pytest.approx(8.0, rel=0.01)
    assert cloud.service_s >= 1.5 + (0.5 if is_known_at_box else 0.0)
    assert rank_s >= 1.5 + cloud.upload_s - 1e-9
    assert decision.order[0] == "box"


# ── for any history ──────────────────────────────────────────────────────────────────────────────


class AnyHistory(RuleBasedStateMachine):
    """Any order of work events, link changes, breaker changes and clock steps.

    Work is submitted, sent, answered, failed, withdrawn and moved. At the end every count returns to zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.house = LaneFixture(slots=2, queue=5)
        self.count = 0
        self.places: dict[str, int] = {}  # number of submissions by name

    def running(self) -> list[tuple[str, str]]:
        return [entry for entry in self.house.started if entry not in self.over]

    @property
    def over(self) -> set[tuple[str, str]]:
        return self.__dict__.setdefault("_over", set())

    @rule(
        backend=st.sampled_from(["box", "cloud"]),
        size=st.floats(0.0, 10.0),
        body_bytes=st.sampled_from([0, 1000, BIG]),
        deadline_s=st.none() | st.floats(0.1, 20.0),
        moves=st.booleans(),
    )
    def comes(self, backend: str, size: float, body_bytes: int, deadline_s: float | None, moves: bool) -> None:
        self.count += 1
        name = str(self.count)
        try:
            self.house.submit(
                name,
                backend,
                size,
                body_bytes=body_bytes,
                deadline=math.inf if deadline_s is None else self.house.now + deadline_s,
                client_deadline=deadline_s is not None,
                allowed=("box", "cloud") if moves else (backend,),
            )
        except TaskRefused:
            assert (name, backend) not in self.house.started

    @precondition(lambda self: self.running())
    @rule(data=st.data(), how=st.sampled_from(["on_uploaded", "on_answered", "on_timeout", *["on_finished"] * 3]))
    def goes_on(self, data: st.DataObject, how: str) -> None:
        name, backend = data.draw(st.sampled_from(self.running()))
        getattr(self.house.lanes, how)(self.house.works[name], backend)
        if how == "on_finished":
            self.over.add((name, backend))

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.house.works)))
        self.house.lanes.withdraw(self.house.works[name])

    @rule(seconds=st.floats(-1.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.house.now += seconds
        self.house.lanes.tick()

    @rule(up=st.booleans(), ill=st.sampled_from([None, "box", "cloud"]))
    def the_world_changes(self, up: bool, ill: str | None) -> None:
        (self.house.board.on_carrier_back if up else self.house.board.on_carrier_lost)("cloud")
        self.house.why_excluded = lambda name: "ill" if name == ill else None
        self.house.lanes.tick()

    @invariant()
    def slots_and_permits_hold(self) -> None:
        busy = self.house.lanes.busy()
        assert busy["box"] <= 2
        assert busy["cloud"] <= 16
        assert 0 <= self.house.lanes.status()["cloud"]["uploading"] <= 2
        assert sum(busy.values()) == len(self.running())

    @invariant()
    def no_work_is_started_twice(self) -> None:
        assert len(self.house.names_started()) == len(set(self.house.names_started()))

    def teardown(self) -> None:
        for work in self.house.works.values():
            self.house.lanes.withdraw(work)
        while self.running():
            name, backend = self.running()[0]
            self.over.add((name, backend))
            self.house.lanes.on_finished(self.house.works[name], backend)
        status = self.house.lanes.status()
        for lane in status.values():
            assert (lane["busy"], lane["waiting"], lane["uploading"]) == (0, 0, 0)


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAnyHistory = AnyHistory.TestCase
