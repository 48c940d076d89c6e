"""What the demo prints: aligned tables, a line as soon as it is known."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = "  "


class Table:
    """A table whose rows are printed one by one; a cell that is too wide pushes its neighbours aside."""

    def __init__(self, headings: Sequence[str], widths: Sequence[int]) -> None:
        self._widths = [max(width, len(heading)) for heading, width in zip(headings, widths, strict=True)]
        self.head = [self.row(headings), self.row(["─" * width for width in self._widths])]

    def row(self, cells: Sequence[str]) -> str:
        """One row, without trailing blanks. Numbers stand at the right."""
        padded = (
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(cells, self._widths, strict=True)
        )
        return _GAP.join(padded).rstrip()


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
