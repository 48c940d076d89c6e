"""Reports of settings.

The effective values without secrets, the generated environment file, which loads again, and the page in docs/.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.registry import find_plugin
from gateway.settings import Settings, load
from gateway.settings.docs import declared_plugins, render_docs
from gateway.settings.model import leaves_of
from gateway.settings.report import Plugins, render_env, show_settings
from gateway.settings.text import conceal, quote, render
from gateway.settings.tree import Mqtt
from gateway.settings.variables import read_variables
from support.configurations import REMOTE, SHOUT, env_file, test_plugins  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def plugins(test_plugins: Path) -> Plugins:  # noqa: F811
    return {name: find_plugin(name) for name in ("shout", "remote")}


# ── effective settings ───────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("test_plugins")
def test_every_setting_is_shown_with_its_origin_and_secrets_are_masked(tmp_path: Path) -> None:
    path = env_file(tmp_path, "GATEWAY_STALL_S=5\n")
    secret = {"GATEWAY_BACKENDS__R__API_KEY": "sesame"}
    in_url = {"GATEWAY_BACKENDS__R__URL": "https://user:abracadabra@host/v1"}
    shown = list(show_settings(load(REMOTE | secret | in_url, path)))
    text = "\n".join(shown)
    assert re.search(rf"^GATEWAY_STALL_S=5 +# {re.escape(str(path))}, line 1$", text, re.M)
    assert re.search(r"^GATEWAY_LISTEN=127.0.0.1:8080 +# default$", text, re.M)
    assert re.search(r"^GATEWAY_BACKENDS__R__API_KEY='\*+' +# environment$", text, re.M)
    assert "https://********@host/v1" in text
    assert "sesame" not in text
    assert "abracadabra" not in text


@pytest.mark.usefixtures("test_plugins")
def test_shown_settings_load_again_to_the_same_values(tmp_path: Path) -> None:
    chosen = SHOUT | {
        "GATEWAY_LISTEN": "[::1]:0,unix:/run/a b.sock",
        "GATEWAY_ALLOWED_ORIGINS": "https://a.example,https://b.example",
        "GATEWAY_POLICY__ROUTES": '{"it\'s": "e"}',
        "GATEWAY_BACKENDS__E__SUFFIX": "a # 'b' \\ \"c\"",
        "GATEWAY_BACKENDS__E__WORDS": '["a,b", "c"]',
        "GATEWAY_BACKENDS__E__MODELS": '{"A": "b"}',
    }
    first = load(chosen)
    again = load({}, env_file(tmp_path, "\n".join(show_settings(first))))
    assert again.settings == first.settings
    assert again.backends == first.backends


@pytest.mark.usefixtures("test_plugins")
def test_excluded_backend_is_shown_with_the_reason() -> None:
    shown = list(show_settings(load(SHOUT | {"GATEWAY_BACKENDS__W__PLUGIN": "rotten"})))
    assert re.match(r"GATEWAY_BACKENDS__W__PLUGIN=rotten +# left out: .*rotten_wood", shown[-1])


# ── the generated environment file ───────────────────────────────────────────────────────────────


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=GATEWAY_)", "", text)


def test_generated_file_loads_with_the_defaults(tmp_path: Path, plugins: Plugins) -> None:
    loaded = load({}, env_file(tmp_path, render_env(plugins)))
    assert loaded.settings == load(REMOTE).settings
    assert len(loaded.backends) == 1


def test_generated_file_loads_with_every_line_uncommented(tmp_path: Path, plugins: Plugins) -> None:
    loaded = load({}, env_file(tmp_path, uncommented(render_env(plugins))))
    assert loaded.settings.model_copy(update={"mqtt": Mqtt()}) == load(REMOTE).settings
    assert loaded.backends.keys() == {"shout", "remote"}


def test_generated_file_contains_every_setting(plugins: Plugins) -> None:
    text = render_env(plugins)
    expected = [leaf.variable for leaf in leaves_of(Settings, "GATEWAY_")]
    for name, cls in plugins.items():
        expected += [leaf.variable for leaf in leaves_of(cls.Settings, f"GATEWAY_BACKENDS__{name.upper()}__")]
    assert sorted(re.findall(r"(?m)^#?(GATEWAY_\w+)=", text)) == sorted(expected)


def by_module(text: str, plugins: Plugins) -> str:
    """Name plugins by module, so that the file loads without installed plugins."""
    for name, cls in plugins.items():
        text = text.replace(f"__PLUGIN={name}\n", f"__PLUGIN={cls.__module__}:{cls.__qualname__}\n")
    return text


def test_generated_file_of_our_plugins_loads_with_every_line_uncommented(tmp_path: Path) -> None:
    own = declared_plugins(ROOT)
    text = by_module(render_env(own), own)
    assert load({}, env_file(tmp_path, text)).backends.keys() == {"edge"}
    assert load({}, env_file(tmp_path, uncommented(text))).backends.keys() == {"edge", "cloud"} | own.keys() - {
        "local",
        "http",
    }


# ── values as text ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (300.0, "300"),
        (0.03, "0.03"),
        (("a", "b"), "a,b"),
        (("a,b",), '["a,b"]'),
        ({}, ""),
        ({"a": "b"}, '{"a": "b"}'),
        (Path("/x"), "/x"),
    ],
)
def test_value_is_rendered_in_the_form_that_sets_it(value: object, text: str) -> None:
    assert render(value) == text


def test_user_and_password_of_a_url_are_concealed() -> None:
    assert conceal("a http://u:p@h/x?y=@ b") == "a http://********@h/x?y=@ b"


@given(st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), min_size=1))
@example("\\'")
@example("$HOME ${x} #")
@example("\\n\nb")
def test_any_quoted_text_is_read_back_unchanged(text: str) -> None:

    assert dotenv_values(stream=StringIO(f"A={quote(text)}\n"), interpolate=False) == {"A": text}


@given(st.dictionaries(st.sampled_from(["GATEWAY_A", "gateway_b", "GATEWAY_C__D", "PATH"]), st.text()))
def test_reading_variables_returns_exactly_the_set_variables(environ: dict[str, str]) -> None:
    variables, problems = read_variables(environ, None, (), ())
    assert {name: v.text for name, v in variables.items()} == {
        name.upper(): text for name, text in environ.items() if text and name != "PATH"
    }
    assert problems == []


# ── docs/configuration.md ────────────────────────────────────────────────────────────────────────


def test_configuration_page_matches_the_settings() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == render_docs(declared_plugins(ROOT)), (
        "docs/configuration.md is out of date; at the root of the checkout: "
        "PYTHONPATH=.:plugins python -m gateway.settings.docs > docs/configuration.md"
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_examples_of_the_configuration_page_load(tmp_path: Path, number: int) -> None:
    blocks = re.findall(r"(?:^    GATEWAY_\S.*\n)+", (ROOT / "docs" / "configuration.md").read_text(), re.M)
    (tmp_path / "key").write_text("sk-example\n")
    text = re.sub(r"(?m)^    ", "", blocks[number]).replace("/run/secrets/openai", str(tmp_path / "key"))
    assert load({}, env_file(tmp_path, by_module(text, declared_plugins(ROOT)))).backends
