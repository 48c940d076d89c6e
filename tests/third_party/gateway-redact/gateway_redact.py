"""The task `redact`: masks email addresses, IBANs and phone numbers.

It runs at the edge, before a text is sent elsewhere.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import ClassVar, Literal

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, Result, Task

What = Literal["email", "iban", "phone"]

PATTERNS: dict[What, str] = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "iban": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "phone": r"(?<!\w)\+?\d[\d ()/-]{6,}\d(?!\w)",
}


class Settings(BackendSettings):
    """The settings of the backend."""

    masks: tuple[What, ...] = Field(("email", "iban", "phone"), description="the kinds of text to mask")
    mask: str = Field("[{what}]", description="the replacement; `{what}` stands for the kind")


class Redact(Backend[Settings]):
    """Returns the masked text, and the count of each kind."""

    site = "edge"
    isolation = "process"  # a text of megabytes takes seconds and must not block other requests
    slots = 2
    tasks = ("redact",)
    examples: ClassVar = {"redact": {"text": "Call +44 20 7946 0018, or write to ada@example.org."}}

    async def run(self, task: Task) -> Result:
        """`{"text": …}` in, `{"result": {"text": …, "masked": {"email": 1}}}` out."""
        text = task.argument("text", str)
        found: Counter[str] = Counter()
        for what in self.settings.masks:
            text, found[what] = re.subn(PATTERNS[what], self.settings.mask.format(what=what), text)
        return Result(json={"result": {"text": text, "masked": {what: n for what, n in found.items() if n}}})
