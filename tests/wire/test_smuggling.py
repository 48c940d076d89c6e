"""Request smuggling: parser differentials, directly and behind proxies."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from gateway.ingress.http import server
from gateway.testing import RunningGateway, running_gateway
from support.documents import free_port
from support.programs import needs, program
from support.raw import Answer, answered, connected, post, read_answer, read_head, read_to_end
from support.request_smuggling import CORPUS, OK, TRACE_ID, TRACEPARENT, Smuggled
from support.wiring import STUB

_marks = itertools.count()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_S", 0.1)


@pytest.fixture
async def gateway() -> AsyncIterator[RunningGateway]:
    async with running_gateway(**STUB) as running:
        yield running


async def check_own_response(url: str) -> None:
    """Assert that a valid request gets its own response, not that of another."""
    mark = f"mark-{next(_marks)}"
    answer = await answered(url, post("/v1/tasks/say", f'"{mark}"'.encode()))
    assert (answer.status, answer.json) == (200, {"result": mark})


def check_log(gateway: RunningGateway) -> None:
    assert not {"door.broke", "service.unhandled", "library.logged"} & {line["event"] for line in gateway.lines.all}
    assert "Traceback" not in str(gateway.lines.all)


def test_smuggling_corpus_is_large_enough_and_has_no_duplicates() -> None:
    assert len(CORPUS) >= 60
    assert len({case.data for case in CORPUS}) == len({case.name for case in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("case", CORPUS, ids=str)
async def test_ambiguous_request_is_rejected_in_the_envelope_and_the_connection_closes(
    case: Smuggled, gateway: RunningGateway
) -> None:
    async with connected(gateway.url) as (reader, writer):
        writer.write(case.data)
        first = await asyncio.wait_for(read_answer(reader) if b"HEAD" not in case.data else _head(reader), 5)
        if case.status == OK:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = await asyncio.wait_for(read_to_end(reader), 5)
    assert first.status == case.status, first
    if case.status != OK:
        assert set(first.json["error"]) >= {"message", "code", "request_id"}
        assert first.headers["content-type"] == "application/json"
        assert b"200 OK" not in rest
    assert rest.count(b"HTTP/1.1 ") <= 1
    assert [line for line in gateway.lines.of("request.finished") if line["model"] == "smuggled"] == []
    await check_own_response(gateway.url)
    check_log(gateway)


async def _head(reader: asyncio.StreamReader) -> Answer:
    return Answer(*await read_head(reader), b"")


# ── behind a proxy ───────────────────────────────────────────────────────────────────────────────


def _haproxy(folder: Path, port: int, url: str) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n mode http\n timeout connect 2s\n timeout client 2s\n timeout server 2s\n"
        " option http-keep-alive\n http-reuse always\n"
        f"frontend in\n bind 127.0.0.1:{port}\n default_backend gateway\n"
        f" http-request set-header traceparent {TRACEPARENT}\n"
        f"backend gateway\n server one {url.removeprefix('http://')}\n"
    )
    return [program("haproxy"), "-db", "-f", str(config)]


def _nginx(folder: Path, port: int, url: str) -> list[str]:
    config = folder / "nginx.conf"
    temps = "".join(
        f" {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;\n"
        f"events {{}}\nhttp {{\n{temps} access_log off;\n"
        f" upstream gateway {{ server {url.removeprefix('http://')}; keepalive 4; }}\n"
        f" server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://gateway; proxy_http_version 1.1;\n"
        '  proxy_set_header Host localhost; proxy_set_header Connection "";\n'
        f"  proxy_set_header traceparent {TRACEPARENT};"
        " proxy_request_buffering off; } }\n}\n"
    )
    return [program("nginx"), "-p", str(folder), "-e", f"{folder}/log", "-c", str(config)]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[None]:
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def behind(make: Callable[[Path, int, str], list[str]], folder: Path, url: str) -> AsyncIterator[str]:
    port = free_port()
    with _running(make(folder, port, url), folder):
        async with asyncio.timeout(10):
            while True:
                with suppress(OSError):
                    async with connected(f"http://127.0.0.1:{port}"):
                        break
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"


async def send_then_check(url: str, case: Smuggled) -> None:
    """Send a case through the proxy; assert that the next request gets its response.

    The proxy reuses its connections to the gateway. The response to the case itself does not matter.
    """
    async with connected(url) as (reader, writer):
        writer.write(case.data)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.2):
                await reader.read(65536)
    await check_own_response(url)


@pytest.mark.parametrize(
    "make", [pytest.param(_haproxy, marks=needs("haproxy")), pytest.param(_nginx, marks=needs("nginx"))]
)
async def test_request_smuggling_fails_behind_a_proxy_and_every_client_gets_its_own_response(
    make: Callable[[Path, int, str], list[str]], gateway: RunningGateway, tmp_path: Path
) -> None:
    async with behind(make, tmp_path, gateway.url) as url:
        for start in range(0, len(CORPUS), 16):
            await asyncio.gather(*(send_then_check(url, case) for case in CORPUS[start : start + 16]))
    check_log(gateway)
    served = [line for line in gateway.lines.of("request.finished") if line["model"] is not None]
    assert len(served) >= len(CORPUS)
    assert [line for line in served if line["trace_id"] != TRACE_ID] == []


# ── hostile bodies and paths ─────────────────────────────────────────────────────────────────────

DEEP = 200_000
HOSTILE_BODIES = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and open": b"[{" * DEEP,
    "NaN": b'{"a":NaN}',
    "Infinity": b"-Infinity",
    "a lone surrogate": b'"\\udc00"',
    "half a pair": b'"\\ud800\\u0041"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"a":1}',
    "NUL": b'{"a":1}\x00',
    "a comment": b'{"a":1} // one',
    "a control character in a string": b'"\x01"',
    "two values": b"{}{}",
    "half a number": b"1e",
    "no quotes": b"{a:1}",
    "only a minus": b"-",
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
@pytest.mark.parametrize("path", ["/v1/tasks/say", "/v1/chat/completions", "/v1/embeddings"])
async def test_hostile_json_is_400_before_a_backend_is_tried(path: str, name: str, gateway: RunningGateway) -> None:
    answer = await answered(gateway.url, post(path, HOSTILE_BODIES[name]))
    assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request")
    line = await gateway.line()
    assert (line["attempts"], line["backend"], line["t_decide_ms"]) == (0, "none", 0)
    check_log(gateway)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks/../admin", "/v1/tasks/..%2f..%2fetc%2fpasswd", "/v1/tasks/%00", "/v1/tasks/%ff", "/v1/tasks/%",
        "/v1/tasks/%0d%0aX:%20y", "/v1/tasks/.", "/v1/tasks//say", "/v1/tasks/", "/V1/tasks/say", "/v1\\tasks\\say",
        "/v1/tasks/say;x", "/status", "/metrics", "/explain", "/v1/models/../../status", "/" + "a/" * 3000,
        "/v1/tasks/%ed%a0%80", "/v1/tasks/%c0%ae%c0%ae", "/.git/config", "*",
    ],
)  # fmt: skip
async def test_path_traversal_is_4xx_and_reaches_no_route(path: str, gateway: RunningGateway) -> None:
    answer = await answered(gateway.url, post(path, b"1"))
    assert 400 <= answer.status < 500
    assert re.fullmatch(r"bad_request|not_found|method_not_allowed", answer.json["error"]["code"])
    check_log(gateway)
