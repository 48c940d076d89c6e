"""The keys file, which never holds a secret, and the `keys` command."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gateway import cli
from gateway.admit import Gate, KeysInvalid, parse_keys
from gateway.admit.keyfile import read_keys, write_keys
from gateway.admit.keys import Key, hash_of

HASH = hash_of("x")


def made(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["keys", "--file", str(path), "create", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_invalid_keys_are_not_written_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {"good": Key(sha256=HASH)})
    for wrong in (Key(sha256=HASH, certificate=""), Key(sha256="x"), Key(sha256=HASH, models=("\udcff",))):
        with pytest.raises(KeysInvalid):
            write_keys(path, {"good": Key(sha256=HASH), "lamp": wrong})
    assert set(read_keys(path)) == {"good"}
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a valid keys file"),
        (b"[]", "not a valid keys file"),
        (b'{"keys": {}, "more": 1}', "unknown field `more`"),
        (b'{"keys": {"a": {}}}', "missing required field `sha256`"),
        (b'{"keys": {"a": {"sha256": "abc"}}}', "sha256"),
        (b'{"keys": {"a": {"sha256": "%s", "alow_cloud": false}}}' % HASH.encode(), "alow_cloud"),
        (b'{"keys": {"a": {"sha256": "%s", "expires": "2030-01-01"}}}' % HASH.encode(), "expires"),
        (b'{"keys": {"a": {"sha256": "%s", "concurrency": 0}}}' % HASH.encode(), ">= 1"),
        (b'{"keys": {"a_b": {"sha256": "%s"}}}' % HASH.encode(), "letters, digits and hyphens"),
        (
            b'{"keys": {"a": {"sha256": "%s", "certificate": "x"}, "b": {"sha256": "%s", "certificate": "x"}}}'
            % (HASH.encode(), HASH.encode()),
            "same certificate",
        ),
        (b"[" * 100_000, "not a valid keys file"),
        (b"\xff", "not a valid keys file"),
    ],
)
def test_invalid_keys_file_content_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(KeysInvalid, match=words):
        parse_keys(data)


def test_world_writable_keys_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {})
    path.chmod(0o666)
    with pytest.raises(KeysInvalid, match="chmod 600"):
        read_keys(path)
    with pytest.raises(KeysInvalid, match="cannot be read: no such file"):
        read_keys(tmp_path / "none")


def test_keys_file_is_replaced_atomically_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {"a": Key(sha256=HASH)})
    before = path.stat().st_ino
    write_keys(path, {"b": Key(sha256=HASH, models=("m",))})
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]
    assert read_keys(path) == {"b": Key(sha256=HASH, models=("m",))}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_keys_file_written_by_root_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    path = tmp_path / "keys.json"
    write_keys(path, {})
    assert path.stat().st_uid == 1234


def test_rewriting_the_keys_file_keeps_its_mode_and_a_symlink_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, link = tmp_path / "real" / "keys.json", tmp_path / "keys.json"
    path.parent.mkdir()
    made(path, capsys, "ada")
    path.chmod(0o640)
    link.symlink_to(path)
    made(link, capsys, "bob")
    assert cli.main(["keys", "--file", str(link), "revoke", "ada"]) == 0
    assert link.is_symlink()
    assert read_keys(path).keys() == {"bob"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["keys.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_group_permissions_are_dropped_when_the_group_cannot_be_preserved() -> None:
    with TemporaryDirectory() as folder:  # unlike tmp_path, other users may enter it
        path = Path(folder, "keys.json")
        write_keys(path, {})
        path.chmod(0o640)
        os.chown(path, 1234, 4321)
        os.chown(folder, 1234, 1234)
        before = os.getegid()
        os.setegid(1234)
        os.seteuid(1234)
        try:
            write_keys(path, {})
        finally:
            os.seteuid(0)
            os.setegid(before)
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o600, 1234)


def test_concurrent_create_and_revoke_lose_no_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    old = [f"old{number}" for number in range(4)]
    for name in old:
        made(path, capsys, name)
    command = [sys.executable, "-m", "gateway.cli", "keys", "--file", str(path)]
    calls = [[*command, "create", f"new{number}"] for number in range(8)]
    calls += [[*command, "revoke", name] for name in old]
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for call in calls]
    printed = [process.communicate(timeout=30)[0].decode().strip() for process in running]
    assert [process.returncode for process in running] == [0] * len(calls)
    gate = Gate(read_keys(path))
    assert {gate.authenticate([key]).id for key in printed[:8]} == {f"new{number}" for number in range(8)}
    assert not read_keys(path).keys() & set(old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_create_reports_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "--file", str(tmp_path / "none" / "keys.json"), "create", "ada"]) == 1
    told = capsys.readouterr()
    assert (told.out, f"{tmp_path / 'none'} cannot be used as the folder of a keys file" in told.err) == ("", True)


def test_created_key_is_printed_once_and_authenticates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    key = made(path, capsys, "ada", "--models", "m,n*", "--edge-only", "--expires", "90d", "--burst", "2")
    caller = Gate(read_keys(path)).authenticate([key])
    assert caller.key is not None
    assert (caller.id, caller.may_leave, caller.key.models, caller.key.burst) == ("ada", False, ("m", "n*"), 2)
    assert key.rpartition("_")[2] not in path.read_text()


def test_list_shows_the_limits_of_each_key_without_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    made(path, capsys, "ada", "--tasks", "add", "--requests-per-minute", "6", "--concurrency", "2", "--edge-only")
    made(path, capsys, "bob", "--admin", "--max-body-bytes", "5", "--expires", "2030-01-31")
    made(path, capsys, "cyd")
    assert cli.main(["keys", "--file", str(path), "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ada: tasks add, 6 requests a minute, 6 at once, 2 open, edge only",
        "bob: bodies to 5 bytes, admin, expires 2030-01-31T00:00:00+00:00",
        "cyd: everything",
    ]


def test_revoked_key_is_removed_from_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    made(path, capsys, "ada")
    assert cli.main(["keys", "--file", str(path), "revoke", "ada"]) == 0
    assert read_keys(path) == {}
    assert cli.main(["keys", "--file", str(path), "revoke", "ada"]) == 1
    assert "no key 'ada'" in capsys.readouterr().err


def test_revoking_the_last_admin_key_prints_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    for name in ("ada", "bob"):
        made(path, capsys, name, "--admin")
    made(path, capsys, "old", "--admin", "--expires", "2020-01-31")
    made(path, capsys, "cyd")
    warned = []
    for name in ("ada", "bob", "cyd"):
        assert cli.main(["keys", "--file", str(path), "revoke", name]) == 0
        warned.append("GATEWAY_ADMIN_LISTEN" in capsys.readouterr().err)
    assert warned == [False, True, False]


@pytest.mark.parametrize(
    "arguments",
    [
        ["a_b"],
        ["x", "--expires", "soon"],
        ["x", "--burst", "0"],
        ["x", "--requests-per-minute", "nan"],
        ["x", "--requests-per-minute", "inf"],
        ["x", "--certificate", ""],
        ["x", "--certificate", " "],
        ["x", "--certificate", "*"],
        ["x", "--certificate", "a\nb"],
        ["x", "--models", "\udcff"],
    ],
)
def test_invalid_arguments_create_no_key(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    assert cli.main(["keys", "--file", str(path), "create", *arguments]) == 1
    assert capsys.readouterr().out == ""
    assert not path.exists()


def test_keys_file_path_is_read_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GATEWAY_KEYS_FILE", raising=False)
    assert cli.main(["keys", "list"]) == 78
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(tmp_path / "keys.json"))
    assert cli.main(["keys", "create", "ada"]) == 0
    assert read_keys(tmp_path / "keys.json").keys() == {"ada"}


def test_unreadable_environment_file_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GATEWAY_KEYS_FILE", raising=False)
    assert cli.main(["keys", "--env-file", str(tmp_path / "missing"), "list"]) == 78
    assert f"--env-file: {tmp_path / 'missing'} cannot be read: no such file" in capsys.readouterr().err
