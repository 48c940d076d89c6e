"""Effective configuration: values, their origins, environment files and secrets."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.policy import Policy as Weights
from gateway.settings import Loaded, Policy, Settings, TcpListener, UnixListener, load
from gateway.settings.model import leaves_of
from support.configurations import (
    REMOTE,
    SHOUT,
    RemoteSettings,
    Retry,
    Shout,
    ShoutSettings,
    env_file,
    only,
    settings_of,
    test_plugins,  # noqa: F401
)

pytestmark = pytest.mark.usefixtures("test_plugins")

# ── effective values ─────────────────────────────────────────────────────────────────────────────


def test_one_backend_suffices_and_other_settings_have_documented_defaults() -> None:
    settings = load(SHOUT).settings
    assert settings.listen == (TcpListener("127.0.0.1", 8080),)
    assert settings.admin_listen == TcpListener("127.0.0.1", 8081)
    assert (settings.deadline_s, settings.first_byte_s, settings.stall_s) == (300, 60, 30)
    assert settings.max_body_bytes == 33_554_432
    assert (settings.allow_unauthenticated, settings.allowed_hosts, settings.allowed_origins) == (False, None, ())
    assert (settings.log.format, settings.log.level) == ("auto", "info")


def test_policy_settings_have_the_defaults_of_the_policy() -> None:
    assert Policy().model_dump(exclude={"probe_s"}) == {
        field.name: getattr(Weights(), field.name) for field in fields(Weights)
    }


def test_values_of_every_form_are_parsed() -> None:
    loaded = load(
        SHOUT
        | {
            "GATEWAY_LISTEN": "127.0.0.1:0, [::1]:9000,unix:/run/gw.sock",
            "GATEWAY_ALLOWED_HOSTS": "Box.Example., 10.0.0.1",
            "GATEWAY_ALLOWED_ORIGINS": '["https://App.Example/", "tauri://localhost"]',
            "GATEWAY_POLICY__ROUTES": '{"GPT-4": "e"}',
            "GATEWAY_POLICY__RESCUE": "no",
            "GATEWAY_LOG__LEVEL": "DEBUG",
            "GATEWAY_STATE_DIR": "/var/lib/gw",
        }
    )
    settings = loaded.settings
    assert settings.listen == (TcpListener("127.0.0.1", 0), TcpListener("::1", 9000), UnixListener("/run/gw.sock"))
    assert settings.allowed_hosts == ("box.example", "10.0.0.1")
    assert settings.allowed_origins == ("https://app.example", "tauri://localhost")
    assert settings.policy.routes == {"GPT-4": "e"}
    assert settings.policy.rescue is False
    assert settings.log.level == "debug"
    assert settings.state_dir == Path("/var/lib/gw")


@pytest.mark.parametrize("text", ["box.example", "Box.Example.:8080", "box.example:"])
@pytest.mark.parametrize("address", ["::1", "[::1]", "[::1]:8080", "0:0::1"])
def test_allowed_hosts_may_be_written_with_a_port_and_without_brackets(text: str, address: str) -> None:
    settings = load(SHOUT | {"GATEWAY_ALLOWED_HOSTS": f"{text},{address},10.0.0.1:80"}).settings
    assert settings.allowed_hosts == ("box.example", "[::1]", "10.0.0.1")


@pytest.mark.parametrize("text", ["[::1]:80", "[2001:db8::1]:80, 127.0.0.1:80", '["[::1]:80"]'])
def test_address_in_brackets_is_not_parsed_as_json(text: str) -> None:
    listen = load(SHOUT | {"GATEWAY_LISTEN": text, "GATEWAY_ALLOW_UNAUTHENTICATED": "1"}).settings.listen
    assert isinstance(listen[0], TcpListener)
    assert listen[0].host.endswith("::1")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(SHOUT).settings.deadline_s = 1.0  # type: ignore[misc]


def test_constructing_settings_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_DEADLINE_S", "7")
    assert Settings().deadline_s == 300
    assert load(SHOUT).settings.deadline_s == 300


@pytest.mark.parametrize("name", ["GATEWAY_BACKENDS__GPU_BOX__PLUGIN", "gateway_backends__Gpu_Box__plugin"])
def test_backend_name_is_lower_cased(name: str) -> None:
    assert list(load({name: "shout"}).backends) == ["gpu_box"]


def test_backend_settings_are_of_its_plugins_class() -> None:
    settings = settings_of(
        load(
            {
                "GATEWAY_BACKENDS__E__PLUGIN": "shout",
                "GATEWAY_BACKENDS__E__SUFFIX": "[no JSON",
                "GATEWAY_BACKENDS__E__WORDS": "a, b",
                "GATEWAY_BACKENDS__E__PORT": "80",
                "GATEWAY_BACKENDS__E__MODELS": '["m"]',
                "GATEWAY_BACKENDS__E__TASKS": '{"Add": "/add"}',
                "GATEWAY_BACKENDS__E__SLOTS": "4",
            }
        ),
        "e",
    )
    assert isinstance(settings, ShoutSettings)
    assert (settings.suffix, settings.words, settings.port) == ("[no JSON", ("a", "b"), 80)
    assert (settings.models, settings.tasks, settings.slots) == ({"m": "m"}, {"Add": "/add"}, 4)


def test_setting_groups_of_a_plugin_are_read_as_json_and_by_variable() -> None:
    group = {"GATEWAY_BACKENDS__R__RETRY": '{"times": 1}', "GATEWAY_BACKENDS__R__RETRY__PAUSES_S": "[0.5, 2]"}
    settings = settings_of(load(REMOTE | group), "r")
    assert isinstance(settings, RemoteSettings)
    assert settings.retry == Retry(times=1, pauses_s=[0.5, 2])


def test_text_that_looks_like_a_number_stays_text() -> None:
    settings = settings_of(load(REMOTE | {"GATEWAY_BACKENDS__R__API_KEY": "12345"}), "r")
    assert isinstance(settings, RemoteSettings)
    assert settings.api_key == SecretStr("12345")


def test_plugin_may_be_named_by_module_and_attribute() -> None:
    backend = load({"GATEWAY_BACKENDS__E__PLUGIN": "support.configurations:Shout"}).backends["e"]
    assert (backend.cls, backend.plugin) == (Shout, "support.configurations:Shout")
    assert settings_of(load(SHOUT), "e").plugin == "shout"


ONE = '{"plugin": "remote", "url": "https://a.example", "slots": 3, "models": {"A": "b"}}'


@pytest.mark.parametrize(
    "environ",
    [
        {"GATEWAY_BACKENDS": f'{{"R": {ONE}}}'},
        {"GATEWAY_BACKENDS__R": ONE},
        {
            "GATEWAY_BACKENDS": '{"r": {"plugin": "shout", "url": "https://b.example", "models": {"A": "b"}}}',
            "GATEWAY_BACKENDS__R": '{"plugin": "remote", "slots": 3}',
            "GATEWAY_BACKENDS__R__URL": "https://a.example",
        },
    ],
)
def test_json_is_accepted_for_groups_and_a_variable_overrides_its_group(environ: dict[str, str]) -> None:
    settings = settings_of(load(environ), "r")
    assert isinstance(settings, RemoteSettings)
    assert (settings.url, settings.slots, settings.models) == ("https://a.example", 3, {"A": "b"})


def test_policy_may_be_one_json_object() -> None:
    policy = load(SHOUT | {"GATEWAY_POLICY": '{"usd": 2, "routes": {"m": "e"}}', "GATEWAY_POLICY__USD": "3"})
    assert (policy.settings.policy.usd, policy.settings.policy.routes) == (3, {"m": "e"})


@pytest.mark.parametrize(
    "name", ["GATEWAY_DEADLINE_S", "GATEWAY_ALLOWED_HOSTS", "GATEWAY_POLICY", "GATEWAY_LOG__LEVEL"]
)
def test_an_empty_value_counts_as_unset(name: str) -> None:
    assert load(SHOUT | {name: ""}).settings == load(SHOUT).settings


@pytest.mark.parametrize(
    "name",
    [
        "GATEWAY_INTERFACE",
        "GATEWAY_SERVICE_HOST",
        "GATEWAY_SERVICE_PORT",
        "GATEWAY_SERVICE_PORT_HTTP",
        "GATEWAY_PORT",
        "GATEWAY_PORT_8080_TCP",
        "GATEWAY_PORT_8080_TCP_ADDR",
        "GATEWAY_BLUE_SERVICE_HOST",
        "GATEWAY_BLUE_PORT_80_UDP_PROTO",
        "PATH",
    ],
)
def test_variables_injected_by_docker_kubernetes_and_cgi_are_ignored(name: str) -> None:
    assert name not in load(SHOUT | {name: "tcp://10.0.0.1:80"}).origins


# ── state directory ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GATEWAY_STATE_DIR": "/a", "STATE_DIRECTORY": "/b"}, "/a"),
        ({"STATE_DIRECTORY": "/b:/c", "XDG_STATE_HOME": "/d"}, "/b"),
        ({"XDG_STATE_HOME": "/d", "HOME": "/h"}, "/d/edge-gateway"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/edge-gateway"),
        ({"HOME": "/h"}, "/h/.local/state/edge-gateway"),
    ],
)
def test_state_directory_is_that_of_systemd_else_of_the_user(environ: dict[str, str], expected: str) -> None:
    assert load(SHOUT | environ).settings.state_dir == Path(expected)


def test_the_state_directory_may_be_in_the_home_directory() -> None:
    assert load(SHOUT | {"GATEWAY_STATE_DIR": "~/gw"}).settings.state_dir == Path.home() / "gw"
    assert "~nobody-of-that-name" in only(SHOUT | {"GATEWAY_STATE_DIR": "~nobody-of-that-name/gw"})


# ── origins ──────────────────────────────────────────────────────────────────────────────────────


def test_environment_overrides_the_file_and_each_value_has_its_origin(tmp_path: Path) -> None:
    path = env_file(tmp_path, "GATEWAY_STALL_S=5\n\nGATEWAY_DEADLINE_S=9\nGATEWAY_POLICY__USD=1\n")
    loaded = load(SHOUT | {"GATEWAY_STALL_S": "6", "GATEWAY_POLICY": '{"usd": 2}'}, path)
    assert (loaded.settings.stall_s, loaded.settings.deadline_s, loaded.settings.policy.usd) == (6, 9, 2)
    assert loaded.origins["GATEWAY_STALL_S"] == "environment"
    assert loaded.origins["GATEWAY_DEADLINE_S"] == f"{path}, line 3"
    assert loaded.origins["GATEWAY_POLICY__USD"] == "environment"
    assert loaded.origins["GATEWAY_LISTEN"] == "default"
    assert loaded.origins["GATEWAY_BACKENDS__E__PLUGIN"] == "environment"
    assert loaded.origins["GATEWAY_BACKENDS__E__SUFFIX"] == "default"


def test_every_setting_has_an_origin_a_description_and_a_unit() -> None:
    leaves = list(leaves_of(Settings, "GATEWAY_"))
    assert {leaf.variable for leaf in leaves} <= load(SHOUT).origins.keys()
    assert [leaf.variable for leaf in leaves if not leaf.field.description] == []
    unitless = [n.variable for n in leaves if n.variable.endswith(("_S", "_BYTES", "USD", "JOULE")) and not n.unit]
    assert unitless == []


# ── the environment file ─────────────────────────────────────────────────────────────────────────


def test_environment_file_is_read_like_systemd_reads_it(tmp_path: Path) -> None:
    text = """\ufeff# a comment
; another one
  ; and one further in
export GATEWAY_BACKENDS__E__PLUGIN=shout
GATEWAY_BACKENDS__E__SUFFIX='a # b; $HOME'
GATEWAY_BACKENDS__E__TASKS='{"a": "b"}'
GATEWAY_DEADLINE_S="10"
GATEWAY_STALL_S=1
GATEWAY_STALL_S=2
PYTHONUNBUFFERED=1
"""
    loaded = load({}, env_file(tmp_path, text))
    settings = settings_of(loaded, "e")
    assert isinstance(settings, ShoutSettings)
    assert (settings.suffix, settings.tasks) == ("a # b; $HOME", {"a": "b"})
    assert (loaded.settings.deadline_s, loaded.settings.stall_s) == (10, 2)


@pytest.mark.parametrize("line", ["GATEWAY_STALL_S", "just words", "GATEWAY_STALL_S='5"])
def test_malformed_line_is_reported_with_its_number(tmp_path: Path, line: str) -> None:
    path = env_file(tmp_path, f"# one\n\n\n{line}\n")
    assert only(SHOUT, path).startswith(f"--env-file: {path}, line 4 is not NAME=value. Fix: write NAME=value")


def test_missing_environment_file_is_reported(tmp_path: Path) -> None:
    assert "absent.env cannot be read: no such file or directory" in only(SHOUT, tmp_path / "absent.env")


def test_binary_environment_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8 text" in only(SHOUT, path)


def test_misspelt_prefix_in_the_environment_file_is_reported(tmp_path: Path) -> None:
    assert "did you mean GATEWAY_LISTEN?" in only(SHOUT, env_file(tmp_path, "GATWAY_LISTEN=127.0.0.1:1\n"))


def test_semicolon_starts_a_comment_except_within_a_quoted_value(tmp_path: Path) -> None:
    text = """\
; GATEWAY_BACKENDS__E__SUFFIX="never

  ;'nor this
GATEWAY_BACKENDS__E__PLUGIN=shout # not ;

GATEWAY_BACKENDS__E__SUFFIX='one # of
; two
# three' # comment
GATEWAY_STALL_S=x
"""
    path = env_file(tmp_path, text)
    assert f"{path}, line" not in only({}, path)
    settings = settings_of(load({"GATEWAY_STALL_S": "1"}, path), "e")
    assert isinstance(settings, ShoutSettings)
    assert settings.suffix == "one # of\n; two\n# three"
    assert load({"GATEWAY_STALL_S": "1"}, path).origins["GATEWAY_BACKENDS__E__SUFFIX"] == f"{path}, line 6"


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────

KEY = "GATEWAY_BACKENDS__R__API_KEY"


def key_of(loaded: Loaded) -> str | None:
    settings = settings_of(loaded, "r")
    assert isinstance(settings, RemoteSettings)
    return settings.api_key.get_secret_value() if settings.api_key else None


def test_secret_is_read_from_credentials_then_its_file_then_the_variable(tmp_path: Path) -> None:
    (tmp_path / KEY).write_text("from-credentials\n")
    file = tmp_path / "key"
    file.write_text("from-file\r\n")
    variable, named = {KEY: "from-variable"}, {f"{KEY}_FILE": str(file)}
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert key_of(load(REMOTE)) is None
    assert key_of(load(REMOTE | variable)) == "from-variable"
    assert key_of(load(REMOTE | variable | named)) == "from-file"
    assert load(REMOTE | named).origins[KEY] == f"file {file}"
    loaded = load(REMOTE | variable | named | credentials)
    assert key_of(loaded) == "from-credentials"
    assert loaded.origins[KEY] == f"credential {tmp_path / KEY}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("GATEWAY_MQTT__PASWORD", "did you mean GATEWAY_MQTT__PASSWORD?"),
        ("GATEWAY_BACKENDS__R__APIKEY", "did you mean GATEWAY_BACKENDS__R__API_KEY?"),
        ("GATEWAY_BACKENDS__R__API_KEY_FILE", "did you mean GATEWAY_BACKENDS__R__API_KEY?"),
        ("GATEWAY_BACKEND__R__API_KEY", "did you mean GATEWAY_BACKENDS__R__API_KEY?"),
        ("GATEWAY_BACKENDS__S__API_KEY", "set GATEWAY_BACKENDS__S__PLUGIN"),
        ("GATEWAY_TLS__KEY_FILE", "set GATEWAY_TLS__KEY_FILE itself"),
        ("GATEWAY_POLICY", "is no setting (credential "),
    ],
)
def test_unknown_credential_is_reported_like_a_variable(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("x")
    (tmp_path / "another-services").write_text("x")
    assert words in only(REMOTE | {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_credential_may_be_the_file_named_by_the_setting_of_the_same_name(tmp_path: Path) -> None:
    name = "GATEWAY_BACKENDS__R__CA_FILE"
    (tmp_path / name).write_text("x")
    assert load(REMOTE | {name: str(tmp_path / name), "CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_setting_that_ends_in_file_is_not_taken_for_a_secret_file(tmp_path: Path) -> None:
    settings = settings_of(
        load(REMOTE | {"GATEWAY_BACKENDS__R__TOKEN_FILE": "/t", "GATEWAY_BACKENDS__R__CA_FILE": "/c"}), "r"
    )
    assert isinstance(settings, RemoteSettings)
    assert (settings.token_file, settings.ca_file) == (Path("/t"), Path("/c"))


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), (b"\n", "empty"), (b"\xff", "no text")])
def test_unreadable_secret_file_is_reported(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    told = only(REMOTE | {f"{KEY}_FILE": str(file)})
    assert told.startswith(f"{KEY}_FILE: {file} cannot be read")
    assert words in told


def test_error_message_does_not_contain_the_secret() -> None:
    told = only(REMOTE | {KEY: "zq"})
    assert "too short" in told
    assert "zq" not in told


def test_error_message_does_not_contain_a_password_in_a_url() -> None:
    told = only(SHOUT | {"GATEWAY_BACKENDS__E__PORT": "https://user:sesame@host"})
    assert "sesame" not in told
