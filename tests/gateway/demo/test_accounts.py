from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.accounts import Accounts, main_terms


def finished(request_id: str, **keys: Any) -> bytes:
    return json.dumps({"event": "request.finished", "request_id": request_id, **keys}).encode() + b"\n"


async def test_find_returns_the_log_line_of_a_request(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a traceback, say\n[1]\n" + finished("a", status=200) + finished("b"))
    line = await Accounts(log).find("a")
    assert line is not None
    assert line["status"] == 200


async def test_parts_served_at_lists_the_sites_of_served_subtasks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parts = [("served", "edge", "a"), ("failed", "cloud", "a"), ("served", "cloud", "b")]
    lines = [{"event": "subtask.finished", "outcome": o, "site": s, "parent_id": p} for o, s, p in parts]
    log.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + finished("a"))
    accounts = Accounts(log)
    assert await accounts.find("a") is not None
    assert accounts.parts_served_at("a") == {"edge"}
    assert accounts.parts_served_at("c") == set()


async def test_find_waits_for_a_partially_written_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = finished("a")
    log.write_bytes(whole[:20])
    looking = asyncio.ensure_future(Accounts(log).find("a"))
    await asyncio.wait([looking], timeout=0.03)
    with log.open("ab") as more:
        more.write(whole[20:])
    assert await looking is not None


async def test_find_returns_none_when_the_line_is_not_written_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.demo.accounts.WRITTEN_WITHIN_S", 0.04)
    log = tmp_path / "log"
    log.write_bytes(finished("a"))
    assert await Accounts(log).find("b") is None


def test_main_terms_are_the_largest_terms_without_sums() -> None:
    line = {
        "t_total_ms": 100.0, "t_first_byte_ms": 99.0, "t_overlap_ms": 50.0, "t_edge_ms": 60.0, "t_queue_ms": 30.0,
        "t_other_ms": 9.0, "t_read_ms": 5.0, "t_write_ms": 0.1, "t_cloud_source": None, "rtt_ms": 80.0,
    }  # fmt: skip
    assert main_terms(line) == "edge 60.0, queue 30.0, other 9.0"


def test_main_terms_omit_negligible_terms() -> None:
    assert main_terms({"t_total_ms": 100.0, "t_edge_ms": 99.5, "t_queue_ms": 0.5}) == "edge 99.5"
