"""The list of tasks; a task's own answer needs no shaping: `{"result": v}`, or an upstream's JSON as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def tasks_list(backends_of: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The tasks by name, each with the backends that serve it, as GET /v1/tasks shows them."""
    data = [{"id": name, "object": "task", "backends": list(backends)} for name, backends in backends_of.items()]
    return {"object": "list", "data": data}
