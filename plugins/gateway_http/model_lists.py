"""What the upstream serves, where the operator left that open: asked for beside the probes, once a minute.

A probe's time limit is a few round trips; a service that takes a while to say what it serves is well all the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping

from gateway.plugin import GatewayError

from .probe import Upstream
from .transport.exceptions import map_exceptions

REFRESH_S = 60.0
PATIENCE_S = 0.25  # a probe waits for the first lists so long; its least time limit is twice that

Names = Mapping[str, str]


class Lists:
    """Asks for the names under each of `paths`; `on_names` is told of each list whenever it comes."""

    def __init__(self, upstream: Upstream, netloc: str, paths: Iterable[str], on_names: Callable[[str, Names], None]):
        self._upstream = upstream
        self._netloc = netloc
        self._paths = tuple(paths)
        self._on_names = on_names
        self._unknown = set(self._paths)
        self._asking: asyncio.Task[None] | None = None
        self._renewed_at = -math.inf
        self._fault: str | None = None
        self._served: dict[str, bool] = {}  # whether a list had names when it last came

    async def look(self) -> str | None:
        """Begin to ask, where that is due, and wait a moment for what is not known yet. Why it is refused, or None."""
        if self._asking is not None and self._asking.done():
            asked, self._asking = self._asking, None
            asked.result()  # a bug in there is not kept silent
        if self._asking is None and self._paths and time.monotonic() - self._renewed_at >= REFRESH_S:
            self._asking = asyncio.create_task(self._ask(), name=f"lists of {self._netloc}")
            if self._unknown or self._fault:
                await asyncio.wait({self._asking}, timeout=PATIENCE_S)
        return self._fault

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        """Every list, one after the other: the pool has room for a probe and one of these beside the slots."""
        faults = [await self._ask_for(path) for path in self._paths]
        self._fault = next((fault for fault in faults if fault), None)
        if not self._unknown and self._fault is None:
            self._renewed_at = time.monotonic()

    async def _ask_for(self, path: str) -> str | None:
        """Ask for one list. Why the upstream refuses it; None also where it cannot say now, and is asked again."""
        try:
            with map_exceptions(self._netloc, math.inf, lambda why: None):  # of the link, the probes tell
                names = await self._upstream.names(path)
        except GatewayError as exc:
            return exc.message if exc.code == "upstream_auth" else None
        if names is None or self._is_doubtful(path, names):
            return None
        self._unknown.discard(path)
        self._served[path] = bool(names)
        self._on_names(path, names)
        return None

    def _is_doubtful(self, path: str, names: Names) -> bool:
        """Whether a list that had names has none all at once: only a second time is that believed."""
        is_news = not names and self._served.get(path, False)
        self._served[path] = False
        return is_news
