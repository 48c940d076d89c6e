"""The recovery benchmark in its short form: real processes, one outage, and a return with a longer round trip."""

from __future__ import annotations

import asyncio
import sys

from support.documents import ROOT

LIMIT_S = 60.0


async def test_cloud_serves_again_after_an_outage_that_ends_with_a_longer_round_trip() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "bench" / "recovery.py"), "--short"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(LIMIT_S):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
