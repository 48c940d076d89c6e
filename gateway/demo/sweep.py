"""The sweep: every request at every link delay, with the edge idle and occupied; prints backend, reason and duration.

In each case the response must arrive and be correct, and while the link is down, the edge must have served it. The
choice of the backend is otherwise the gateway's: it is printed and not checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp

from gateway.demo.log_reader import LogReader, largest_terms
from gateway.demo.requests import DemoRequest, DemoResponse, add, divide, occupy, transcribe
from gateway.demo.topology import EDGE_SLOTS, Topology

RTTS_S: tuple[float | None, ...] = (0.001, 0.05, 0.3, None)  # None: the link is down
DOWN = "down"
SLOTS_TAKEN = f'edge_gateway_lane_busy{{backend="local"}} {EDGE_SLOTS}'
SPEECH_AHEAD = 'edge_gateway_lane_waiting{backend="speech"} 1'  # behind the recording that is being transcribed
_SEEN_WITHIN_S = 5.0
_POLL_S = 0.02
_GAP = "  "
HEADINGS = ("link", "edge", "request", "backend", "reason", "predicted ms", "actual ms", "largest terms, ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """A request of the sweep. error: None if the response was as expected."""

    link: str
    edge: str
    label: str
    backend: str = "-"
    reason: str = "-"
    predicted_ms: float | None = None
    actual_ms: float | None = None
    terms: str = ""
    error: str | None = None

    def cells(self) -> tuple[str, ...]:
        """The columns of HEADINGS, as text."""
        times = ("-" if ms is None else f"{ms:.1f}" for ms in (self.predicted_ms, self.actual_ms))
        return (self.link, self.edge, self.label, self.backend, self.reason, *times, self.error or self.terms)


class Sweep:
    """Sends the requests, changes the link, and passes each row to `show` as soon as it is known."""

    def __init__(
        self, topology: Topology, session: aiohttp.ClientSession, file: str, show: Callable[[SweepRow], None]
    ) -> None:
        self._topology, self._session, self._file, self._show = topology, session, file, show
        self._log_reader = LogReader(topology.edge.log_path)
        self._edge_speech = transcribe(file, "speech/pocketsphinx", site="edge")

    async def run(self) -> None:
        """Send all requests, one after the other."""
        await self._warm_up()
        for rtt_s in RTTS_S:
            link = await self._set_link(rtt_s)
            if rtt_s is not None:  # the gateway measures the changed link by traffic
                await self._run_request(link, "idle", transcribe(self._file, "cloud/pocketsphinx", site="cloud"))
            site = "edge" if rtt_s is None else None
            task, speech = add(site=site), transcribe(self._file, site=site)
            await self._run_request(link, "idle", task)
            await self._run_request(link, "idle", speech)
            await self._run_request(link, "idle", divide(site="hybrid"))
            async with self._occupied([occupy()] * EDGE_SLOTS, SLOTS_TAKEN):
                await self._run_request(link, "occupied", task)
            async with self._occupied([self._edge_speech] * 2, SPEECH_AHEAD):
                await self._run_request(link, "occupied", speech)

    async def _set_link(self, rtt_s: float | None) -> str:
        if rtt_s is None:
            self._topology.link.take_down()
            return DOWN
        await self._topology.link.bring_up()
        self._topology.link.set_rtt(rtt_s)
        return f"{rtt_s * 1000:g} ms"

    # ── the edge occupied ────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _occupied(self, occupants: Sequence[DemoRequest], sample: str) -> AsyncIterator[None]:
        """Have the edge work on `occupants` until the block ends, from when its metrics show `sample`.

        The responses of the occupants are checked, too.
        """
        async with asyncio.TaskGroup() as group:
            ahead = [group.create_task(self._row("-", "-", request)) for request in occupants]
            await self._wait_for_metric(sample)
            yield
        for row in (task.result() for task in ahead):
            if row.error is not None:
                self._show(row)

    async def _wait_for_metric(self, sample: str) -> None:
        """Return when the gateway's metrics show `sample`; show an error row if they do not in time."""
        url = f"http://{self._topology.admin}/metrics"
        for _ in range(round(_SEEN_WITHIN_S / _POLL_S)):
            async with self._session.get(url) as response:
                if sample in (await response.text()).splitlines():
                    return
            await asyncio.sleep(_POLL_S)
        self._show(SweepRow(link="-", edge="-", label="metrics", error=f"never showed {sample}"))

    async def _warm_up(self) -> None:
        """Send each kind of request once, so that the gateway has measurements to predict from."""
        for request in (occupy(), add(), self._edge_speech):
            await self._send(request)

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    async def _run_request(self, link: str, edge: str, request: DemoRequest) -> None:
        self._show(await self._row(link, edge, request))

    async def _row(self, link: str, edge: str, request: DemoRequest) -> SweepRow:
        row = SweepRow(link=link, edge=edge, label=request.label)
        response = await self._send(request)
        if isinstance(response, str):
            return replace(row, error=f"LOST: {response}")
        row = replace(
            row,
            backend=response.backend_and_site,
            reason=response.headers.get("x-gateway-reason", "-"),
            error=request.find_error(response),
        )
        line = await self._log_reader.find(response.headers.get("x-request-id", ""))
        if line is None:
            return replace(row, error=row.error or "the gateway's log has no request.finished line")
        if link == DOWN and "cloud" in self._log_reader.parts_served_at(line["request_id"]):
            row = replace(row, error="a part was served by the cloud while the link was down")
        return replace(row, predicted_ms=line["predicted_ms"], actual_ms=line["t_total_ms"], terms=largest_terms(line))

    async def _send(self, request: DemoRequest) -> DemoResponse | str:
        try:
            return await request.send(self._session, self._topology.base)
        except (aiohttp.ClientError, TimeoutError) as exc:
            return f"{type(exc).__name__}: {exc}"


# ── the table ────────────────────────────────────────────────────────────────────────────────────


class Table:
    """A table that is printed row by row; a cell that is too wide shifts the cells after it."""

    def __init__(self, headings: Sequence[str], widths: Sequence[int]) -> None:
        self._widths = [max(width, len(heading)) for heading, width in zip(headings, widths, strict=True)]
        self.head = [self.row(headings), self.row(["─" * width for width in self._widths])]

    def row(self, cells: Sequence[str]) -> str:
        """Render a row, without trailing blanks. Numbers are aligned right."""
        padded = (
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(cells, self._widths, strict=True)
        )
        return _GAP.join(padded).rstrip()


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
