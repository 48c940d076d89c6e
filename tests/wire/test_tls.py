"""TLS and mutual TLS on the data listener, and connection limits."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.ingress.http import listener
from gateway.ingress.http.listener import TooManyConnections
from gateway.ingress.http.request_checks import names_in
from gateway.telemetry import RateLimitedEvent
from gateway.testing import RunningGateway, running_gateway
from support.configurations import only
from support.polling import wait_until
from support.raw import answered, connected, post, read_answer, read_to_end
from support.wiring import STUB

HERE = "127.0.0.1"


class Files:
    """A certificate authority, and a server certificate in files."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        server = self.ca.issue_cert(HERE)
        self.cert, self.key, self.ca_file = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.key.write_bytes(server.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    @property
    def environ(self) -> dict[str, str]:
        return {"GATEWAY_TLS__CERT_FILE": str(self.cert), "GATEWAY_TLS__KEY_FILE": str(self.key)}

    @property
    def mutual(self) -> dict[str, str]:
        return self.environ | {"GATEWAY_TLS__CLIENT_CA_FILE": str(self.ca_file)}

    def client(self, *, ca: trustme.CA | None = None) -> ssl.SSLContext:
        """Return a client context that trusts the server and has a certificate of `ca`."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if ca is not None:
            ca.issue_cert("client.example").configure_cert(context)
        return context

    def keys(self, **rules: dict[str, Any]) -> dict[str, str]:
        """Write a keys file; every secret consists of the letter a."""
        path = self.folder / "keys.json"
        secret = hash_of("a" * SECRET_CHARS)
        write_keys(path, {name: Key(sha256=secret, **rule) for name, rule in rules.items()})
        return {"GATEWAY_KEYS_FILE": str(path)}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    return Files(tmp_path)


async def status(gateway: RunningGateway, context: ssl.SSLContext, *, path: str = "say", key: str = "") -> int:
    url = gateway.url.replace("http:", "https:")
    headers = {"x-api-key": key} if key else {}
    async with (
        gateway.session() as http,
        http.post(f"{url}/v1/tasks/{path}", json=1, ssl=context, headers=headers) as answer,
    ):
        return answer.status


async def test_client_that_trusts_the_certificate_is_served(files: Files) -> None:
    async with running_gateway(**STUB, **files.environ) as gateway:
        assert await status(gateway, files.client()) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await status(gateway, ssl.create_default_context())


async def test_client_without_a_valid_certificate_is_rejected_by_mutual_tls(files: Files) -> None:
    async with running_gateway(**STUB, **files.mutual) as gateway:
        assert await status(gateway, files.client(ca=files.ca)) == 200
        for context in (files.client(), files.client(ca=trustme.CA())):
            with pytest.raises(aiohttp.ClientError):
                await status(gateway, context)
        assert len(gateway.lines.of("request.finished")) == 1


async def test_client_certificate_grants_exactly_the_rights_of_the_key_that_names_it(files: Files) -> None:
    keys = files.keys(sensor={"certificate": "client.example", "tasks": ("say",)}, other={})
    async with running_gateway(**STUB, **files.mutual, **keys) as gateway:
        sensor = files.client(ca=files.ca)
        assert await status(gateway, sensor) == 200
        assert await status(gateway, sensor, path="count") == 403
        assert await status(gateway, sensor, path="count", key="egw_other_" + "a" * SECRET_CHARS) == 200
        assert (
            await status(gateway, sensor, key="egw_sensor_" + "b" * SECRET_CHARS) == 401
        )  # an invalid key never falls through to the certificate


async def test_client_certificate_named_by_no_key_is_401(files: Files) -> None:
    keys = files.keys(sensor={"certificate": "another.example"})
    async with running_gateway(**STUB, **files.mutual, **keys) as gateway:
        assert await status(gateway, files.client(ca=files.ca)) == 401


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        ({}, []),
        ({"subject": ((("commonName", "lamp"),),)}, ["lamp"]),
        ({"subject": ((("commonName", "lamp"),),), "subjectAltName": (("DNS", "a"), ("URI", "x:b"))}, ["a", "x:b"]),
    ],
)
def test_certificate_names_are_the_alternative_names_else_the_common_name(
    certificate: dict[str, Any], names: list[str]
) -> None:
    assert list(names_in(certificate)) == names


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_1_is_rejected(files: Files) -> None:
    context = files.client()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with running_gateway(**STUB, **files.environ) as gateway:
        with pytest.raises(aiohttp.ClientError):
            await status(gateway, context)


async def test_plain_http_on_a_tls_port_is_rejected_without_a_traceback(files: Files) -> None:
    async with running_gateway(**STUB, **files.environ) as gateway:
        async with connected(gateway.url) as (reader, writer):
            writer.write(post("/v1/tasks/say", b"1"))
            assert b"200" not in await read_to_end(reader)
        assert await status(gateway, files.client()) == 200
        assert "Traceback" not in str(gateway.lines.all)


async def test_client_that_does_not_finish_the_handshake_is_disconnected(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.05)
    async with running_gateway(**STUB, **files.environ) as gateway, connected(gateway.url) as (reader, _):
        assert await asyncio.wait_for(read_to_end(reader), 5) == b""


def test_invalid_tls_files_are_reported_before_the_start(files: Files) -> None:
    assert "no such file" in only(STUB | files.environ | {"GATEWAY_TLS__KEY_FILE": str(files.folder / "none")})
    assert "no certificate with its key" in only(STUB | files.environ | {"GATEWAY_TLS__KEY_FILE": str(files.cert)})
    files.ca_file.write_text("not a certificate")
    assert "no certificate authority" in only(STUB | files.mutual)
    assert "no CERT_FILE" in only(STUB | {"GATEWAY_TLS__KEY_FILE": str(files.key)})


# ── connection limits ────────────────────────────────────────────────────────────────────────────


async def test_connection_over_the_limit_is_503_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_connections", lambda descriptors, slots: 2)
    async with running_gateway(**STUB) as gateway:
        async with connected(gateway.url) as (reader, writer), connected(gateway.url) as (second, other):
            for there, to in ((reader, writer), (second, other)):
                to.write(post("/v1/tasks/say", b"1"))
                assert (await read_answer(there)).status == 200
            refused = await answered(gateway.url, post("/v1/tasks/say", b"1" * 100_000))
            assert (refused.status, refused.json["error"]["code"]) == (503, "overloaded")
            assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
            writer.write(post("/v1/tasks/say", b"1"))
            assert (await read_answer(reader)).status == 200
        line = await gateway.line("http.full")
        assert line["request_id"] == refused.headers["x-request-id"] == refused.json["error"]["request_id"]
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 200


async def test_each_503_over_the_connection_limit_has_the_request_id_of_a_log_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_connections", lambda descriptors, slots: 0)
    monkeypatch.setattr("gateway.ingress.http.listener._full", RateLimitedEvent("http.full", per_s=1.0, burst=1))
    async with running_gateway(**STUB) as gateway:
        ids = {(await answered(gateway.url, b"")).headers["x-request-id"] for _ in range(8)}
        assert ids <= {line["request_id"] for line in gateway.lines.of("http.full")}


async def test_reset_by_a_client_over_the_connection_limit_is_not_logged_as_a_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client resets its connection between the 503 and the end of the stream."""
    made = TooManyConnections.connection_made
    clients: list[socket.socket] = []

    def connection_made(self: TooManyConnections, transport: Any) -> None:
        send = transport.write

        def write_then_reset(data: bytes) -> None:
            send(data)
            client = clients.pop()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

        transport.write = write_then_reset
        made(self, transport)

    monkeypatch.setattr("gateway.service.listeners.max_connections", lambda descriptors, slots: 0)
    monkeypatch.setattr(TooManyConnections, "connection_made", connection_made)
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    async with running_gateway(**STUB) as gateway:
        clients.append(socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))))
        await wait_until(lambda: not clients)
        await wait_until(lambda: TooManyConnections.open_count == 0)
        assert unhandled == []


async def test_burst_of_connections_is_cut_at_the_connection_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_connections", lambda descriptors, slots: 8)
    async with running_gateway(**STUB) as gateway:
        socks = [socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) for _ in range(60)]
        refused = [sock for sock in socks if await asyncio.to_thread(is_closed_by_gateway, sock)]
        assert len(refused) == 52
        for sock in socks:
            sock.close()
        server = gateway.service.listeners._runners[0].server
        await wait_until(lambda: not server.connections)  # type: ignore[union-attr]
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 200


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_unfinished_tls_handshakes_are_limited_to_a_share_of_the_connections(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_handshakes", lambda connections: 8)
    async with running_gateway(**STUB, **files.environ) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        gone = [sock for sock in socks if await asyncio.to_thread(is_closed_by_gateway, sock)]
        assert len(gone) == 22
        for sock in socks:
            sock.close()


async def test_failed_tls_handshakes_release_their_slots(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_handshakes", lambda connections: 2)
    async with running_gateway(**STUB, **files.environ) as gateway:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"") * 4:
            async with connected(gateway.url) as (reader, writer):
                writer.write(junk)
                writer.write_eof()
                await read_to_end(reader)
        assert await status(gateway, files.client()) == 200


async def test_tls_handshake_limit_is_per_listener(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_handshakes", lambda connections: 2)
    path = tmp_path / "plain.sock"
    async with (
        running_gateway(**STUB, **files.environ, GATEWAY_LISTEN=f"127.0.0.1:0,unix:{path}") as gateway,
        connected(gateway.url),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
    ):
        for _ in range(3):
            async with session.get("http://localhost/livez", headers={"Connection": "close"}) as answer:
                assert answer.status == 200


async def test_connections_rejected_at_the_limit_release_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.listeners.max_connections", lambda descriptors, slots: 1)
    monkeypatch.setattr("gateway.service.listeners.max_handshakes", lambda connections: 2)
    async with running_gateway(**STUB) as gateway:
        async with connected(gateway.url) as (reader, writer):
            writer.write(post("/v1/tasks/say", b"1"))
            assert (await read_answer(reader)).status == 200
            for _ in range(8):
                assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 503
        server = gateway.service.listeners._runners[0].server
        await wait_until(lambda: not server.connections)  # type: ignore[union-attr]
        assert (await answered(gateway.url, post("/v1/tasks/say", b"1"))).status == 200


def is_closed_by_gateway(sock: socket.socket) -> bool:
    sock.settimeout(0.2)
    try:
        sock.recv(4096)
        return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(("descriptors", "slots", "most"), [(1024, 16, 756), (65536, 16, 57204), (64, 4, 16)])
def test_connection_limit_leaves_descriptors_for_the_gateways_own_work(descriptors: int, slots: int, most: int) -> None:
    assert listener.max_connections(descriptors, slots) == most
