"""Edge-only rules by key, header, model, task and path are never broken."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.api.routes import match
from gateway.dispatch.eligibility import is_edge_only
from gateway.ingress.task import entry_points_of
from gateway.plugin import Services, Task
from gateway.telemetry import metrics
from gateway.testing import running_gateway
from support.broker import free_port
from support.configurations import only
from support.raw import answered, post
from support.recording_backend import RecordingBackend, RecordingSettings
from support.upstream import Upstream, answer
from support.wiring import backend, cloud

SECRET = "a" * SECRET_CHARS
RULES = "hum,wren,/v1/images/*"


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "keys.json"
    write_keys(path, {"any": Key(sha256=hash_of(SECRET)), "home": Key(sha256=hash_of(SECRET), allow_cloud=False)})
    RecordingBackend.received.clear()
    yield str(path)
    RecordingBackend.received.clear()


def edge_cloud_and_hybrid(keys: str, *, edge_fails: bool) -> dict[str, str]:
    """Configure a costly or failing edge backend, a free cloud backend and a hybrid."""
    return (
        backend("near", "support.recording_backend:RecordingBackend", USD_PER_REQUEST="9",
                FAILS=str(edge_fails).lower(), REPEATABLE="true")
        | backend("far", "support.recording_backend:RecordingBackend", SITE="cloud", REPEATABLE="true")
        | backend("both", "hybrid", EDGE="near", CLOUD="far", TASKS='{"choir":"sing"}', MODELS='{"duet":"bird"}')
        | {"GATEWAY_POLICY__USD": "1", "GATEWAY_KEYS_FILE": keys, "GATEWAY_POLICY__EDGE_ONLY": RULES}
    )  # fmt: skip


def chat(model: str, *, stream: bool = False) -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}).encode()


# Path, body, and whether an edge-only rule of the operator applies.
ASKED: list[tuple[str, bytes, bool]] = [
    ("/v1/tasks/sing", b"{}", False),
    ("/v1/tasks/hum", b"{}", True),
    ("/v1/tasks/h%75m", b"{}", True),
    ("/v1/tasks/choir", b"{}", False),
    *(
        (path, chat(model, stream=stream), "wren" in model)
        for path in ("/v1/chat/completions", "/chat/completions")
        for model in ("bird", "wren", "far/bird", "far/wren", "near/wren", "auto", "duet")
        for stream in (False, True)
    ),
    ("/v1/images/edits", b'{"model":"bird"}', True),
    ("/v1/images/%65dits", b'{"model":"far/bird"}', True),
    *((f"/v1/images/edits{more}", b'{"model":"far/bird"}', True) for more in ("#", "#x", ";x", " ", "?x#y")),
    ("http://localhost/v1/images/edits#x", b'{"model":"far/bird"}', True),
]


@pytest.mark.parametrize("edge_fails", [False, True])
async def test_only_permitted_requests_leave_the_site_for_every_path_key_and_header(
    keys: str, edge_fails: bool
) -> None:
    reached: set[str] = set()
    async with running_gateway(**edge_cloud_and_hybrid(keys, edge_fails=edge_fails)) as gateway:
        for (path, body, by_rule), key, says_so in itertools.product(ASKED, ("any", "home"), (False, True)):
            RecordingBackend.received.clear()
            locality = ["x-gateway-locality: edge-only"] if says_so else []
            lines = [f"Authorization: Bearer egw_{key}_{SECRET}", "Connection: close", *locality]
            answer = await answered(gateway.url, post(path, body, *lines))
            stays = by_rule or key == "home" or says_so
            sites = {site for site, _ in RecordingBackend.received}
            reached |= sites
            assert not (stays and "cloud" in sites), (path, body, key, says_so)
            assert not (stays and answer.headers.get("x-gateway-site") == "cloud")
        assert gateway.lines.of("egress.refused") == []
    assert reached == {"edge", "cloud"}


async def test_every_body_sent_off_site_is_counted_and_logged(keys: str) -> None:
    before = dict(metrics.EGRESS.values)
    async with running_gateway(**edge_cloud_and_hybrid(keys, edge_fails=False)) as gateway:
        for _ in range(3):
            asked = post("/v1/tasks/sing", b'{"a":1}', f"x-api-key: egw_any_{SECRET}")
            assert (await answered(gateway.url, asked)).headers["x-gateway-site"] == "cloud"
        lines = gateway.lines.of("egress.sent")
        ids = {line["request_id"] for line in gateway.lines.of("request.finished")}
    assert [(line["backend"], line["bytes"], line["parent_id"]) for line in lines] == [("far", 7, None)] * 3
    assert {line["request_id"] for line in lines} == ids
    assert metrics.EGRESS.values[("far",)] - before.get(("far",), 0) == 21


async def test_off_site_body_is_logged_before_the_backend_is_known_to_be_reachable() -> None:
    world = cloud(f"http://127.0.0.1:{free_port()}", MODELS="m")
    async with running_gateway(**world) as gateway:
        body = chat("m")
        assert (await answered(gateway.url, post("/v1/chat/completions", body))).status == 503
        lines, request = gateway.lines.of("egress.sent"), await gateway.line()
    assert {(line["request_id"], line["bytes"]) for line in lines} == {(request["request_id"], len(body))}
    assert len(lines) == request["attempts"]


@pytest.mark.parametrize("says_so", [False, True])
async def test_task_created_by_a_plugin_inherits_locality_and_deadline_of_its_request(keys: str, says_so: bool) -> None:
    makes = backend("maker", "support.recording_backend:DispatchingBackend")
    locality = ["x-gateway-locality: edge-only"] if says_so else []
    async with running_gateway(**edge_cloud_and_hybrid(keys, edge_fails=False), **makes) as gateway:
        lines = [f"x-api-key: egw_any_{SECRET}", "x-gateway-deadline-ms: 60000", *locality]
        assert (await answered(gateway.url, post("/v1/tasks/made", b"{}", *lines))).status == 200
    ((site, task),) = RecordingBackend.received
    assert site == ("edge" if says_so else "cloud")
    assert task.deadline <= time.monotonic() + 60.0


async def test_final_egress_check_stops_a_task_that_both_filters_missed(
    keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(**edge_cloud_and_hybrid(keys, edge_fails=False)) as gateway:
        planner = gateway.service.dispatcher.planner
        query_of = planner._query
        monkeypatch.setattr(planner.eligibility, "refusal", lambda *_: None)  # both filters are broken
        monkeypatch.setattr(planner, "_query", lambda *args: query_of(*args)._replace(may_leave=True))
        asked = post("/v1/chat/completions", chat("far/bird"), f"x-api-key: egw_home_{SECRET}")
        assert (await answered(gateway.url, asked)).status == 403
        assert [line["backend"] for line in gateway.lines.of("egress.refused")] == ["far"]
    assert RecordingBackend.received == []


@pytest.mark.parametrize("more", ["", "#", "#x", ";x", " ", " HTTP/1.1", "?x#y"])
async def test_suffixes_after_an_edge_only_path_do_not_let_it_leave(more: str) -> None:
    """Parser differential: suffixes that a router keeps and a URL library drops.

    Uses an exact rule and a real upstream.
    """
    async with Upstream(answer(json={"data": []})) as upstream:
        world = cloud(upstream.url, MODELS="m") | {"GATEWAY_POLICY__EDGE_ONLY": "/v1/images/edits"}
        async with running_gateway(**world) as gateway:
            upstream.requests.clear()
            for base in ("", "http://localhost"):
                await answered(gateway.url, post(f"{base}/v1/images/edits{more}", b'{"model":"m"}'))
            assert gateway.lines.of("egress.sent") == []
        assert [each.path for each in upstream.requests if "images" in each.path] == []


class Claims(RecordingBackend):
    """A backend that sets `site = "hybrid"` on the instance only, to bypass the rule."""

    def __init__(self, settings: RecordingSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.site = "hybrid"


async def test_only_a_class_level_site_lets_a_backend_divide_edge_only_work(keys: str) -> None:
    async with running_gateway(**backend("c", f"{__name__}:Claims")) as gateway:
        asked = post("/v1/tasks/sing", b"{}", "x-gateway-locality: edge-only")
        assert (await answered(gateway.url, asked)).status == 503
        assert RecordingBackend.received == []
        assert (await answered(gateway.url, post("/v1/tasks/sing", b"{}"))).status == 200
        assert [line["backend"] for line in gateway.lines.of("egress.sent")] == ["c"]


# ── rules for generated input ────────────────────────────────────────────────────────────────────


async def test_auto_is_edge_only_if_a_model_it_may_resolve_to_is() -> None:
    world = backend(
        "far", "support.recording_backend:RecordingBackend", SITE="cloud", MODELS='{"assistant":"bird","other":"wren"}'
    )
    async with running_gateway(**world, GATEWAY_POLICY__EDGE_ONLY="assistant") as gateway:
        found = {}
        for model in ("assistant", "auto", "far/auto", "other"):
            found[model] = (await answered(gateway.url, post("/v1/chat/completions", chat(model)))).status
    assert found == {"assistant": 503, "auto": 503, "far/auto": 503, "other": 200}


def test_edge_only_path_rule_without_a_leading_slash_is_rejected() -> None:
    told = only(backend("e", "echo") | {"GATEWAY_POLICY__EDGE_ONLY": "v1/tasks/far"})
    assert "/v1/tasks/far" in told


CHANGES = st.lists(
    st.one_of(
        st.just(("subtask", {})),
        st.builds(lambda may: ("replace", {"may_leave": may}), st.booleans()),
        st.builds(lambda name: ("replace", {"name": name, "may_leave": True}), st.text(max_size=3)),
        st.builds(lambda body: ("replace", {"body": body}), st.binary(max_size=4)),
    ),
    max_size=8,
)


@given(CHANGES, st.booleans())
def test_subtasks_and_replacements_never_regain_permission_to_leave(
    changes: list[tuple[str, dict[str, Any]]], may_leave: bool
) -> None:
    task, still = Task(kind="task", name="t", deadline=1.0, may_leave=may_leave), may_leave
    for method, arguments in changes:
        task = getattr(task, method)(**arguments)
        still = still and arguments.get("may_leave", True)
        assert task.may_leave is still


@given(st.sampled_from("abc/*"), st.text("abc/*", max_size=6), st.text("abc/", max_size=6))
def test_edge_only_rule_matches_its_name_pinned_or_not(first: str, rest: str, backend_name: str) -> None:
    name = first + rest
    assert is_edge_only((name,), (name,))
    assert is_edge_only((name,), (f"{backend_name.replace('/', '') or 'b'}/{name}",))
    assert is_edge_only((name,), ("another",), (name,))
    assert is_edge_only((name,), (name.upper(),))
    assert is_edge_only((name.upper(),), ("another",), (name,))
    assert not is_edge_only((), (name,), (name,))


TOPIC = "edge-gateway/req/v1/chat/completions"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/chat/completions",
        "/chat/completions",
        "/v1/ch%61t/completions",
        "/v1/chat/completions?x=1",
        "/ch%61t/completions",
    ],
)
def test_edge_only_rule_matches_a_topic_as_routed_and_as_written(target: str) -> None:
    found = match("POST", target)
    topic = f"edge-gateway/req{target}"
    places = entry_points_of(found.path, target, topic)
    assert is_edge_only((TOPIC,), (), places)
    assert is_edge_only(("edge-gateway/req/v1/chat/*",), (), places)
    assert is_edge_only((topic,), (), places)
    assert is_edge_only(("/v1/chat/*",), (), places)
    assert not is_edge_only(("edge-gateway/call/*",), (), places)


@pytest.mark.parametrize("edge_fails", [False, True])
@pytest.mark.parametrize("mode", ["scatter", "cascade", "hedge"])
async def test_edge_only_name_stays_edge_only_under_its_hybrid_alias(keys: str, mode: str, edge_fails: bool) -> None:
    names = {"TASKS": '{"choir":"hum"}', "MODELS": '{"duet":"wren"}'}
    names |= {"THRESHOLD": "1"} if mode == "cascade" else {}  # the edge confidence is always below it
    both = backend("both", "hybrid", MODE=mode, EDGE="near", CLOUD="far", **names)
    async with running_gateway(**{**edge_cloud_and_hybrid(keys, edge_fails=edge_fails), **both}) as gateway:
        for path, body in (
            ("/v1/tasks/choir", b'{"items":[1,2,3]}'),
            ("/v1/chat/completions", chat("duet")),
            ("/v1/chat/completions", chat("both/duet")),
        ):
            await answered(gateway.url, post(path, body, f"x-api-key: egw_any_{SECRET}"))
        assert {site for site, _ in RecordingBackend.received} == {"edge"}
        assert gateway.lines.of("egress.sent") == gateway.lines.of("egress.refused") == []
        assert all("far" not in line["error"] for line in gateway.lines.of("request.finished") if line["error"])
