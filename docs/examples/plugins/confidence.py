"""Report confidence: the task `language`. With a low confidence, a `hybrid` in mode `cascade` uses its other side."""

from __future__ import annotations

from typing import ClassVar

from gateway.plugin import Backend, BackendSettings, Result, Task

COMMON = {
    "en": {"the", "and", "of", "to", "is", "in", "it", "that"},
    "de": {"der", "die", "das", "und", "ist", "nicht", "ein", "zu"},
    "fr": {"le", "la", "les", "et", "est", "de", "un", "pas"},
}


class Language(Backend[BackendSettings]):
    """The language of a text, from its most frequent words."""

    tasks = ("language",)
    repeatable = True
    examples: ClassVar = {"language": {"text": "it is the end of the line"}}

    async def run(self, task: Task) -> Result:
        words = task.argument("text", str).lower().split()
        hits = {language: sum(word in common for word in words) for language, common in COMMON.items()}
        best = max(hits, key=hits.__getitem__)
        sure = hits[best] / max(sum(hits.values()), 1)
        return Result(json={"result": best if hits[best] else None}, confidence=sure)
