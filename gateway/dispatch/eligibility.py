"""What the operator keeps on the site: the one place that says so, for requests and for subtasks."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.admit.keys import matches


def is_edge_only(edge_only: tuple[str, ...], names: Iterable[str], places: Iterable[str] = ()) -> bool:
    """Whether the operator keeps one of these models or tasks on the site, or what comes by one of these places.

    names: as they were asked for, pinned or not, and what they may become. places: the path, and the MQTT topic.
    In capitals or not: some servers do not tell them apart.
    """
    if not edge_only:
        return False
    rules = tuple(rule.casefold() for rule in edge_only)
    spelt = [each for name in names for each in (name, name.partition("/")[2])]
    return any(matches(rules, each.casefold()) for each in (*spelt, *places))
