"""Which failure is told of several."""

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
def test_that_one_lacks_the_endpoint_hides_no_other_failure(failure: GatewayError) -> None:
    for order in itertools.permutations([LACKS, failure, LACKS]):
        assert functools.reduce(error_to_report, order) is failure


def test_of_two_that_are_alike_the_later_is_told() -> None:
    assert error_to_report(None, LACKS) is LACKS
    assert error_to_report(FAILS, LATE) is LATE
    assert error_to_report(LATE, FAILS) is FAILS
