"""The models the gateway serves: `GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def model(model_id: str, owned_by: str) -> dict[str, Any]:
    """Return one model. owned_by: the backend that serves it."""
    return {"id": model_id, "object": "model", "created": 0, "owned_by": owned_by}


def models_list(entries: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the list of models (name, owner)."""
    return {"object": "list", "data": [model(name, owner) for name, owner in entries]}
