"""Plugins installed for a test, and the problems of configurations that use them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, SecretStr, field_validator

from gateway.plugin import Backend, BackendSettings, Result, Task
from gateway.settings import Loaded, SettingsError, load

SHOUT = {"GATEWAY_BACKENDS__E__PLUGIN": "shout"}
REMOTE = {"GATEWAY_BACKENDS__R__PLUGIN": "remote", "GATEWAY_BACKENDS__R__URL": "https://api.example"}

ENTRY_POINTS = """\
[gateway.backends]
shout = support.configurations:Shout
remote = support.configurations:Remote
rotten = rotten_wood:Rotten
"""


class ShoutSettings(BackendSettings):
    suffix: str = Field("!", description="suffix of the answer")
    words: tuple[str, ...] = Field((), description="words")
    port: int = Field(1, description="a port")


class Shout(Backend[ShoutSettings]):
    """Returns its suffix."""

    tasks = ("shout",)

    async def run(self, task: Task) -> Result:
        return Result(json={"result": self.settings.suffix})


class Retry(BaseModel):
    times: int = 3
    pauses_s: list[float] = Field([1.0])


class RemoteSettings(BackendSettings):
    url: str = Field(description="base URL", examples=["https://api.example"])
    api_key: SecretStr | None = Field(None, description="the key")
    ca_file: Path | None = Field(None, description="a certificate")
    token_file: Path | None = Field(None, description="not the file of a secret called token")
    retry: Retry = Field(Retry(), description="retries")

    @field_validator("api_key")
    @classmethod
    def _long(cls, key: SecretStr | None) -> SecretStr | None:
        if key and len(key.get_secret_value()) < 3:
            raise ValueError("too short")
        return key


class Remote(Backend[RemoteSettings]):
    """A cloud backend with typical settings."""

    site = "cloud"

    async def run(self, task: Task) -> Result:
        return Result(json=None)


@pytest.fixture
def test_plugins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install three plugins: shout, remote, and rotten, which has no module.

    Returns the folder.
    """
    site = tmp_path_factory.mktemp("site")
    dist_info = site / "test_plugins-1.2.3.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: test-plugins\nVersion: 1.2.3\n")
    (dist_info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    return site


def wrong(environ: dict[str, str], env_file: Path | None = None) -> dict[str, str]:
    """Return the printed problems of a configuration, by variable."""
    with pytest.raises(SettingsError) as caught:
        load(environ, env_file)
    found = {problem.variable: str(problem) for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), caught.value
    return found


def only(environ: dict[str, str], env_file: Path | None = None) -> str:
    """Return the problem of a configuration that has exactly one."""
    found = list(wrong(environ, env_file).values())
    assert len(found) == 1, found
    return found[0]


def settings_of(loaded: Loaded, name: str) -> BackendSettings:
    settings = loaded.backends[name].settings
    assert settings is not None
    return settings


def env_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.env"
    path.write_text(text)
    return path
