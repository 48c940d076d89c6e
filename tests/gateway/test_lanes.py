"""The lanes: who waits where, and that every place is granted once and every count returns to zero."""

from __future__ import annotations

from gateway.decide.policy import Policy, Query
from gateway.lanes import Lanes, Work
from gateway.measure.board import Board


def test_work_starts_at_once_where_a_slot_is_free() -> None:
    board = Board(lambda: 0.0)
    lanes = Lanes(board, Policy(), lambda: 0.0)
    lanes.add("edge", site="edge", slots=1, queue=1, remote=False)
    started: list[str] = []
    work = Work(id="1", kind="task", name="add", models={"edge": "add"}, allowed=("edge",), start=started.append)
    decision = lanes.choose(work, Query("task", "add"), {"edge": None})
    lanes.submit(work, decision.order[0])
    assert started == ["edge"]
    lanes.answered(work, "edge")
    lanes.done(work, "edge")
    lanes.done(work, "edge")
    assert lanes.busy() == {"edge": 0}
