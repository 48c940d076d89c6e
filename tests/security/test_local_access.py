"""Other users of the machine, and other names for the same model."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from gateway import cli
from gateway.service.sockets import bind
from gateway.settings import SettingsError, UnixListener, load
from gateway.testing import running_gateway
from support.chat_upstreams import CHAT, ChatUpstream
from support.raw import answered, post
from support.upstream import Upstream, answer, by_path
from support.wiring import backend, cloud

ECHO = {"GATEWAY_BACKENDS__BIRD__PLUGIN": "echo"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# ── Unix sockets ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "http.sock"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_unix_socket_is_for_its_owner_only_under_every_umask(umask: int, path: Path) -> None:
    before = os.umask(umask)
    try:
        with bind(UnixListener(str(path)), "GATEWAY_LISTEN"):
            assert mode(path) == 0o600
    finally:
        os.umask(before)


def test_unix_socket_is_private_from_its_first_instant(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise OSError(errno.EINTR, "between bind and chmod")

    monkeypatch.setattr(os, "chmod", interrupted)
    before = os.umask(0)
    try:
        with pytest.raises(OSError, match="between bind and chmod"):
            bind(UnixListener(str(path)), "GATEWAY_LISTEN")
        assert mode(path) == 0o600
    finally:
        os.umask(before)


def test_group_of_the_setting_may_connect(path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    with bind(UnixListener(str(path)), "GATEWAY_LISTEN", group):
        assert (mode(path), path.lstat().st_gid) == (0o660, os.getegid())


async def test_gateway_serves_on_private_sockets(path: Path) -> None:
    admin = path.with_name("admin.sock")
    listening = {"GATEWAY_LISTEN": f"unix:{path}", "GATEWAY_ADMIN_LISTEN": f"unix:{admin}"}
    async with running_gateway(**ECHO, **listening):
        assert (mode(path), mode(admin)) == (0o600, 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_unknown_or_ineffective_group_is_an_error(path: Path) -> None:
    listening = {"GATEWAY_LISTEN": f"unix:{path}"}
    with pytest.raises(SettingsError, match=r"GATEWAY_SOCKET_GROUP.*no such group"):
        load(ECHO | listening | {"GATEWAY_SOCKET_GROUP": "no-such-group-here"})
    with pytest.raises(SettingsError, match=r"GATEWAY_SOCKET_GROUP.*no effect"):
        load(ECHO | {"GATEWAY_SOCKET_GROUP": grp.getgrgid(os.getegid()).gr_name})


# ── the environment file ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("permissions", "line", "is_warned"),
    [
        (0o644, "GATEWAY_BACKENDS__FAR__API_KEY=sk-1", True),
        (0o604, 'GATEWAY_BACKENDS__FAR={"api_key":"sk-1"}', True),
        (0o644, "GATEWAY_BACKENDS__FAR__PROXY=http://me:secret@proxy:1", True),
        (0o640, "GATEWAY_BACKENDS__FAR__API_KEY=sk-1", False),
        (0o644, "GATEWAY_BACKENDS__FAR__QUEUE=3", False),
        (0o644, "GATEWAY_BACKENDS__FAR__API_KEY_FILE={file}", False),
    ],
)
def test_check_warns_of_secrets_that_every_user_can_read(
    permissions: int,
    line: str,
    is_warned: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    key, file = tmp_path / "key", tmp_path / "gateway.env"
    key.write_text("sk-1")
    line = line.replace("{file}", str(key))
    variables = cloud("http://127.0.0.1:9", "far", MODELS="m")
    file.write_text("".join(f"{name}={text}\n" for name, text in variables.items()) + line + "\n")
    file.chmod(permissions)
    assert cli.main(["check", "--env-file", str(file)]) == 0
    said = capsys.readouterr().err
    assert ("warning" in said and "GATEWAY_BACKENDS__FAR__" in said and str(file) in said) == is_warned
    assert "sk-1" not in said


# ── aliases ──────────────────────────────────────────────────────────────────────────────────────

NAMES = '{"fast":"patient-notes","open":"gpt"}'


@pytest.mark.parametrize("rule", ["patient-notes", "Patient-*", "fast"])
@pytest.mark.parametrize("asked", ["fast", "far/fast", "auto"])
async def test_alias_of_an_edge_only_model_does_not_leave(rule: str, asked: str) -> None:
    async with (
        Upstream(by_path({CHAT: ChatUpstream(words=["yes"])})) as upstream,
        running_gateway(**cloud(upstream.url, "far", MODELS=NAMES), GATEWAY_POLICY__EDGE_ONLY=rule) as gateway,
    ):
        for model in (asked, "open"):
            body = b'{"model":"%b","messages":[{"role":"user","content":"hi"}]}' % model.encode()
            reply = await answered(gateway.url, post(CHAT, body))
            assert (reply.status == 200) == (model == "open"), reply.body
        sent = [request.body for request in upstream.requests if request.path.endswith("completions")]
        assert len(sent) == 1  # the control
        assert b"patient-notes" not in sent[0]


async def test_task_alias_is_under_the_rule_of_the_path_it_stands_for() -> None:
    tasks = '{"scan":"/v1/internal/scan","add":"/add"}'
    async with (
        Upstream(answer(json={"ok": True})) as upstream,
        running_gateway(
            **cloud(upstream.url, "far", TASKS=tasks),
            **backend("bird", "echo", TASKS="scan"),
            GATEWAY_POLICY__EDGE_ONLY="/v1/internal/*",
        ) as gateway,
    ):
        assert (await answered(gateway.url, post("/v1/tasks/add", b"{}"))).status == 200  # the control
        assert (await answered(gateway.url, post("/v1/tasks/scan", b"{}"))).status == 200  # at the edge
        assert [r.path for r in upstream.requests if "scan" in r.path or "add" in r.path] == ["/add"]
