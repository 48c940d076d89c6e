"""The choice of a backend: among those that may serve a request, the one with the least cost J.

    J = T + price * utilisation * (delay added to others) + usd weight * usd + joule weight * joule
          + lateness weight * max(0, T at p95 - time left)

in seconds, where T = wait + upload + service. Backends that rules exclude are left out before costs are computed.
The service time of a backend with few measurements is multiplied by `optimism` (at most 1), unless the request has
little time; its queue is known exactly, so the wait is not discounted. The backend chosen last for the class stays
while it is within `hysteresis` of the best.

Pure: no clock, no I/O, no randomness. The same inputs give the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OPTIMISM_SLACK = 2.0  # optimism applies only if this many predicted times are left


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The operator's weights (seconds per dollar, per joule, per second of lateness) and switches.

    rescue: whether stalled work is hedged. rebind: queued work moves if its cost elsewhere is below this share.
    price: the weight of the delay that a request adds to others. routes: the fixed backend of a model or task.
    edge_only: models, tasks and paths that never leave the site; a trailing `*` matches any rest.
    """

    usd: float = 0.0
    joule: float = 0.0
    lateness: float = 0.0
    hysteresis: float = 0.03
    rescue: bool = True
    rebind: float = 0.8
    price: float = 0.5
    routes: Mapping[str, str] = field(default_factory=dict)
    edge_only: tuple[str, ...] = ()


class Query(NamedTuple):
    """The request to decide on. `slack_s`: seconds left; `pinned`: the only backend that may serve it."""

    kind: str
    name: str
    slack_s: float = math.inf
    client_deadline: bool = False
    may_leave: bool = True
    pinned: str | None = None


class Candidate(NamedTuple):
    """One backend's predictions for one request, in seconds; `refused`: why it is excluded, or None."""

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


# An allowed candidate: the J it is ordered by (after optimism), its name, its J, its T, the candidate.
Ranked = tuple[float, str, float, float, Candidate]


class Decision(NamedTuple):
    """The backends to try, best first; the excluded ones with the reason; and the figures used.

    reason: a short code; `why` is the sentence for it. `why` and `candidates` are computed on access.
    """

    order: tuple[str, ...]
    refused: Mapping[str, str]
    reason: str
    predicted_s: float | None
    ranked: tuple[Ranked, ...]

    @property
    def why(self) -> str:
        """The decision explained in one sentence."""
        return _sentence(self)

    @property
    def candidates(self) -> dict[str, dict[str, Any]]:
        """Every candidate in the log's form: `{"t_ms", "j"}`, or `{"refused"}`."""
        account: dict[str, dict[str, Any]] = {
            name: {"t_ms": round(t_s * 1e3, 3), "j": round(j, 6)} for _, name, j, t_s, _ in self.ranked
        }
        account.update({name: {"refused": why} for name, why in self.refused.items()})
        return account


def cost_s(candidate: Candidate, query: Query, policy: Policy) -> float:
    """Return J of one candidate, without optimism."""
    return cost_at(candidate, candidate.t_s, query.slack_s, policy)


def cost_at(candidate: Candidate, t_s: float, slack_s: float, policy: Policy) -> float:
    """Return J of one candidate for a T and a time left that the caller has computed."""
    j = t_s + policy.price * candidate.utilisation * candidate.others_s
    if policy.usd:
        j += policy.usd * candidate.usd
    if policy.joule:
        j += policy.joule * candidate.joule
    if policy.lateness:
        j += policy.lateness * max(t_s - candidate.service_s + candidate.p95_s - slack_s, 0.0)
    return j


def decide(query: Query, candidates: Sequence[Candidate], policy: Policy, last: str | None = None) -> Decision:
    """Order the allowed candidates and name the reason. `last`: the backend that served this class last."""
    refused: dict[str, str] = {}
    ranked: list[Ranked] = []
    route = policy.routes.get(query.name) if policy.routes else None
    is_unrestricted = query.pinned is None and route is None and query.may_leave
    for candidate in candidates:
        refusal = candidate.refused or (None if is_unrestricted else _excluding_rule(candidate, query, route))
        if refusal:
            refused[candidate.name] = refusal
            continue
        t_s = candidate.wait_s + candidate.upload_s + candidate.service_s
        j = rank = cost_at(candidate, t_s, query.slack_s, policy)
        if candidate.optimism < 1.0 and query.slack_s > OPTIMISM_SLACK * t_s:
            rank -= candidate.service_s * (1.0 - candidate.optimism)
        ranked.append((rank, candidate.name, j, t_s, candidate))
    if not ranked:
        return Decision((), refused, "none", None, ())
    if len(ranked) > 1:
        ranked.sort()  # by cost, then by name; names are unique, so later items are not compared
        if last is not None:
            _keep_last(ranked, last, policy.hysteresis)
    order = tuple([entry[1] for entry in ranked])
    return Decision(order, refused, _reason(query, route, ranked, refused, last), ranked[0][3], tuple(ranked))


def _excluding_rule(candidate: Candidate, query: Query, route: str | None) -> str | None:
    if query.pinned is not None and candidate.name != query.pinned:
        return f"the request is pinned to {query.pinned}"
    if not query.may_leave and candidate.site not in ("edge", "hybrid"):
        return "the data may not leave the site"
    if route is not None and query.pinned is None and candidate.name != route:
        return f"the operator routes {query.name} to {route}"
    return None


def _keep_last(ranked: list[Ranked], last: str, hysteresis: float) -> None:
    limit = ranked[0][0] * (1.0 + hysteresis)
    for index, entry in enumerate(ranked):
        if entry[0] > limit:
            return
        if entry[1] == last:
            ranked.insert(0, ranked.pop(index))
            return


def _reason(
    query: Query, route: str | None, ranked: Sequence[Ranked], refused: Mapping[str, str], last: str | None
) -> str:
    if query.pinned is not None:
        return "pinned"
    if route is not None:
        return "route"
    if len(ranked) == 1:
        return "edge-only" if refused and not query.may_leave else "only"
    best_rank, best_name, best_j, best_t_s, _ = ranked[0]
    cheaper = slower = False
    for _, _, j, t_s, _ in ranked:
        cheaper = cheaper or j < best_j
        slower = slower or t_s < best_t_s
    if not cheaper:
        return "cheapest" if slower else "fastest"
    return "kept" if best_name == last and best_rank > ranked[1][0] else "optimistic"


_SENTENCES = {
    "pinned": "the request names {best}",
    "route": "the operator's route names {best}",
    "edge-only": "{best} is the only backend on this site that can serve it",
    "only": "{best} is the only backend that can serve it now",
    "fastest": "{best} is predicted to finish first: {best_ms:.0f} ms, {next} {next_ms:.0f} ms",
    "cheapest": "{best} costs least under the operator's weights, though {next} would take {next_ms:.0f} ms",
    "kept": "{best} served this class last, and {next} would be only slightly better",
    "optimistic": "{best} has few measurements, and there is time to try it",
}


def _sentence(decision: Decision) -> str:
    listed = "; ".join(f"{name}: {why}" for name, why in decision.refused.items())
    if not decision.ranked:
        return f"every backend is excluded: {listed}" if listed else "no backend is configured for it"
    best, other = decision.ranked[0], decision.ranked[1 if len(decision.ranked) > 1 else 0]
    text = _SENTENCES[decision.reason].format(
        best=best[1], best_ms=best[3] * 1e3, next=other[1], next_ms=other[3] * 1e3
    )
    return f"{text} ({listed})" if listed and decision.reason == "only" else text
