"""Functions that fork, exit, print and close descriptors: no answer reaches another request."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from support.documents import ROOT


@pytest.mark.parametrize("seed", [1, 2])
async def test_misbehaving_functions_do_not_affect_the_answers_of_other_requests(tmp_path: Path, seed: int) -> None:
    figures = tmp_path / "figures.json"
    script = [str(ROOT / "bench" / "nonces.py"), "--requests", "400", "--seed", str(seed), "--json", str(figures)]
    process = await asyncio.create_subprocess_exec(sys.executable, *script)
    assert await process.wait() == 0
    found = json.loads(figures.read_text())
    assert found["right"] > 200
    assert found["right"] + found["error"] == 400
