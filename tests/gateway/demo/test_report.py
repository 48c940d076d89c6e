from __future__ import annotations

from gateway.demo.report import Table


def test_columns_are_as_wide_as_asked_or_as_their_heading() -> None:
    table = Table(("link", "ms"), (8, 0))
    assert table.head == ["link      ms", "────────  ──"]


def test_numbers_are_aligned_right() -> None:
    table = Table(("link", "actual ms", "terms"), (6, 0, 0))
    assert table.row(("50 ms", "1.5", "")) == "50 ms         1.5"
    assert table.row(("down", "-", "x")) == "down    -          x"


def test_cell_that_is_too_wide_is_not_truncated() -> None:
    assert Table(("a", "b"), (1, 1)).row(("wider", "x")) == "wider  x"
