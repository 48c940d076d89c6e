"""API keys over HTTP: authentication before the body is read, and per-key rules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.api.routes import ROUTES
from gateway.settings import load
from gateway.telemetry import metrics
from gateway.testing import running_gateway
from support.configurations import only
from support.raw import Answer, answered, connected, post, read_answer
from support.stub_backend import StubBackend
from support.upstream import Upstream, answer
from support.wiring import OFF_SITE_STUB, STUB, cloud

ANY = "egw_any_" + "a" * SECRET_CHARS
CHAT = b'{"model":"%s","messages":[{"role":"user","content":"x"}]}'


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Any]:
    """Return a writer of keys files: key `any` has no limits, the others get `rules`.

    Every secret consists of the letter a.
    """

    def write(**rules: dict[str, Any]) -> dict[str, str]:
        path = tmp_path / "keys.json"
        secret = hash_of("a" * SECRET_CHARS)
        write_keys(path, {name: Key(sha256=secret, **rule) for name, rule in ({"any": {}} | rules).items()})
        return {"GATEWAY_KEYS_FILE": str(path)}

    return write


def bearer(name: str = "any") -> str:
    return f"Authorization: Bearer egw_{name}_{'a' * SECRET_CHARS}"


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines]).encode() + b"\r\n\r\n"


def code(answer: Answer) -> str:
    return str(answer.json["error"]["code"])


# ── authentication ───────────────────────────────────────────────────────────────────────────────


async def test_every_endpoint_except_health_requires_an_api_key(keys: Any) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        for route in ROUTES:
            path = route.path.replace("{", "").replace("}", "")
            asked = post(path, b"{}") if route.method == "POST" else get(path)
            answer = await answered(gateway.url, asked)
            assert (answer.status == 401) == (not route.is_health), path
            if not route.is_health:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert code(answer) == "unauthorized"
                assert "server-timing" not in answer.headers or "127.0.0.1" in gateway.url


@pytest.mark.parametrize("header", [f"Authorization: bearer {ANY}", f"x-api-key: {ANY}", f"api-key: {ANY}"])
async def test_api_key_is_accepted_from_each_header_that_clients_use(keys: Any, header: str) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        answer = await answered(gateway.url, post("/v1/tasks/say", b"1", header))
        assert (answer.status, answer.json) == (200, {"result": 1})


@pytest.mark.parametrize(
    "lines",
    [
        ["Authorization: Bearer egw_any_" + "b" * SECRET_CHARS],
        [f"Authorization: Basic {ANY}"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer sk-local"],
        [f"x-api-key: {ANY}", "Authorization: Bearer sk-local"],
        [f"Authorization: Bearer {ANY}", "api-key: wrong"],
        [f"Cookie: key={ANY}"],
    ],
)
async def test_failed_authentication_never_falls_through_to_another_credential(keys: Any, lines: list[str]) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1", *lines))).status == 401


async def test_key_in_url_is_ignored_and_duplicate_authorization_header_is_400(keys: Any) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        assert (await answered(gateway.url, post(f"/v1/tasks/say?api-key={ANY}", b"1"))).status == 401
        twice = await answered(gateway.url, post("/v1/tasks/say", b"1", bearer(), bearer()))
        assert (twice.status, code(twice)) == (400, "bad_request")


@pytest.mark.parametrize(
    "path", ["/v1/tasks/say/../../livez", "/livez/../v1/tasks/say", "//v1/tasks/say", "/v1/tasks%2Fsay"]
)
async def test_no_path_spelling_bypasses_authentication(keys: Any, path: str) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        assert (await answered(gateway.url, post(path, b"1"))).status in (401, 404, 405)


async def test_unknown_key_is_rejected_before_the_body_is_read(keys: Any) -> None:
    async with running_gateway(**STUB, **keys()) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/say", b"", length=30_000_000))
        answer = await asyncio.wait_for(read_answer(reader), 5)
        assert (answer.status, answer.headers["connection"]) == (401, "close")


async def test_client_key_is_ignored_when_no_keys_file_is_configured() -> None:
    async with running_gateway(**STUB) as gateway:
        asked = post("/v1/tasks/say", b"1", "Authorization: Bearer sk-anything")
        assert (await answered(gateway.url, asked)).status == 200


# ── rules of a key ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "names",
    [
        b'"model":"dear"',
        b'"model":"dear","model":"cheap"',
        b'"model":"cheap","Model":"dear"',
        rb'"mod\u0065l":"dear","model":"cheap"',
    ],
)
async def test_duplicate_or_differently_cased_model_field_cannot_bypass_key_rules(keys: Any, names: bytes) -> None:
    async with Upstream(answer(json={})) as upstream:
        rules = keys(narrow={"models": ("cheap",)})
        async with running_gateway(**cloud(upstream.url, MODELS="cheap,dear"), **rules) as gateway:
            body = b'{"messages":[{"role":"user","content":"x"}],' + names + b"}"
            asked = post("/v1/chat/completions", body, bearer("narrow"))
            assert (await answered(gateway.url, asked)).status in (400, 403)
        assert [each.path for each in upstream.requests if "chat" in each.path] == []


async def test_key_may_use_only_the_models_and_tasks_it_lists(keys: Any) -> None:
    rules = keys(narrow={"models": ("desk/clerk",), "tasks": ("say",)})
    async with running_gateway(**STUB, **rules) as gateway:

        async def ask(path: str, body: bytes) -> int:
            return (await answered(gateway.url, post(path, body, bearer("narrow")))).status

        assert await ask("/v1/tasks/say", b"1") == 200
        assert await ask("/v1/tasks/count", b"1") == 403
        assert await ask("/v1/tasks/s%61y", b"1") == 200
        assert await ask("/v1/chat/completions", CHAT % b"desk/clerk") == 200
        assert await ask("/v1/chat/completions", CHAT % b"clerk") == 403
        assert await ask("/v1/chat/completions", CHAT % b"auto") == 403


async def test_model_and_task_lists_show_only_what_the_key_may_use(keys: Any) -> None:
    rules = keys(narrow={"models": ("desk/*",), "tasks": ("say", "boom")})
    async with running_gateway(**STUB, **rules) as gateway:
        models = (await answered(gateway.url, get("/v1/models", bearer("narrow")))).json["data"]
        tasks = (await answered(gateway.url, get("/v1/tasks", bearer("narrow")))).json
        assert [model["id"] for model in models] == ["desk/clerk"]
        assert "count" not in str(tasks)
        assert "boom" in str(tasks)
        assert (await answered(gateway.url, get("/v1/models/clerk", bearer("narrow")))).status == 403


async def test_body_over_the_keys_limit_is_413_and_the_error_states_the_limit(keys: Any) -> None:
    async with running_gateway(**STUB, **keys(small={"max_body_bytes": 4})) as gateway:
        answer = await answered(gateway.url, post("/v1/tasks/say", b"12345", bearer("small")))
        assert (answer.status, code(answer)) == (413, "body_too_large")
        assert "4 bytes" in answer.json["error"]["message"]


async def test_request_of_a_key_without_cloud_access_never_leaves_the_site(keys: Any) -> None:
    before = metrics.EGRESS.values.copy()
    async with running_gateway(**OFF_SITE_STUB, **keys(home={"allow_cloud": False})) as gateway:
        kept = await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("home")))
        assert (kept.status, code(kept)) == (503, "no_backend")
        assert metrics.EGRESS.values == before
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1", bearer()))).status == 200


async def test_expired_key_is_401_and_the_error_names_the_key(keys: Any) -> None:
    async with running_gateway(**STUB, **keys(old={"expires": datetime(2020, 1, 1, tzinfo=UTC)})) as gateway:
        answer = await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("old")))
        assert answer.status == 401
        assert "old has expired" in answer.json["error"]["message"]


async def test_request_over_the_keys_rate_is_429_with_retry_after(keys: Any) -> None:
    async with running_gateway(**STUB, **keys(slow={"requests_per_minute": 1.0, "burst": 1})) as gateway:
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("slow")))).status == 200
        answer = await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("slow")))
        assert (answer.status, code(answer)) == (429, "rate_limited")
        assert 55 <= int(answer.headers["retry-after"]) <= 60
        assert 55_000 <= int(answer.headers["retry-after-ms"]) <= 60_000
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1", bearer()))).status == 200
        assert (await gateway.line(status=429))["outcome"] == "refused"


async def test_key_concurrency_limit_is_enforced_and_freed_when_the_client_disconnects(keys: Any) -> None:
    async with running_gateway(**STUB, **keys(one={"concurrency": 1})) as gateway:
        async with connected(gateway.url) as (_, writer):
            writer.write(post("/v1/tasks/wait", b"{}", bearer("one")))
            await StubBackend.waiting.wait()
            assert (await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("one")))).status == 429
        await gateway.line(outcome="cancelled")
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1", bearer("one")))).status == 200


async def test_keys_appear_in_no_log_line_and_no_response(keys: Any) -> None:
    async with running_gateway(**STUB, **keys()) as gateway:
        for lines in ([bearer()], [f"x-api-key: {ANY}x"], [f"Authorization: {ANY}", "api-key: other"]):
            answer = await answered(gateway.url, post("/v1/tasks/say", b"1", *lines))
            assert "a" * 20 not in answer.body.decode() + str(answer.headers)
        await gateway.lines.wait("request.finished", 3)
        assert "a" * 20 not in str(gateway.lines.all)


# ── public listeners ─────────────────────────────────────────────────────────────────────────────


async def test_public_admin_listener_requires_an_admin_key(keys: Any) -> None:
    rules = keys(root={"admin": True}) | {"GATEWAY_ADMIN_LISTEN": "0.0.0.0:0"}
    async with running_gateway(**STUB, **rules) as gateway:
        url = gateway.admin_url.replace("0.0.0.0", "127.0.0.1")
        found = [(await answered(url, get("/status", *lines))).status for lines in ([], [bearer()], [bearer("root")])]
        assert found == [401, 403, 200]


async def test_commands_that_query_the_admin_listener_send_the_key_from_a_file(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = STUB | keys(root={"admin": True}) | {"GATEWAY_ADMIN_LISTEN": "0.0.0.0:0"}
    (tmp_path / "root.key").write_text(f"egw_root_{'a' * SECRET_CHARS}\n")
    (tmp_path / "any.key").write_text(ANY)
    async with running_gateway(**rules) as gateway:
        address = gateway.admin_url.removeprefix("http://")
        for name, value in (rules | {"GATEWAY_ADMIN_LISTEN": address}).items():
            monkeypatch.setenv(name, value)

        async def run_command(*command: str) -> tuple[int, str]:
            code = await asyncio.to_thread(cli.main, command)
            printed = capsys.readouterr()
            return code, printed.out + printed.err

        root = ("--key-file", str(tmp_path / "root.key"))
        code, text = await run_command("explain", "/v1/tasks/say", "1")
        assert (code, "--key-file" in text) == (1, True)
        assert (await run_command("explain", "/v1/tasks/say", "1", "--key-file", str(tmp_path / "any.key")))[0] == 1
        code, text = await run_command("explain", "/v1/tasks/say", "1", *root)
        assert (code, "desk" in text) == (0, True)
        assert "--key-file" in (await run_command("plugins", "list"))[1]
        assert f"those of the gateway at {address}" in (await run_command("plugins", "list", *root))[1]
        code, text = await run_command("doctor", "--key-file", str(tmp_path / "none"))
        assert (code, "no such file" in text) == (1, True)


def test_public_listener_is_rejected_without_keys_and_accepted_with_keys(keys: Any) -> None:
    public = STUB | {"GATEWAY_LISTEN": "0.0.0.0:8080"}
    assert "set GATEWAY_KEYS_FILE" in only(public)
    assert load(public | keys()).keys is not None


def test_public_admin_listener_requires_an_unexpired_key_with_admin(keys: Any) -> None:
    public = STUB | {"GATEWAY_ADMIN_LISTEN": "0.0.0.0:8081"}
    told = "no valid API key has `admin`"
    assert told in only(public)
    assert told in only(public | keys())
    assert told in only(public | keys(old={"admin": True, "expires": datetime(2020, 1, 31, tzinfo=UTC)}))


def test_unreadable_keys_file_is_reported_as_an_error_of_its_variable(tmp_path: Path) -> None:
    assert only(STUB | {"GATEWAY_KEYS_FILE": str(tmp_path / "none")}).startswith("GATEWAY_KEYS_FILE: ")
