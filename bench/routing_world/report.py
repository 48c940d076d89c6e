"""Tables and figures of runs.

Ratios to O1 are geometric means over links and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .record import Record


class Run(NamedTuple):
    """One policy's run, with O1's on the same link, seed and load."""

    link: str
    seed: int
    record: Record
    oracle: Record


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def ratio(runs: Sequence[Run], figure: Callable[[Record], float]) -> float:
    """Return the geometric mean of a figure over O1's."""
    return geometric_mean(figure(run.record) / figure(run.oracle) for run in runs)


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else math.nan


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Return the figures of one policy over all its runs."""
    requests = sum(len(run.record.latencies) for run in runs)
    decisions = [us for run in runs for us in run.record.decisions_us]
    return {
        "mean_ratio": ratio(runs, Record.mean),
        "p50_ratio": ratio(runs, lambda r: r.percentile(0.5)),
        "p95_ratio": ratio(runs, lambda r: r.percentile(0.95)),
        "p99_ratio": ratio(runs, lambda r: r.percentile(0.99)),
        "mean_s": sum(sum(run.record.latencies.values()) for run in runs) / requests,
        "misses_percent": 100 * sum(run.record.late for run in runs) / requests,
        "oracle_misses_percent": 100 * sum(run.oracle.late for run in runs) / requests,
        "edge_percent": 100 * sum(site == "edge" for run in runs for site in run.record.sites.values()) / requests,
        "duplicates_percent": 100 * sum(run.record.duplicates for run in runs) / requests,
        "moves_percent": 100 * sum(run.record.moves for run in runs) / requests,
        "decision_p95_us": quantile(decisions, 0.95),
        "requests": requests,
    }


COLUMNS = (
    ("mean/O1", "mean_ratio", "8.3f"),
    ("p50/O1", "p50_ratio", "7.3f"),
    ("p95/O1", "p95_ratio", "7.3f"),
    ("p99/O1", "p99_ratio", "7.3f"),
    ("mean s", "mean_s", "8.2f"),
    ("late %", "misses_percent", "7.2f"),
    ("edge %", "edge_percent", "7.1f"),
    ("twice %", "duplicates_percent", "8.2f"),
    ("moved %", "moves_percent", "8.1f"),
)


def table(summaries: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return one line per policy, best first."""
    lines = [f"{'policy':24}" + "".join(f"{title:>{_width(form) + 1}}" for title, _, form in COLUMNS)]
    for name, figures in sorted(summaries.items(), key=lambda item: item[1]["mean_ratio"]):
        lines.append(f"{name:24}" + "".join(f" {figures[key]:{form}}" for _, key, form in COLUMNS))
    return lines


def _width(form: str) -> int:
    return int(form.split(".")[0])


def by_link(runs: Mapping[str, Sequence[Run]], names: Iterable[str]) -> list[str]:
    """Return mean and p99 over O1 per link, for some policies."""
    names = list(names)
    lines = [
        f"{'link':24}" + "".join(f"{name:>26}" for name in names),
        f"{'':24}" + f"{'mean':>17}{'p99':>9}" * len(names),
    ]
    for link in dict.fromkeys(run.link for run in runs[names[0]]):
        cells = ""
        for name in names:
            here = [run for run in runs[name] if run.link == link]
            cells += f"{ratio(here, Record.mean):17.2f}{ratio(here, lambda r: r.percentile(0.99)):9.2f}"
        lines.append(f"{link:24}{cells}")
    return lines


TARGETS: Mapping[float, float] = {0.5: 1.08, 1.0: 0.97}  # mean over O1, by load
P99_TARGET, LATE_TARGET_POINTS, TWICE_TARGET_PERCENT = 1.10, 1.0, 2.0


def verdicts(load: float, summaries: Mapping[str, Mapping[str, float]], ours: str) -> list[tuple[str, bool]]:
    """Return the goals, each with whether it was reached."""
    mine = summaries[ours]
    rivals = [f["mean_ratio"] for name, f in summaries.items() if name != ours and not name.startswith("O")]
    goals: list[tuple[str, bool]] = []
    if load in TARGETS:
        goals.append((f"mean/O1 <= {TARGETS[load]}", mine["mean_ratio"] <= TARGETS[load]))
    goals.append((f"p99/O1 <= {P99_TARGET}", mine["p99_ratio"] <= P99_TARGET))
    late_points = mine["misses_percent"] - mine["oracle_misses_percent"]
    goals.append((f"late within {LATE_TARGET_POINTS} point of O1", late_points <= LATE_TARGET_POINTS))
    goals.append((f"twice <= {TWICE_TARGET_PERCENT} %", mine["duplicates_percent"] <= TWICE_TARGET_PERCENT))
    goals.append(("every rival behind", mine["mean_ratio"] < min(rivals)))
    return goals


def plot(results: Mapping[float, Mapping[str, Mapping[str, float]]]) -> str:
    """An SVG: mean/O1 of every policy as bars on a logarithmic axis.

    Each load has its own colour.
    """
    loads = sorted(results)
    names = sorted(results[loads[-1]], key=lambda name: results[loads[-1]][name]["mean_ratio"])
    colours = ("#7aa6c2", "#1f4e79", "#0b2239")
    bar, gap, left, width = 11, 9, 190, 470
    high = max(figures["mean_ratio"] for of_load in results.values() for figures in of_load.values()) * 1.2
    low = 0.5

    def x(value: float) -> float:
        return left + width * math.log(value / low) / math.log(high / low)

    rows: list[str] = []
    y = 34.0
    for name in names:
        rows.append(f'<text x="{left - 8}" y="{y + bar * len(loads) / 2 + 4:.0f}" text-anchor="end">{name}</text>')
        for colour, load in zip(colours, loads, strict=False):
            value = results[load][name]["mean_ratio"]
            a, b = sorted((x(1.0), x(value)))
            rows.append(
                f'<rect x="{a:.1f}" y="{y:.0f}" width="{max(b - a, 1):.1f}" height="{bar - 1}" fill="{colour}"/>'
            )
            rows.append(f'<text x="{b + 4:.1f}" y="{y + 9:.0f}" class="n">{value:.2f}</text>')
            y += bar
        y += gap
    legend = "  ".join(
        f'<tspan fill="{colour}">■</tspan> load {load:g}' for colour, load in zip(colours, loads, strict=False)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{y:.0f}" '
        'font-family="sans-serif" font-size="12"><style>.n{font-size:9px;fill:#555}</style>'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{left}" y="18">mean latency / clairvoyant one-shot choice (O1), log scale   {legend}</text>'
        f'<line x1="{x(1):.1f}" x2="{x(1):.1f}" y1="26" y2="{y:.0f}" stroke="#999"/>' + "".join(rows) + "</svg>\n"
    )


def as_json(results: Mapping[float, Mapping[str, Mapping[str, float]]], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"settings": dict(settings), "loads": {f"{load:g}": dict(of_load) for load, of_load in results.items()}}
