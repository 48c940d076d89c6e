"""Who is let in, as what, how often and how many at once; by a clock that stands still."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admit import ANYBODY, Caller, Gate, Key
from gateway.admit.keys import SECRET_CHARS, hash_of
from gateway.plugin import GatewayError, TaskRefused
from gateway.testing.clock import FakeClock

SECRET = "s" * SECRET_CHARS
OTHER = "t" * SECRET_CHARS


def key(**rules: object) -> Key:
    return Key(sha256=hash_of(SECRET), **rules)  # type: ignore[arg-type]


def gate(clock: FakeClock | None = None, **rules: object) -> Gate:
    return Gate({"ada": key(**rules), "bob": Key(sha256=hash_of(OTHER))}, clock=clock or FakeClock(), wall=lambda: 0.0)


def refused(gate: Gate, *presented: str) -> str:
    with pytest.raises(GatewayError) as caught:
        gate.known(presented)
    assert caught.value.code == "unauthorized"
    return caught.value.message


def enter(gate: Gate, caller: Caller) -> float | None:
    """None where it gets in, else when it may try again."""
    try:
        gate.enter(caller)
    except TaskRefused as exc:
        return exc.retry_after_s
    return None


# ── who ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_right_key_is_known_by_its_id() -> None:
    caller = gate().known([f"egw_ada_{SECRET}"])
    assert (caller.id, caller.is_known) == ("ada", True)


def test_the_same_key_in_two_headers_is_one_key() -> None:
    assert gate().known([f"egw_ada_{SECRET}"] * 2).id == "ada"


@pytest.mark.parametrize(
    "presented",
    [
        f"egw_ada_{OTHER}",
        f"egw_eve_{SECRET}",
        f"egw_ada_{SECRET}x",
        f"egw__{SECRET}",
        f"egw_ada_{SECRET}\n",
        f"EGW_ada_{SECRET}",
        "sk-something-of-another-service",
        "egw_ada_",
        "é",
    ],
)
def test_a_wrong_key_is_wrong_in_the_same_words_whether_its_id_is_known_or_not(presented: str) -> None:
    assert refused(gate(), presented) == "the API key is wrong, or was revoked"


def test_no_key_and_two_keys_are_refused() -> None:
    assert "Authorization: Bearer" in refused(gate())
    assert "two different" in refused(gate(), f"egw_ada_{SECRET}", f"egw_bob_{OTHER}")


def test_an_expired_key_says_so_to_who_has_its_secret_only() -> None:
    past = gate(expires=datetime.fromtimestamp(0, UTC))
    assert "expired" in refused(past, f"egw_ada_{SECRET}")
    assert "wrong" in refused(past, f"egw_ada_{OTHER}")


def test_where_no_keys_are_configured_credentials_mean_nothing() -> None:
    assert Gate().known(["sk-whatever", "another"]) is ANYBODY


def test_where_the_file_is_empty_nobody_gets_in() -> None:
    refused(Gate({}), f"egw_ada_{SECRET}")


def test_a_door_that_knows_its_key_names_it() -> None:
    assert gate().named("bob").id == "bob"
    with pytest.raises(GatewayError, match="no API key 'eve'"):
        gate().named("eve")


# ── what ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_asks_for_what_it_lists_and_nothing_else() -> None:
    caller = gate(models=("assistant", "cloud/*"), tasks=()).named("ada")
    for name in ("assistant", "cloud/gpt"):
        caller.check("chat", name)
    for kind, name in (("chat", "auto"), ("chat", "edge/assistant"), ("chat", "assistant2"), ("task", "assistant")):
        with pytest.raises(GatewayError) as caught:
            caller.check(kind, name)  # type: ignore[arg-type]
        assert caught.value.code == "forbidden"


def test_a_keys_own_limit_only_ever_lowers_everybodys() -> None:
    assert gate(max_body_bytes=10).named("ada").max_bytes(100) == 10
    assert gate(max_body_bytes=1000).named("ada").max_bytes(100) == 100
    assert ANYBODY.max_bytes(100) == 100


# ── how often, how many ──────────────────────────────────────────────────────────────────────────


def test_a_burst_passes_then_the_rate_holds_and_says_when_to_come_back() -> None:
    clock = FakeClock()
    it = gate(clock, requests_per_minute=60, burst=3)
    ada = it.named("ada")
    assert [enter(it, ada) for _ in range(4)] == [None, None, None, pytest.approx(1.0)]
    clock.move(0.75)
    assert enter(it, ada) == pytest.approx(0.25)
    clock.move(0.25)
    assert enter(it, ada) is None


@given(st.floats(1, 6000), st.integers(1, 50), st.lists(st.floats(0, 30), max_size=60))
def test_no_pattern_of_asking_gets_more_than_the_rate_and_the_burst(
    per_minute: float, burst: int, pauses: list[float]
) -> None:
    clock = FakeClock(0.0)
    it = gate(clock, requests_per_minute=per_minute, burst=burst)
    ada, passed = it.named("ada"), 0
    for pause in [0.0, *pauses]:
        clock.move(pause)
        passed += enter(it, ada) is None
    assert passed <= burst + clock.now_s * per_minute / 60 + 1e-6


def test_so_many_are_open_at_once_and_one_that_leaves_makes_room() -> None:
    it = gate(concurrency=1)
    first, second = it.named("ada"), it.named("ada")
    assert enter(it, first) is None
    assert enter(it, second) is not None
    first.leave()
    assert enter(it, second) is None


def test_a_refused_request_takes_nothing_from_the_rate() -> None:
    it = gate(concurrency=1, requests_per_minute=60, burst=2)
    ada = it.named("ada")
    assert enter(it, ada) is None
    assert enter(it, ada) is not None
    ada.leave()
    assert enter(it, ada) is None


def test_new_keys_take_hold_and_a_key_that_stays_keeps_what_it_has_used() -> None:
    it = gate(concurrency=1)
    ada = it.named("ada")
    enter(it, ada)
    it.replace({"ada": key(concurrency=1)})
    assert enter(it, it.named("ada")) is not None
    refused(it, f"egw_bob_{OTHER}")
    ada.leave()
    assert enter(it, it.named("ada")) is None
