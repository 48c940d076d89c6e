"""Reloads: changes apply, unchanged parts continue, errors change nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from gateway.admin import refresh_gauges
from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.service.main import reload as reload_file
from gateway.settings import SettingsError, load
from gateway.telemetry import metrics
from gateway.testing import RunningGateway, running_gateway
from support.polling import wait_until
from support.raw import answered, connected, post, read_answer, read_to_end
from support.slow_lifecycle import SlowLifecycle
from support.stub_backend import StubBackend
from support.wiring import STUB, backend

SAY = post("/v1/tasks/say", b"1")
LOOPBACK = {"GATEWAY_LISTEN": "127.0.0.1:0", "GATEWAY_ADMIN_LISTEN": "127.0.0.1:0"}
CANARY = backend("bird", "support.recording_backend:RecordingBackend")


async def reload(gateway: RunningGateway, **environ: str) -> list[str]:
    defaults = LOOPBACK
    state = {"GATEWAY_STATE_DIR": str(gateway.service.settings.state_dir)}
    waiting = await gateway.service.reload(load(defaults | state | environ))
    await gateway.service.registry.wait_reloaded()
    await gateway.service.registry.wait_opened(5)
    return waiting


async def status(gateway: RunningGateway, asked: bytes = SAY) -> int:
    return (await answered(gateway.url, asked)).status


async def test_keys_are_applied_and_removed_by_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {"ada": Key(sha256=hash_of("a" * SECRET_CHARS))})
    keyed = post("/v1/tasks/say", b"1", f"x-api-key: egw_ada_{'a' * SECRET_CHARS}")
    async with running_gateway(**STUB) as gateway:
        assert await status(gateway) == 200
        assert await reload(gateway, **STUB, GATEWAY_KEYS_FILE=str(path)) == []
        assert [await status(gateway), await status(gateway, keyed)] == [401, 200]
        write_keys(path, {})
        await reload(gateway, **STUB, GATEWAY_KEYS_FILE=str(path))
        assert await status(gateway, keyed) == 401
        await reload(gateway, **STUB)
        assert await status(gateway) == 200


async def test_removed_key_is_revoked_even_if_the_reload_fails(tmp_path: Path) -> None:
    keys, env_file = tmp_path / "keys.json", tmp_path / "env"
    write_keys(keys, {name: Key(sha256=hash_of(name[0] * SECRET_CHARS)) for name in ("ada", "bob", "cleo")})
    env_file.write_text(f"GATEWAY_KEYS_FILE={keys}\nGATEWAY_DEADLINE_S=-1\n")
    asked = {
        name: post("/v1/tasks/say", b"1", f"x-api-key: egw_{name}_{name[0] * SECRET_CHARS}")
        for name in ("ada", "bob", "cleo")
    }
    async with running_gateway(**STUB, GATEWAY_KEYS_FILE=str(keys)) as gateway:
        write_keys(
            keys, {"ada": Key(sha256=hash_of("a" * SECRET_CHARS)), "cleo": Key(sha256=hash_of("x" * SECRET_CHARS))}
        )
        await reload_file(gateway.service, env_file)
        (line,) = gateway.lines.of("service.reload_failed")
        assert line["problems"][-1] == "revoked nevertheless: bob, cleo"
        assert [await status(gateway, each) for each in asked.values()] == [200, 401, 401]
        keys.write_text("{")
        await reload_file(gateway.service, env_file)
        assert [await status(gateway, each) for each in asked.values()] == [200, 401, 401]


async def test_reload_applies_limits_hosts_origins_and_policy() -> None:
    async with running_gateway(**STUB) as gateway:
        new = {"GATEWAY_MAX_BODY_BYTES": "2", "GATEWAY_ALLOWED_HOSTS": "box.example", "GATEWAY_POLICY__USD": "3"}
        assert await reload(gateway, **STUB, **new, GATEWAY_ALLOWED_ORIGINS="http://app.example") == []
        assert await status(gateway) == 421
        here = {"host": "box.example"}
        assert await status(gateway, post("/v1/tasks/say", b"1", "Origin: http://app.example", **here)) == 200
        assert await status(gateway, post("/v1/tasks/say", b"123", **here)) == 413
        assert gateway.service.scheduler.policy.usd == 3


async def test_address_added_later_is_accepted_as_a_host_after_a_network_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_gateway(**STUB) as gateway:
        asked = post("/v1/tasks/say", b"1", host="192.0.2.7")
        assert await status(gateway, asked) == 421
        monkeypatch.setattr("gateway.service.listeners.own_hosts", lambda bound: frozenset({"192.0.2.7", "localhost"}))
        gateway.service._on_network_changed()
        assert await status(gateway, asked) == 200


async def test_unchanged_backend_keeps_running_its_request_through_a_reload() -> None:
    async with running_gateway(**STUB) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        before = gateway.service.registry.members["desk"].backend
        await reload(gateway, **STUB, **CANARY)
        assert gateway.service.registry.members["desk"].backend is before
        assert await status(gateway, post("/v1/tasks/sing", b"{}")) == 200
        StubBackend.open.set()
        assert (await read_answer(reader)).json == {"result": "waited"}


async def test_removed_backend_finishes_its_request_and_a_changed_one_is_replaced() -> None:
    async with running_gateway(**STUB, **CANARY) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        going = asyncio.ensure_future(reload(gateway, **CANARY, GATEWAY_BACKENDS__BIRD__FAILS="true"))
        await asyncio.wait({going}, timeout=0.2)
        assert gateway.service.registry.members["desk"].state == "closing"
        refused = await answered(gateway.url, SAY)
        assert (refused.status, "closing" in refused.json["error"]["message"]) == (503, True)
        assert not going.done()
        StubBackend.open.set()
        assert (await read_answer(reader)).json == {"result": "waited"}
        assert await going == []
        assert await status(gateway) == 404
        assert await status(gateway, post("/v1/tasks/sing", b"{}")) == 503
        assert set(gateway.service.scheduler.waiting()) == {"bird"}


@pytest.mark.parametrize(
    ("sent", "status_wanted", "then"),
    [(b"{}", 200, {"result": "waited"}), (b'{"then":"down"}', 503, "the desk has closed meanwhile")],
)
async def test_request_that_outlasts_its_removed_backend_ends_normally(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, status_wanted: int, then: Any
) -> None:
    monkeypatch.setattr("gateway.service.service.DRAIN_S", 0.0)
    desk = {**STUB, "GATEWAY_BACKENDS__DESK__REPEATABLE": "true"}
    async with running_gateway(**desk) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/wait", sent))
        await StubBackend.waiting.wait()
        await reload(gateway, **CANARY)
        StubBackend.open.set()
        answer = await read_answer(reader)
        assert answer.status == status_wanted
        assert then == (answer.json if status_wanted == 200 else answer.json["error"]["message"])
        assert (await gateway.line(status=status_wanted))["backend"] == "desk"


async def test_request_queued_for_a_removed_backend_is_503_immediately(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.service.service.DRAIN_S", 0.0)
    narrow = {**STUB, "GATEWAY_BACKENDS__DESK__SLOTS": "1"}
    async with (
        running_gateway(**narrow) as gateway,
        connected(gateway.url) as (_, first),
        connected(gateway.url) as (reader, second),
    ):
        first.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        second.write(SAY)
        await wait_until(lambda: gateway.service.scheduler.waiting()["desk"])
        await reload(gateway, **CANARY)
        told = await asyncio.wait_for(read_answer(reader), 5)
        assert (told.status, told.json["error"]["code"]) == (503, "unavailable")
        assert "removed" in told.json["error"]["message"]
        StubBackend.open.set()


async def test_request_queued_for_a_removed_backend_is_served_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.service.service.DRAIN_S", 0.0)
    narrow = {**STUB, "GATEWAY_BACKENDS__DESK__SLOTS": "1"}
    stays = backend("dear", "support.stub_backend:StubBackend", USD_PER_REQUEST="1") | {"GATEWAY_POLICY__USD": "1000"}
    async with (
        running_gateway(**narrow, **stays) as gateway,
        connected(gateway.url) as (_, first),
        connected(gateway.url) as (reader, second),
    ):
        first.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        second.write(SAY)
        await wait_until(lambda: gateway.service.scheduler.waiting()["desk"])
        await reload(gateway, **stays)
        served = await asyncio.wait_for(read_answer(reader), 5)
        assert (served.status, served.headers["x-gateway-backend"]) == (200, "dear")
        StubBackend.open.set()


async def test_backend_removed_while_opening_leaves_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.registry.lifecycle.CLOSE_S", 0.0)
    monkeypatch.setattr("gateway.service.service.START_S", 0.0)
    late = backend("late", "support.slow_lifecycle:SlowLifecycle")
    async with running_gateway(**STUB, **late) as gateway:
        await SlowLifecycle.opening.wait()
        await reload(gateway, **STUB)
        SlowLifecycle.may_open.set()
        await SlowLifecycle.closed.wait()
        assert set(gateway.service.scheduler.waiting()) == {"desk"}
        gateway.service.scheduler.tick()


async def test_network_change_during_a_reload_uses_the_new_settings() -> None:
    async with running_gateway(**STUB, **CANARY) as gateway, connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/tasks/wait", b"{}"))
        await StubBackend.waiting.wait()
        going = asyncio.ensure_future(reload(gateway, **CANARY, GATEWAY_ALLOWED_HOSTS="box.example"))
        await wait_until(lambda: gateway.service.registry.members["desk"].state == "closing")
        gateway.service._on_network_changed()
        assert await status(gateway, post("/v1/tasks/sing", b"{}", host="box.example")) == 200
        StubBackend.open.set()
        await read_answer(reader)
        await going


async def test_removed_backend_loses_its_gauges_and_keeps_its_counters() -> None:
    async with running_gateway(**STUB, **CANARY) as gateway:
        assert await status(gateway) == 200
        refresh_gauges(gateway.service.dispatcher)
        metrics.LEAKED.set(1, backend="desk")
        assert 'edge_gateway_breaker_state{backend="desk"}' in metrics.exposition()
        await reload(gateway, **CANARY)
        refresh_gauges(gateway.service.dispatcher)
        left = {line.partition("{")[0] for line in metrics.exposition().splitlines() if 'backend="desk"' in line}
        assert "edge_gateway_requests_total" in left
        assert not left & {metric.name for metric in metrics.REGISTRY if isinstance(metric, metrics.Gauge)}
        assert 'edge_gateway_breaker_state{backend="bird"}' in metrics.exposition()


async def test_changed_tasks_directory_replaces_the_backend(tmp_path: Path) -> None:
    file = tmp_path / "jobs.py"
    file.write_text("def one() -> int:\n    return 1\n")
    local = backend("here", "local", TASKS_DIR=str(tmp_path))
    async with running_gateway(**local) as gateway:
        assert await status(gateway, post("/v1/tasks/one", b"{}")) == 200
        before = gateway.service.registry.members["here"].backend
        await reload(gateway, **local)
        assert gateway.service.registry.members["here"].backend is before
        (tmp_path / "more.py").write_text("def two() -> int:\n    return 2\n")
        await reload(gateway, **local)
        assert await status(gateway, post("/v1/tasks/two", b"{}")) == 200


async def test_setting_that_needs_a_restart_is_reported_and_not_applied() -> None:
    async with running_gateway(**STUB) as gateway:
        new = {"GATEWAY_LISTEN": "127.0.0.1:1", "GATEWAY_STATE_DIR": "/nowhere", "GATEWAY_DEADLINE_S": "7"}
        assert await reload(gateway, **STUB, **new) == ["GATEWAY_LISTEN", "GATEWAY_STATE_DIR"]
        assert await status(gateway) == 200
        assert str(gateway.service.settings.state_dir) != "/nowhere"
        assert gateway.service.handler.limits.deadline_s == 7


async def test_invalid_settings_are_reported_by_variable_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "gateway.env"
    wrong.write_text(
        "GATEWAY_BACKENDS__BIRD__PLUGIN=support.recording_backend:RecordingBackend\nGATEWAY_DEADLINE_S=soon\n"
    )
    async with running_gateway(**STUB) as gateway:
        before = gateway.service.settings
        await reload_file(gateway.service, wrong)
        (told,) = gateway.lines.of("service.reload_failed")
        assert [problem.partition(":")[0] for problem in told["problems"]] == ["GATEWAY_DEADLINE_S"]
        assert gateway.service.settings is before
        assert await status(gateway) == 200


async def test_renewed_certificate_is_used_for_new_connections(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def issue() -> trustme.CA:
        ca = trustme.CA()
        server = ca.issue_cert("127.0.0.1")
        key.write_bytes(server.private_key_pem.bytes())
        cert.write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        return ca

    async def served(gateway: RunningGateway, ca: trustme.CA) -> Any:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        url = gateway.url.replace("http:", "https:")
        async with gateway.session() as http, http.post(f"{url}/v1/tasks/say", json=1, ssl=context) as answer:
            return json.loads(await answer.read())

    issue()
    files = {"GATEWAY_TLS__CERT_FILE": str(cert), "GATEWAY_TLS__KEY_FILE": str(key)}
    async with running_gateway(**STUB, **files) as gateway:
        ca = issue()
        assert await reload(gateway, **STUB, **files) == []
        assert await served(gateway, ca) == {"result": 1}
        assert await reload(gateway, **STUB) == []
        assert await status(gateway) == 200  # plain HTTP again


async def test_changed_client_ca_applies_to_new_connections(tmp_path: Path) -> None:
    server, ours, others = trustme.CA(), trustme.CA(), trustme.CA()
    server.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    ours.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
    files = {"CERT_FILE": "server.pem", "CLIENT_CA_FILE": "clients.pem"}
    tls = {f"GATEWAY_TLS__{name}": str(tmp_path / file) for name, file in files.items()}

    async def is_served(gateway: RunningGateway, ca: trustme.CA) -> bool:
        context = ssl.create_default_context()
        server.configure_trust(context)
        ca.issue_cert("client.example").configure_cert(context)
        url = gateway.url.replace("http:", "https:")
        try:
            async with gateway.session() as http, http.post(f"{url}/v1/tasks/say", json=1, ssl=context) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async with running_gateway(**STUB, **tls) as gateway:
        assert [await is_served(gateway, ca) for ca in (ours, others)] == [True, False]
        others.cert_pem.write_to_path(str(tmp_path / "clients.pem"))
        assert await reload(gateway, **STUB, **tls) == []
        assert [await is_served(gateway, ca) for ca in (ours, others)] == [False, True]


async def test_public_listener_never_loses_its_keys_by_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {"ada": Key(sha256=hash_of("a" * SECRET_CHARS))})
    public = {"GATEWAY_LISTEN": "0.0.0.0:0", "GATEWAY_ALLOWED_HOSTS": "localhost"}
    async with running_gateway(**STUB, **public, GATEWAY_KEYS_FILE=str(path)) as gateway:
        with pytest.raises(SettingsError, match="can be reached from other machines"):
            await reload(gateway, **STUB)  # it would listen on loopback only, but not before the next start
        assert await answered_status(gateway, SAY) == 401


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (("CLIENT_CA_FILE",), "CLIENT_CA_FILE: was removed: 0.0.0.0:.* would accept clients without a certificate"),
        (("CLIENT_CA_FILE", "CERT_FILE", "KEY_FILE"), "CERT_FILE: was removed: 0.0.0.0:.* would continue without TLS"),
    ],
)
@pytest.mark.parametrize("unauthenticated", [True, False])
async def test_public_listener_never_loses_its_tls_by_a_reload(
    tmp_path: Path, lost: tuple[str, ...], told: str, unauthenticated: bool
) -> None:
    path, pem, ca = tmp_path / "keys.json", tmp_path / "server.pem", tmp_path / "ca.pem"
    write_keys(path, {"ada": Key(sha256=hash_of("a" * SECRET_CHARS))})
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(ca))
    files = {"CERT_FILE": pem, "KEY_FILE": pem, "CLIENT_CA_FILE": ca}
    tls = {name: f"{file}" for name, file in files.items()}
    world = STUB | {"GATEWAY_LISTEN": "0.0.0.0:0", "GATEWAY_ALLOWED_HOSTS": "localhost"}
    world |= {"GATEWAY_ALLOW_UNAUTHENTICATED": "true"} if unauthenticated else {"GATEWAY_KEYS_FILE": str(path)}

    def but(*names: str) -> dict[str, str]:
        return world | {f"GATEWAY_TLS__{name}": file for name, file in tls.items() if name not in names}

    async with running_gateway(**but()) as gateway:
        with pytest.raises(SettingsError, match=told):
            await reload(gateway, **but(*lost))
        async with connected(gateway.url.replace("0.0.0.0", "127.0.0.1")) as (reader, writer):
            writer.write(SAY)
            assert await read_to_end(reader) == b""  # no HTTP without TLS
        assert "GATEWAY_LISTEN" not in await reload(gateway, **but())


async def answered_status(gateway: RunningGateway, asked: bytes) -> int:
    return (await answered(gateway.url.replace("0.0.0.0", "127.0.0.1"), asked)).status


async def test_setting_that_needs_a_restart_is_reported_at_every_reload() -> None:
    async with running_gateway(**STUB) as gateway:
        for _ in range(2):
            assert await reload(gateway, **STUB, GATEWAY_LISTEN="127.0.0.1:1") == ["GATEWAY_LISTEN"]
        assert await reload(gateway, **STUB) == []


def broken(plugin: str, folder: Path) -> Path:
    """Write an environment file with a faulty plugin and a working one."""
    file = folder / "gateway.env"
    variables = LOOPBACK | STUB | backend("broken", plugin) | {"GATEWAY_STATE_DIR": str(folder)}
    file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return file


async def test_plugin_settings_that_raise_are_reported_and_change_nothing(tmp_path: Path) -> None:
    async with running_gateway(**STUB) as gateway:
        await reload_file(gateway.service, broken("support.broken_settings:Raises", tmp_path))
        (told,) = gateway.lines.of("service.reload_failed")
        assert told["problems"][0].startswith("GATEWAY_BACKENDS__BROKEN: ")
        assert "this validator is broken" in told["problems"][0]
        assert await status(gateway) == 200


async def test_plugin_that_exits_on_import_is_excluded_and_named(tmp_path: Path) -> None:
    async with running_gateway(**STUB) as gateway:
        await reload_file(gateway.service, broken("support.broken_settings.exits:Nothing", tmp_path))
        await gateway.service.registry.wait_opened(5)
        member = gateway.service.registry.members["broken"]
        assert (member.state, "SystemExit" in (member.cause or "")) == ("failed", True)
        assert await status(gateway) == 200
