"""The metrics, declared once, and their text form (Prometheus exposition format 0.0.4).

They are plain dictionaries: an update costs well under a microsecond. A library would be the 21st distribution of a
gateway that promises at most 20 (docs/decisions.md). Tests read the text with the official parser. Label values are
names from the configuration or words from a fixed set, never text from a client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATIOS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)

REGISTRY: list[Metric] = []


class Metric:
    """A named family of time series, one per combination of label values."""

    kind = "untyped"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = ()) -> None:
        self.name, self.doc, self.labels = f"edge_gateway_{name}", doc, tuple(labels)
        REGISTRY.append(self)

    def key(self, labels: dict[str, str]) -> tuple[str, ...]:
        """The label values in the order of the labels. Raises KeyError if a label is missing."""
        return tuple(labels[name] for name in self.labels)

    def samples(self) -> Iterator[str]:
        """The lines of its time series, without HELP and TYPE."""
        raise TypeError(f"{type(self).__name__} has no samples of its own")

    def text(self) -> str:
        """The metric in the exposition format, with HELP and TYPE."""
        head = f"# HELP {self.name} {self.doc}\n# TYPE {self.name} {self.kind}\n"
        return head + "".join(f"{line}\n" for line in self.samples())

    def series(self, key: tuple[str, ...], *more: tuple[str, str], suffix: str = "") -> str:
        """The name of one time series with its labels, in the exposition format."""
        pairs = [*zip(self.labels, key, strict=True), *more]
        inner = ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)
        return f"{self.name}{suffix}{{{inner}}}" if inner else f"{self.name}{suffix}"


class Counter(Metric):
    """A value that only increases."""

    kind = "counter"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = ()) -> None:
        super().__init__(name, doc, labels)
        self.values: dict[tuple[str, ...], float] = {}

    def inc(self, by: float = 1.0, **labels: str) -> None:
        key = self.key(labels)
        self.values[key] = self.values.get(key, 0.0) + by

    def samples(self) -> Iterator[str]:
        for key, value in sorted(self.values.items()):
            yield f"{self.series(key)} {value:g}" if value < 1e6 else f"{self.series(key)} {value!r}"


class Gauge(Counter):
    """A value that may increase and decrease."""

    kind = "gauge"

    def set(self, value: float | None, **labels: str) -> None:
        """Set the value. None (unknown) removes the series."""
        if value is None:
            self.values.pop(self.key(labels), None)
        else:
            self.values[self.key(labels)] = value

    def retain(self, label: str, known: Container[str]) -> None:
        """Remove the series with a value of `label` that is not in `known`."""
        at = self.labels.index(label)
        self.values = {key: value for key, value in self.values.items() if key[at] in known}

    def samples(self) -> Iterator[str]:
        for key, value in sorted(self.values.items()):
            yield f"{self.series(key)} {value!r}"


class Histogram(Metric):
    """Counts of values by upper bound, and their sum."""

    kind = "histogram"

    def __init__(self, name: str, doc: str, labels: Iterable[str] = (), *, bounds: tuple[float, ...] = SECONDS) -> None:
        super().__init__(name, doc, labels)
        self.bounds = bounds
        self.counts: dict[tuple[str, ...], list[float]] = {}

    def observe(self, value: float, **labels: str) -> None:
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
    """All metrics in the exposition format."""
    return "".join(metric.text() for metric in REGISTRY)


def retain_backends(known: Container[str]) -> None:
    """Remove the gauges of all other backends; else an alert on a removed backend would never end. Counters stay."""
    for metric in REGISTRY:
        if isinstance(metric, Gauge) and "backend" in metric.labels:
            metric.retain("backend", known)


REQUESTS = Counter("requests_total", "Requests that ended.", ("door", "kind", "backend", "outcome"))
DURATION = Histogram("request_duration_seconds", "Time from the request's head to its end.", ("kind", "backend"))
STAGE = Histogram("stage_duration_seconds", "Time in one term of the account.", ("stage",))
DECISIONS = Counter("decisions_total", "Decisions made.", ("backend", "reason"))
PREDICTION_ERROR = Histogram(
    "prediction_error_ratio", "|predicted - actual| / actual of served requests.", ("backend",), bounds=RATIOS
)
RTT = Gauge("network_rtt_seconds", "HTTP round trip on a warm connection, smoothed.", ("backend",))
LINK_RATE = Gauge("link_bytes_per_second", "Measured throughput.", ("backend", "direction"))
LANE_WAITING = Gauge("lane_waiting", "Tasks waiting in the gateway.", ("backend",))
LANE_BUSY = Gauge("lane_busy", "Slots in use.", ("backend",))
BREAKER = Gauge("breaker_state", "0 closed, 1 half open, 2 open.", ("backend",))
LOAD = Gauge("device_load", "Load of the device: cpu, psi, mem as ratios, temp_c in degrees.", ("resource",))
SHED = Counter("shed_total", "Requests refused to protect the other requests.", ("reason",))
LOOP_STALL = Histogram("loop_stall_seconds", "Delay of a timer of the event loop.")
STALLS = Counter(
    "loop_stalls_total",
    "Times code blocked the event loop for 0.1 s or more, by backend.",
    ("backend",),
)
LEAKED = Gauge("tasks_leaked", "Cancelled attempts that have not ended.", ("backend",))
DRAINING = Gauge("slots_draining", "Slots that work on a cancelled request, for which no client waits.", ("backend",))
EGRESS = Counter("egress_bytes_total", "Bytes of request bodies passed to backends off this site.", ("backend",))
LOG_DROPPED = Counter("log_dropped_lines_total", "Log lines that could neither be written nor buffered.")
BUILD = Gauge("build_info", "Always 1; the labels give the versions.", ("version", "python"))
