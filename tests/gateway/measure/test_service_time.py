"""Service-time prediction: learning from samples, bounds, drift and persistence."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.measure.measurements import PRIOR_CLOUD_S, Measurements
from gateway.measure.service_time import Drift, ServiceTime
from gateway.plugin import LinkSample
from support.clock import Clock

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def measurements(clock: Clock) -> Measurements:
    measurements = Measurements(clock)
    measurements.add("edge", remote=False)
    return measurements


def learn_line(
    measurements: Measurements, clock: Clock, samples: int, slowdown: float = 1.0, noise: float = 0.1
) -> None:
    rng = random.Random(samples)
    for _ in range(samples):
        x = rng.uniform(10.0, 100.0)
        measurements.learn("edge", "task", "detect", x, (0.1 + 0.01 * x) * slowdown * math.exp(rng.gauss(0.0, noise)))
        clock.now += 1.0


def test_prediction_without_samples_is_the_prior(measurements: Measurements) -> None:
    measurements.add("edge", remote=False)
    measurements.add("cloud", remote=True)
    assert measurements.predict("edge", "task", "detect", 5.0).samples == 0
    assert (
        measurements.predict("edge", "task", "detect", 5.0).mean_s
        < measurements.predict("cloud", "task", "detect", 5.0).mean_s
    )


def test_one_sample_replaces_the_prior(measurements: Measurements) -> None:
    measurements.learn("edge", "task", "detect", 5.0, 4.0)
    assert measurements.predict("edge", "task", "detect", 5.0).mean_s == pytest.approx(4.0)


def test_one_small_sample_barely_changes_predictions_for_large_sizes(measurements: Measurements) -> None:
    measurements.learn("cloud", "chat", "m", 100.0, 0.5)
    assert measurements.predict("cloud", "chat", "m", 8000.0).mean_s <= 1.0


def test_first_large_sample_corrects_a_slope_that_is_too_steep(measurements: Measurements) -> None:
    for x, seconds in ((92, 0.5), (67, 0.62), (1291, 0.52)):
        measurements.learn("cloud", "chat", "m", x, seconds)
    assert measurements.predict("cloud", "chat", "m", 1291).mean_s < 1.0


def test_outlying_first_sample_is_outweighed_by_the_next_samples(measurements: Measurements) -> None:
    measurements.learn("cloud", "chat", "m", 236, 5.36)  # a long response to a short prompt
    for x, seconds in ((2147, 0.81), (2507, 0.57), (3397, 0.6), (3854, 0.95), (2157, 0.62), (1257, 0.41), (5886, 1.15)):
        measurements.learn("cloud", "chat", "m", x, seconds)
    assert measurements.predict("cloud", "chat", "m", 3000).mean_s < 1.5


@pytest.mark.parametrize("first", [0.01, 30.0])
@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0])
def test_sixty_similar_samples_outweigh_any_first_sample(first: float, spread: float) -> None:
    known, rng = ServiceTime(), random.Random(7)
    sizes = [10.0 * spread ** rng.random() for _ in range(60)]
    known.learn(sizes[0], first, 0.0)
    for x in sizes:
        known.learn(x, rng.uniform(0.5, 2.0), 1.0)
    for x in sizes[-20:]:
        assert 0.2 < known.usual_s(x) < 4.0


SAMPLES = st.lists(st.tuples(st.floats(0.0, 1e12), st.floats(1e-5, 86_400.0)), min_size=1, max_size=60)


@given(SAMPLES, st.floats(0.0, 1e12))
@example([(0.0, 0.15625), (314083024365.0, 0.125), (206652809.0, 1.0)], 0.0)  # rounding once made a variance negative
def test_predictions_stay_within_four_times_the_observed_range(samples: list[tuple[float, float]], size: float) -> None:
    known = ServiceTime()
    for x, seconds in samples:
        known.learn(x, seconds, 1.0)
    taken = [seconds for _, seconds in samples]
    for x in (*(x for x, _ in samples), size):
        assert min(taken) / 4.001 <= known.usual_s(x) <= 4.001 * max(taken)


def test_fifty_samples_of_known_sizes_predict_within_fifteen_percent(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 50)
    for x in (20.0, 50.0, 90.0):
        assert measurements.predict("edge", "task", "detect", x).mean_s == pytest.approx(0.1 + 0.01 * x, rel=0.15)


def test_increased_round_trip_is_added_to_the_learned_service_time(measurements: Measurements, clock: Clock) -> None:
    measurements.add("cloud", remote=True)
    for _ in range(20):
        measurements.observe("cloud", LinkSample(rtt_s=0.01))
        measurements.learn("cloud", "task", "add", 1.0, 0.03)
        clock.now += 1.0
    for _ in range(4):
        measurements.observe("cloud", LinkSample(rtt_s=0.3))
        clock.now += 1.0
    assert measurements.predict("cloud", "task", "add", 1.0).mean_s == pytest.approx(0.32, rel=0.15)


def test_slowdown_of_a_backend_applies_to_all_its_classes(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 50)
    for _ in range(50):
        measurements.learn("edge", "task", "other", 10.0, 1.0)
        clock.now += 1.0
    learn_line(measurements, clock, 8, slowdown=1.8)
    assert measurements.predict("edge", "task", "other", 10.0).mean_s > 1.4
    clock.now += 600.0
    assert measurements.predict("edge", "task", "other", 10.0).mean_s == pytest.approx(1.0, rel=0.15)


def test_one_outlier_barely_changes_mean_and_p95(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 50, noise=0.05)
    before = measurements.predict("edge", "task", "detect", 50.0)
    measurements.learn("edge", "task", "detect", 50.0, 60.0)
    after = measurements.predict("edge", "task", "detect", 50.0)
    assert after.mean_s < before.mean_s * 1.35
    assert after.p95_s < before.p95_s * 1.6


def test_p95_matches_the_noise_of_the_samples(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 200, noise=0.3)
    estimate = measurements.predict("edge", "task", "detect", 50.0)
    assert estimate.p95_s / estimate.mean_s == pytest.approx(math.exp(1.645 * 0.3), rel=0.25)


def test_timeout_raises_the_prediction(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 20)
    before = measurements.predict("edge", "task", "detect", 50.0).mean_s
    measurements.on_timeout("edge", "task", "detect", 50.0, 10.0)
    assert measurements.predict("edge", "task", "detect", 50.0).mean_s > before


def test_timeout_shorter_than_the_prediction_is_ignored(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 20)
    before = measurements.predict("edge", "task", "detect", 50.0)
    measurements.on_timeout("edge", "task", "detect", 50.0, 0.01)
    assert measurements.predict("edge", "task", "detect", 50.0) == before


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 0.0, 1e9])
def test_impossible_durations_are_ignored(measurements: Measurements, seconds: float) -> None:
    measurements.learn("edge", "task", "detect", 5.0, seconds)
    measurements.on_timeout("edge", "task", "detect", 5.0, seconds)
    assert measurements.predict("edge", "task", "detect", 5.0).samples == 0


@given(st.lists(st.tuples(ANY_FLOAT, ANY_FLOAT, ANY_FLOAT), max_size=40), ANY_FLOAT)
def test_predictions_stay_positive_and_finite_for_any_samples(
    samples: list[tuple[float, float, float]], asked: float
) -> None:
    clock = Clock()
    measurements = Measurements(clock)
    measurements.add("b", remote=False)
    for x, seconds, step in samples:
        measurements.learn("b", "task", "m", x, seconds)
        clock.now += step if abs(step) < 1e6 else 0.0  # the clock may jump in both directions
    estimate = measurements.predict("b", "task", "m", asked)
    assert 0.0 < estimate.mean_s < math.inf
    assert estimate.mean_s <= estimate.p95_s < math.inf
    assert 0.0 < estimate.optimism <= 1.0


def test_learned_service_times_survive_a_restart(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 50)
    again = Measurements(clock)
    again.restore(measurements.save({"edge": "h"}), {"edge": "h"})
    again.add("edge", remote=False)
    now, then = again.predict("edge", "task", "detect", 50.0), measurements.predict("edge", "task", "detect", 50.0)
    assert now.mean_s == pytest.approx(then.mean_s, rel=0.1)
    assert now.samples == then.samples


def test_changed_settings_discard_learned_service_times(measurements: Measurements, clock: Clock) -> None:
    learn_line(measurements, clock, 50)
    again = Measurements(clock)
    again.restore(measurements.save({"edge": "h"}), {"edge": "other"})
    again.add("edge", remote=False)
    assert again.predict("edge", "task", "detect", 50.0).samples == 0


def test_restored_remote_backend_keeps_the_remote_prior(clock: Clock) -> None:
    before, again = Measurements(clock), Measurements(clock)
    before.add("cloud", remote=True)
    before.learn("cloud", "task", "detect", 5.0, 1.0)
    again.restore(before.save({"cloud": "h"}), {"cloud": "h"})
    again.add("cloud", remote=True)
    assert again.predict("cloud", "task", "detect", 5.0).samples == 1
    assert again.predict("cloud", "task", "never seen", 5.0).mean_s == PRIOR_CLOUD_S


def test_learned_service_times_are_kept_for_a_backend_that_does_not_open(
    measurements: Measurements, clock: Clock
) -> None:
    learn_line(measurements, clock, 50)
    saved, again = measurements.save({"edge": "h"}), Measurements(clock)
    again.restore(saved, {"edge": "h"})
    assert again.save({"edge": "h"}) == saved
    again.remove("edge")
    assert again.save({}) == {}


def test_reading_an_unknown_backend_does_not_create_it(clock: Clock) -> None:
    measurements = Measurements(clock)
    measurements.link("nobody")
    measurements.on_carrier_lost("nobody")
    measurements.on_demand("nobody")
    measurements.learn("nobody", "task", "detect", 5.0, 1.0)
    assert measurements.predict("nobody", "task", "detect", 5.0).samples == 0
    assert measurements.status()["backends"] == {}


DAMAGED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(DAMAGED)
def test_damaged_saved_state_is_skipped(damaged: object) -> None:
    measurements = Measurements(Clock())
    for saved in (damaged, {"edge": damaged}, {"edge": {"settings": "h", "classes": damaged, "uplink": damaged}}):
        measurements.restore(saved, {"edge": "h"})
    measurements.add("edge", remote=False)
    assert measurements.predict("edge", "task", "m", 1.0).mean_s > 0.0


def test_optimism_grows_only_after_many_decisions_and_minutes_without_selection(
    measurements: Measurements, clock: Clock
) -> None:
    measurements.add("slow", remote=False)
    for _ in range(10):
        measurements.learn("slow", "task", "m", 1.0, 3.0)
    assert measurements.predict("slow", "task", "m", 1.0).optimism == 1.0
    for _ in range(600):
        measurements.on_passed_over("slow", "task", "m")
    assert measurements.predict("slow", "task", "m", 1.0).optimism > 0.95
    clock.now += 120.0
    assert measurements.predict("slow", "task", "m", 1.0).optimism == pytest.approx(1 / 3)
    measurements.learn("slow", "task", "m", 1.0, 3.0)
    assert measurements.predict("slow", "task", "m", 1.0).optimism == 1.0


def test_drift_decays_to_one_over_time() -> None:
    drift = Drift(0.004)
    for at in range(20):
        drift.learn(0.6, 0.01, float(at))
    assert drift.slowdown(20.0) == pytest.approx(math.exp(0.6), rel=0.1)
    assert drift.slowdown(1000.0) == pytest.approx(1.0, rel=0.01)


def test_regression_stays_stable_when_all_sizes_are_equal() -> None:
    known = ServiceTime()
    for at in range(5000):
        known.learn(10.0, 0.5, float(at))
    known.learn(20.0, 0.9, 5001.0)
    assert 0.5 < known.usual_s(20.0) < 1.2
    assert known.usual_s(10.0) == pytest.approx(0.5, rel=0.1)
