"""An edge backend in worker processes for tests of hybrids.

Its answers identify it.
"""

from __future__ import annotations

import time
from typing import Any

from gateway.plugin import Backend, BackendSettings, Kind, Result, Task

KINDS: frozenset[Kind] = frozenset({"chat", "embeddings"})


class EdgeWorker(Backend[BackendSettings]):
    """Returns squares, vectors, and a text with the confidence given in the request."""

    isolation = "process"
    slots = 1
    kinds = KINDS
    models = ("m",)
    tasks = ("squares", "guess")
    repeatable = True

    async def run(self, task: Task) -> Result:
        asked: dict[str, Any] = task.json
        time.sleep(asked.get("edge_s", 0.0) * task.items)  # noqa: ASYNC251  # a worker may block
        if task.kind == "embeddings":
            return Result(json=[[float(len(text)), 1.0] for text in asked["input"]])
        if task.kind == "chat":
            return Result(json="by the edge", confidence=asked.get("temperature", 0.0))
        if task.name == "guess":
            return Result(json={"result": "edge", "confidence": asked["confidence"]})
        return Result(json={"result": [n * n for n in asked["items"]]})
