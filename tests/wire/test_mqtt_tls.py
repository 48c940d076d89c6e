"""Mutual TLS to the broker, and the broker probe."""

from __future__ import annotations

import gc
import socket
from pathlib import Path

import pytest
import trustme

from gateway.ingress.mqtt import Broker, Topics
from gateway.ingress.mqtt.probe import probe
from gateway.settings import SettingsError
from gateway.testing import running_gateway
from support.broker import PASSWORDS, free_port, running_broker
from support.mqtt_clients import device
from support.programs import needs

pytestmark = needs("mosquitto", "mosquitto_passwd")

ECHO = {"GATEWAY_BACKENDS__E__PLUGIN": "echo"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create ca.pem, and broker.pem and gateway.pem with their keys."""
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    folder.chmod(0o755)
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "broker.pem"))
    ours = ca.issue_cert("gateway.example", common_name="edge-gateway")
    ours.private_key_and_cert_chain_pem.write_to_path(str(folder / "gateway.pem"))
    return folder


def listener(port: int, files: Path) -> str:
    return (
        f"listener {port} 127.0.0.1\ncafile {files}/ca.pem\ncertfile {files}/broker.pem\nkeyfile {files}/broker.pem\n"
        "require_certificate true"
    )


async def test_gateway_and_broker_authenticate_with_certificates(files: Path) -> None:
    port = free_port()
    tls = {
        "GATEWAY_MQTT__URL": f"mqtts://127.0.0.1:{port}",
        "GATEWAY_MQTT__CA_FILE": str(files / "ca.pem"),
        "GATEWAY_MQTT__CERT_FILE": str(files / "gateway.pem"),
    }
    async with running_broker(more=listener(port, files)) as broker, running_gateway(**ECHO, **tls) as gateway:
        assert (await gateway.line("mqtt.connected"))["broker"] == f"mqtts://127.0.0.1:{port}"
        async with device(broker.port) as lamp:
            body = "x" * 300_000  # many TLS records
            assert (await lamp.ask("/v1/tasks/echo", body)).json == {"result": body}


@pytest.mark.filterwarnings(
    "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
)  # paho leaves closing to the garbage collector
async def test_gateway_does_not_connect_to_a_broker_with_an_untrusted_certificate(files: Path) -> None:
    port = free_port()
    async with (
        running_broker(more=listener(port, files)),
        running_gateway(**ECHO, GATEWAY_MQTT__URL=f"mqtts://127.0.0.1:{port}") as gateway,
    ):
        assert "CERTIFICATE_VERIFY_FAILED" in (await gateway.line("mqtt.disconnected"))["why"]
    gc.collect()


async def test_invalid_certificate_files_are_rejected_before_the_start(tmp_path: Path) -> None:
    wrong = {"GATEWAY_MQTT__URL": "mqtts://127.0.0.1", "GATEWAY_MQTT__CA_FILE": str(tmp_path / "none.pem")}
    with pytest.raises(SettingsError, match=r"GATEWAY_MQTT__CA_FILE: .*none\.pem holds no certificate authority"):
        async with running_gateway(**ECHO, **wrong):
            pass


# ── the probe ────────────────────────────────────────────────────────────────────────────────────


async def test_probe_reports_round_trip_and_limits_of_a_working_broker() -> None:
    async with running_broker(anonymous=False, more="max_packet_size 100000") as broker:
        who = Broker(host="127.0.0.1", port=broker.port, username="edge-gateway", password=PASSWORDS["edge-gateway"])
        found = await probe(who, Topics(host=socket.gethostname()))
    assert found.problem is None
    assert found.round_trip_s is not None
    assert found.round_trip_s < 1
    assert (found.receive_maximum, found.maximum_packet_bytes) == (64, 100_000)


async def test_probe_reports_why_the_broker_refuses_the_connection() -> None:
    async with running_broker(anonymous=False) as broker:
        found = await probe(Broker(host="127.0.0.1", port=broker.port), Topics(host="box"))
        lamp = Broker(host="127.0.0.1", port=broker.port, username="lamp", password=PASSWORDS["lamp"])
        forbidden = await probe(lamp, Topics(host="box"))
    assert "Not authorized" in (found.problem or "")
    assert "Not authorized" in (forbidden.problem or "")
    assert "refused" in ((await probe(Broker(host="127.0.0.1", port=1), Topics(host="box"))).problem or "")
