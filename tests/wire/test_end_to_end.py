"""Main use cases with real input: sums, speech, lists divided over both sites."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from gateway.demo.children import ChildGateway, choose_ports
from gateway.demo.requests import WORDS
from gateway.demo.topology import DATA
from gateway.testing import RunningGateway, running_gateway
from support.programs import needs, program
from support.stub_backend import StubBackend
from support.upstream import Talk, answer, by_path
from support.wiring import ADD, backend, cloud, relaying

RECORDING = DATA / "conveyor.wav"
LOCAL = backend("local", "local", SLOTS="2")
SPEECH = backend("speech", "speech", SLOTS="1")


async def curl(*arguments: str) -> tuple[str, dict[str, str]]:
    """Run curl; return its output and the lower-cased response headers."""
    process = await asyncio.create_subprocess_exec(
        program("curl"),
        "-sS",
        "-D",
        "/dev/stderr",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    pairs = (line.partition(": ") for line in err.decode().splitlines() if ": " in line)
    return out.decode(), {name.lower(): value for name, _, value in pairs}


@asynccontextmanager
async def cloud_process(folder: Path) -> AsyncIterator[str]:
    """Run a second gateway process as the cloud; yield its URL."""
    port, admin_port = choose_ports(0)
    async with ChildGateway("cloud", LOCAL | SPEECH, port=port, admin_port=admin_port, folder=folder):
        yield f"http://127.0.0.1:{port}"


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────


@needs("curl")
async def test_curl_request_gets_its_sum_from_the_local_backend() -> None:
    async with running_gateway(**LOCAL) as gateway:
        said, headers = await curl("-d", '{"a":10,"b":20}', f"{gateway.url}/v1/tasks/add")
        line = await gateway.line()
    assert said == '{"result":30}'
    assert (headers["x-gateway-backend"], headers["x-gateway-site"]) == ("local", "edge")
    assert (headers["x-gateway-attempts"], headers["x-gateway-reason"]) == ("1", "only")
    assert headers["content-type"] == "application/json"
    assert "edge;dur=" in headers["server-timing"]
    assert headers["x-request-id"] == line["request_id"]
    assert (line["outcome"], line["kind"], line["model"], line["status"]) == ("served", "task", "add", 200)
    assert (line["bytes_in"], line["bytes_out"], line["r_path"]) == (15, 13, "serial")
    assert line["t_edge_ms"] > 0
    assert line["t_cloud_ms"] == line["t_network_ms"] == 0
    assert line["predicted_ms"] > 0
    assert line["candidates"].keys() == {"local"}
    assert line["load"].keys() == {"cpu", "psi", "mem", "temp_c"}


@pytest.mark.parametrize(
    ("body", "says"), [('{"a":10}', "b"), ('{"a":1,"b":2,"c":3}', "c"), ("[10,20]", "object"), ("30", "object")]
)
async def test_wrong_arguments_are_400_and_the_error_names_them(body: str, says: str) -> None:
    async with (
        running_gateway(**LOCAL) as gateway,
        aiohttp.request("POST", f"{gateway.url}/v1/tasks/add", data=body) as got,
    ):
        error = (await got.json())["error"]
    assert (got.status, error["code"]) == (400, "bad_request")
    assert says in error["message"]


async def add(request: web.Request) -> web.Response:
    numbers = await request.json()
    return web.json_response({"result": numbers["a"] + numbers["b"]})


@asynccontextmanager
async def textbook_service() -> AsyncIterator[str]:
    """Run an HTTP service that only has `POST /add`; yield its URL."""
    app = web.Application()
    app.router.add_post("/add", add)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@needs("curl")
async def test_minimal_http_service_becomes_a_backend_by_settings_alone() -> None:
    async with textbook_service() as url, running_gateway(**cloud(url, TASKS=ADD)) as gateway:
        said, headers = await curl("-d", '{"a":10,"b":20}', f"{gateway.url}/v1/tasks/add")
        line = await gateway.line()
        _, _ = await curl("-d", '{"a":10,"b":20}', f"{gateway.url}/v1/tasks/add")
        second = (await gateway.lines.wait("request.finished", 2))[1]
    assert json.loads(said) == {"result": 30}
    assert (headers["x-gateway-backend"], headers["x-gateway-site"]) == ("cloud", "cloud")
    assert line["t_edge_ms"] == 0
    assert line["t_cloud_ms"] + line["t_network_ms"] > 0
    assert line["t_cloud_source"] == "estimated"
    assert (line["r_path"], line["link_state"]) == ("serial", "up")
    assert second["rtt_ms"] > 0
    assert second["tcp_rtt_ms"] > 0


async def test_generator_function_is_served_as_a_stream() -> None:
    async with (
        running_gateway(**LOCAL) as gateway,
        aiohttp.request("POST", f"{gateway.url}/v1/tasks/count", json={"n": 3}) as got,
    ):
        events = (await got.text()).split("\n\n")
    assert got.content_type == "text/event-stream"
    assert [json.loads(each[6:])["part"] for each in events[:3]] == [1, 2, 3]
    assert events[-2] == "data: [DONE]"


# ── speech ───────────────────────────────────────────────────────────────────────────────────────


async def transcribed(gateway: RunningGateway, model: str, **options: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
        return await ai.audio.transcriptions.with_raw_response.create(model=model, file=RECORDING, **options)


async def test_recording_is_transcribed_exactly_at_the_edge_and_in_the_cloud(tmp_path: Path) -> None:
    async with cloud_process(tmp_path) as url, running_gateway(**SPEECH, **cloud(url)) as gateway:
        edge = await transcribed(gateway, "speech/pocketsphinx")
        far = await transcribed(gateway, "cloud/pocketsphinx")
        auto = await transcribed(gateway, "auto", extra_headers={"x-gateway-locality": "edge-only"})
        broken = await upload(gateway, RECORDING.read_bytes()[:30])
        text = await upload(gateway, RECORDING.read_bytes(), response_format="text")
        lines = await gateway.lines.wait("request.finished", 5)
    assert [got.parse().text for got in (edge, far, auto)] == [WORDS] * 3
    assert [got.headers["x-gateway-site"] for got in (edge, far, auto)] == ["edge", "cloud", "edge"]
    assert edge.headers["x-gateway-reason"] == far.headers["x-gateway-reason"] == "pinned"
    at_edge, at_cloud = lines[:2]
    assert (at_edge["t_edge_ms"] > 0, at_edge["t_cloud_ms"]) == (True, 0)
    assert (at_cloud["t_cloud_ms"] > 0, at_cloud["t_edge_ms"]) == (True, 0)
    assert (at_cloud["t_cloud_source"], at_cloud["t_upload_ms"] > 0) == ("server-timing", True)
    assert at_cloud["bytes_in"] > RECORDING.stat().st_size
    assert (broken[0], json.loads(broken[1])["error"]["code"]) == (400, "bad_request")
    assert (text[0], text[1].strip()) == (200, WORDS)


async def upload(gateway: RunningGateway, recording: bytes, **fields: str) -> tuple[int, str]:
    form = aiohttp.FormData({"model": "speech/pocketsphinx", **fields})
    form.add_field("file", recording, filename="speech.wav", content_type="audio/wav")
    async with gateway.session() as http, http.post(f"{gateway.url}/v1/audio/transcriptions", data=form) as got:
        return got.status, await got.text()


# ── divided lists ────────────────────────────────────────────────────────────────────────────────


async def test_list_is_divided_over_both_sites_working_in_parallel() -> None:
    async def far_squares(talk: Talk) -> None:
        await StubBackend.waiting.wait()
        await asyncio.sleep(0.02)  # makes the overlap visible in rounded milliseconds
        StubBackend.open.set()
        await answer(json={"result": [item * item for item in talk.request.json["items"]]})(talk)

    environ = (
        backend("desk", "support.stub_backend:StubBackend", TASKS="meet")
        | backend("hybrid", "hybrid", EDGE="desk", CLOUD="cloud", TASKS='{"scatter":"meet"}', GROUPS="4")
    )  # fmt: skip
    items = list(range(20))
    script = by_path({"/squares": far_squares})
    async with (
        relaying(script, TASKS='{"meet":"/squares"}', environ=environ) as (gateway, _),
        gateway.session() as http,
    ):
        async with http.post(f"{gateway.url}/v1/tasks/scatter", json={"items": items}) as got:
            said = await got.json()
        line = await gateway.line()
        parts = gateway.lines.of("subtask.finished")
    assert said == {"result": [item * item for item in items]}
    assert (got.headers["x-gateway-site"], got.headers["x-gateway-backend"]) == ("hybrid", "hybrid")
    assert (line["r_path"], line["items"], line["outcome"]) == ("parallel", 20, "served")
    assert line["t_overlap_ms"] > 0
    assert line["t_edge_ms"] > 0
    assert line["t_cloud_ms"] + line["t_network_ms"] > 0
    assert {part["parent_id"] for part in parts} == {line["request_id"]}
    assert {part["site"] for part in parts} == {"edge", "cloud"}
    assert sum(part["items"] for part in parts) == 20
    assert all(part["outcome"] == "served" for part in parts)
    assert line["r_total_per_s"] >= line["r_edge_per_s"] > 0


async def test_list_is_divided_over_this_gateway_and_a_second_gateway(tmp_path: Path) -> None:
    hybrid = backend("hybrid", "hybrid", EDGE="local", CLOUD="cloud", TASKS='{"scatter":"squares"}')
    items = list(range(100))
    async with (
        cloud_process(tmp_path) as url,
        running_gateway(**LOCAL, **cloud(url), **hybrid) as gateway,
        gateway.session() as http,
        http.post(f"{gateway.url}/v1/tasks/scatter", json={"items": items}) as got,
    ):
        said = await got.json()
        line = await gateway.line()
        parts = gateway.lines.of("subtask.finished")
    assert said == {"result": [item * item for item in items]}
    assert line["site"] == "hybrid"
    assert (
        sum(part["items"] for part in parts if part["outcome"] == "served") >= 100
    )  # late groups are sent to both sides
    assert {part["backend"] for part in parts} == {"local", "cloud"}
