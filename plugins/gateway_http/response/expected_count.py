"""How many answers a request asks for: an upstream that gives fewer has not finished."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.plugin import Task

MAX_CHOICES = 128  # OpenAI's own bound of `n`
FEW_BYTES = 4096
_Bounded = msgspec.defstruct(
    "_Bounded",
    [(f"choice_{at}", msgspec.Raw, msgspec.Raw(b"")) for at in range(MAX_CHOICES)],
    array_like=True,
    forbid_unknown_fields=True,  # the first one too many ends it
)


class _Asked(msgspec.Struct):
    n: Any = None
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"")


def choices(task: Task) -> int:
    """The choices of a chat or completion: `n`, of each prompt where it holds several. At least 1."""
    asked = _asked(task)
    each = asked.n if type(asked.n) is int else 1
    return max(each, 1) * (_texts(asked.prompt) if task.kind == "completion" else 1)


def listed_choices(task: Task, raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The entries of a list of choices. Raises ValidationError where it is none, or holds far more than are due."""
    if len(memoryview(raw)) <= FEW_BYTES or choices(task) > MAX_CHOICES:
        return msgspec.json.decode(raw, type=list[msgspec.Raw])
    found = msgspec.structs.astuple(msgspec.json.decode(raw, type=_Bounded))
    return [choice for choice in found if bytes(choice)]


def inputs(task: Task) -> int:
    """The vectors an embeddings request asks for, by its body (a subtask's `items` may say 1); else its items."""
    given = _asked(task).input
    return _texts(given) if bytes(given) else task.items


def _asked(task: Task) -> _Asked:
    try:
        return msgspec.json.decode(task.body, type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Asked()  # no object: the upstream is the one to refuse it


def _texts(raw: msgspec.Raw) -> int:
    """One text, or one list of tokens, is one; a list of these is as many."""
    if not bytes(raw).startswith(b"["):
        return 1
    listed = msgspec.json.decode(raw, type=list[msgspec.Raw])
    return len(listed) if listed and bytes(listed[0])[:1] in (b'"', b"[") else 1
