"""For every test: under CI=true a skip is a failure, `net` needs root; `clients` and `box` run only when asked for.

What hypothesis tries is the same in every run of CI, so that a green change stays green; developers' machines
go on looking for new counterexamples.

`./run test` passes `-n auto`: the whole suite runs in one worker process for each core, a selection of it (by a path,
-k or -m, or with -s) in one process. Tests marked `alone` come last, and each runs while the other workers wait: they
measure time or memory, and a second busy process changes what they measure.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from support.programs import CLIENTS_PYTHON, what_is_skipped, why_no_namespaces

IN_CI = os.environ.get("CI", "").lower() == "true"

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
if IN_CI:
    hypothesis.settings.load_profile("ci")


def is_selection(config: pytest.Config) -> bool:
    """Whether the command line picks some of the tests."""
    option = config.option
    named = config.args_source is config.ArgsSource.ARGS
    return bool(named or option.keyword or option.markexpr or option.capture == "no")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return 0 if is_selection(config) else len(os.sched_getaffinity(0))


def pytest_report_header(config: pytest.Config) -> list[str]:
    apart = {marker for marker in ("clients", "box") if marker in config.option.markexpr}
    return [] if is_selection(config) and not apart else what_is_skipped(apart or {"test", "net"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = {marker for marker in ("clients", "box") if marker not in config.option.markexpr}
    heavy = [item for item in items if any(item.get_closest_marker(marker) for marker in unasked)]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in heavy]
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)  # stable: else in the order of the files
    no_namespaces = why_no_namespaces()
    for item in items:
        if no_namespaces and item.get_closest_marker("net"):
            item.add_marker(pytest.mark.skip(reason=f"emulated links: {no_namespaces}"))
        if item.get_closest_marker("clients") and not CLIENTS_PYTHON.exists():
            item.add_marker(pytest.mark.skip(reason="no .venv-clients: ./run test --clients makes it"))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of pytest-timeout: a test's time begins after its wait
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):
        return (yield)
    shared = Path(item.config.option.basetemp).parent  # each worker has a folder in it
    with turn(shared, is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def turn(folder: Path, *, is_alone: bool) -> Iterator[None]:
    """Hold off while another worker's test is alone; is_alone: begin when no other test runs, and hold the others off.

    Each test passes the gate one by one, so that new tests do not overtake one that waits to be alone.
    """
    with (folder / "gate").open("w") as gate, (folder / "running").open("w") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        fail_instead_of_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:  # pytest.importorskip at the top of a file
        fail_instead_of_skipping(report)
    return report


def fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A skip carries (path, line, reason) as its longrepr; a failure with the same words takes its place."""
    where = report.longrepr
    why = f"{where[0]}:{where[1]}: {where[2]}" if isinstance(where, tuple) else str(where)
    report.outcome = "failed"
    report.longrepr = f"skipped, which under CI=true is a failure: {why}"


@pytest.fixture(scope="session")
def clients_python() -> str:
    """The Python of the venv that holds the heavy client programs (marker `clients`)."""
    return str(CLIENTS_PYTHON)
