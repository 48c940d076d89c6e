"""Who serves what. What is not known yet is told to come back, not that it does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gateway.plugin import GatewayError, Kind
from gateway.registry.managed_backend import AUTO, ManagedBackend


@dataclass(frozen=True, slots=True)
class ServingBackends:
    """Who serves a name: the backend's own name for it by backend, the one that was pinned, if any, and who they were.

    By the time work starts somebody else may have the name.
    """

    names: Mapping[str, str]
    pinned: str | None = None
    members: Mapping[str, ManagedBackend] = field(default_factory=dict)


class Catalog:
    """The names clients may use, and which of `members` serves each. Members come and go."""

    def __init__(self) -> None:
        self.members: dict[str, ManagedBackend] = {}

    def offer(self, kind: Kind, name: str) -> ServingBackends:
        """Who serves `name`. Raises GatewayError: not found (with the nearest name), or not known yet."""
        pin, _, rest = name.partition("/")
        if kind != "task" and rest and pin in self.members:
            names = self._among({pin: self.members[pin]}, kind, rest, name)
            return ServingBackends(names, pin, {pin: self.members[pin]})
        names = self._among(self.members, kind, name, name)
        return ServingBackends(names, None, {each: self.members[each] for each in names})

    def _among(self, members: Mapping[str, ManagedBackend], kind: Kind, name: str, asked: str) -> dict[str, str]:
        found = {m.name: own for m in members.values() if (own := m.serves(kind, name)) is not None}
        if found:
            return found
        unknown = [m.name + (f" ({m.unwell})" if m.unwell else "") for m in members.values() if not m.knows(kind)]
        if unknown:
            raise GatewayError(
                f"what {', '.join(unknown)} serves is not known yet; try again shortly",
                code="unavailable",
                retry_after_s=1.0,
            )
        what = "task" if kind == "task" else "model"
        near = difflib.get_close_matches(asked, self.names(kind), n=1)
        raise GatewayError(
            f"no backend serves the {what} {asked!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            code="not_found" if kind == "task" else "model_not_found",
            param=None if kind == "task" else "model",
        )

    def auto_off_site(self, kind: Kind) -> Iterator[str]:
        """The clients' names of the models that `auto` may become where data leaves the site."""
        for member in self.members.values():
            if member.site != "edge" and member.serves(kind, AUTO) is not None:
                yield next(iter(member.models or ()))

    def task_names(self) -> dict[str, list[str]]:
        """Every task a client may ask for, with the backends that serve it."""
        out: dict[str, list[str]] = {}
        for member in self.members.values():
            for task in (member.tasks or {}) if member.state == "serving" else {}:
                out.setdefault(task, []).append(member.name)
        return out

    def names(self, kind: Kind | None = None) -> dict[str, str]:
        """Every name a client may use for `kind` (None: any model), with who serves it; `edge-gateway`: several."""
        out: dict[str, str] = {}
        for member in self.members.values():
            if member.state != "serving":
                continue
            if kind == "task":
                out |= dict.fromkeys(member.tasks or {}, member.name)
            elif (kind is None or member.has(kind)) and (models := member.models):
                for model in models:
                    out[model] = "edge-gateway" if model in out else member.name
                    out[f"{member.name}/{model}"] = member.name
        if kind != "task" and out:
            out[AUTO] = "edge-gateway"
        return out
