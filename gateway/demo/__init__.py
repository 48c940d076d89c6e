"""A demonstration without configuration: a gateway, a cloud behind an emulated link, and example requests.

`edge-gateway demo` prints the requests and keeps running. `--self-test` runs them and a sweep over link delays and
load, prints the backend, the reason and the duration of each request, and fails if a response is missing or wrong.
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
    """Run the demo or its self-test; return the exit status."""
    parser = argparse.ArgumentParser(prog="edge-gateway demo", description=__doc__)
    parser.add_argument("--self-test", action="store_true", help="run all requests and a sweep; exit 0 if all succeed")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="data port; the admin listener has the next one")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="edge-gateway-demo-"))
    status = asyncio.run(_until_signalled(_demo(args, folder)))
    if status == FAILED:
        print(f"the logs are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return OK if status == INTERRUPTED and not args.self_test else status


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """The result of `work`; INTERRUPTED if a signal cancelled it, after its clean-up."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return INTERRUPTED


async def _demo(args: argparse.Namespace, folder: Path) -> int:
    _print(f"starting two gateways; their logs: {folder}")
    try:
        async with start_topology(folder, args.port) as topology:
            return await (_self_test if args.self_test else _show)(topology)
    except ChildFailed as exc:
        print(exc, file=sys.stderr)
        return FAILED


def _print(text: str = "") -> None:
    print(text, flush=True)


def _lines(topology: Topology) -> list[tuple[DemoRequest, str]]:
    """The example requests, each with its curl command line."""
    data = [(request, topology.base) for request in data_requests(recording())]
    admin = [(request, topology.admin) for request in admin_requests()]
    return [(request, request.curl(base)) for request, base in data + admin]


# ── interactive ──────────────────────────────────────────────────────────────────────────────────


async def _show(topology: Topology) -> int:
    _print(f"the gateway listens on {topology.base}; the cloud is behind an emulated link. Requests to try:\n")
    for _, line in _lines(topology):
        _print(f"  {line}")
    _print(f"\n  the log, with the backend of each request and the reason: tail -f {topology.edge.log_path}\n")
    waiting = [asyncio.ensure_future(topology.edge.watch()), asyncio.ensure_future(topology.cloud.watch())]
    if sys.stdin.isatty():
        _print(f"{console.HELP}\n\n{console.describe(topology.link)}")
        waiting.append(asyncio.ensure_future(console.execute_typed_commands(topology.link)))
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()
    return OK


# ── self-test ────────────────────────────────────────────────────────────────────────────────────


async def _self_test(topology: Topology) -> int:
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        errors = await _run_lines(topology, session) + await _run_sweep(topology, session)
    took_s = time.monotonic() - began
    for error in errors:
        print(f"ERROR: {error}", file=sys.stderr)
    if errors:
        print(f"the end of {topology.edge.log_path}:\n{topology.edge.log_tail()}", file=sys.stderr)
    _print(f"\n{'all requests succeeded' if not errors else f'{len(errors)} failed'}, in {took_s:.1f} s")
    return FAILED if errors else OK


async def _run_lines(topology: Topology, session: aiohttp.ClientSession) -> list[str]:
    """Run the printed command lines, or send the same requests if curl is not installed."""
    errors = []
    for request, line in _lines(topology):
        _print(f"\n$ {line}")
        base = topology.admin if request in admin_requests() else topology.base
        response = await (run_curl(line) if has_curl() else _send(request, session, base))
        _print(_shortened(response.text))
        if (error := request.find_error(response)) is not None:
            errors.append(f"{line}: {error}")
    return errors


async def _send(request: DemoRequest, session: aiohttp.ClientSession, base: str) -> DemoResponse:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        return await request.send(session, base)
    return DemoResponse(status=0, text="no response")


def _shortened(text: str, width: int = 110) -> str:
    lines = text.strip().splitlines() or [""]
    more = len(lines) > 1 or len(lines[0]) > width
    return lines[0][:width] + (" …" if more else "")


async def _run_sweep(topology: Topology, session: aiohttp.ClientSession) -> list[str]:
    table, errors = Table(HEADINGS, _WIDTHS), list[str]()
    _print("\n" + "\n".join(table.head))

    def show(row: SweepRow) -> None:
        _print(table.row(row.cells()))
        if row.error is not None:
            errors.append(f"link {row.link}, edge {row.edge}, {row.label}: {row.error}")

    await Sweep(topology, session, recording(), show).run()
    return errors
