"""The error to report when several attempts fail."""

from __future__ import annotations

import functools
import itertools

import pytest

from gateway.dispatch.retry import error_to_report
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, NotServed

LACKS = NotServed("no such endpoint", code="not_found", status=404)
MAY_NOT = NotServed("its rules forbid it", code="no_backend")
FAILS, LATE = BackendUnavailable("it failed"), DeadlineExceeded("it was late")


@pytest.mark.parametrize("failure", [FAILS, LATE, MAY_NOT])
def test_missing_endpoint_error_never_replaces_another_failure(failure: GatewayError) -> None:
    for order in itertools.permutations([LACKS, failure, LACKS]):
        assert functools.reduce(error_to_report, order) is failure


def test_later_of_two_equal_failures_is_reported() -> None:
    assert error_to_report(None, LACKS) is LACKS
    assert error_to_report(FAILS, LATE) is LATE
    assert error_to_report(LATE, FAILS) is FAILS
