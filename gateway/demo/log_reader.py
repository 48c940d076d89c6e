"""Reads the gateway's log: for each request the predicted time and the measured terms."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

WRITTEN_WITHIN_S = 2.0  # 0.1 is promised; a busy machine may take longer, and that does not count as a lost line
_POLL_S = 0.02
_MAX_SHOWN_TERMS = 3
_MIN_SHOWN_RATIO = 0.02


class LogReader:
    """Finds the `request.finished` and `subtask.finished` lines of a log file."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self._offset = 0
        self._lines: dict[str, Mapping[str, Any]] = {}
        self._sites: defaultdict[str, set[str]] = defaultdict(set)

    async def find(self, request_id: str) -> Mapping[str, Any] | None:
        """The line of a request, waiting until it is written; None after WRITTEN_WITHIN_S."""
        for _ in range(round(WRITTEN_WITHIN_S / _POLL_S)):
            self._read_new_lines()
            if request_id in self._lines:
                return self._lines[request_id]
            await asyncio.sleep(_POLL_S)
        return None

    def parts_served_at(self, request_id: str) -> set[str]:
        """The sites that served subtasks of a request after `find` has found its line; empty without subtasks."""
        return self._sites[request_id]

    def _read_new_lines(self) -> None:
        with self._log_path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._record(line)

    def _record(self, line: bytes) -> None:
        try:
            event = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return
        match event:
            case {"event": "request.finished", "request_id": request_id}:
                self._lines[request_id] = event
            case {"event": "subtask.finished", "outcome": "served", "parent_id": parent_id, "site": site}:
                self._sites[parent_id].add(site)


def largest_terms(line: Mapping[str, Any]) -> str:
    """The largest terms of a request, in milliseconds, as text; `other` is the time that belongs to no term."""
    spent = {
        key.removeprefix("t_").removesuffix("_ms"): value
        for key, value in line.items()
        if key.startswith("t_") and key.endswith("_ms") and isinstance(value, (int, float))
    }
    total = spent.pop("total", 0.0)
    for not_a_term in ("first_byte", "overlap"):
        spent.pop(not_a_term, None)
    largest = sorted(spent.items(), key=lambda item: -item[1])[:_MAX_SHOWN_TERMS]
    return ", ".join(f"{name} {ms:.1f}" for name, ms in largest if ms > total * _MIN_SHOWN_RATIO)
