"""Rules and marks that almost match keep the data on the site, or are 400; the exact control leaves."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator

import pytest

from gateway.api.routes import match
from gateway.dispatch.eligibility import is_edge_only
from gateway.ingress.task import entry_points_of
from support.broker import Broker, running_broker
from support.mqtt_clients import Device, device
from support.programs import needs
from support.raw import answered, post
from support.upstream import answer
from support.wiring import relaying

NAMES = (
    "notes", "NOTES", "notes ", " notes", "notes:latest", "Notes:Latest", "no\u200btes", "\uff4eotes", "notes\u00a0",
    "cloud/notes", "peer/cloud/notes", "cloud/ notes", "notes\ufeff", "notes/", "n%6Ftes", "cloud/notes:latest",
)  # fmt: skip
NAME_RULES = ("notes", "Notes", "notes:latest", "not*", "NOTES ", "n%6Ftes", "\uff4eotes", "no\u200btes", "notes/")
PATH_RULES = (
    "/v1/images/edits", "/images/edits", "/v1/images/edits/", "//v1//images/edits", "/v1/images", "/v1/images/*",
    "/images/",    "/v1/images/%65dits", "/V1/Images/EDITS", "/v1/images/edit*", "/", "/*", "/images/edits*",
)  # fmt: skip
PATHS = (
    "/v1/images/edits", "/images/edits", "/v1/images/%65dits", "/v1/images/EDITS", "/v1/images/edits?x=1",
    "http://localhost/v1/images/edits",
)  # fmt: skip
CHAT_RULES = ("/chat/completions", "/v1/chat", "/v1/chat/completions/", "/%63hat/completions", "/v1/Chat/*", "/chat*")


@pytest.mark.parametrize("rule", NAME_RULES)
async def test_rule_holds_for_every_spelling_of_a_name(rule: str) -> None:
    models = json.dumps(dict.fromkeys((*NAMES, "other"), "m"))
    environ = {"GATEWAY_POLICY__EDGE_ONLY": rule}
    async with relaying(answer(json={"id": "1", "choices": []}), environ=environ, MODELS=models) as (gateway, upstream):
        for name in NAMES:
            body = json.dumps({"model": name, "input": "x"}).encode()
            assert (await answered(gateway.url, post("/v1/responses", body))).status in (400, 404, 503), name
            assert upstream.posted == [], name
        await answered(gateway.url, post("/v1/responses", b'{"model":"other"}'))
        assert len(upstream.posted) == 1


@pytest.mark.parametrize(("rule", "paths", "control"), [
    *((rule, PATHS, "/v1/responses") for rule in PATH_RULES if rule not in ("/", "/*")),
    *((rule, PATHS, None) for rule in ("/", "/*")),
    *((rule, ("/v1/chat/completions", "/chat/completions", "/v1/%63hat/completions"), "/v1/responses")
      for rule in CHAT_RULES),
    ("/v1/images/caf%C3%A9", ("/v1/images/caf%C3%A9", "/images/CAF%C3%89", "/v1/images/cafe%CC%81"), "/v1/images/cafe"),
    ("/v1/images/caf\u00e9", ("/v1/images/caf%C3%A9", "/images/CAF%C3%89", "/v1/images/cafe%CC%81"), "/v1/images/cafe"),
])  # fmt: skip
async def test_rule_holds_for_every_spelling_of_a_path(rule: str, paths: tuple[str, ...], control: str | None) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
    environ = {"GATEWAY_POLICY__EDGE_ONLY": rule}
    async with relaying(answer(json={"id": "1"}), environ=environ, MODELS="m") as (gateway, upstream):
        for path in paths:
            assert (await answered(gateway.url, post(path, body))).status in (400, 404, 503), path
            assert upstream.posted == [], path
        if control is not None:
            await answered(gateway.url, post(control, body))
            assert [request.path for request in upstream.posted] == [control]


ALMOST = (
    "x_gateway_locality", "X-Gateway_Locality", "x-gateway-localty", "x-gatewaylocality", "xgateway-locality",
    "x--gateway-locality", "x-gateway-locality-", "gateway-locality-x", "x_gateway-locality", "x-gate-way-locality",
    "X_GATEWAY_LOCALITY", "x-gateway-locallity", "x-gateway-local-ity",
)  # fmt: skip


async def test_header_that_is_almost_the_mark_is_400_and_nothing_leaves() -> None:
    async with relaying(answer(json={"id": "1"}), MODELS="m") as (gateway, upstream):
        for name, value in itertools.product(ALMOST, ("edge-only", "", "x")):
            if name != "gateway-locality-x":
                sent = post("/v1/responses", b'{"model":"m"}', f"{name}: {value}")
                assert (await answered(gateway.url, sent)).status == 400, name
        for lines in (["edge-only "], ["EDGE-ONLY"], ["edge-only", "edge-only"], ["edge-only", "x"], ["edge_only"]):
            sent = post("/v1/responses", b'{"model":"m"}', *(f"x-gateway-locality: {value}" for value in lines))
            assert (await answered(gateway.url, sent)).status in (400, 503), lines
        assert upstream.posted == []
        for name in ("x-gateway-load", "x-gateway-site", "x-locality", "x-gateway-reply"):
            await answered(gateway.url, post("/v1/responses", b'{"model":"m"}', f"{name}: edge-only"))
        assert len(upstream.posted) == 4


MQTT_ALMOST = (
    *(name for name in ALMOST if name != "gateway-locality-x"), " x-gateway-locality", "x-gateway-locality ",
    "x\u2013gateway\u2013locality", "x-gateway-locality\u200b", "x-gateway-l\u043ecality",
    "\uff58-gateway-locality", "x gateway locality", "x.gateway.locality", "x-gateway-locality:",
)  # fmt: skip


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with running_broker() as running:
        yield running


async def ask(lamp: Device, *user: tuple[str, str]) -> bool:
    """Send a marked request; return whether it was refused."""
    correlation = repr(user).encode()  # a repeat is answered from memory
    return "error" in (await lamp.ask("/v1/responses", {"model": "m"}, correlation, user=list(user))).json


@needs("mosquitto", "mosquitto_passwd")
async def test_mqtt_property_that_is_almost_the_mark_is_400_and_nothing_leaves(broker: Broker) -> None:
    environ = {"GATEWAY_MQTT__URL": broker.url}
    async with relaying(answer(json={"id": "1"}), environ=environ, MODELS="m") as (gateway, upstream):
        await gateway.line("mqtt.connected")
        async with device(broker.port) as lamp:
            for name in (*MQTT_ALMOST, "x-gateway-locality", "X-Gateway-Locality"):
                assert await ask(lamp, (name, "edge-only")), name
            for first, second in itertools.permutations(("edge-only", "", "x"), 2):
                for name in ("x-gateway-locality", "X-Gateway-Locality"):
                    assert await ask(lamp, ("x-gateway-locality", first), (name, second)), (first, second)
            assert upstream.posted == []
            assert not await ask(lamp, ("x-locality", "edge-only"))
            assert len(upstream.posted) == 1


@pytest.mark.parametrize("rule", [
    "edge-gateway/req/v1/chat/completions", "edge-gateway/req/chat/completions", "Edge-Gateway/req/v1/chat/*",
    "edge-gateway/req/v1/chat/completions/", "edge-gateway/req/*", "edge-gateway/req/v1/%63hat/completions",
])  # fmt: skip
def test_topic_rule_holds_for_every_spelling_of_the_topic(rule: str) -> None:
    for target in ("/v1/chat/completions", "/chat/completions", "/v1/ch%61t/completions", "/v1/chat/completions?x=1"):
        places = entry_points_of(match("POST", target).path, target, f"edge-gateway/req{target}")
        assert is_edge_only((rule,), ("m",), places), target
    assert not is_edge_only((rule,), ("m",), ("/v1/responses", "edge-gateway/call/a/1/v1/responses"))
