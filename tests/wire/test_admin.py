"""The admin listener: /status and /metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import admin
from gateway.service import service
from gateway.testing import RunningGateway, running_gateway
from support.raw import answered, connected, post
from support.stub_backend import StubBackend
from support.upstream import answer, by_path
from support.wiring import ADD, STUB, backend, relaying

# Contract §5, verbatim: metric names with the labels they must have.
METRICS: dict[str, set[str]] = {
    "requests_total": {"door", "kind", "backend", "outcome"},
    "request_duration_seconds": set(),
    "stage_duration_seconds": {"stage"},
    "decisions_total": {"backend", "reason"},
    "prediction_error_ratio": set(),
    "network_rtt_seconds": {"backend"},
    "link_bytes_per_second": {"backend", "direction"},
    "lane_waiting": {"backend"},
    "lane_busy": {"backend"},
    "breaker_state": {"backend"},
    "device_load": {"resource"},
    "shed_total": {"reason"},
    "loop_stall_seconds": set(),
    "egress_bytes_total": {"backend"},
    "build_info": set(),
}
BIG = "x" * 300_000


async def get(url: str, *, method: str = "GET") -> tuple[int, Any, aiohttp.ClientResponse]:
    async with aiohttp.request(method, url) as got:
        text = await got.text()
        return got.status, json.loads(text) if got.content_type == "application/json" else text, got


async def samples(gateway: RunningGateway) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return every series by sample name, parsed with Prometheus' own parser."""
    _, text, got = await get(f"{gateway.admin_url}/metrics")
    assert got.headers["Content-Type"].startswith("text/plain")
    out: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            out.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return out


async def test_every_contract_metric_is_exposed_after_some_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TICK_S", 0.01)
    script = by_path({"/add": answer(json={"result": BIG})})
    async with relaying(script, TASKS=ADD, environ=STUB) as (gateway, _):
        for path, body in (("add", json.dumps({"a": BIG}).encode()), ("say", b"1"), ("refuse", b""), ("boom", b"")):
            for _ in range(2):
                await answered(gateway.url, post(f"/v1/tasks/{path}", body))
        await gateway.lines.wait("request.finished", 8)
        async with asyncio.timeout(5):
            while "edge_gateway_loop_stall_seconds_count" not in (found := await samples(gateway)):
                pass  # the first tick has not run yet
    names = {name.removeprefix("edge_gateway_") for name in found}
    for name, labels in METRICS.items():
        shown = name if name in names else f"{name}_count"
        assert shown in names, name
        assert labels <= found[f"edge_gateway_{shown}"][0][0].keys(), name
    assert all(name.startswith("edge_gateway_") for name in found)
    sent = {labels["backend"]: value for labels, value in found["edge_gateway_egress_bytes_total"]}
    assert sent["cloud"] >= 2 * len(BIG)
    assert "desk" not in sent


async def test_request_counters_match_the_request_log() -> None:
    async with running_gateway(**STUB) as gateway:
        before = await counted(gateway)
        for path in ("say", "say", "boom", "nosuch", "invalid", "refuse", "count"):
            await answered(gateway.url, post(f"/v1/tasks/{path}", b"", "Connection: close"))
        lines = await gateway.lines.wait("request.finished", 7)
        after = await counted(gateway)
    logged = Counter((line["door"], line["kind"], line["backend"], line["outcome"]) for line in lines)
    assert after - before == logged


async def counted(gateway: RunningGateway) -> Counter[tuple[str, ...]]:
    found = (await samples(gateway)).get("edge_gateway_requests_total", [])
    return Counter(
        {tuple(labels[name] for name in ("door", "kind", "backend", "outcome")): int(n) for labels, n in found}
    )


ROUNDS = 20


async def test_unknown_models_tasks_and_paths_create_no_metric_series() -> None:
    async with running_gateway(**STUB) as gateway:
        await ask_for_nonsense(gateway, 0)
        before = await series_in(gateway)
        for n in range(1, ROUNDS + 1):
            await ask_for_nonsense(gateway, n)
        assert await series_in(gateway) - before < ROUNDS  # periodic measurements start a few series themselves


async def series_in(gateway: RunningGateway) -> int:
    """Count the series, except the loop-stall histogram with one series per bucket."""
    found = await samples(gateway)
    return sum(len(series) for name, series in found.items() if "loop_stall" not in name)


async def ask_for_nonsense(gateway: RunningGateway, n: int) -> None:
    said = [{"role": "user", "content": "x"}]
    body = json.dumps({"model": f"model-{n}", "messages": said}).encode()
    for sent in (
        post(f"/v1/tasks/t{n}"),
        post(f"/{n}"),
        post("/v1/chat/completions", body),
        post("/v1/tasks/say", b"{"),
    ):
        await answered(gateway.url, sent)


async def test_running_request_is_counted_as_busy_in_its_lane() -> None:
    environ = STUB | {"GATEWAY_BACKENDS__DESK__SLOTS": "1"}
    async with running_gateway(**environ) as gateway, connected(gateway.url) as (_, first):
        first.write(post("/v1/tasks/wait"))
        await StubBackend.waiting.wait()
        _, status, _ = await get(f"{gateway.admin_url}/status")
        busy = (await samples(gateway))["edge_gateway_lane_busy"]
    assert (status["backends"]["desk"]["lane"]["busy"], busy) == (1, [({"backend": "desk"}, 1.0)])


async def test_status_reports_state_tasks_models_breaker_and_lane_of_each_backend() -> None:
    environ = STUB | backend("locked", "support.stub_backend:StubBackend", REFUSES_TO_OPEN="true")
    async with relaying(by_path({"/add": answer(json={})}), TASKS=ADD, MODELS="gpt", environ=environ) as (gateway, _):
        await answered(gateway.url, post("/v1/tasks/add", b"{}"))
        code, status, _ = await get(f"{gateway.admin_url}/status")
    assert (code, status["ready"]) == (200, True)
    assert status["version"]
    assert status["load"].keys() == {"cpu", "psi", "mem", "temp_c"}
    desk, cloud, locked = (status["backends"][name] for name in ("desk", "cloud", "locked"))
    assert (desk["state"], desk["site"], desk["breaker"]["state"]) == ("serving", "edge", "closed")
    assert "say" in desk["tasks"]
    assert desk["models"] == {"clerk": "clerk"}
    assert (cloud["tasks"], cloud["models"]) == ({"add": "/add"}, {"gpt": "gpt"})
    assert cloud["measured"]
    assert cloud["lane"]["slots"] == 16
    assert (locked["state"], "locked" in locked["error"]) == ("failed", True)


async def test_status_reports_each_worker_process() -> None:
    async with running_gateway(**backend("quick", "support.worker_backends:Quick"), **STUB) as gateway:
        _, status, _ = await get(f"{gateway.admin_url}/status")
    (worker,) = status["backends"]["quick"]["workers"]
    assert worker["pid"] > 1
    assert (worker["state"], worker["restarts"], worker["error"]) == ("idle", 0, None)
    assert status["backends"]["desk"]["workers"] is None


async def test_status_metrics_and_logs_contain_no_secret() -> None:
    secrets = {"API_KEY": "sk-very-secret"}
    async with relaying(by_path({"/add": answer(json={})}), TASKS=ADD, **secrets) as (gateway, upstream):
        await answered(gateway.url, post("/v1/tasks/add", b'{"note":"private words"}'))
        _, status, _ = await get(f"{gateway.admin_url}/status")
        _, text, _ = await get(f"{gateway.admin_url}/metrics")
        logged = json.dumps(gateway.lines.all)
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-very-secret"
    for shown in (json.dumps(status), text, logged):
        assert "sk-very-secret" not in shown
        assert "private words" not in shown


@pytest.mark.parametrize("path", ["/", "/nothing", "/status/", "/v1/models", "/livez", "/debug"])
async def test_unknown_path_on_the_admin_listener_is_404_in_the_error_envelope(desk: RunningGateway, path: str) -> None:
    code, said, _ = await get(desk.admin_url + path)
    assert (code, said["error"]["code"]) == (404, "not_found")
    assert "/status" in said["error"]["message"]


@pytest.mark.parametrize("path", ["/status", "/metrics", "/explain", "/explain?path=/v1/tasks/say"])
async def test_admin_paths_are_404_on_the_data_listener(desk: RunningGateway, path: str) -> None:
    for method in ("GET", "POST"):
        assert (await get(desk.url + path, method=method))[0] == 404


@pytest.mark.parametrize("path", ["/status", "/metrics"])
async def test_the_admin_listener_is_read_only(desk: RunningGateway, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        code, said, got = await get(desk.admin_url + path, method=method)
        assert (code, said["error"]["code"]) == (405, "method_not_allowed")
        assert got.headers["Allow"] == "GET, HEAD"


async def test_admin_listener_rejects_a_host_that_is_not_its_own(desk: RunningGateway) -> None:
    found = await answered(desk.admin_url, b"GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert (found.status, found.json["error"]["code"]) == (421, "misdirected_request")


async def test_admin_requests_and_health_checks_are_not_logged_as_requests(desk: RunningGateway) -> None:
    await get(f"{desk.admin_url}/status")
    await get(f"{desk.admin_url}/nothing")
    async with aiohttp.request("GET", f"{desk.url}/livez"):
        pass
    assert desk.lines.of("request.finished") == []


async def test_bug_in_an_admin_handler_is_500_and_logged_with_its_location(
    desk: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "status", None)
    code, said, got = await get(f"{desk.admin_url}/status")
    line = await desk.line("door.broke")
    assert (code, said["error"]["code"]) == (500, "plugin_error")
    assert "NoneType" not in said["error"]["message"]
    assert got.headers["x-request-id"] == said["error"]["request_id"] == line["request_id"]
    assert "admin.py" in line["where"]
    assert desk.lines.of("http.rejected") == []


async def test_admin_listener_rejects_requests_from_browser_pages(desk: RunningGateway) -> None:
    for asked in (
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n",
        post("/explain?path=/v1/tasks/say", b"1", "Origin: null", "Connection: close"),
        post("/explain?path=/v1/tasks/say", b"", "Origin: https://e.example", "Connection: close", length=30_000_000),
    ):
        told = await answered(desk.admin_url, asked)
        assert (told.status, told.json["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", ["/status", "/metrics", "/none"])
async def test_admin_listener_server_header_reveals_only_the_product_name(desk: RunningGateway, path: str) -> None:
    _, _, got = await get(f"{desk.admin_url}{path}")
    assert got.headers["Server"] == "edge-gateway"
