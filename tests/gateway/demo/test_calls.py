from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.demo.calls import Answer, Call, add, admin_tour, parse_answer, run_line, tour, transcribe
from gateway.demo.topology import recording
from support.programs import needs

WAV = recording()


async def repeat(request: web.Request) -> web.Response:
    """Echo the request as JSON, without client-specific headers."""
    got: dict[str, Any] = {"method": request.method, "path": request.path}
    if request.content_type == "multipart/form-data":
        form = await request.post()
        got["form"] = {k: v if isinstance(v, str) else [v.filename, len(v.file.read())] for k, v in form.items()}
    else:
        got["body"] = (await request.read()).decode()
    got["locality"] = request.headers.get("x-gateway-locality")
    return web.json_response(got, headers={"X-Gateway-Backend": "local", "X-Gateway-Site": "edge"})


@pytest.fixture
async def base() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", repeat)
    async with TestServer(app) as server:
        yield f"localhost:{server.port}"


CALLS = [*tour(WAV), *admin_tour(), add(headers={"x-gateway-locality": "edge-only"})]


@needs("curl")
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.label)
async def test_printed_curl_line_sends_the_same_request_as_the_call(base: str, call: Call) -> None:
    by_curl = await run_line(call.curl(base))
    async with aiohttp.ClientSession() as session:
        without_curl = await call.send(session, base)
    assert json.loads(by_curl.text) == json.loads(without_curl.text)
    assert by_curl.where == without_curl.where == "local (edge)"


@needs("curl")
async def test_refused_connection_is_reported_with_curls_message() -> None:
    answer = await run_line(add().curl("localhost:1"))
    assert answer.status == 0
    assert "onnect" in answer.text


def test_curl_line_of_the_simple_task_is_minimal() -> None:
    line = 'curl -d \'{"a":10,"b":20}\' localhost:8080/v1/tasks/add'
    assert add().curl("localhost:8080") == line


def test_curl_line_quotes_a_path_with_spaces() -> None:
    assert "file=@/a b/c.wav" in shlex.split(transcribe("/a b/c.wav").curl("localhost:1"))


def test_recording_file_exists() -> None:
    assert Path(WAV).is_file()


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_parse_answer_uses_the_last_of_several_response_heads() -> None:
    head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nX-Request-Id: abc\r\nServer: a:b\r\n\r\n"
    answer = parse_answer(head, "gone")
    assert answer == Answer(status=404, headers={"x-request-id": "abc", "server": "a:b"}, text="gone")


HERE = {"x-gateway-backend": "local", "x-gateway-site": "edge"}


@pytest.mark.parametrize(
    ("call", "answer", "fault"),
    [
        (add(), Answer(status=200, text='{"result":30}'), None),
        (add(), Answer(status=200, text='{"result":30,"more":1}'), None),
        (add(site="edge"), Answer(status=200, headers=HERE, text='{"result":30}'), None),
        (Call(label="status", path="/status"), Answer(status=200, text="anything"), None),
        (add(), Answer(status=200, text='{"result":31}'), 'answered {"result":31}, not'),
        (add(), Answer(status=200, text="[30]"), "answered [30], not"),
        (add(), Answer(status=200, text="30 it is"), "no JSON"),
        (add(), Answer(status=503, text="shed"), "status 503: shed"),
        (add(site="cloud"), Answer(status=200, headers=HERE, text='{"result":30}'), "by local (edge), not at cloud"),
        (add(site="edge"), Answer(status=200, text='{"result":30}'), "by - (-), not at edge"),
    ],
)
def test_fault_names_the_mismatch_of_a_wrong_response(call: Call, answer: Answer, fault: str | None) -> None:
    found = call.fault(answer)
    assert found is None if fault is None else found is not None and fault in found
