"""Test equipment for the gateway's own tests and for plugin authors.

    answer = await answer_of(Shout, a_task("shout", {"text": "hello"}), suffix="?")     one request, one answer
    await check_backend(Shout)                                                          all conformance checks

    async with running_gateway(GATEWAY_BACKENDS__E__PLUGIN="echo") as gateway:
        async with gateway.session() as http, http.post(f"{gateway.url}/v1/tasks/echo", json=1) as answer:
            assert (await answer.json()) == {"result": 1}
        line = await gateway.line("request.finished")

`FakeClock` is a clock that only the test advances. `FakeNetwork` is a service on loopback that fails on demand.
"""

from gateway.testing.clock import FakeClock
from gateway.testing.conformance import CHECKS, Outcome, check_backend, examine
from gateway.testing.network import FAULTS, FakeNetwork
from gateway.testing.requests import a_task, answer_of, parts_of
from gateway.testing.running import Lines, RunningGateway, running_gateway

__all__ = [
    "CHECKS",
    "FAULTS",
    "FakeClock",
    "FakeNetwork",
    "Lines",
    "Outcome",
    "RunningGateway",
    "a_task",
    "answer_of",
    "check_backend",
    "examine",
    "parts_of",
    "running_gateway",
]
