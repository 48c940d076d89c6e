"""The task `add`: one request, its result, and an upstream that serves it."""

from __future__ import annotations

from typing import Any

from gateway.testing import RunningGateway
from support.upstream import Upstream, answer, by_path

SUM = {"result": 30}
NUMBERS = {"a": 10, "b": 20}
GOOD = by_path({"/add": answer(json=SUM)})


async def call(
    gateway: RunningGateway, path: str = "/v1/tasks/add", body: Any = NUMBERS, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Send one request; return its status, JSON and lower-cased headers."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.session() as http, http.post(gateway.url + path, json=body, headers=names) as got:
        return got.status, await got.json(), {name.lower(): value for name, value in got.headers.items()}


def posts(upstream: Upstream) -> list[Any]:
    return [request for request in upstream.requests if request.method == "POST"]
