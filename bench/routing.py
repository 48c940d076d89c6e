"""Routing decisions: the gateway against other policies and oracles, simulated.

    ./run bench routing [--traces DIR] [--seeds 1-6] [--load 0.5,1.0] [--duration 1200] [--without PART]
                        [--json FILE] [--plot FILE]

Trace-driven and synthetic links, bursty arrivals, a throttled edge box, a cloud with stragglers. `Measurements`,
`Scheduler` and `decide` are the production code, on a virtual clock. DIR holds links in mahimahi's format (`*.up`) and
optionally LLM arrivals (`*.csv`: TIMESTAMP,ContextTokens,GeneratedTokens). docs/routing.md explains the output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT)]

from routing_world import report, rivals  # noqa: E402
from routing_world.arrivals import Request, arrivals  # noqa: E402
from routing_world.links import SYNTHETIC, Link, recorded, rtt_of  # noqa: E402
from routing_world.ours import PARTS, Gateway, LateOracle, leave_out  # noqa: E402
from routing_world.record import Record  # noqa: E402
from routing_world.world import Throttle  # noqa: E402

from gateway.policy import Policy  # noqa: E402

NEIGHBOUR = ROOT.parent / "shared" / "traces"  # default folder of recorded links
O1 = rivals.OneShotOracle.name


def numbers(text: str) -> list[int]:
    """Parse `1-3,7` into [1, 2, 3, 7]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def links(traces: Path | None, seed: int, duration_s: float) -> Iterator[Link]:
    for path in sorted(traces.glob("*.up")) if traces else ():
        yield recorded(path, seed, duration_s, rtt_of(path.stem))
    for make in SYNTHETIC.values():
        yield make(seed, duration_s)


def contestants(seed: int) -> list[rivals.Rival]:
    return [
        rivals.OneShotOracle(seed),
        rivals.Always(seed, "edge"),
        rivals.Always(seed, "cloud"),
        rivals.Random(seed),
        rivals.LeastRequest(seed),
        rivals.PeakEwma(seed),
        rivals.LowestLatency(seed),
        rivals.RttThreshold(seed),
    ]


def race(requests: list[Request], link: Link, throttle: Throttle, seed: int, policy: Policy) -> dict[str, Record]:
    """Run every policy on one link, with the same requests and the same throttling."""
    records = {rival.name: rivals.run_rival(rival, requests, link, throttle) for rival in contestants(seed)}
    for gateway in (Gateway(requests, link, throttle, policy), LateOracle(requests, link, throttle)):
        records[gateway.name] = gateway.run()
    return records


def main() -> None:
    settings = _arguments()
    traces: Path | None = settings.traces or (NEIGHBOUR if NEIGHBOUR.is_dir() else None)
    trace = next(iter(sorted(traces.glob("*.csv"))), None) if traces else None
    policy = leave_out(settings.without) if settings.without else Policy()
    began = time.monotonic()
    results: dict[float, dict[str, dict[str, float]]] = {}
    for load in settings.load:
        runs: dict[str, list[report.Run]] = {}
        for seed in settings.seeds:
            requests = arrivals(seed, settings.duration, load, trace)
            throttle = Throttle(seed, settings.duration)
            for link in links(traces, seed, settings.duration):
                records = race(requests, link, throttle, seed, policy)
                for name, record in records.items():
                    runs.setdefault(name, []).append(report.Run(link.name, seed, record, records[O1]))
        results[load] = {name: report.summary(of_one) for name, of_one in runs.items()}
        _show(load, runs, results[load])
    print(f"\n{time.monotonic() - began:.0f} s; LLM arrivals {'recorded' if trace else 'synthetic'}")
    if settings.json:
        settings.json.write_text(json.dumps(report.as_json(results, {"seeds": settings.seeds}), indent=1) + "\n")
    if settings.plot:
        settings.plot.write_text(report.plot(results))


def _show(load: float, runs: dict[str, list[report.Run]], summaries: dict[str, dict[str, float]]) -> None:
    ours = summaries[Gateway.name]
    print(f"\nload {load:g}: {len(runs[O1])} runs, {ours['requests']:.0f} requests", end="; ")
    print(f"a decision takes {ours['decision_p95_us']:.0f} µs at p95 (2 backends)\n")
    print("\n".join(report.table(summaries)), end="\n\n")
    print("\n".join(report.by_link(runs, (Gateway.name, LateOracle.name))), end="\n\n")
    for goal, reached in report.verdicts(load, summaries, Gateway.name):
        print(f"{'reached' if reached else 'MISSED':8} {goal}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench routing", description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=numbers, default=numbers("1-6"))
    parser.add_argument("--load", type=lambda text: [float(part) for part in text.split(",")], default=[0.5, 1.0])
    parser.add_argument("--duration", type=float, default=1200.0, help="seconds of virtual time per run")
    parser.add_argument("--without", choices=PARTS, help="disable this part of the gateway")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG of the means")
    return parser.parse_args()


if __name__ == "__main__":
    main()
