"""Two gateway processes, a link between them, and a client that measures time.

As root the cloud lives in a network namespace behind tests/support/netlink_emulator.py; otherwise behind the demo's
delay proxy; for recorded links its rate changes every 100 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec

from gateway.demo.children import choose_ports
from gateway.demo.emulated_link import EmulatedLink
from hybrid_world.uplinks import STEP_S, Uplink, trace_of
from support.netlink_emulator import Emulator

ROOT = Path(__file__).resolve().parents[2]
SERVE = [sys.executable, "-P", "-c", "import sys; from gateway.cli import main; sys.exit(main())", "serve"]
NAMESPACE = "hybcloud"
READY_S = 20.0


class Wan(Protocol):
    """The link between edge and cloud."""

    kind: str

    def url(self, port: int) -> str: ...
    def spawn(self, argv: list[str], **options: Any) -> subprocess.Popen: ...
    def listen(self, port: int) -> str: ...
    async def steady(self, rtt_s: float, mbit: float | None = None) -> None: ...
    async def play(self, uplink: Uplink, start_s: float, seconds: float) -> None: ...
    async def outage(self, seconds: float) -> None: ...


class Namespaces:
    """Network namespaces with real packets and TCP; needs root."""

    kind = "network namespaces, emulated link"

    def __init__(self, net: Emulator, folder: Path) -> None:
        self._net, self._folder = net, folder

    def url(self, port: int) -> str:
        return f"http://{self._net.addr('wan', 'b')}:{port}"

    def listen(self, port: int) -> str:
        return f"{self._net.addr('wan', 'b')}:{port}"

    def spawn(self, argv: list[str], **options: Any) -> subprocess.Popen:
        return self._net.popen(NAMESPACE, argv, **options)

    async def steady(self, rtt_s: float, mbit: float | None = None) -> None:
        rate = f"{mbit}mbit" if mbit else "inf"
        self._net.cmd(f"set wan both trace=none state=up delay={rtt_s * 500}ms rate={rate}")

    async def play(self, uplink: Uplink, start_s: float, seconds: float) -> None:
        path = self._folder / "uplink.trace"
        path.write_text(trace_of(uplink, start_s, seconds))
        self._net.cmd(f"set wan both delay={uplink.rtt_s * 500}ms")
        self._net.cmd(f"set wan a2b trace={path} queue=3000p")

    async def outage(self, seconds: float) -> None:
        self._net.cmd(f"outage wan {seconds} blackhole")
        await asyncio.sleep(seconds)


class Proxied:
    """A delay proxy in this process; needs no privileges."""

    kind = "delay proxy"

    def __init__(self, link: EmulatedLink, port: int) -> None:
        self._link, self._port = link, port
        self._playing: asyncio.Task | None = None

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{self._link.port}"

    def listen(self, port: int) -> str:
        return f"127.0.0.1:{port}"

    def spawn(self, argv: list[str], **options: Any) -> subprocess.Popen:
        return subprocess.Popen(argv, **options)

    async def steady(self, rtt_s: float, mbit: float | None = None) -> None:
        if self._playing is not None:
            self._playing.cancel()
            self._playing = None
        self._link.set_rtt(rtt_s)
        self._link.set_rate(mbit * 125_000 if mbit else None)

    async def play(self, uplink: Uplink, start_s: float, seconds: float) -> None:
        await self.steady(uplink.rtt_s)
        self._playing = asyncio.create_task(self._follow(uplink, start_s, seconds))

    async def _follow(self, uplink: Uplink, start_s: float, seconds: float) -> None:
        for step in range(round(seconds / STEP_S)):
            at_s = start_s + step * STEP_S
            self._link.up.bytes_per_s = max(uplink.mean(at_s, at_s + STEP_S), 1000.0)
            await asyncio.sleep(STEP_S)

    async def outage(self, seconds: float) -> None:
        self._link.stall()
        await asyncio.sleep(seconds)
        self._link.resume()


@asynccontextmanager
async def wan(cloud_port: int, folder: Path) -> AsyncIterator[Wan]:
    """Return the most realistic link available to this user."""
    if os.geteuid() == 0:
        with contextlib.ExitStack() as stack:
            try:
                net = stack.enter_context(Emulator({"wan": ("host", NAMESPACE)}, {"wan": "delay=5ms"}))
            except (RuntimeError, OSError) as exc:
                print(f"no namespaces ({exc}); using a delay proxy", file=sys.stderr)
            else:
                yield Namespaces(net, folder)
                return
    async with EmulatedLink("127.0.0.1", cloud_port) as link:
        yield Proxied(link, cloud_port)


class Pair:
    """A running edge and cloud gateway, and a client of the edge."""

    def __init__(self, base: str, admin: str, way: Wan, http: aiohttp.ClientSession, log: Path) -> None:
        self.base, self.admin, self.wan, self.http, self._log = base, admin, way, http, log

    async def task(self, name: str, body: Any, **headers: str) -> tuple[float, Any, Mapping[str, str]]:
        """Return the seconds taken, the answer and its headers.

        Raises AssertionError for any status but 200.
        """
        began = time.monotonic()
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        async with self.http.post(f"{self.base}/v1/tasks/{name}", json=body, headers=sent) as answer:
            value = await answer.json()
            took_s = time.monotonic() - began
        assert answer.status == 200, value
        return took_s, value["result"], answer.headers

    async def explain(self, path: str, body: Any) -> Any:
        """Return the decision of the gateway for a request."""
        async with self.http.post(f"{self.admin}/explain", params={"path": path}, json=body) as answer:
            return await answer.json()

    def lines(self, event: str) -> list[Mapping[str, Any]]:
        """Return the edge's log lines of one event so far."""
        found = (msgspec.json.decode(line) for line in self._log.read_bytes().splitlines() if line.startswith(b"{"))
        return [line for line in found if line.get("event") == event]


@asynccontextmanager
async def pair(edge: Mapping[str, str], cloud: Mapping[str, str]) -> AsyncIterator[Pair]:
    """Run both gateways.

    `edge` and `cloud` are variables without `GATEWAY_BACKENDS__`, {link} the cloud's address.
    """
    with tempfile.TemporaryDirectory(prefix="edge-gateway-bench-") as name:
        folder = Path(name)
        edge_port, edge_admin, cloud_port, cloud_admin = choose_ports(0, 4)
        async with wan(cloud_port, folder) as way:
            far = _start(way.spawn, "cloud", way.listen(cloud_port), cloud_admin, cloud, folder)
            with _stopped(far):
                await _ready(way.url(cloud_port))
                near = {key: text.replace("{link}", way.url(cloud_port)) for key, text in edge.items()}
                here = _start(subprocess.Popen, "edge", f"127.0.0.1:{edge_port}", edge_admin, near, folder)
                with _stopped(here):
                    base = f"http://127.0.0.1:{edge_port}"
                    await _ready(base)
                    timeout = aiohttp.ClientTimeout(total=300)
                    async with aiohttp.ClientSession(timeout=timeout) as http:
                        yield Pair(base, f"http://127.0.0.1:{edge_admin}", way, http, folder / "edge.log")


def _start(
    spawn: Any, name: str, listen: str, admin_port: int, backends: Mapping[str, str], folder: Path
) -> subprocess.Popen:
    own = {key: text for key, text in os.environ.items() if not key.startswith(("GATEWAY_", "LISTEN_", "NOTIFY_"))}
    paths = [str(ROOT / part) for part in ("", "plugins", "tests", "bench")]
    environ = {
        **own,
        "PYTHONPATH": os.pathsep.join(paths),
        "GATEWAY_LISTEN": listen,
        "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
        "GATEWAY_ALLOW_UNAUTHENTICATED": "true",
        "GATEWAY_STATE_DIR": str(folder / name),
        "GATEWAY_LOG__FORMAT": "json",
        **{f"GATEWAY_BACKENDS__{key}": text for key, text in backends.items()},
    }
    with (folder / f"{name}.log").open("wb") as log:
        process: subprocess.Popen = spawn(SERVE, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return process


@contextlib.contextmanager
def _stopped(process: subprocess.Popen) -> Any:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _ready(url: str) -> None:
    until = time.monotonic() + READY_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            if time.monotonic() > until:
                raise RuntimeError(f"the gateway at {url} was not ready within {READY_S:g} s")
            await asyncio.sleep(0.05)


def local(name: str, tasks: str, slots: int = 1) -> dict[str, str]:
    """Return the variables of a `local` backend with these tasks of the benchmark."""
    return {f"{name}__PLUGIN": "local", f"{name}__TASKS": tasks, f"{name}__SLOTS": str(slots)}


def scatter_pair() -> tuple[dict[str, str], dict[str, str]]:
    """Run a hybrid over an edge and a cloud that process one item at a time."""
    edge = {
        **local("LOCAL", '{"slow": "hybrid_world.tasks:at_edge"}'),
        "CLOUD__PLUGIN": "http",
        "CLOUD__URL": "{link}",
        "CLOUD__TASKS": '{"slow": "/v1/tasks/slow", "slow_far": "/v1/tasks/slow"}',
        "CLOUD__REPEATABLE": "true",
        "BOTH__PLUGIN": "hybrid",
        "BOTH__EDGE": "local",
        "BOTH__CLOUD": "cloud",
        "BOTH__TASKS": '{"slow": "slow", "slow_by_both": "slow"}',
    }
    return edge, local("LOCAL", '{"slow": "hybrid_world.tasks:at_cloud"}')


def items_of(count: int, item_bytes: int = 0) -> list[Any]:
    """Return numbered items of the given size."""
    return [f"{n}:".ljust(item_bytes, "x") if item_bytes else n for n in range(count)]


def check_order(values: Sequence[int], count: int) -> tuple[int, int]:
    """Return the number of lost items and of items out of order."""
    lost = count - len(set(values) & {-n for n in range(count)})
    return lost, sum(value != -n for n, value in enumerate(values))


# ── measurements ─────────────────────────────────────────────────────────────────────────────────


async def steady_pair(items: int = 60, edge_s: float = 0.04, cloud_s: float = 0.02, batches: int = 5) -> dict[str, Any]:
    """Measure the policy's choice for a learned class against the ideal.

    The ideal is both sides without overhead.
    """
    async with pair(*scatter_pair()) as both:
        await both.wan.steady(0.01)
        body = {"edge_s": edge_s, "cloud_s": cloud_s}
        for count in (4, 8, 16, items, items, items):
            await both.task("slow", {"items": items_of(count), **body})
        taken, chosen = [], []
        for _ in range(batches):
            took_s, values, headers = await both.task("slow", {"items": items_of(items), **body})
            assert check_order(values, items) == (0, 0)
            taken.append(took_s)
            chosen.append(headers["x-gateway-backend"])
        explained = await both.explain("/v1/tasks/slow", {"items": items_of(items), **body})
        line = both.lines("request.finished")[-1]
        return {
            "link": both.wan.kind,
            "ideal_s": items / (1 / edge_s + 1 / cloud_s),
            "taken_s": sorted(taken),
            "chosen": chosen,
            "shares": explained["candidates"]["both"].get("plan", {}).get("shares"),
            "predicted_s": {name: each.get("t_s") for name, each in explained["candidates"].items()},
            "r_path": line["r_path"],
            "groups": len([part for part in both.lines("subtask.finished") if part["parent_id"] == line["request_id"]]),
        }


async def through_outages(items: int = 10_000, edge_s: float = 0.002, cloud_s: float = 0.001) -> dict[str, Any]:
    """Run one batch while the link fails repeatedly."""
    async with pair(*scatter_pair()) as both:
        await both.wan.steady(0.03, 50)
        body = {"items": items_of(items, 200), "edge_s": edge_s, "cloud_s": cloud_s}
        await both.task("slow_by_both", {**body, "items": items_of(200, 200)})
        asked = asyncio.ensure_future(both.task("slow_by_both", body))
        outages = 0
        while not asked.done():
            await asyncio.wait({asked}, timeout=1.0)
            if not asked.done():
                await both.wan.outage(0.8)
                outages += 1
        took_s, values, headers = await asked
        lost, misplaced = check_order(values, items)
        parts = [p for p in both.lines("subtask.finished") if p["parent_id"] == headers["x-request-id"]]
        return {
            "link": both.wan.kind,
            "items": items,
            "lost": lost,
            "out_of_order": misplaced,
            "outages": outages,
            "taken_s": took_s,
            "edge_alone_s": items * edge_s,
            "groups": len(parts),
            "moved": len(both.lines("hybrid.group_moved")),
            "by_cloud": sum(p["items"] for p in parts if p["site"] == "cloud" and p["outcome"] == "served"),
        }


async def over_uplinks(uplinks: Sequence[Uplink], batches: int, seed: int = 3) -> list[dict[str, Any]]:
    """Run scatter and five static splits over the same section of an uplink."""
    from random import Random

    rng, out = Random(seed), []
    async with pair(*scatter_pair()) as both:
        for uplink in uplinks:
            for _ in range(batches):
                start_s = rng.uniform(0, uplink.period_s)
                out.append({"uplink": uplink.name, **await _one_stretch(both, uplink, start_s)})
    return out


async def _one_stretch(both: Pair, uplink: Uplink, start_s: float, count: int = 24) -> dict[str, Any]:
    body = {"edge_s": 0.12, "cloud_s": 0.03}
    items = items_of(count, 25_000)
    static = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        await both.wan.play(uplink, start_s, 120)
        static[share] = await _static(both, body, items, round(share * count))
    await both.wan.play(uplink, start_s, 120)
    took_s, values, _ = await both.task("slow_by_both", {**body, "items": items})
    assert check_order(values, count) == (0, 0)
    return {"scatter_s": took_s, "static_s": static}


async def _static(both: Pair, body: Mapping[str, Any], items: Sequence[Any], to_cloud: int) -> float:
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        if to_cloud:
            group.create_task(both.task("slow_far", {**body, "items": items[:to_cloud]}))
        if to_cloud < len(items):
            here = {"x_gateway_locality": "edge-only"}
            group.create_task(both.task("slow", {**body, "items": items[to_cloud:]}, **here))
    return time.monotonic() - began
