"""The main job with nothing configured: a gateway, a cloud behind an emulated link, and requests to try.

`edge-gateway demo` shows it and waits; `--self-test` runs the lines it prints and a sweep over links and load,
prints where each request went, why, and how long it took, and fails when an answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from gateway.demo import console
from gateway.demo.children import ChildFailed
from gateway.demo.requests import DemoRequest, DemoResponse, admin_requests, data_requests, has_curl, run_curl
from gateway.demo.sweep import HEADINGS, Sweep, SweepRow, Table
from gateway.demo.topology import Topology, recording, start_topology

DEFAULT_PORT = 8080
OK, FAILED, INTERRUPTED = 0, 1, 130
_WIDTHS = (6, 8, 12, 15, 10, 12, 9, 0)


def main(argv: Sequence[str]) -> int:
    """Run the demo, or its self-test; the process's exit status."""
    parser = argparse.ArgumentParser(prog="edge-gateway demo", description=__doc__)
    parser.add_argument(
        "--self-test", action="store_true", help="run everything, print a table, exit 0 when all is well"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="of the gateway; the next one is for its admin")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="edge-gateway-demo-"))
    status = asyncio.run(_until_signalled(_demo(args, folder)))
    if status == FAILED:
        print(f"the logs are kept in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return OK if status == INTERRUPTED and not args.self_test else status


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """The result of `work`, or INTERRUPTED where a signal ended it, after it has cleaned up."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED


async def _demo(args: argparse.Namespace, folder: Path) -> int:
    _say(f"starting two gateways; their logs: {folder}")
    try:
        async with start_topology(folder, args.port) as house:
            return await (_self_test if args.self_test else _show)(house)
    except ChildFailed as exc:
        print(exc, file=sys.stderr)
        return FAILED


def _say(text: str = "") -> None:
    print(text, flush=True)


def _lines(house: Topology) -> list[tuple[DemoRequest, str]]:
    """The requests to try, and each as a line to type."""
    calls = [(call, house.base) for call in data_requests(recording())] + [
        (call, house.admin) for call in admin_requests()
    ]
    return [(call, call.curl(base)) for call, base in calls]


# ── to look at ───────────────────────────────────────────────────────────────────────────────────


async def _show(house: Topology) -> int:
    _say(f"the gateway listens on {house.base}; the cloud is behind a link that can be changed. To try:\n")
    for _, line in _lines(house):
        _say(f"  {line}")
    _say(f"\n  every request, where it went and why: tail -f {house.edge.log_path}\n")
    waiting = [asyncio.ensure_future(house.edge.watch()), asyncio.ensure_future(house.cloud.watch())]
    if sys.stdin.isatty():
        _say(f"{console.HELP}\n\n{console.describe(house.link)}")
        waiting.append(asyncio.ensure_future(console.execute_typed_commands(house.link)))
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
    return OK


# ── to test itself ───────────────────────────────────────────────────────────────────────────────


async def _self_test(house: Topology) -> int:
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        faults = await _run_lines(house, session) + await _run_sweep(house, session)
    took_s = time.monotonic() - began
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    if faults:
        print(f"the end of {house.edge.log_path}:\n{house.edge.log_tail()}", file=sys.stderr)
    _say(f"\n{'all is well' if not faults else f'{len(faults)} wrong'}, in {took_s:.1f} s")
    return FAILED if faults else OK


async def _run_lines(house: Topology, session: aiohttp.ClientSession) -> list[str]:
    """Run what is printed: by curl, as it stands; without curl, the same requests."""
    faults = []
    for call, line in _lines(house):
        _say(f"\n$ {line}")
        base = house.admin if call in admin_requests() else house.base
        answer = await (run_curl(line) if has_curl() else _send(call, session, base))
        _say(_shortened(answer.text))
        if (fault := call.fault(answer)) is not None:
            faults.append(f"{line}: {fault}")
    return faults


async def _send(call: DemoRequest, session: aiohttp.ClientSession, base: str) -> DemoResponse:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        return await call.send(session, base)
    return DemoResponse(status=0, text="no answer")


def _shortened(text: str, width: int = 110) -> str:
    lines = text.strip().splitlines() or [""]
    more = len(lines) > 1 or len(lines[0]) > width
    return lines[0][:width] + (" …" if more else "")


async def _run_sweep(house: Topology, session: aiohttp.ClientSession) -> list[str]:
    table, faults = Table(HEADINGS, _WIDTHS), list[str]()
    _say("\n" + "\n".join(table.head))

    def show(row: SweepRow) -> None:
        _say(table.row(row.cells()))
        if row.fault is not None:
            faults.append(f"link {row.link}, edge {row.edge}, {row.label}: {row.fault}")

    await Sweep(house, session, recording(), show).run()
    return faults
