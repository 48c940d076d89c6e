"""The choice: among backends that may serve a request, the one whose cost J is least.

    J = T + price * utilisation * (delay added to others) + usd weight * usd + joule weight * joule
          + lateness weight * max(0, T at p95 - time left)

in seconds, T being wait + upload + service. What is not allowed is out before anything is reckoned. A backend
that is not well known gets the benefit of the doubt (`optimism`, at most 1, on its service time: what waits
there is known well enough), unless the request has no time to lose. The backend chosen last for the class stays
while it is within `hysteresis` of the best.

Pure: no clock, no I/O, no randomness; the same inputs give the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OPTIMISM_SLACK = 2.0  # a doubtful backend is tried only with this many predicted times left


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The operator's weights: seconds per dollar, per joule, per second of lateness; and switches."""

    usd: float = 0.0
    joule: float = 0.0
    lateness: float = 0.0
    hysteresis: float = 0.03
    rescue: bool = True
    rebind: float = 0.8
    price: float = 0.5
    routes: Mapping[str, str] = field(default_factory=dict)
    probe_s: float = 1.0


class Query(NamedTuple):
    """What is to be decided. `slack_s`: time left; `last`: the backend chosen last for this class."""

    kind: str
    name: str
    slack_s: float = math.inf
    client_deadline: bool = False
    may_leave: bool = True
    pinned: str | None = None


class Candidate(NamedTuple):
    """One backend as it stands for one request. Seconds; `refused` says why it is out, if it is."""

    name: str
    site: str
    refused: str | None = None
    wait_s: float = 0.0
    upload_s: float = 0.0
    service_s: float = 0.0
    p95_s: float = 0.0
    samples: int = 0
    usd: float = 0.0
    joule: float = 0.0
    others_s: float = 0.0
    utilisation: float = 0.0
    optimism: float = 1.0

    @property
    def t_s(self) -> float:
        """Predicted seconds from now to the answer."""
        return self.wait_s + self.upload_s + self.service_s


class Decision(NamedTuple):
    """Where to go, best first; who is out and why; and the figures it was taken on."""

    order: tuple[str, ...]
    refused: Mapping[str, str]
    why: str
    reason: str
    predicted_s: float | None
    candidates: Mapping[str, Mapping[str, Any]]


def cost_s(candidate: Candidate, query: Query, policy: Policy) -> float:
    """J of one candidate, without any benefit of the doubt."""
    t_s = candidate.wait_s + candidate.upload_s + candidate.service_s
    j = t_s + policy.price * candidate.utilisation * candidate.others_s
    if policy.usd:
        j += policy.usd * candidate.usd
    if policy.joule:
        j += policy.joule * candidate.joule
    if policy.lateness:
        late_s = candidate.wait_s + candidate.upload_s + candidate.p95_s - query.slack_s
        if late_s > 0.0:
            j += policy.lateness * late_s
    return j


def decide(query: Query, candidates: Sequence[Candidate], policy: Policy, last: str | None = None) -> Decision:
    """Order the candidates that are allowed, and say why. Raises nothing."""
    refused: dict[str, str] = {}
    account: dict[str, dict[str, Any]] = {}
    ranked: list[tuple[float, float, Candidate]] = []
    route = policy.routes.get(query.name) if policy.routes else None
    for candidate in candidates:
        out = candidate.refused or _rule(candidate, query, route)
        if out:
            refused[candidate.name] = out
            account[candidate.name] = {"refused": out}
            continue
        j = cost_s(candidate, query, policy)
        t_s = candidate.wait_s + candidate.upload_s + candidate.service_s
        account[candidate.name] = {"t_ms": round(t_s * 1e3, 3), "j": round(j, 6)}
        doubted = candidate.optimism < 1.0 and query.slack_s > OPTIMISM_SLACK * t_s
        doubt_s = candidate.service_s * (1.0 - candidate.optimism) if doubted else 0.0
        ranked.append((j - doubt_s, j, candidate))
    if not ranked:
        return Decision((), refused, _nobody(refused), "none", None, account)
    if len(ranked) > 1:
        ranked.sort(key=_by_cost)
        _keep_last(ranked, last, policy.hysteresis)
    best = ranked[0][2]
    reason = _reason(query, route, ranked, refused, last)
    why = _sentence(reason, ranked, refused)
    order = tuple([entry[2].name for entry in ranked])
    return Decision(order, refused, why, reason, best.wait_s + best.upload_s + best.service_s, account)


def _by_cost(entry: tuple[float, float, Candidate]) -> tuple[float, str]:
    return entry[0], entry[2].name


def _rule(candidate: Candidate, query: Query, route: str | None) -> str | None:
    if query.pinned is not None and candidate.name != query.pinned:
        return f"the request is pinned to {query.pinned}"
    if not query.may_leave and candidate.site == "cloud":
        return "the data may not leave the site"
    if route is not None and query.pinned is None and candidate.name != route:
        return f"the operator routes {query.name} to {route}"
    return None


def _keep_last(ranked: list[tuple[float, float, Candidate]], last: str | None, hysteresis: float) -> None:
    if last is None or ranked[0][2].name == last:
        return
    for index, entry in enumerate(ranked):
        if entry[2].name == last and entry[0] <= ranked[0][0] * (1.0 + hysteresis):
            ranked.insert(0, ranked.pop(index))
            return


def _reason(
    query: Query,
    route: str | None,
    ranked: list[tuple[float, float, Candidate]],
    refused: Mapping[str, str],
    last: str | None,
) -> str:
    if query.pinned is not None:
        return "pinned"
    if route is not None:
        return "route"
    if len(ranked) == 1:
        return "edge-only" if refused and not query.may_leave else "only"
    best = ranked[0]
    if best[1] <= min(entry[1] for entry in ranked):
        return "fastest" if best[2].t_s <= min(entry[2].t_s for entry in ranked) else "cheapest"
    return "kept" if best[2].name == last and best[0] > ranked[1][0] else "optimistic"


_SENTENCES = {
    "pinned": "the request names {best}",
    "route": "the operator's route names {best}",
    "edge-only": "{best} is the one backend on this site that can serve it",
    "only": "{best} is the one backend that can serve it now",
    "fastest": "{best} is predicted to finish first: {best_ms:.0f} ms, {next} {next_ms:.0f} ms",
    "cheapest": "{best} costs least under the operator's weights, though {next} would take {next_ms:.0f} ms",
    "kept": "{best} served this class last, and {next} would be hardly better",
    "optimistic": "{best} is not well known yet, and a try is affordable",
}


def _sentence(reason: str, ranked: list[tuple[float, float, Candidate]], refused: Mapping[str, str]) -> str:
    best, other = ranked[0][2], ranked[1 if len(ranked) > 1 else 0][2]
    text = _SENTENCES[reason].format(best=best.name, best_ms=best.t_s * 1e3, next=other.name, next_ms=other.t_s * 1e3)
    return f"{text} ({_listed(refused)})" if refused and reason == "only" else text


def _nobody(refused: Mapping[str, str]) -> str:
    return f"no backend can serve it: {_listed(refused)}" if refused else "no backend is configured for it"


def _listed(refused: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in refused.items())
