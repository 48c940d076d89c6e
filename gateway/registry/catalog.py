"""Looks up the backends that serve a model or task.

While a backend still starts, or if it failed to open, names that may be its own get 503 with Retry-After, not 404.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gateway.plugin import GatewayError, Kind
from gateway.plugin.spelling import nearest
from gateway.registry.managed_backend import AUTO, ManagedBackend

FAILED_RETRY_S = 5.0  # Retry-After for the names of a backend that failed to open, which is tried again


@dataclass(frozen=True, slots=True)
class ServingBackends:
    """The backends that serve a name.

    names: by backend, its own name for the requested name. pinned: the backend that the client chose, if it did.
    members: those backends at the time of the lookup; a reload may give a name to another one before the work starts.
    """

    names: Mapping[str, str]
    pinned: str | None = None
    members: Mapping[str, ManagedBackend] = field(default_factory=dict)


class Catalog:
    """The names that clients may use, and the backends in `members` that serve each. A reload changes `members`."""

    def __init__(self) -> None:
        self.members: dict[str, ManagedBackend] = {}

    def resolve(self, kind: Kind, name: str) -> ServingBackends:
        """The backends that serve `name`.

        Raises GatewayError: not found (with the nearest name), or unavailable while names are not known yet, or if a
        backend that may serve it failed to open.
        """
        pin, _, rest = name.partition("/")
        if kind != "task" and rest and pin in self.members:
            names = self._own_names({pin: self.members[pin]}, kind, rest, name)
            return ServingBackends(names, pin, {pin: self.members[pin]})
        names = self._own_names(self.members, kind, name, name)
        return ServingBackends(names, None, {each: self.members[each] for each in names})

    def _own_names(
        self, members: Mapping[str, ManagedBackend], kind: Kind, name: str, requested: str
    ) -> dict[str, str]:
        found = {m.name: own for m in members.values() if (own := m.own_name(kind, name)) is not None}
        if found:
            return found
        unknown = [
            m.name + (f" ({m.unhealthy_reason})" if m.unhealthy_reason else "")
            for m in members.values()
            if not m.is_catalog_known(kind)
        ]
        if unknown:
            raise GatewayError(
                f"the models and tasks of {', '.join(unknown)} are not known yet; try again shortly",
                code="unavailable",
                retry_after_s=1.0,
            )
        if failed := [m for m in members.values() if m.may_own_unopened(kind, name)]:
            reasons = "; ".join(f"backend `{m.name}` failed to open: {m.error}" for m in failed)
            raise GatewayError(
                f"{requested!r} cannot be served, or is not known: {reasons}",
                code="unavailable",
                retry_after_s=FAILED_RETRY_S,
            )
        what = "task" if kind == "task" else "model"
        near = nearest(requested, self.owners(kind))
        raise GatewayError(
            f"no backend serves the {what} {requested!r}" + (f"; did you mean {near!r}?" if near else ""),
            code="not_found" if kind == "task" else "model_not_found",
            param=None if kind == "task" else "model",
        )

    def aliased_names(self, kind: Kind, name: str) -> set[str]:
        """The backends' own names for `name`, pinned or not."""
        pin, _, rest = name.partition("/")
        requested = {name, rest} if kind != "task" and pin in self.members else {name}
        found = {member.own_name(kind, each) for member in self.members.values() for each in requested}
        return {own for own in found if own}

    def auto_models_off_site(self, kind: Kind) -> Iterator[str]:
        """The clients' names of the models that `auto` may select at a backend that is not on this site."""
        for managed in self.members.values():
            if managed.site != "edge" and managed.own_name(kind, AUTO) is not None:
                yield next(iter(managed.models or ()))

    def task_names(self) -> dict[str, list[str]]:
        """Every task that clients may use, with the backends that serve it."""
        out: dict[str, list[str]] = {}
        for managed in self.members.values():
            for task in (managed.tasks or {}) if managed.state == "serving" else {}:
                out.setdefault(task, []).append(managed.name)
        return out

    def owners(self, kind: Kind | None = None) -> dict[str, str]:
        """Every name that clients may use for `kind` (None: any model), with its backend; `edge-gateway`: several."""
        out: dict[str, str] = {}
        for managed in self.members.values():
            if managed.state != "serving":
                continue
            if kind == "task":
                out |= dict.fromkeys(managed.tasks or {}, managed.name)
            elif (kind is None or managed.supports(kind)) and (models := managed.models):
                for model in models:
                    out[model] = "edge-gateway" if model in out else managed.name
                    out[f"{managed.name}/{model}"] = managed.name
        if kind != "task" and out:
            out[AUTO] = "edge-gateway"
        return out
