"""The account of time: where each microsecond of a request went, and the rates that follow.

A request is a line from its first byte to its last. A `Watch` writes intervals on it: at every instant at most one
term is charged. Work that forks (subtasks, a hedge) writes on a line of its own, which is laid over the parent's line
when it ends. At the end a sweep over all intervals gives, for any history:

    T_term    = length of the union of the term's intervals
    T_overlap = sum over terms of T_term - length of the union of everything
    T_other   = T_total - length of the union of everything
    T_total   = sum over terms of T_term - T_overlap + T_other        (exact: integer microseconds)

All are lengths of sets on one line, so none can be negative. docs/timing.md has worked examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.plugin import TERMS

CloudSource = Literal["server-timing", "header", "estimated"]
Path = Literal["serial", "pipelined", "parallel"]

WIRE_TERMS = frozenset({"connect", "upload", "network", "download"})
CLOUD_PATH = WIRE_TERMS | {"cloud"}

MAX_INTERVALS = 512  # more are merged by term: a stream to a slow reader writes two intervals for each part

Interval = tuple[str, int, int]  # term, start, end; microseconds since the request began


class Watch:
    """Writes one line of intervals. Implements `gateway.plugin.Terms`; forks for parallel work.

    Times passed in and returned are seconds on `clock`. After `close` entries are ignored, so a backend that is slow to
    stop cannot change the account.

    only: charge every interval to this one term (an HTTP service on this site is `edge`, connection time included).
    rtt_s: the network round trip, 0 if unknown. It is subtracted from the last wait for the cloud, unless the plugin
    named the source of the cloud's figure. parent: the watch that this one is laid over when the parent closes.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_intervals",
        "_only",
        "_pack_at",
        "_since",
        "_term",
        "began",
        "children",
        "cloud_source",
        "first_byte_at",
        "rtt_s",
        "worked",
    )

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        began: float | None = None,
        only: str | None = None,
        rtt_s: float = 0.0,
        parent: Watch | None = None,
    ) -> None:
        self._clock: Callable[[], float] = clock if parent is None else parent._clock
        self.began = self._clock() if began is None else began
        self._intervals: list[tuple[str, float, float]] = []
        self._pack_at = MAX_INTERVALS
        self._term: str | None = None
        self._since = self.began
        self._only: str | None = only or (None if parent is None else parent._only)
        self.rtt_s = rtt_s
        self._closed = False
        self.children: list[Watch] = []
        if parent is not None:
            parent.children.append(self)
        self.cloud_source: CloudSource | None = None
        self.first_byte_at: float | None = None
        self.worked: dict[str, int] = {}

    def enter(self, term: str, at: float | None = None) -> float:
        """Charge `term` from now, or from `at`, but not before the last change. Raises KeyError for an unknown term."""
        if term not in _TERMS:
            raise KeyError(f"unknown term {term!r}; the terms are {', '.join(TERMS)}")
        return self._switch(self._only or term, at)

    def leave(self) -> float:
        """Stop charging; return now, in seconds."""
        return self._switch(None, None)

    def uploaded(self) -> None:
        """Ignore it: an upload that ended changes no account."""

    def _switch(self, term: str | None, at: float | None) -> float:
        now = self._clock() if at is None else at
        if self._closed:
            return now
        now = max(now, self._since)
        if self._term is not None and now > self._since:
            self._intervals.append((self._term, self._since, now))
            if len(self._intervals) > self._pack_at:
                self._pack()
                self._pack_at = len(self._intervals) + MAX_INTERVALS
        self._term, self._since = term, now
        return now

    def _pack(self) -> None:
        """Merge the intervals since the last fork ended, by term. Earlier intervals may overlap a fork's."""
        if any(not child._closed for child in self.children):
            return
        alone_since = max((child._latest() for child in self.children), default=self.began)
        shared = [interval for interval in self._intervals if interval[1] < alone_since]
        spent: dict[str, float] = {}
        for term, start, end in self._intervals[len(shared) :]:
            spent[term] = spent.get(term, 0.0) + end - start
        at = self._intervals[len(shared)][1] if spent else alone_since
        self._intervals = shared
        for term, seconds in spent.items():
            self._intervals.append((term, at, at + seconds))
            at += seconds

    def _latest(self) -> float:
        return max([self._since, *(child._latest() for child in self.children)])

    def divide(self, term: str, seconds: float, *, into: str) -> None:
        """Move `seconds` of the last closed interval of `term` to `into`: half at either end, at most all of it."""
        if self._closed or self._only:
            return
        _divide(self._intervals, term, seconds, into)

    def note_cloud_source(self, source: CloudSource) -> None:
        """Record the source of the figure for the cloud's own time."""
        if not self._only:
            self.cloud_source = source

    def add_items(self, site: str, items: int) -> None:
        """Record that `site` processed `items` units of work, for the rates."""
        self.worked[site] = self.worked.get(site, 0) + items

    def fork(self, *, only: str | None = None, rtt_s: float = 0.0) -> Watch:
        """Return a child watch for parallel work; it is laid over this one when this one closes."""
        return Watch(only=only, rtt_s=rtt_s, parent=self)

    def stop(self) -> None:
        """End the open intervals, and accept no more entries, here and in the children."""
        now = self.leave()
        for child in self.children:
            child._switch(None, now)
            child.stop()
        self._closed = True

    def so_far(self) -> Account:
        """Return the account as of now, without ending it."""
        return self._balance(self._since if self._closed else max(self._clock(), self._since))

    def close(self) -> Account:
        """End the line and its children, and balance the account."""
        self.stop()
        return self._balance(self._since)

    def _balance(self, ended: float) -> Account:
        intervals: list[Interval] = []
        worked: dict[str, int] = {}
        source = self._collect(self.began, ended, intervals, worked)
        total = round((ended - self.began) * 1e6)
        first = None if self.first_byte_at is None else round((self.first_byte_at - self.began) * 1e6)
        if source is None and any(term == "cloud" for term, _, _ in intervals):
            source = "estimated"
        return balance(intervals, total, worked=worked, cloud_source=source, first_byte_us=first)

    def _collect(self, began: float, ended: float, out: list[Interval], worked: dict[str, int]) -> CloudSource | None:
        open_now = [(self._term, self._since, ended)] if self._term is not None and not self._closed else []
        spans = [*self._intervals, *open_now]
        if self.cloud_source is None and self.rtt_s:
            _divide(spans, "cloud", self.rtt_s, "network")
        for term, start, end in spans:
            a, b = round((max(start, began) - began) * 1e6), round((min(end, ended) - began) * 1e6)
            if b > a:
                out.append((term, a, b))
        for site, items in self.worked.items():
            worked[site] = worked.get(site, 0) + items
        source = self.cloud_source
        for child in self.children:
            source = child._collect(began, ended, out, worked) or source
        return source


def _divide(spans: list[tuple[str, float, float]], term: str, seconds: float, into: str) -> None:
    """Move `seconds` of the last span of `term` to `into`: half at either end, at most all of it."""
    for index in range(len(spans) - 1, -1, -1):
        name, start, end = spans[index]
        if name == term:
            half = min(max(seconds, 0.0), end - start) / 2
            spans[index : index + 1] = [
                (into, start, start + half), (term, start + half, end - half), (into, end - half, end),
            ]  # fmt: skip
            return


_TERMS = frozenset(TERMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A balanced account; times in integer microseconds. `worked` maps a site to the items it processed."""

    terms_us: Mapping[str, int]
    overlap_us: int
    other_us: int
    total_us: int
    path: Path | None
    worked: Mapping[str, int]
    cloud_source: CloudSource | None
    first_byte_us: int | None


def balance(
    intervals: Iterable[Interval],
    total_us: int,
    *,
    worked: Mapping[str, int] | None = None,
    cloud_source: CloudSource | None = None,
    first_byte_us: int | None = None,
) -> Account:
    """Sweep over `intervals` (all within 0..total_us) and balance the account."""
    edges: list[tuple[int, int, str]] = []
    for term, start, end in intervals:
        edges.append((start, 1, term))
        edges.append((end, -1, term))
    edges.sort()
    active = dict.fromkeys(TERMS, 0)
    spent = dict.fromkeys(TERMS, 0)
    union = before = on_cloud_path = 0
    parallel = pipelined = False
    live: set[str] = set()
    for at, step, term in edges:
        if at > before:
            if live:
                union += at - before
                for name in live:
                    spent[name] += at - before
                if len(live) > 1:
                    on_cloud_path = len(live & CLOUD_PATH)
                    parallel = parallel or ("edge" in live and on_cloud_path > 0)
                    pipelined = pipelined or ("cloud" in live and on_cloud_path > 1)
            before = at
        active[term] += step
        if active[term]:
            live.add(term)
        else:
            live.discard(term)
    path: Path | None = None
    if spent["edge"] or spent["cloud"]:
        path = "parallel" if parallel else "pipelined" if pipelined else "serial"
    return Account(
        terms_us=spent,
        overlap_us=sum(spent.values()) - union,
        other_us=total_us - union,
        total_us=total_us,
        path=path,
        worked=worked or {},
        cloud_source=cloud_source,
        first_byte_us=first_byte_us,
    )


def rates(account: Account, items: int) -> dict[str, float | str | None]:
    """Return items per second by site, the rate of the whole path, and the textbook's sum, by log key.

    r_total: a serial path has 1/R = sum of 1/R_x, a pipelined path the smallest rate, and parallel paths add up.
    `r_sum_per_s` is R_cloud + R_network, which is an index and not a rate (docs/timing.md). An unknown rate gives None.
    """
    terms = account.terms_us
    edge_items = account.worked.get("edge", 0) if account.path == "parallel" else items
    cloud_items = account.worked.get("cloud", 0) if account.path == "parallel" else items
    edge, cloud, network = (
        _rate(edge_items, terms["edge"]),
        _rate(cloud_items, terms["cloud"]),
        _rate(cloud_items, terms["network"]),
    )
    total: float | None = None
    if account.path == "parallel":
        total = (edge or 0.0) + (_serial(cloud, network) or 0.0)
    elif account.path == "pipelined":
        total = min((r for r in (edge, cloud, network) if r), default=None)
    elif account.path == "serial":
        total = _serial(edge, cloud, network)
    return {
        "r_edge_per_s": edge,
        "r_cloud_per_s": cloud,
        "r_network_per_s": network,
        "r_total_per_s": total or None,
        "r_sum_per_s": cloud + network if cloud and network else None,
        "r_path": account.path,
    }


def _rate(items: int, us: int) -> float | None:
    return items / us * 1e6 if us and items else None


def _serial(*parts: float | None) -> float | None:
    slowness = sum(1 / rate for rate in parts if rate)
    return 1 / slowness if slowness else None
