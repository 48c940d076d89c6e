"""Findings of the doctor about this host, upstreams and brokers."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from gateway import cli
from gateway.commands import doctor
from gateway.commands.doctor import Finding, examine, not_after
from gateway.settings import load
from support.documents import free_port
from support.upstream import Upstream, answer
from support.wiring import backend, cloud

HERE = backend("e", "echo")


def findings(environ: dict[str, str], tmp_path: Path, env_file: Path | None = None) -> dict[str, Finding]:
    loaded = load(
        HERE | {"GATEWAY_STATE_DIR": str(tmp_path / "state"), "GATEWAY_ADMIN_LISTEN": "127.0.0.1:1"} | environ
    )
    return {each.about: each for each in examine(loaded, env_file)}


def test_healthy_host_has_no_problem(tmp_path: Path) -> None:
    found = findings({}, tmp_path)
    assert {"HTTP parser", "event loop", "clock", "file descriptors", "state directory"} <= found.keys()
    assert not (tmp_path / "state").exists()  # the doctor creates nothing
    assert [each for each in found.values() if each.verdict == "problem"] == []
    assert all(each.advice for each in found.values() if each.verdict != "ok")


def test_unwritable_state_directory_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert findings({}, tmp_path)["state directory"].verdict == "problem"


def test_full_disk_and_clock_before_the_build_date_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "BUILT", datetime(2999, 1, 1, tzinfo=UTC))
    found = findings({}, tmp_path)
    assert (found["state directory"].verdict, found["clock"].verdict) == ("problem", "problem")


def test_world_readable_secrets_are_a_warning(tmp_path: Path) -> None:
    env_file = tmp_path / "gateway.env"
    env_file.write_text("GATEWAY_MQTT__PASSWORD=hunter2\n")
    env_file.chmod(0o644)
    found = findings({}, tmp_path, env_file)["environment file, with secrets in it"]
    assert (found.verdict, "hunter2" in str(found)) == ("warning", False)


async def test_healthy_upstream_is_measured(tmp_path: Path) -> None:
    async with Upstream(answer(json={})) as upstream:
        found = await asyncio.to_thread(findings, cloud(upstream.url), tmp_path)
    assert {name for name in found if name.startswith("cloud")} == {
        "cloud: DNS",
        "cloud: round trip",
        "cloud: HTTP",
        "cloud: throughput",
    }
    assert {each.verdict for name, each in found.items() if name.startswith("cloud")} == {"ok"}


@pytest.mark.parametrize(("days", "verdict"), [(90, "ok"), (5, "warning")])
async def test_certificate_that_expires_soon_is_a_warning(days: int, verdict: str, tmp_path: Path) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(days=days, hours=1)).configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Upstream(answer(json={}), tls=context) as upstream:
        environ = cloud(upstream.url, CA_FILE=str(tmp_path / "ca.pem"))
        found = (await asyncio.to_thread(findings, environ, tmp_path))["cloud: its certificate"]
    assert (found.verdict, found.found) == (verdict, f"valid for {days} days")


async def test_client_certificate_is_presented_when_a_backend_requires_it(tmp_path: Path) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("us.example").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "us.pem"))
    async with Upstream(answer(json={}), tls=context) as upstream:
        files = {"CA_FILE": str(tmp_path / "ca.pem"), "CLIENT_CERT_FILE": str(tmp_path / "us.pem")}
        found = await asyncio.to_thread(findings, cloud(upstream.url, **files), tmp_path)
        assert found["cloud: HTTP"].verdict == "ok"
        del files["CLIENT_CERT_FILE"]
        found = await asyncio.to_thread(findings, cloud(upstream.url, **files), tmp_path)
        (problem,) = (each for each in found.values() if each.verdict == "problem")
        assert problem.about.startswith("cloud: ")


async def test_proxy_is_examined_when_a_backend_is_behind_it(tmp_path: Path) -> None:
    async with Upstream(answer(json={})) as proxy:
        environ = cloud("https://nobody.invalid", PROXY=proxy.url.replace("//", "//me:hunter2@"))
        found = await asyncio.to_thread(findings, environ, tmp_path)
    assert found["cloud, its proxy: HTTP"].verdict == "ok"
    assert "hunter2" not in str(list(found.values()))


async def test_certificate_of_an_untrusted_issuer_is_a_problem(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with Upstream(answer(json={}), tls=context) as upstream:
        found = (await asyncio.to_thread(findings, cloud(upstream.url), tmp_path))["cloud: TLS"]
    assert (found.verdict, "CA_FILE" in found.advice) == ("problem", True)


def test_unreachable_upstream_and_broker_are_problems(tmp_path: Path) -> None:
    port = free_port()
    found = findings(cloud(f"http://127.0.0.1:{port}") | {"GATEWAY_MQTT__URL": f"mqtt://127.0.0.1:{port}"}, tmp_path)
    assert "refused" in found["cloud: connection"].found.lower()
    assert found["broker"].verdict == "problem"


def test_unresolvable_name_is_a_dns_problem(tmp_path: Path) -> None:
    assert findings(cloud("http://no-such-host.invalid"), tmp_path)["cloud: DNS"].verdict == "problem"


def test_certificate_expiry_is_parsed_from_der() -> None:
    for year in (2031, 2061):  # UTCTime, and GeneralizedTime from 2050 on
        cert = trustme.CA().issue_cert("x.example", not_after=datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC))
        der = ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())
        assert not_after(der) == datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)


def test_doctor_prints_json_and_exits_78_for_an_invalid_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (HERE | {"GATEWAY_STATE_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["doctor", "--json"]) == 0
    assert {"about", "verdict", "found", "advice"} == set(json.loads(capsys.readouterr().out)[0])
    monkeypatch.setenv("GATEWAY_DEADLINE_S", "soon")
    assert cli.main(["doctor"]) == 78
    assert "GATEWAY_DEADLINE_S" in capsys.readouterr().out
