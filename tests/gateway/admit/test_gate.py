"""API-key authentication, permissions, rate and concurrency limits."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admit import ANONYMOUS, Caller, Gate, Key
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
        gate.authenticate(presented)
    assert caught.value.code == "unauthorized"
    return caught.value.message


def enter(gate: Gate, caller: Caller) -> float | None:
    """Return None if the caller is admitted, else its Retry-After in seconds."""
    try:
        gate.admit(caller)
    except TaskRefused as exc:
        return exc.retry_after_s
    return None


# ── authentication ───────────────────────────────────────────────────────────────────────────────


def test_valid_key_identifies_its_caller() -> None:
    caller = gate().authenticate([f"egw_ada_{SECRET}"])
    assert (caller.id, caller.key is not None) == ("ada", True)


def test_same_key_in_two_headers_is_accepted() -> None:
    assert gate().authenticate([f"egw_ada_{SECRET}"] * 2).id == "ada"


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
def test_wrong_key_gets_the_same_error_whether_or_not_its_id_exists(presented: str) -> None:
    assert refused(gate(), presented) == "the API key is wrong, or was revoked"


def test_missing_key_and_two_different_keys_are_refused() -> None:
    assert "Authorization: Bearer" in refused(gate())
    assert "two different" in refused(gate(), f"egw_ada_{SECRET}", f"egw_bob_{OTHER}")


def test_expiry_is_revealed_only_to_a_caller_with_the_correct_secret() -> None:
    past = gate(expires=datetime.fromtimestamp(0, UTC))
    assert "expired" in refused(past, f"egw_ada_{SECRET}")
    assert "wrong" in refused(past, f"egw_ada_{OTHER}")


def test_credentials_are_ignored_when_no_keys_are_configured() -> None:
    assert Gate().authenticate(["sk-whatever", "another"]) is ANONYMOUS


def test_every_key_is_refused_when_the_keys_file_is_empty() -> None:
    refused(Gate({}), f"egw_ada_{SECRET}")


def test_transport_that_authenticated_the_caller_looks_up_its_key_by_id() -> None:
    assert gate().caller_for("bob").id == "bob"
    with pytest.raises(GatewayError, match="the API key 'eve' does not exist"):
        gate().caller_for("eve")


# ── permissions ──────────────────────────────────────────────────────────────────────────────────


def test_key_allows_only_the_models_and_tasks_it_lists() -> None:
    caller = gate(models=("assistant", "cloud/*"), tasks=()).caller_for("ada")
    for name in ("assistant", "cloud/gpt"):
        caller.check("chat", name)
    for kind, name in (("chat", "auto"), ("chat", "edge/assistant"), ("chat", "assistant2"), ("task", "assistant")):
        with pytest.raises(GatewayError) as caught:
            caller.check(kind, name)  # type: ignore[arg-type]
        assert caught.value.code == "forbidden"


def test_body_limit_of_a_key_can_only_lower_the_global_limit() -> None:
    assert gate(max_body_bytes=10).caller_for("ada").max_bytes(100) == 10
    assert gate(max_body_bytes=1000).caller_for("ada").max_bytes(100) == 100
    assert ANONYMOUS.max_bytes(100) == 100


# ── rate and concurrency limits ──────────────────────────────────────────────────────────────────


def test_rate_limit_admits_the_burst_then_refuses_with_retry_after() -> None:
    clock = FakeClock()
    it = gate(clock, requests_per_minute=60, burst=3)
    ada = it.caller_for("ada")
    assert [enter(it, ada) for _ in range(4)] == [None, None, None, pytest.approx(1.0)]
    clock.move(0.75)
    assert enter(it, ada) == pytest.approx(0.25)
    clock.move(0.25)
    assert enter(it, ada) is None


@given(st.floats(1, 6000), st.integers(1, 50), st.lists(st.floats(0, 30), max_size=60))
def test_no_request_pattern_exceeds_the_rate_plus_the_burst(per_minute: float, burst: int, pauses: list[float]) -> None:
    clock = FakeClock(0.0)
    it = gate(clock, requests_per_minute=per_minute, burst=burst)
    ada, passed = it.caller_for("ada"), 0
    for pause in [0.0, *pauses]:
        clock.move(pause)
        passed += enter(it, ada) is None
    assert passed <= burst + clock.now_s * per_minute / 60 + 1e-6


def test_concurrency_limit_admits_the_next_request_when_one_ends() -> None:
    it = gate(concurrency=1)
    first, second = it.caller_for("ada"), it.caller_for("ada")
    assert enter(it, first) is None
    assert enter(it, second) is not None
    first.release()
    assert enter(it, second) is None


def test_request_refused_for_concurrency_does_not_consume_the_rate() -> None:
    it = gate(concurrency=1, requests_per_minute=60, burst=2)
    ada = it.caller_for("ada")
    assert enter(it, ada) is None
    assert enter(it, ada) is not None
    ada.release()
    assert enter(it, ada) is None


def test_reloaded_keys_apply_at_once_and_unchanged_keys_keep_their_usage() -> None:
    it = gate(concurrency=1)
    ada = it.caller_for("ada")
    enter(it, ada)
    it.replace({"ada": key(concurrency=1)})
    assert enter(it, it.caller_for("ada")) is not None
    refused(it, f"egw_bob_{OTHER}")
    ada.release()
    assert enter(it, it.caller_for("ada")) is None
