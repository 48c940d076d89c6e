"""The sweep: every request at every speed of the link, with the edge idle and occupied; who took it, why, and how long.

What must hold in every cell: the answer is there and right; while the link is down, the edge gave it.
Where a request goes otherwise is the gateway's judgement, and is shown, not tested.
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
SPEECH_AHEAD = 'edge_gateway_lane_waiting{backend="speech"} 1'  # behind the one that is being heard
_SEEN_WITHIN_S = 5.0
_POLL_S = 0.02
_GAP = "  "
HEADINGS = ("link", "edge", "request", "went to", "why", "predicted ms", "actual ms", "of which ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One request of the sweep. fault: what was wrong with it; None where nothing was."""

    link: str
    edge: str
    label: str
    where: str = "-"
    why: str = "-"
    predicted_ms: float | None = None
    actual_ms: float | None = None
    terms: str = ""
    fault: str | None = None

    def cells(self) -> tuple[str, ...]:
        """Its columns, under HEADINGS."""
        times = ("-" if ms is None else f"{ms:.1f}" for ms in (self.predicted_ms, self.actual_ms))
        return (self.link, self.edge, self.label, self.where, self.why, *times, self.fault or self.terms)


class Sweep:
    """Sends the requests, changes the link, and hands each row to `show` as soon as it is known."""

    def __init__(
        self, house: Topology, session: aiohttp.ClientSession, file: str, show: Callable[[SweepRow], None]
    ) -> None:
        self._house, self._session, self._file, self._show = house, session, file, show
        self._accounts = LogReader(house.edge.log_path)
        self._hear = transcribe(file, "speech/pocketsphinx", site="edge")

    async def run(self) -> None:
        """All cells, one after the other."""
        await self._warm_up()
        for rtt_s in RTTS_S:
            link = await self._set_link(rtt_s)
            if rtt_s is not None:  # traffic shows the gateway what the link is like now
                await self._try(link, "idle", transcribe(self._file, "cloud/pocketsphinx", site="cloud"))
            site = "edge" if rtt_s is None else None
            task, speech = add(site=site), transcribe(self._file, site=site)
            await self._try(link, "idle", task)
            await self._try(link, "idle", speech)
            await self._try(link, "idle", divide(site="hybrid"))
            async with self._occupied([occupy()] * EDGE_SLOTS, SLOTS_TAKEN):
                await self._try(link, "occupied", task)
            async with self._occupied([self._hear] * 2, SPEECH_AHEAD):
                await self._try(link, "occupied", speech)

    async def _set_link(self, rtt_s: float | None) -> str:
        if rtt_s is None:
            self._house.link.take_down()
            return DOWN
        await self._house.link.bring_up()
        self._house.link.set_rtt(rtt_s)
        return f"{rtt_s * 1000:g} ms"

    # ── the edge occupied ────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _occupied(self, occupants: Sequence[DemoRequest], sample: str) -> AsyncIterator[None]:
        """The edge works on `occupants`, as `sample` of its metrics shows; they must be answered, too."""
        async with asyncio.TaskGroup() as group:
            ahead = [group.create_task(self._row("-", "-", call)) for call in occupants]
            await self._see(sample)
            yield
        for row in (task.result() for task in ahead):
            if row.fault is not None:
                self._show(row)

    async def _see(self, sample: str) -> None:
        """Return when the gateway's metrics show `sample`; that they never do is a fault."""
        url = f"http://{self._house.admin}/metrics"
        for _ in range(round(_SEEN_WITHIN_S / _POLL_S)):
            async with self._session.get(url) as response:
                if sample in (await response.text()).splitlines():
                    return
            await asyncio.sleep(_POLL_S)
        self._show(SweepRow(link="-", edge="-", label="metrics", fault=f"never showed {sample}"))

    async def _warm_up(self) -> None:
        """Have the gateway see each kind of work once, so that its predictions stand on something."""
        for call in (occupy(), add(), self._hear):
            await self._send(call)

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    async def _try(self, link: str, edge: str, call: DemoRequest) -> None:
        self._show(await self._row(link, edge, call))

    async def _row(self, link: str, edge: str, call: DemoRequest) -> SweepRow:
        row = SweepRow(link=link, edge=edge, label=call.label)
        answer = await self._send(call)
        if isinstance(answer, str):
            return replace(row, fault=f"LOST: {answer}")
        row = replace(
            row, where=answer.where, why=answer.headers.get("x-gateway-reason", "-"), fault=call.fault(answer)
        )
        line = await self._accounts.find(answer.headers.get("x-request-id", ""))
        if line is None:
            return replace(row, fault=row.fault or "no request.finished line in the gateway's log")
        if link == DOWN and "cloud" in self._accounts.parts_served_at(line["request_id"]):
            row = replace(row, fault="a part was served by the cloud while the link was down")
        return replace(row, predicted_ms=line["predicted_ms"], actual_ms=line["t_total_ms"], terms=largest_terms(line))

    async def _send(self, call: DemoRequest) -> DemoResponse | str:
        try:
            return await call.send(self._session, self._house.base)
        except (aiohttp.ClientError, TimeoutError) as exc:
            return f"{type(exc).__name__}: {exc}"


# ── the table ────────────────────────────────────────────────────────────────────────────────────


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
