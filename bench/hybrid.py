"""The hybrid's modes: scatter against static splits, cascade, and hedge.

    ./run bench hybrid                       everything, about five minutes
    ./run bench hybrid --quick               the same with fewer repetitions
    ./run bench hybrid --traces FOLDER       recorded uplinks (mahimahi, *.up) beside the synthetic ones
    ./run bench hybrid --svg FILE            the curves, as docs/hybrid.md shows them

Gateways are real processes. As root the cloud is behind an emulated link between network namespaces, otherwise behind
a delay proxy. One part is a simulation and labelled so: there the plugin itself runs in virtual time against all static
splits. The exit status is 1 if a figure is outside the project's bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("bench", "", "plugins", "tests")]

from hybrid_world import cascade, real, tails  # noqa: E402
from hybrid_world.plot import Line, Plot, svg  # noqa: E402
from hybrid_world.simulated import batches, compare, percentile, summary  # noqa: E402
from hybrid_world.uplinks import Uplink, recorded, synthetic  # noqa: E402
from hybrid_world.utterances import spoken  # noqa: E402

THRESHOLD = 0.5
MAX_MEDIAN, MAX_P95, MAX_STEADY, MAX_EXTRA = 1.12, 1.4, 1.2, 0.05


class Report:
    """The measured figures, and the ones outside their bounds."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.broken: list[str] = []

    def check(self, is_kept: bool, promise: str) -> None:
        print(f"  {'kept  ' if is_kept else 'BROKEN'} {promise}", flush=True)
        if not is_kept:
            self.broken.append(promise)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows with columns of fitting width."""
    cells = [[_cell(value) for value in row] for row in [headings, *rows]]
    widths = [max(len(row[n]) for row in cells) for n in range(len(headings))]
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in
                               enumerate(zip(row, widths, strict=True))), flush=True)  # fmt: skip


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


# ── the parts ────────────────────────────────────────────────────────────────────────────────────


def simulated(report: Report, uplinks: Sequence[Uplink], quick: bool) -> None:
    count = 30 if quick else 120
    print(
        f"\nscatter / best of all static splits, {count} batches for each uplink (simulated: the plugin, virtual time)"
    )
    outcomes = {u.name: [compare(batch, n) for n, batch in enumerate(batches(u, count, 1))] for u in uplinks}
    every = [each for some in outcomes.values() for each in some]
    found = {name: summary(some) for name, some in outcomes.items()} | {"all": summary(every)}
    columns = ("median", "p95", "worst", "edge_median", "cloud_median", "both_useful", "not_below_single")
    table(["uplink", *columns], [[name, *(figures[c] for c in columns)] for name, figures in found.items()])
    report.data["simulated"] = found
    report.data["ratios"] = sorted(each.ratio for each in every)
    report.data["singles"] = sorted(min(each.edge_s, each.cloud_s) / each.best_s for each in every)
    total = found["all"]
    report.check(
        total["median"] <= MAX_MEDIAN, f"makespan, median: {total['median']:.2f} of {MAX_MEDIAN} times the best"
    )
    report.check(total["p95"] <= MAX_P95, f"makespan, p95: {total['p95']:.2f} of {MAX_P95} times the best")
    for name, some in outcomes.items():
        useful = [each for each in some if each.both_useful]
        share = median(each.scatter_s / min(each.edge_s, each.cloud_s) for each in useful)
        report.check(
            share < 1.0, f"{name}: below both single sides where both are useful (median {share:.2f} of the better)"
        )


async def steady(report: Report, quick: bool) -> None:
    found = report.data["steady"] = await real.steady_pair(batches=3 if quick else 9)
    middle = median(found["taken_s"])
    print(f"\na steady pair, 60 items, 40 and 20 ms each ({found['link']})")
    table(
        ["", "s"],
        [
            ["ideal", found["ideal_s"]],
            ["median", middle],
            ["worst", max(found["taken_s"])],
            *([f"predicted {name}", seconds] for name, seconds in found["predicted_s"].items()),
        ],
    )
    print(
        f"  chosen: {', '.join(found['chosen'])}; shares {found['shares']}; {found['groups']} groups, {found['r_path']}"
    )
    report.check(middle <= MAX_STEADY * found["ideal_s"], f"at most {MAX_STEADY} times the ideal: {middle / 0.8:.2f}")
    report.check(set(found["chosen"]) == {"both"}, "the split is the policy's own choice")


async def outages(report: Report, quick: bool) -> None:
    found = report.data["outages"] = await real.through_outages(items=2000 if quick else 10_000)
    print(f"\n{found['items']} items while the link fails for 0.8 s every 1.8 s ({found['link']})")
    names = ("taken_s", "edge_alone_s", "outages", "by_cloud", "groups", "moved", "lost", "out_of_order")
    table(names, [[found[name] for name in names]])
    report.check(found["lost"] == found["out_of_order"] == 0, "nothing lost, nothing out of order")


async def stretches(report: Report, uplinks: Sequence[Uplink], quick: bool) -> None:
    found = report.data["stretches"] = await real.over_uplinks(uplinks, 1 if quick else 3)
    print("\nscatter and five static splits over the same stretch of an uplink, real processes; seconds")
    rows = [[each["uplink"], each["scatter_s"], *each["static_s"].values()] for each in found]
    table(["uplink", "scatter", "edge", "1/4", "1/2", "3/4", "cloud"], rows)
    ratios = [each["scatter_s"] / min(each["static_s"].values()) for each in found]
    singles = [each["scatter_s"] / min(each["static_s"][0.0], each["static_s"][1.0]) for each in found]
    print(f"  scatter / best of the five: median {median(ratios):.2f}, worst {max(ratios):.2f}; "
          f"/ the better single side: median {median(singles):.2f}")  # fmt: skip
    report.data["stretch_ratios"] = {"median": median(ratios), "p95": percentile(ratios, 0.95), "worst": max(ratios)}


async def speech(report: Report, quick: bool) -> None:
    if importlib.util.find_spec("pocketsphinx") is None:
        print("\ncascade: skipped, pocketsphinx is not installed")
        return
    utterances = spoken()
    heard = await cascade.listen(utterances[::2] if quick else utterances, THRESHOLD)
    sets = {"chosen on": [h for h in heard if not h.utterance.is_held_out],
            "held out": [h for h in heard if h.utterance.is_held_out]}  # fmt: skip
    found = report.data["cascade"] = {
        name: {"curve": cascade.curve(some), "measured": cascade.measured(some)} for name, some in sets.items() if some
    }
    for name, figures in found.items():
        count = figures["measured"]["utterances"]
        print(
            f"\ncascade on speech, {count} utterances, voices {name}: by threshold, from the transcripts of each side"
        )
        columns = ("threshold", "accuracy", "exact", "cloud_share", "mean_s")
        table(columns, [[point[c] for c in columns] for point in figures["curve"]])
        print("  measured at", THRESHOLD, {key: round(value, 3) for key, value in figures["measured"].items()})


async def heavy_tail(report: Report, quick: bool) -> None:
    found = report.data["hedge"] = await tails.hedged(300 if quick else 1000)
    print(f"\nhedge, 3 calls in 100 take twenty to forty times as long, {found['requests']} requests ({found['link']})")
    columns = ("mean_s", "p50_s", "p95_s", "p99_s")
    table(["", *columns], [[name, *(found[name][c] for c in columns)] for name in ("unhedged", "hedged")])
    print(f"  extra calls: {found['extra_share']:.1%}")
    report.check(found["extra_share"] <= MAX_EXTRA, f"at most {MAX_EXTRA:.0%} extra calls: {found['extra_share']:.1%}")
    report.check(found["hedged"]["p99_s"] < found["unhedged"]["p99_s"], "the 99th percentile is cut")


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


def plots(data: dict[str, Any]) -> str:
    ratios, singles = data["ratios"], data["singles"]
    steps = [n / len(ratios) for n in range(1, len(ratios) + 1)]
    frames = [
        Plot(
            "makespan / best static split",
            "ratio",
            "share of batches",
            (1.0, 2.0),
            (0.0, 1.0),
            [
                Line("scatter", list(zip(ratios, steps, strict=True))),
                Line("the better single side", list(zip(singles, steps, strict=True))),
            ],
        )
    ]
    if "cascade" in data:
        frames.append(
            Plot(
                "cascade on speech",
                "share of requests sent to the cloud",
                "words right",
                (0.0, 1.0),
                (0.3, 1.0),
                [
                    Line(f"voices {name}", [(p["cloud_share"], p["accuracy"]) for p in figures["curve"]])
                    for name, figures in data["cascade"].items()
                ],
            )
        )
    return svg(frames)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the plots to this file")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="recorded uplinks, mahimahi's format, *.up")
    parser.add_argument(
        "--only", default="", help="comma-separated parts of simulated,steady,outages,stretches,speech,tail"
    )
    args = parser.parse_args(argv)
    made = synthetic()
    traces = [recorded(path) for path in sorted(args.traces.glob("*.up"))] if args.traces else []
    report, before = Report(), os.getloadavg()[0]
    parts: dict[str, Callable[[], Any]] = {
        "simulated": lambda: simulated(report, [*made, *traces], args.quick),
        "steady": lambda: asyncio.run(steady(report, args.quick)),
        "outages": lambda: asyncio.run(outages(report, args.quick)),
        "stretches": lambda: asyncio.run(stretches(report, traces or made[1:], args.quick)),
        "speech": lambda: asyncio.run(speech(report, args.quick)),
        "tail": lambda: asyncio.run(heavy_tail(report, args.quick)),
    }
    for name, run in parts.items():
        if not args.only or name in args.only.split(","):
            run()
    report.data["load_average"] = {"before": before, "after": os.getloadavg()[0], "cores": os.cpu_count()}
    print(f"\nload average before {before:.1f}, after {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores")
    if args.json:
        args.json.write_text(json.dumps(report.data | {"broken": report.broken}, indent=1) + "\n")
    if args.svg and "ratios" in report.data:
        args.svg.write_text(plots(report.data))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
