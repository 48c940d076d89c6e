"""The keys file: what is refused, how it is written, and that it never holds a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway import cli
from gateway.admit import Gate, KeysInvalid, parse_keys
from gateway.admit.keyfile import read_keys, write_keys
from gateway.admit.keys import Key, hash_of

HASH = hash_of("x")


def made(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["keys", "--file", str(path), "create", *arguments]) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no keys file"),
        (b"[]", "no keys file"),
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
        (b"[" * 100_000, "no keys file"),
        (b"\xff", "no keys file"),
    ],
)
def test_what_is_not_understood_is_refused_not_ignored(data: bytes, words: str) -> None:
    with pytest.raises(KeysInvalid, match=words):
        parse_keys(data)


def test_a_file_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {})
    path.chmod(0o666)
    with pytest.raises(KeysInvalid, match="chmod 600"):
        read_keys(path)
    with pytest.raises(KeysInvalid, match="cannot be read: no such file"):
        read_keys(tmp_path / "none")


def test_it_is_replaced_whole_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, {"a": Key(sha256=HASH)})
    before = path.stat().st_ino
    write_keys(path, {"b": Key(sha256=HASH, models=("m",))})
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]
    assert read_keys(path) == {"b": Key(sha256=HASH, models=("m",))}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_writes_for_a_service_the_service_can_still_read(tmp_path: Path) -> None:
    os.chown(tmp_path, 1234, 1234)
    path = tmp_path / "keys.json"
    write_keys(path, {})
    assert path.stat().st_uid == 1234


def test_a_key_is_made_printed_once_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    key = made(path, capsys, "ada", "--models", "m,n*", "--edge-only", "--expires", "90d", "--burst", "2")
    caller = Gate(read_keys(path)).known([key])
    assert caller.key is not None
    assert (caller.id, caller.may_leave, caller.key.models, caller.key.burst) == ("ada", False, ("m", "n*"), 2)
    assert key.rpartition("_")[2] not in path.read_text()


def test_keys_are_listed_by_what_they_allow_without_their_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_revoked_key_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    made(path, capsys, "ada")
    assert cli.main(["keys", "--file", str(path), "revoke", "ada"]) == 0
    assert read_keys(path) == {}
    assert cli.main(["keys", "--file", str(path), "revoke", "ada"]) == 1
    assert "no key 'ada'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["a_b"], ["x", "--expires", "soon"], ["x", "--burst", "0"], ["x", "--requests-per-minute", "nan"]]
)
def test_what_makes_no_sense_makes_no_key(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    assert cli.main(["keys", "--file", str(path), "create", *arguments]) == 1
    assert capsys.readouterr().out == ""
    assert not path.exists()


def test_the_settings_say_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GATEWAY_KEYS_FILE", raising=False)
    assert cli.main(["keys", "list"]) == 78
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(tmp_path / "keys.json"))
    assert cli.main(["keys", "create", "ada"]) == 0
    assert read_keys(tmp_path / "keys.json").keys() == {"ada"}
