"""Fetch the names an upstream serves, for the lists that its settings leave open.

The lists are fetched beside the probes, once a minute.
A probe has a time limit of a few round trips. An upstream with slower lists is healthy all the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping

from gateway.plugin import GatewayError

from .probe import UpstreamClient
from .transport.exceptions import map_exceptions

REFRESH_S = 60.0
FIRST_WAIT_S = 0.25  # a probe waits this long for the first lists; its shortest time limit is twice that

Names = Mapping[str, str]


class ModelLists:
    """Fetches the list under each of `paths`.

    Calls `on_names(path, names)` for each list received.
    """

    def __init__(
        self, client: UpstreamClient, netloc: str, paths: Iterable[str], on_names: Callable[[str, Names], None]
    ):
        self._client = client
        self._netloc = netloc
        self._paths = tuple(paths)
        self._on_names = on_names
        self._missing = set(self._paths)
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = -math.inf
        self._fault: str | None = None
        self._had_names: dict[str, bool] = {}  # by path: whether the last list held a name

    async def refresh(self) -> str | None:
        """Start to fetch the lists when that is due.

        Returns why the upstream rejects the gateway's key, or None.
        Waits up to FIRST_WAIT_S if a list is still missing or the last fetch was rejected.
        """
        if self._fetching is not None and self._fetching.done():
            finished, self._fetching = self._fetching, None
            finished.result()  # raises what a bug in there raised
        if self._fetching is None and self._paths and time.monotonic() - self._fetched_at >= REFRESH_S:
            self._fetching = asyncio.create_task(self._fetch_all(), name=f"lists of {self._netloc}")
            if self._missing or self._fault:
                await asyncio.wait({self._fetching}, timeout=FIRST_WAIT_S)
        return self._fault

    async def close(self) -> None:
        """Stop fetching."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    async def _fetch_all(self) -> None:
        """Fetch one list after the other.

        The pool reserves one connection for lists beside the slots.
        """
        faults = [await self._fetch(path) for path in self._paths]
        self._fault = next((fault for fault in faults if fault), None)
        if not self._missing and self._fault is None:
            self._fetched_at = time.monotonic()

    async def _fetch(self, path: str) -> str | None:
        """Fetch one list; return why the upstream rejects the key, else None.

        Temporary failures return None too; the next call fetches the list again.
        """
        try:
            with map_exceptions(self._netloc, math.inf, lambda fault: None):  # probes report link failures
                names = await self._client.fetch_names(path)
        except GatewayError as exc:
            return exc.message if exc.code == "upstream_auth" else None
        if names is None or self._is_doubtful(path, names):
            return None
        self._missing.discard(path)
        self._had_names[path] = bool(names)
        self._on_names(path, names)
        return None

    def _is_doubtful(self, path: str, names: Names) -> bool:
        """Return whether a list that held names is suddenly empty.

        The second empty list is accepted.
        """
        is_doubtful = not names and self._had_names.get(path, False)
        self._had_names[path] = False
        return is_doubtful
