"""For every test: under CI=true a skip is a failure, `net` needs root; `clients` and `box` run only when asked for.

What hypothesis tries is the same in every run of CI, so that a green change stays green; developers' machines
go on looking for new counterexamples.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

from support.programs import CLIENTS_PYTHON, why_no_namespaces

IN_CI = os.environ.get("CI", "").lower() == "true"

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
if IN_CI:
    hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = {marker for marker in ("clients", "box") if marker not in config.option.markexpr}
    heavy = [item for item in items if any(item.get_closest_marker(marker) for marker in unasked)]
    if heavy:
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in heavy]
    no_namespaces = why_no_namespaces()
    for item in items:
        if no_namespaces and item.get_closest_marker("net"):
            item.add_marker(pytest.mark.skip(reason=f"emulated links: {no_namespaces}"))
        if item.get_closest_marker("clients") and not CLIENTS_PYTHON.exists():
            item.add_marker(pytest.mark.skip(reason="no .venv-clients: ./run test --clients makes it"))


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
