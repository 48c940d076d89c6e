"""What is wrong with a configuration: each problem with its variable and a fix; all of them, not the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it. Never holds a secret's value."""

    variable: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.message}. Fix: {self.fix}"


class SettingsError(Exception):
    """The configuration cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name a person most likely meant, or None where none is as near as `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def nearest_of_all(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, however far it is; `known` is not empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
