"""Recovery of a link: seconds until the cloud serves again after refusals, black holes and slow returns.

    ./run bench recovery [--short] [--json FILE]

A real `edge-gateway serve` process with an edge and a cloud backend, which is cheaper and therefore preferred. The
cloud is a local service behind the emulated link of the demo. After each fault the link works again, with another round
trip. The time from then to the first response from the cloud must be at most 5 s and four round trips.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
from _serving import Serving, gateway
from aiohttp import web

from gateway.demo.emulated_link import EmulatedLink

RTT_S = 0.05
GRACE_S, GRACE_RTTS = 5.0, 4.0
POLL_S = 0.1
PATIENCE_S = 40.0
REQUEST_S, FAULT_REQUEST_S = 5.0, 0.5  # the patience of a client, and of a client during the fault


class Row(NamedTuple):
    """One fault: its kind and duration, the round trip afterwards, and whether requests arrive meanwhile."""

    fault: str
    fault_s: float
    rtt_s: float
    has_traffic: bool = True


ROWS = (
    Row("refused", 4.0, 0.2),
    Row("refused", 4.0, 0.4),
    Row("refused", 4.0, 0.9),
    Row("black hole", 5.0, 0.25),
    Row("black hole", 5.0, 0.6),
    Row("refused", 20.0, 0.9),
    Row("refused", 20.0, 0.05, has_traffic=False),
    Row("black hole", 20.0, 0.9, has_traffic=False),
)
SHORT_ROWS = (Row("refused", 1.5, 0.4),)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="one row")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    figures = []
    for row in SHORT_ROWS if arguments.short else ROWS:
        took_s = await recovery_s(row)
        limit_s = GRACE_S + GRACE_RTTS * row.rtt_s
        figures.append({**row._asdict(), "took_s": took_s, "limit_s": limit_s, "passed": took_s <= limit_s})
        traffic = "requests" if row.has_traffic else "no requests"
        print(
            f"{row.fault:<10} {row.fault_s:4.1f} s, {traffic:<11}, back at {row.rtt_s * 1e3:4.0f} ms: "
            f"{took_s:5.2f} s of {limit_s:.2f} s  {'ok' if took_s <= limit_s else 'FAILED'}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    return 0 if all(figure["passed"] for figure in figures) else 1


async def recovery_s(row: Row) -> float:
    """Seconds from the end of the fault to the first response of the cloud; infinite if it does not recover."""
    async with AsyncExitStack() as stack:
        port = await _serve_cloud(stack)
        link = await stack.enter_async_context(EmulatedLink("127.0.0.1", port))
        link.set_rtt(RTT_S)
        serving = await _start(stack, link.port)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await _until_cloud_serves(http, serving)
        await _fail(link, row, http, serving)
        link.set_rtt(row.rtt_s)
        began = time.monotonic()
        await link.bring_up()
        link.resume()
        return await _until_cloud_serves(http, serving, began)


async def _serve_cloud(stack: AsyncExitStack) -> int:
    async def add(request: web.Request) -> web.Response:
        return web.json_response({"result": sum((await request.json()).values())})

    app = web.Application()
    app.add_routes([web.post("/add", add), web.get("/livez", lambda request: _alive())])
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
    await site.start()
    return int(runner.addresses[0][1])


async def _alive() -> web.Response:
    return web.json_response({})


async def _start(stack: AsyncExitStack, port: int) -> Serving:
    settings = {
        "BACKENDS__EDGE__PLUGIN": "local",
        "BACKENDS__EDGE__USD_PER_REQUEST": "100",
        "BACKENDS__EDGE__REPEATABLE": "true",
        "BACKENDS__CLOUD__PLUGIN": "http",
        "BACKENDS__CLOUD__URL": f"http://127.0.0.1:{port}",
        "BACKENDS__CLOUD__TASKS": '{"add":"/add"}',
        "BACKENDS__CLOUD__REPEATABLE": "true",
        "POLICY__USD": "1",
    }
    context = gateway(settings)
    serving = await asyncio.to_thread(context.__enter__)
    stack.push_async_callback(asyncio.to_thread, context.__exit__, None, None, None)
    return serving


async def _fail(link: EmulatedLink, row: Row, http: aiohttp.ClientSession, serving: Serving) -> None:
    if row.fault == "refused":
        link.take_down()
    else:
        link.stall()
    until = time.monotonic() + row.fault_s
    while (left_s := until - time.monotonic()) > 0:
        if row.has_traffic:
            await _site(http, serving, FAULT_REQUEST_S)
        await asyncio.sleep(min(POLL_S if row.has_traffic else left_s, left_s))
    if row.fault == "black hole":
        link.take_down()  # what is on the way in an outage is lost


async def _until_cloud_serves(http: aiohttp.ClientSession, serving: Serving, began: float | None = None) -> float:
    began = time.monotonic() if began is None else began
    while time.monotonic() - began < PATIENCE_S:
        if await _site(http, serving) == "cloud":
            return time.monotonic() - began
        await asyncio.sleep(POLL_S)
    return float("inf")


async def _site(http: aiohttp.ClientSession, serving: Serving, patience_s: float = REQUEST_S) -> str:
    """The site that answered a request; "" without a response in time."""
    timeout = aiohttp.ClientTimeout(total=patience_s)
    try:
        async with http.post(f"{serving.url}/v1/tasks/add", json={"a": 1, "b": 2}, timeout=timeout) as response:
            await response.read()
            return response.headers.get("x-gateway-site", "") if response.status == 200 else ""
    except TimeoutError:
        return ""


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
