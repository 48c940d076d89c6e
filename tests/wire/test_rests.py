"""Backends that rest: an account without credit, a rejected key, a missing model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.health.rests import ALL, MAX_MODELS, REST_S, Rests
from gateway.testing import running_gateway
from support.chat_upstreams import TEXT, ChatUpstream, ask, asked, between, talking
from support.raw import answered, post
from support.upstream import Script, Talk, Upstream, answer
from support.wiring import cloud, relaying

ANTHROPIC = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to"},
}
QUOTA: list[tuple[int, Any]] = [
    (402, {"error": {"message": "insufficient credits"}}),
    (402, {"error": {"message": "pay"}}),
    (400, ANTHROPIC),
    (400, {"error": {"message": "You have reached your specified API usage limits."}}),
    (403, {"error": {"message": "no", "code": "insufficient_user_quota"}}),
    (429, {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}),
]
KEYS: list[tuple[int, Any]] = [
    (401, {"error": {"message": "no"}}),
    (400, {"error": {"message": "API key not valid. Please pass a valid API key."}}),
    (400, {"error": {"message": "no", "code": "invalid_api_key"}}),
]
NO_MODEL: list[Any] = [
    {"error": "model 'gpt' not found"},
    {"error": {"message": "no", "code": "model_not_found", "type": "invalid_request_error"}},
    {"error": {"message": "The model `gpt` does not exist.", "type": "NotFoundError", "code": 404}},
    {"error": "could not find real modelID for gpt"},
]


def refusing(status: int, body: Any) -> Script:
    return answer(json=body, status=status)


@pytest.mark.parametrize(("status", "body"), QUOTA + KEYS)
async def test_account_fault_rests_the_backend_and_the_next_serves(status: int, body: Any) -> None:
    async with between(refusing(status, body), ChatUpstream(name="b")) as (gateway, one, _):
        assert [await ask(gateway, stream=stream) for stream in (False, True, False)] == [TEXT] * 3
        (rested,) = gateway.lines.of("backend.rested")
    assert len(asked(one)) == 1
    assert (rested["backend"], rested["model"], rested["seconds"]) == ("one", None, REST_S)


@pytest.mark.parametrize(("faults", "code"), [(QUOTA, "upstream_quota"), (KEYS, "upstream_auth")])
async def test_client_receives_the_account_fault_when_no_other_backend_serves(faults: Any, code: str) -> None:
    for status, body in faults:
        async with relaying(talking(refusing(status, body)), MODELS="gpt") as (gateway, upstream):
            for _ in range(7):  # neither the rest nor the breaker hides it
                found = await answered(gateway.url, post("/v1/chat/completions", question("hi")))
                assert (found.status, found.json["error"]["code"]) == (502, code)
            upstream.script = talking(ChatUpstream())
            assert await ask(gateway) == TEXT  # repaired: used at once


def question(text: str, model: str = "gpt", *, ascii_only: bool = True) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return json.dumps(body, ensure_ascii=ascii_only).encode()


@pytest.mark.parametrize("prompt", ["Explain: your CREDIT balance is too low", "é credit balance is too low"])
async def test_phrase_that_the_request_contains_does_not_rest_the_backend(prompt: str) -> None:
    async def quoting(talk: Talk) -> None:
        text = f"cannot answer: {talk.request.json['messages'][-1]['content']}"
        await answer(json={"error": {"message": text, "type": "invalid_request_error"}}, status=400)(talk)

    async with between(quoting, ChatUpstream(name="b")) as (gateway, one, _):
        for _ in range(2):
            found = await answered(gateway.url, post("/v1/chat/completions", question(prompt)))
            assert found.status == 400
        assert not gateway.lines.of("backend.rested")
    assert len(asked(one)) == 2


@pytest.mark.parametrize("body", NO_MODEL)
async def test_missing_model_rests_that_model_only(body: Any) -> None:
    async def partly(talk: Talk) -> None:
        is_missing = talk.request.json["model"] == "gpt"
        await (refusing(404, body) if is_missing else ChatUpstream())(talk)

    async with Upstream(talking(partly)) as one, Upstream(talking(ChatUpstream(name="b"))) as two:
        both = cloud(one.url, "one", MODELS="gpt,other") | cloud(two.url, "two", MODELS="gpt", USD_PER_REQUEST="9")
        async with running_gateway(**both, GATEWAY_POLICY__USD="1") as gateway:
            assert [await ask(gateway) for _ in range(3)] == [TEXT] * 3
            found = await answered(gateway.url, post("/v1/chat/completions", question("hi", "other")))
            (rested,) = gateway.lines.of("backend.rested")
    assert found.status == 200
    assert [each["model"] for each in asked(one)] == ["gpt", "other"]
    assert (rested["backend"], rested["model"]) == ("one", "gpt")


def test_rest_ends_with_its_time_or_a_success_and_is_reported_once() -> None:
    now, begun = [0.0], []
    rests = Rests(lambda: now[0], lambda model, why, seconds: begun.append((model, why)))
    rests.record(ALL, "no credit")
    rests.record(ALL, "no credit")
    rests.record("m", "no model")
    assert begun == [(ALL, "no credit"), ("m", "no model")]
    assert rests.reason("x") == "it rests: no credit"
    rests.record_success("x")
    assert (rests.reason("x"), rests.reason("m")) == (None, "it rests: no model")
    assert rests.status() == [{"model": "m", "why": "no model", "seconds_left": REST_S}]
    now[0] = REST_S
    assert (rests.reason("m"), rests.status()) == (None, [])


def test_number_of_resting_models_is_bounded() -> None:
    rests = Rests(lambda: 0.0)
    rests.record(ALL, "no credit")
    for number in range(2 * MAX_MODELS):
        rests.record(f"m{number}", "no model")
    assert len(rests.status()) == MAX_MODELS
    assert rests.reason("m0") == "it rests: no credit"
