"""OpenAI's answers: a text, a message or a whole object becomes what OpenAI's clients parse.

`usage` is left out where the backend did not say: an invented zero would be counted by somebody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.api.sse import Stamp

OWNED_BY_GATEWAY = "edge-gateway"


def chat_answer(stamp: Stamp, value: Any) -> dict[str, Any]:
    """A chat.completion from a text, from a message (`content`, `tool_calls`), or from a nearly whole one."""
    if isinstance(value, str):
        value = {"content": value}
    if isinstance(value, dict) and "choices" not in value and {"content", "tool_calls"} & value.keys():
        message = {k: v for k, v in value.items() if k not in ("usage", "finish_reason")}
        reason = value.get("finish_reason") or ("tool_calls" if value.get("tool_calls") else "stop")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None, **message},
            "logprobs": None,
            "finish_reason": reason,
        }
        value = {"choices": [choice]} | _usage(value)
    return _completed(stamp, value, id_prefix="chatcmpl-", object_name="chat.completion")


def completion_answer(stamp: Stamp, value: Any) -> dict[str, Any]:
    """A text_completion from a text, from `{"text": …}`, or from a nearly whole one."""
    if isinstance(value, str):
        value = {"text": value}
    if isinstance(value, dict) and "choices" not in value and isinstance(value.get("text"), str):
        reason = value.get("finish_reason") or "stop"
        choice = {"index": 0, "text": value["text"], "logprobs": None, "finish_reason": reason}
        value = {"choices": [choice]} | _usage(value)
    return _completed(stamp, value, id_prefix="cmpl-", object_name="text_completion")


def _completed(stamp: Stamp, value: Any, *, id_prefix: str, object_name: str) -> dict[str, Any]:
    """The answer with whatever of the fixed members it lacks; those it has stand, but for the model's name."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise stamp.failure(f"gave no answer of the shape {object_name}: it has no `choices`")
    whole = head(stamp, id_prefix, object_name) | value
    return whole if stamp.served_as == stamp.model else {**whole, "model": stamp.model}


def head(stamp: Stamp, id_prefix: str, object_name: str) -> dict[str, Any]:
    """The members every answer and every chunk of it begin with."""
    return {
        "id": id_prefix + stamp.request_id,
        "object": object_name,
        "created": stamp.created,
        "model": stamp.model,
    }


def _usage(value: dict[str, Any]) -> dict[str, Any]:
    return {"usage": value["usage"]} if value.get("usage") else {}


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def model(model_id: str, owned_by: str = OWNED_BY_GATEWAY, created: int = 0) -> dict[str, Any]:
    """One model, as GET /v1/models/{id} shows it."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": owned_by}


def models_list(entries: Iterable[tuple[str, str]], created: int = 0) -> dict[str, Any]:
    """The models (name, owner), as GET /v1/models shows them."""
    return {"object": "list", "data": [model(name, owner, created) for name, owner in entries]}
