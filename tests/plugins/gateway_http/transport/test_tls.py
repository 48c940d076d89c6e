"""Certificates are always verified, and the error states the reason."""

from __future__ import annotations

import asyncio
import datetime
import re
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.plugin import BackendUnavailable
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

GOOD = {"choices": [{"message": {}}]}
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


def server(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def refused(certificate: trustme.LeafCert, **settings: str) -> BackendUnavailable:
    async with (
        Upstream(answer(json=GOOD), tls=server(certificate), name="localhost") as upstream,
        opened(upstream.url, **settings) as (backend, services),
    ):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, chat())
        assert await backend.health() == failed.value.message
        assert upstream.requests == []
        assert services.failures == []
    return failed.value


async def test_certificate_of_the_configured_ca_is_accepted(ca: trustme.CA, ca_file: str) -> None:
    tls = server(ca.issue_cert("localhost"))
    async with (
        Upstream(answer(json=GOOD), tls=tls, name="localhost") as upstream,
        opened(upstream.url, ca_file=ca_file) as (backend, _),
    ):
        for _ in range(3):
            assert (await result(backend, chat())).value() == GOOD
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("names", "begins", "ends", "reason"),
    [
        (["localhost"], -3, -1, "has expired"),
        (["localhost"], 1, 3, "not yet valid .*clock"),
        (["elsewhere.test"], -1, 1, "for another host"),
    ],
)
async def test_certificate_error_states_the_reason(
    ca: trustme.CA, ca_file: str, names: list[str], begins: int, ends: int, reason: str
) -> None:
    certificate = ca.issue_cert(*names, not_before=NOW + begins * DAY, not_after=NOW + ends * DAY)
    error = await refused(certificate, ca_file=ca_file)
    assert error.code == "upstream_tls_error"
    assert re.search(reason, error.message)


async def test_unknown_ca_error_names_ca_file(ca_file: str) -> None:
    error = await refused(trustme.CA().issue_cert("localhost"), ca_file=ca_file)
    assert error.code == "upstream_tls_error"
    assert "CA_FILE" in error.message


async def test_private_ca_is_not_trusted_by_default(ca: trustme.CA) -> None:
    assert "CA_FILE" in (await refused(ca.issue_cert("localhost"))).message


async def test_upstream_without_tls_is_reported_as_a_tls_error() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server, opened(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as (backend, _):
        with pytest.raises(BackendUnavailable, match="scheme http") as failed:
            await result(backend, chat())
    assert failed.value.code == "upstream_tls_error"


async def test_client_certificate_is_sent_and_its_absence_raises_an_error(
    ca: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    mine = tmp_path / "client.pem"
    ca.issue_cert("edge.test").private_key_and_cert_chain_pem.write_to_path(str(mine))
    tls = server(ca.issue_cert("localhost"))
    ca.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with Upstream(answer(json=GOOD), tls=tls, name="localhost") as upstream:
        async with opened(upstream.url, ca_file=ca_file, client_cert_file=str(mine)) as (backend, _):
            assert (await result(backend, chat())).value() == GOOD
        async with opened(upstream.url, ca_file=ca_file) as (backend, _):
            with pytest.raises(BackendUnavailable) as failed:
                await result(backend, chat())
    # OpenSSL's alert and the server's reset race each other.
    assert failed.value.code in ("upstream_tls_error", "unavailable")


async def test_missing_client_certificate_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="CLIENT_CERT_FILE"):
        async with opened("https://host", client_cert_file=str(tmp_path / "gone.pem")):
            pass


async def test_unresolvable_name_is_reported_with_the_resolver_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lost)
    async with opened("https://nowhere.test") as (backend, services):
        with pytest.raises(BackendUnavailable, match=r"nowhere\.test has no address: Name or service not known"):
            await result(backend, chat())
    assert services.failures == ["no address"]
