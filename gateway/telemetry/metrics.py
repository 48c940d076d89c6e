"""The metrics, declared once, and the text they are read as (Prometheus exposition format 0.0.4).

Plain dictionaries: an update costs well under a microsecond. A library would have been the 21st
distribution of a gateway that promises 20 (docs/decisions.md); tests read the text with the official parser.
Label values are names an operator chose or words from a fixed set, never a client's text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIOS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)

REGISTRY: list[Metric] = []


class Metric:
    """A named family of time series, one for each combination of label values."""

    kind = "untyped"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = ()) -> None:
        self.name, self.doc, self.labels = f"edge_gateway_{name}", doc, tuple(labels)
        REGISTRY.append(self)

    def key(self, labels: dict[str, str]) -> tuple[str, ...]:
        """The label values in the order of the labels. Raises KeyError for one that is missing."""
        return tuple(labels[name] for name in self.labels)

    def samples(self) -> Iterator[str]:
        """Its lines of the exposition, without the head."""
        raise TypeError(f"{type(self).__name__} has no samples of its own")

    def text(self) -> str:
        """Its part of the exposition."""
        head = f"# HELP {self.name} {self.doc}\n# TYPE {self.name} {self.kind}\n"
        return head + "".join(f"{line}\n" for line in self.samples())

    def series(self, key: tuple[str, ...], *more: tuple[str, str], suffix: str = "") -> str:
        """The name of one time series, as the exposition writes it."""
        pairs = [*zip(self.labels, key, strict=True), *more]
        inner = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
        return f"{self.name}{suffix}{{{inner}}}" if inner else f"{self.name}{suffix}"


class Counter(Metric):
    """Only goes up."""

    kind = "counter"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = ()) -> None:
        super().__init__(name, doc, labels)
        self.values: dict[tuple[str, ...], float] = {}

    def inc(self, by: float = 1.0, **labels: str) -> None:
        """Add `by`."""
        key = self.key(labels)
        self.values[key] = self.values.get(key, 0.0) + by

    def samples(self) -> Iterator[str]:
        for key, value in sorted(self.values.items()):
            yield f"{self.series(key)} {value:g}" if value < 1e6 else f"{self.series(key)} {value!r}"


class Gauge(Counter):
    """Goes up and down."""

    kind = "gauge"

    def set(self, value: float | None, **labels: str) -> None:
        """Set it; None, unknown, removes the series."""
        if value is None:
            self.values.pop(self.key(labels), None)
        else:
            self.values[self.key(labels)] = value

    def keep(self, label: str, known: Container[str]) -> None:
        """Drop the series whose `label` has a value that is none of `known`: what is gone has no state."""
        at = self.labels.index(label)
        self.values = {key: value for key, value in self.values.items() if key[at] in known}

    def samples(self) -> Iterator[str]:
        for key, value in sorted(self.values.items()):
            yield f"{self.series(key)} {value!r}"


class Histogram(Metric):
    """Counts of values by upper bound."""

    kind = "histogram"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = (), *, bounds: tuple[float, ...] = SECONDS) -> None:
        super().__init__(name, doc, labels)
        self.bounds = bounds
        self.counts: dict[tuple[str, ...], list[float]] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count one value."""
        row = self.counts.setdefault(self.key(labels), [0.0] * (len(self.bounds) + 2))
        row[bisect_left(self.bounds, value)] += 1
        row[-1] += value

    def samples(self) -> Iterator[str]:
        for key, row in sorted(self.counts.items()):
            total = 0.0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), row, strict=False):
                total += count
                yield f"{self.series(key, ('le', bound), suffix='_bucket')} {total:g}"
            yield f"{self.series(key, suffix='_sum')} {row[-1]!r}"
            yield f"{self.series(key, suffix='_count')} {total:g}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def exposition() -> str:
    """All metrics as text."""
    return "".join(metric.text() for metric in REGISTRY)


def forget_backends_but(known: Container[str]) -> None:
    """Drop the gauges of all other backends, or an alert on one that was removed would never end. Counters stay."""
    for metric in REGISTRY:
        if isinstance(metric, Gauge) and "backend" in metric.labels:
            metric.keep("backend", known)


REQUESTS = Counter("requests_total", "Requests ended.", ("door", "kind", "backend", "outcome"))
DURATION = Histogram("request_duration_seconds", "From the request's head to its end.", ("kind", "backend"))
STAGE = Histogram("stage_duration_seconds", "Time in one term of the account.", ("stage",))
DECISIONS = Counter("decisions_total", "Decisions taken.", ("backend", "reason"))
PREDICTION_ERROR = Histogram(
    "prediction_error_ratio", "|predicted - actual| / actual of requests served.", ("backend",), bounds=RATIOS
)
RTT = Gauge("network_rtt_seconds", "HTTP round trip on a warm connection, smoothed.", ("backend",))
LINK_RATE = Gauge("link_bytes_per_second", "Measured throughput.", ("backend", "direction"))
LANE_WAITING = Gauge("lane_waiting", "Tasks waiting in the gateway.", ("backend",))
LANE_BUSY = Gauge("lane_busy", "Slots at work.", ("backend",))
BREAKER = Gauge("breaker_state", "0 closed, 1 half open, 2 open.", ("backend",))
LOAD = Gauge("device_load", "Load of the device: cpu, psi, mem as ratios, temp_c in degrees.", ("resource",))
SHED = Counter("shed_total", "Requests refused to protect the rest.", ("reason",))
LOOP_STALL = Histogram("loop_stall_seconds", "How late the event loop ran a timer.")
STALLS = Counter("loop_stalls_total", "Times the loop stood still for 0.1 s, by whose code held it.", ("backend",))
LEAKED = Gauge("tasks_leaked", "Cancelled attempts that do not end.", ("backend",))
EGRESS = Counter("egress_bytes_total", "Bytes of bodies handed to backends off the site.", ("backend",))
LOG_DROPPED = Counter("log_dropped_lines_total", "Lines of the log that could neither be written nor kept.")
BUILD = Gauge("build_info", "Always 1; the labels tell what runs.", ("version", "python"))
