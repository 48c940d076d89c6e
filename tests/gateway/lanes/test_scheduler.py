"""The lanes: who waits where, who goes first, who moves; every place is granted once, every count returns to zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.plugin import LinkSample, TaskRefused
from support.lane_house import BIG, HERE, QUERY, House


def test_work_starts_at_once_where_a_slot_is_free_and_its_end_is_told_as_often_as_one_likes() -> None:
    house = House()
    work = house.submit("a", "box")
    assert house.started == [("a", "box")]
    for _ in range(3):
        house.lanes.on_answered(work, "box")
        house.lanes.on_finished(work, "box")
        house.lanes.withdraw(work)
    assert house.lanes.busy() == {"box": 0, "cloud": 0}
    assert house.board.predict("box", "task", "add", 1.0).samples == 0  # it took no time at all: no sample


def test_the_shortest_goes_first() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    for name, size in (("long", 3.0), ("short", 1.0), ("middle", 2.0)):
        house.submit(name, "box", size, **HERE)
    for name in ("runs", "short", "middle", "long"):
        house.finish(name)
    assert house.names_started() == ["runs", "short", "middle", "long"]


def test_a_stream_that_has_answered_still_holds_its_slot_for_as_long_as_such_streams_do() -> None:
    house = House()
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


def test_a_long_wait_outweighs_a_short_service() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("long", "box", 3.0, **HERE)
    house.now += 20.0
    house.submit("short", "box", 1.0, **HERE)
    house.finish("runs")
    assert house.names_started() == ["runs", "long"]


def test_a_clients_deadline_goes_first_once_it_binds_and_not_before() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.submit("short too", "box", 1.0, **HERE)
    house.submit("dated", "box", 3.0, deadline=house.now + 9.0, client_deadline=True, **HERE)
    house.finish("runs")
    house.now += 3.5
    house.finish("short")
    assert house.names_started() == ["runs", "short", "dated"]


def test_a_deadline_that_is_lost_gets_no_precedence() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("lost", "box", 3.0, deadline=house.now + 1.0, client_deadline=True, **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.finish("runs")
    assert house.names_started() == ["runs", "short"]


def test_a_full_line_refuses_with_a_time_to_come_back() -> None:
    house = House(queue=2)
    house.teach()
    for name in "abc":
        house.submit(name, "box", **HERE)
    with pytest.raises(TaskRefused) as refused:
        house.submit("d", "box", **HERE)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_s is not None
    assert 1.0 <= refused.value.retry_after_s <= 60.0
    assert house.lanes.waiting()["box"] == 2


def test_who_leaves_the_line_frees_the_place() -> None:
    house = House(queue=1)
    house.submit("a", "box", **HERE)
    waiting = house.submit("b", "box", **HERE)
    house.lanes.withdraw(waiting)
    house.submit("c", "box", **HERE)
    house.finish("a")
    assert house.names_started() == ["a", "c"]


def test_one_large_body_is_uploaded_at_a_time_and_its_slot_is_not_the_permit() -> None:
    house = House()
    house.teach(uplink_bytes_per_s=1e5)
    first = house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("second", "cloud", body_bytes=BIG, allowed=("cloud",))
    assert house.names_started() == ["first"]
    house.lanes.on_uploaded(first, "cloud")
    house.lanes.on_uploaded(first, "cloud")
    assert house.names_started() == ["first", "second"]
    assert house.lanes.busy()["cloud"] == 2


def test_uploads_too_short_to_fill_the_path_go_two_by_two() -> None:
    house = House()
    house.teach(uplink_bytes_per_s=1e8)
    for name in "abc":
        house.submit(name, "cloud", body_bytes=BIG, allowed=("cloud",))
    assert house.names_started() == ["a", "b"]


def test_any_number_of_big_bodies_never_block_a_small_one() -> None:
    house = House()
    house.teach(uplink_bytes_per_s=1e5)
    for number in range(60):
        house.submit(f"big {number}", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("small", "cloud", 3.0, body_bytes=100, allowed=("cloud",))
    assert house.names_started() == ["big 0", "small"]


def test_a_failed_upload_gives_its_permit_back() -> None:
    house = House()
    house.teach(uplink_bytes_per_s=1e5)
    first = house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.submit("second", "cloud", body_bytes=BIG, allowed=("cloud",))
    house.lanes.on_finished(first, "cloud")
    assert house.names_started() == ["first", "second"]


# ── predictions ──────────────────────────────────────────────────────────────────────────────────


def predicted_s(house: House, name: str, size: float = 1.0, body_bytes: int = 0) -> float:
    return house.lanes.selector.candidates(house.work("asked", size, body_bytes), {name: None})[0].t_s


def test_what_is_ahead_is_counted_and_what_is_behind_is_not() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.submit("short", "box", 1.0, **HERE)
    house.submit("long", "box", 3.0, **HERE)
    assert predicted_s(house, "box", 2.0) == pytest.approx(1.0 + 1.0 + 2.0, rel=0.1)


def test_what_overstays_its_time_has_a_quarter_of_it_to_go_and_later_half_its_age() -> None:
    house = House()
    house.teach()
    house.submit("runs", "box", **HERE)
    house.now += 1.0
    assert predicted_s(house, "box") == pytest.approx(1.25, rel=0.1)
    house.now += 19.0
    assert predicted_s(house, "box") == pytest.approx(11.0, rel=0.1)


def test_bytes_ahead_and_own_bytes_cost_their_time_on_the_uplink() -> None:
    house = House()
    house.teach(uplink_bytes_per_s=1e5)
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(2.0 + 1.0, rel=0.1)
    house.submit("first", "cloud", body_bytes=BIG, allowed=("cloud",))
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(2.0 + 2.0 + 1.0, rel=0.1)
    house.now += 1.0
    assert predicted_s(house, "cloud", 1.0, BIG) == pytest.approx(1.0 + 2.0 + 1.0, rel=0.1)


def test_a_burst_does_not_herd_onto_the_one_that_looks_best() -> None:
    house = House(slots=2)
    house.teach(box_s=1.0, cloud_s=1.1)
    chosen = []
    for number in range(20):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
    assert 1 <= chosen.count("box") <= 6


def test_a_burst_of_something_unknown_does_not_pile_up_behind_the_first_try() -> None:
    house = House(slots=2)
    chosen = []
    for number in range(20):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 0.5
    assert chosen.count("box") <= 4


def test_fast_failures_attract_no_traffic() -> None:
    house = House()
    house.teach(box_s=0.2, cloud_s=1.0)
    for number in range(50):
        work = house.submit(str(number), "cloud", allowed=("cloud",))
        house.now += 0.001
        house.lanes.on_finished(work, "cloud")  # a 503 at once: never `answered`
    assert predicted_s(house, "cloud") == pytest.approx(1.0, rel=0.2)


def test_time_outs_count() -> None:
    house = House()
    house.teach()
    before = predicted_s(house, "cloud")
    work = house.submit("lost", "cloud", allowed=("cloud",))
    house.now += 30.0
    house.lanes.on_timeout(work, "cloud")
    house.lanes.on_finished(work, "cloud")
    assert predicted_s(house, "cloud") > before


def test_what_a_socket_buffer_hides_is_taken_off_the_service_time() -> None:
    house = House()
    house.board.observe("cloud", LinkSample(upload_bytes=BIG, upload_s=2.0))
    work = house.submit("small", "cloud", body_bytes=50_000, allowed=("cloud",))
    house.lanes.on_uploaded(work, "cloud")  # the kernel took it at once, the link has not
    house.now += 0.8
    house.finish("small")
    assert house.board.predict("cloud", "task", "add", 1.0).mean_s == pytest.approx(0.3, abs=0.01)


def test_a_loser_is_tried_again_in_the_end() -> None:
    house = House(slots=4)
    house.teach(box_s=1.0, cloud_s=2.0)
    chosen = []
    for number in range(1200):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 1.0 if chosen[-1] == "box" else 2.0
        house.finish(str(number))
    assert 1 <= chosen.count("cloud") <= 12


def test_a_loser_that_became_the_best_is_found_out() -> None:
    house = House(slots=4)
    house.teach(box_s=1.0, cloud_s=2.0)
    chosen = []
    for number in range(1200):
        work = house.work(str(number))
        chosen.append(house.lanes.selector.choose(work, QUERY, {"box": None, "cloud": None}).order[0])
        house.submit_work(work, chosen[-1])
        house.now += 1.0 if chosen[-1] == "box" else 0.5
        house.finish(str(number))
    assert chosen[-100:].count("cloud") >= 95


def test_a_link_that_is_down_is_no_candidate() -> None:
    house = House()
    house.board.carrier_lost("cloud")
    assert house.lanes.selector.choose(house.work("a"), QUERY, {"box": None, "cloud": None}).refused == {
        "cloud": "its link is down"
    }


# ── for any history ──────────────────────────────────────────────────────────────────────────────


class AnyHistory(RuleBasedStateMachine):
    """Work comes, is sent, answered, fails, leaves, moves, in any order; links, breakers and clocks do as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(slots=2, queue=5)
        self.count = 0
        self.places: dict[str, int] = {}  # how often each was submitted

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
        (self.house.board.carrier_back if up else self.house.board.carrier_lost)("cloud")
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
    def nobody_is_started_twice(self) -> None:
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
