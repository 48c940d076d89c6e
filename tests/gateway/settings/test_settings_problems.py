"""Invalid configurations: all problems, each with its variable, reason and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import load
from support.configurations import (
    REMOTE,
    SHOUT,
    env_file,
    only,
    test_plugins,  # noqa: F401
    wrong,
)

pytestmark = pytest.mark.usefixtures("test_plugins")

# ── unknown variables ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GATEWAY_LISTN", "GATEWAY_LISTEN"),
        ("GATEWAY_DEADLINE", "GATEWAY_DEADLINE_S"),
        ("GATEWAY_POLICY_USD", "GATEWAY_POLICY__USD"),
        ("GATEWAY_POLICY__ROUTE", "GATEWAY_POLICY__ROUTES"),
        ("GATEWAY_BACKENDS__E__SUFIX", "GATEWAY_BACKENDS__E__SUFFIX"),
        ("GATEWAY_BACKENDS__E__MODEL", "GATEWAY_BACKENDS__E__MODELS"),
        ("GATEWAY_BACKENDS__E__SUFFIX_FILE", "GATEWAY_BACKENDS__E__SUFFIX"),
        ("GATEWAY_BACKEND__X__PLUGIN", "GATEWAY_BACKENDS__X__PLUGIN"),
        ("GATEWAY_BACKENDS_GPU_BOX__URL", "GATEWAY_BACKENDS__GPU_BOX__URL"),
        ("GATEWAY_BACKENDS_X_PLUGIN", "GATEWAY_BACKENDS__X__PLUGIN"),
        ("GATEWAY_BAKENDS", "GATEWAY_BACKENDS"),
        ("GATEWAY_POLICI", "GATEWAY_POLICY"),
        ("GATEWAY_LOG_LEVEL", "GATEWAY_LOG__LEVEL"),
        ("GATEWAY_MQTT__URI", "GATEWAY_MQTT__URL"),
    ],
)
def test_unknown_variable_error_names_the_nearest_known_variable(name: str, meant: str) -> None:
    assert only(SHOUT | {name: "1"}) == f"{name}: is no setting. Fix: did you mean {meant}?"


@pytest.mark.parametrize("name", ["GATEWAY_FOO", "GATEWAY_X", "GATEWAY_9876543210", "GATEWAY_BACKENDS__E__X"])
def test_unknown_variable_unlike_any_other_is_to_be_removed(name: str) -> None:
    told = only(SHOUT | {name: "1"})
    assert f"{name}: is no setting. Fix: remove it (the nearest there is: GATEWAY_" in told
    assert "`edge-gateway config --env` lists all" in told


@pytest.mark.parametrize("name", ["GATEWAY_BACKENDS__R__PORT", "GATEWAY_BACKENDS__R__SERVICE_HOST"])
def test_backend_variable_is_never_taken_for_an_injected_variable(name: str) -> None:
    assert name in wrong(REMOTE | {name: "1"})


def test_single_underscore_after_a_backend_name_is_explained() -> None:
    assert "did you mean GATEWAY_BACKENDS__CLOUD__URL?" in only(SHOUT | {"GATEWAY_BACKENDS__CLOUD_URL": "https://x"})


def test_variable_set_in_two_spellings_is_reported() -> None:
    assert "is also set as" in only(SHOUT | {"GATEWAY_STALL_S": "1", "gateway_stall_s": "2"})


# ── wrong values ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GATEWAY_DEADLINE_S", "5m", "'5m': it should be a valid number"),
        ("GATEWAY_DEADLINE_S", "0", "greater than 0"),
        ("GATEWAY_DEADLINE_S", "nan", "GATEWAY_DEADLINE_S=300 (whole request"),
        ("GATEWAY_STALL_S", "1e9", "less than or equal to 86400"),
        ("GATEWAY_MAX_BODY_BYTES", "32M", "valid integer"),
        ("GATEWAY_MAX_BODY_BYTES", "-1", "unit: bytes"),
        ("GATEWAY_ALLOW_UNAUTHENTICATED", "yess", "valid boolean"),
        ("GATEWAY_LISTEN", "8080", "'8080' has no port"),
        ("GATEWAY_LISTEN", "http://127.0.0.1:80", "is a URL"),
        ("GATEWAY_LISTEN", ":80", "every IPv4 address is 0.0.0.0"),
        ("GATEWAY_LISTEN", "*:80", "every address [::]"),
        ("GATEWAY_LISTEN", "::1:80", "in brackets: [::1]:PORT"),
        ("GATEWAY_LISTEN", "[fe80::x]:80", "no IPv6 address between its brackets"),
        ("GATEWAY_LISTEN", "127.0.0.1:65536", "no port between 0 and 65535"),
        ("GATEWAY_LISTEN", "a b:80", "no host name"),
        ("GATEWAY_LISTEN", "unix:gw.sock", "no absolute path"),
        ("GATEWAY_LISTEN", ",", "names no listener"),
        ("GATEWAY_LISTEN", "127.0.0.1:8081", "is taken by GATEWAY_ADMIN_LISTEN"),
        ("GATEWAY_LISTEN", "127.0.0.1:80,127.0.0.1:80", "is taken by GATEWAY_LISTEN"),
        ("GATEWAY_LISTEN", "0.0.0.0:80", "accept it with GATEWAY_ALLOW_UNAUTHENTICATED=true"),
        ("GATEWAY_LISTEN", "box.example:80", "can be reached from other machines"),
        ("GATEWAY_ADMIN_LISTEN", "0.0.0.0:81", "can be reached from other machines"),
        ("GATEWAY_ADMIN_LISTEN", "x", "has no port"),
        ("GATEWAY_ALLOWED_HOSTS", "https://box.example", "is no host name or address"),
        ("GATEWAY_ALLOWED_HOSTS", "bücher.example", "as browsers send it, xn--"),
        ("GATEWAY_ALLOWED_HOSTS", "fe80::1%eth0", "without a zone"),
        ("GATEWAY_ALLOWED_HOSTS", "[::1", "is no IPv6 address"),
        ("GATEWAY_ALLOWED_HOSTS", "*.example", "is no host name or address"),
        ("GATEWAY_ALLOWED_ORIGINS", "[1]", "1 is no browser origin"),
        ("GATEWAY_ALLOWED_ORIGINS", "*", "is no browser origin"),
        ("GATEWAY_ALLOWED_ORIGINS", "https://a.example/path", "is no browser origin"),
        ("GATEWAY_ALLOWED_ORIGINS", '["https://a.example"', "this is no valid JSON"),
        ("GATEWAY_POLICY__HYSTERESIS", "1.5", "less than 1"),
        ("GATEWAY_POLICY__USD", "inf", "finite"),
        ("GATEWAY_POLICY__ROUTES", '{"a": "ee"}', "did you mean 'e'?"),
        ("GATEWAY_POLICY__ROUTES", '{"a": "zzz"}', "name one of: e"),
        ("GATEWAY_POLICY__ROUTES", '{"a": ', "this is no valid JSON"),
        ("GATEWAY_POLICY__ROUTES", "a=b", "valid dictionary"),
        ("GATEWAY_POLICY", "cheap", "is no JSON object"),
        ("GATEWAY_POLICY", '["usd"]', "is no JSON object"),
        ("GATEWAY_POLICY", '{"usd": 1', "is no JSON object (Expecting"),
        ("GATEWAY_LOG__FORMAT", "xml", "'auto', 'console' or 'json'"),
        ("GATEWAY_LOG__LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("GATEWAY_BACKENDS__E__SLOTS", "0", "greater than or equal to 1"),
        ("GATEWAY_BACKENDS__E__SITE", "moon", "'edge' or 'cloud'"),
        ("GATEWAY_BACKENDS__E__SITE", "hybrid", "'edge' or 'cloud'"),
        ("GATEWAY_BACKENDS__E__ISOLATION", "vm", "'loop' or 'process'"),
        ("GATEWAY_BACKENDS__E__MODELS", '["a", ', "this is no valid JSON"),
        ("GATEWAY_BACKENDS__E__PORT", "http", "a port"),
        ("GATEWAY_BACKENDS__E__PLUGIN", "shuot", "Fix: set GATEWAY_BACKENDS__E__PLUGIN=shout"),
        ("GATEWAY_BACKENDS__E__PLUGIN", "zzzzzz", "`edge-gateway plugins list`"),
    ],
)  # fmt: skip
def test_invalid_value_is_reported_with_the_reason_and_a_fix(name: str, value: str, words: str) -> None:
    told = only(SHOUT | {name: value})
    assert told.startswith(f"{name}: ")
    assert words in told
    assert ". Fix: " in told


def test_missing_backends_are_reported_with_an_example() -> None:
    told = only({})
    assert told.startswith("GATEWAY_BACKENDS__<NAME>__PLUGIN: no backend is configured")
    assert "GATEWAY_BACKENDS__CLOUD__URL=https://api.example.com" in told


def test_backend_without_a_plugin_is_reported_with_the_installed_plugins() -> None:
    told = only(SHOUT | {"GATEWAY_BACKENDS__X__URL": "https://x"})
    assert told.startswith("GATEWAY_BACKENDS__X__PLUGIN: is not set")
    assert "shout" in told


def test_missing_required_setting_is_reported_with_an_example() -> None:
    told = only({"GATEWAY_BACKENDS__R__PLUGIN": "remote"})
    assert told.startswith("GATEWAY_BACKENDS__R__URL: is not set, and has no default")
    assert "GATEWAY_BACKENDS__R__URL=https://api.example (base URL)" in told


@pytest.mark.parametrize("name", ["NONE", "AUTO", "A-", "Ü", "ß", "caf\udcc3\udc89"])
def test_invalid_backend_name_is_reported(name: str) -> None:
    assert "use letters, digits" in only({f"GATEWAY_BACKENDS__{name}__PLUGIN": "shout"})


def test_invalid_backend_name_in_a_json_map_is_reported() -> None:
    assert "use letters, digits" in only({"GATEWAY_BACKENDS": '{"e": {"plugin": "shout"}, "ß": {"plugin": "shout"}}'})


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = env_file(tmp_path, "GATEWAY_STALL=1\nrubbish\n")
    found = wrong(
        {
            "GATEWAY_DEADLINE_S": "x",
            "GATEWAY_STALL_S": "y",
            "GATEWAY_LISTEN": "0.0.0.0:80",
            "GATEWAY_POLICY__PRICE": "-1",
            "GATEWAY_POLICY__ROUTES": '{"a": "nobody"}',
            "GATEWAY_BACKENDS__E__PLUGIN": "shout",
            "GATEWAY_BACKENDS__E__SLOTS": "x",
            "GATEWAY_BACKENDS__E__COLOUR": "red",
            "GATEWAY_BACKENDS__R__PLUGIN": "remote",
            "GATEWAY_BACKENDS__R__API_KEY_FILE": str(tmp_path / "absent"),
            "GATEWAY_BACKENDS__X__PLUGIN": "nothing-like-it",
        },
        path,
    )
    assert found.keys() == {
        "--env-file", "GATEWAY_STALL", "GATEWAY_DEADLINE_S", "GATEWAY_STALL_S", "GATEWAY_LISTEN",
        "GATEWAY_POLICY__PRICE", "GATEWAY_POLICY__ROUTES", "GATEWAY_BACKENDS__E__SLOTS",
        "GATEWAY_BACKENDS__E__COLOUR", "GATEWAY_BACKENDS__R__API_KEY_FILE", "GATEWAY_BACKENDS__R__URL",
        "GATEWAY_BACKENDS__X__PLUGIN",
    }  # fmt: skip


def test_public_listener_is_not_reported_when_the_permission_is_invalid() -> None:
    told = only(SHOUT | {"GATEWAY_LISTEN": "0.0.0.0:80", "GATEWAY_ALLOW_UNAUTHENTICATED": "yess"})
    assert told.startswith("GATEWAY_ALLOW_UNAUTHENTICATED")


def test_public_listener_without_keys_is_accepted_with_explicit_permission() -> None:
    assert load(SHOUT | {"GATEWAY_LISTEN": "0.0.0.0:80", "GATEWAY_ALLOW_UNAUTHENTICATED": "true"}).backends


# ── checks by the plugins of this project ────────────────────────────────────────────────────────


def test_edge_http_backend_with_a_public_address_is_refused() -> None:
    upstream = '{"plugin": "gateway_http:Http", "site": "edge", "url": "http://8.8.8.8/v1"}'
    told = only({"GATEWAY_BACKENDS__BOX": upstream})
    assert told.startswith("GATEWAY_BACKENDS__BOX: ")
    assert "8.8.8.8 is not a loopback or private address" in told


def test_hybrid_backend_naming_an_unknown_backend_is_reported_with_the_known() -> None:
    both = '{"plugin": "gateway_hybrid:Hybrid", "edge": "e", "cloud": "clowd", "tasks": "shout"}'
    told = only(SHOUT | {"GATEWAY_BACKENDS__BOTH": both})
    assert told.startswith("GATEWAY_BACKENDS__BOTH__CLOUD: there is no other backend 'clowd'; there are: e")


# ── broken plugins ───────────────────────────────────────────────────────────────────────────────


def test_broken_plugin_is_excluded_by_name_while_others_serve() -> None:
    loaded = load(SHOUT | {"GATEWAY_BACKENDS__W__PLUGIN": "rotten", "GATEWAY_BACKENDS__W__ANYTHING": "1"})
    assert loaded.backends["e"].broken is None
    assert "rotten_wood" in (loaded.backends["w"].broken or "")
    assert [problem.variable for problem in loaded.broken] == ["GATEWAY_BACKENDS__W__PLUGIN"]
