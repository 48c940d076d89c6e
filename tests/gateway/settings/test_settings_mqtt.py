"""Settings of the MQTT transport: defaults, valid values and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import Key, hash_of
from gateway.settings import load
from gateway.settings.listeners import MqttUrl, parse_mqtt_url
from gateway.settings.report import show_settings
from support.configurations import SHOUT, only, test_plugins  # noqa: F401

pytestmark = pytest.mark.usefixtures("test_plugins")


def mqtt(**settings: str) -> dict[str, str]:
    return SHOUT | {f"GATEWAY_MQTT__{name}": value for name, value in settings.items()}


def test_broker_is_not_configured_without_a_url() -> None:
    settings = load(SHOUT).settings.mqtt
    assert settings.url is None
    assert (settings.group, settings.prefix, settings.telemetry_s) == ("edge-gateway", "edge-gateway", 30.0)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("mqtt://broker", MqttUrl("broker", 1883, False)),
        ("mqtts://broker", MqttUrl("broker", 8883, True)),
        ("MQTT://127.0.0.1:7/", MqttUrl("127.0.0.1", 7, False)),
        ("mqtts://[::1]", MqttUrl("::1", 8883, True)),
        ("mqtts://[::1]:7", MqttUrl("::1", 7, True)),
    ],
)
def test_broker_url_is_parsed(text: str, url: MqttUrl) -> None:
    assert parse_mqtt_url(text) == url
    assert parse_mqtt_url(str(url)) == url


@pytest.mark.parametrize(
    ("text", "is_local"), [("mqtt://localhost", True), ("mqtt://[::1]", True), ("mqtt://b", False)]
)
def test_loopback_broker_is_local(text: str, is_local: bool) -> None:
    assert parse_mqtt_url(text).is_local is is_local


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"URL": "http://broker"}, "no broker's URL"),
        ({"URL": "broker:1883"}, "no broker's URL"),
        ({"URL": "mqtt://me:secret@broker"}, "set USERNAME and PASSWORD"),
        ({"URL": "mqtt://broker:0"}, "names no broker"),
        ({"URL": "mqtt://broker:x"}, "has no port"),
        ({"URL": "mqtt://broker/topic"}, "no host name"),
        ({"URL": "mqtt://broker", "PASSWORD": "secret"}, "no USERNAME"),
        ({"URL": "mqtt://broker", "CA_FILE": "ca.pem"}, "not mqtts"),
        ({"CERT_FILE": "ca.pem"}, "not mqtts"),
        ({"URL": "mqtts://broker", "KEY_FILE": "key.pem"}, "no CERT_FILE"),
        ({"URL": "mqtts://broker", "CA_FILE": "/no/ca.pem"}, "GATEWAY_MQTT__CA_FILE: /no/ca.pem holds no"),
        ({"URL": "mqtts://broker", "CERT_FILE": "/no/a.pem"}, "GATEWAY_MQTT__CERT_FILE: /no/a.pem and"),
        ({"PREFIX": "a/#"}, "cannot begin a topic"),
        ({"PREFIX": "$SYS"}, "cannot begin a topic"),
        ({"PREFIX": "/a"}, "cannot begin a topic"),
        ({"GROUP": "a/b"}, "one level"),
        ({"TELEMETRY_S": "0"}, "greater than 0"),
        ({"URL": "mqtt://broker", "KEY": "mqtt"}, "no such API key"),
    ],
)
def test_invalid_mqtt_settings_are_reported_without_secrets(settings: dict[str, str], said: str) -> None:
    told = only(mqtt(**settings))
    assert told.startswith("GATEWAY_MQTT")
    assert said in told
    assert "secret" not in told


def test_mqtt_key_is_required_and_checked_when_keys_are_configured(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_keys(file, {"devices": Key(sha256=hash_of("x"))})
    with_keys = mqtt(URL="mqtt://broker") | {"GATEWAY_KEYS_FILE": str(file)}
    assert "name one of: devices" in only(with_keys)
    assert "did you mean devices?" in only(with_keys | {"GATEWAY_MQTT__KEY": "device"})
    assert load(with_keys | {"GATEWAY_MQTT__KEY": "devices"}).settings.mqtt.key == "devices"


def test_password_may_be_read_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("a secret\n")
    loaded = load(mqtt(URL="mqtt://broker", USERNAME="us", PASSWORD_FILE=str(file)))
    assert loaded.settings.mqtt.password is not None
    assert loaded.settings.mqtt.password.get_secret_value() == "a secret"
    assert "a secret" not in "\n".join(show_settings(loaded))
