"""Liveness: after any sequence of network faults, a backend is a candidate again soon after the path works.

The real health checks run on virtual time against a simulated path. Its rules are those of TCP: a packet on a dead path
is sent again after 1, 2, 4 s and so on, a connection that a NAT has forgotten never answers, and a new connection
costs a round trip for TCP and one for TLS before its first exchange.
"""

from __future__ import annotations

import asyncio
import math

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gateway.health.breaker import Breaker
from gateway.health.quarantine import Quarantine
from gateway.measure.measurements import LinkChange, Measurements
from gateway.plugin import Backend, BackendSettings, LinkSample, Result, Task
from gateway.registry.lifecycle import BackendLifecycle
from gateway.registry.managed_backend import ManagedBackend
from support.virtual_time import virtual_time

NAME = "cloud"
GRACE_S, GRACE_RTTS = 5.0, 4.0
DEMAND_LASTS_S = 600.0
RTTS_S = st.floats(0.001, 3.0)
FIRST_RETRANSMISSION_S = 1.0


class Path:
    """The simulated path and the pool of the plugin."""

    def __init__(self) -> None:
        self.rtt_s, self.fault = 0.05, ""  # fault: "", "refused", "black hole"
        self.lost = 0  # exchanges that are lost although the path works
        self.epoch = 0  # connections of an earlier epoch never answer
        self.warm: list[int] = []  # the epoch of each connection in the pool
        self.dns_s = 0.0

    async def exchange(self, epoch: int) -> None:
        """One packet there and back, with TCP's retransmissions."""
        pause_s = FIRST_RETRANSMISSION_S
        while self.fault == "black hole" or epoch != self.epoch or self._is_lost():
            await asyncio.sleep(pause_s)
            pause_s *= 2
        if self.fault == "refused":
            raise ConnectionRefusedError
        await asyncio.sleep(self.rtt_s)

    def _is_lost(self) -> bool:
        self.lost, is_lost = max(self.lost - 1, 0), self.lost > 0
        return is_lost


class Remote(Backend[BackendSettings]):
    """A backend behind the path, which probes as the http plugin does."""

    site = "cloud"
    tasks = ("add",)

    def __init__(self, path: Path, measurements: Measurements) -> None:
        self.path, self.measurements = path, measurements
        self.is_silent = False

    async def health(self) -> str | None:
        path = self.path
        if self.is_silent:
            path.warm.clear()
        self.is_silent = True
        try:
            is_cold = not path.warm
            if is_cold:
                await asyncio.sleep(path.dns_s)
                epoch = path.epoch
                for _ in ("TCP", "TLS"):
                    await path.exchange(epoch)
            else:
                epoch = path.warm.pop()
            await self._get(epoch)
            if is_cold:
                self.measurements.observe(NAME, LinkSample())
            self.is_silent = False
            rtt_s = path.rtt_s
            await self._get(epoch)
        except ConnectionRefusedError:
            path.warm.clear()
            self.measurements.observe(NAME, LinkSample(failed="refused"))
            return "cannot connect: refused"
        self.measurements.observe(NAME, LinkSample(rtt_s=rtt_s))
        path.warm.append(epoch)
        return None

    async def _get(self, epoch: int) -> None:
        await self.path.exchange(epoch)

    async def run(self, task: Task) -> Result:
        raise NotImplementedError


class AnyFaults(RuleBasedStateMachine):
    """Any order of refusals, black holes, RTT changes, carrier events, address changes, losses and pauses."""

    @initialize()
    def start(self) -> None:
        self.runner = virtual_time()
        loop = self.runner.get_loop()
        self.path = Path()
        self.measurements = Measurements(loop.time, on_link_change=self.on_link_change)
        self.down_at = 0.0
        self.managed = ManagedBackend(
            name=NAME,
            plugin="remote",
            settings=BackendSettings.model_validate({}),
            backend=Remote(self.path, self.measurements),
            breaker=Breaker(loop.time),
            quarantine=Quarantine(loop.time),
        )
        self.demanded_at = 0.0
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.lifecycle = BackendLifecycle(self.measurements, asyncio.get_running_loop().time)
        self.lifecycle.start(self.managed, lambda managed: None)
        await self.managed.opening_done.wait()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.lifecycle.close_all())
            self.runner.close()

    def on_link_change(self, backend: str, change: LinkChange) -> None:
        if change.after == "down":
            self.down_at = self.now

    def sleep(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @property
    def now(self) -> float:
        return self.runner.get_loop().time()

    def why_excluded(self) -> str | None:
        return self.managed.unhealthy_reason or self.measurements.why_down(NAME)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────

    @rule(fault=st.sampled_from(["refused", "black hole"]))
    def fail(self, fault: str) -> None:
        self.path.fault = fault

    @rule(rtt_s=RTTS_S)
    def change_rtt(self, rtt_s: float) -> None:
        self.path.rtt_s = rtt_s

    @rule(upload_s=st.floats(0.01, 60.0))
    def change_rate(self, upload_s: float) -> None:
        if not self.path.fault:
            self.measurements.observe(NAME, LinkSample(upload_bytes=200_000, upload_s=upload_s))

    @rule(is_lost=st.booleans())
    def change_carrier(self, is_lost: bool) -> None:
        (self.measurements.on_carrier_lost if is_lost else self.measurements.on_carrier_back)(NAME)

    @rule()
    def change_address(self) -> None:
        self.path.epoch += 1

    @rule(seconds=st.sampled_from([0.0, 0.5]))
    def change_dns(self, seconds: float) -> None:
        self.path.dns_s = seconds

    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        self.path.lost = count

    @rule(seconds=st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        self.sleep(seconds)

    @rule(seconds=st.floats(30.0, 900.0))
    def wait_long(self, seconds: float) -> None:
        self.sleep(seconds)

    @rule()
    def demand(self) -> None:
        self.measurements.on_demand(NAME)
        self.demanded_at = self.now

    @rule()
    def fail_a_request(self) -> None:
        if self.path.fault == "refused":
            self.measurements.observe(NAME, LinkSample(failed="refused"))

    # ── recovery ─────────────────────────────────────────────────────────────────────────────────

    @rule(rtt_s=RTTS_S)
    @precondition(lambda self: self.now - self.demanded_at < DEMAND_LASTS_S - GRACE_S - GRACE_RTTS * 3.0)
    def recover(self, rtt_s: float) -> None:
        """The path works. An idle link may notice only now that it is slower; that exclusion is as short."""
        self.path.rtt_s, self.path.fault, self.path.lost = rtt_s, "", 0
        recovered_at, grace_s = self.now, GRACE_S + GRACE_RTTS * rtt_s
        self.sleep(grace_s)
        if self.why_excluded() is not None:
            assert self.down_at > recovered_at
            self.sleep(self.down_at + grace_s - self.now)
        assert self.why_excluded() is None
        assert math.isfinite(self.measurements.probe_due_s(NAME))


TestAnyFaults = AnyFaults.TestCase
TestAnyFaults.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
