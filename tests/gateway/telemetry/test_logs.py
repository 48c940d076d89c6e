"""Lines of the log: their priority where the journal reads them, plain JSON everywhere else."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from gateway.telemetry import configure, log
from support.documents import ROOT

LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    configured = structlog.get_config()
    yield
    structlog.configure(**configured)


def heard(writing: int, reading: int) -> list[bytes]:
    """What comes out of the other end when one line of each level is logged."""
    with open(writing, "wb", buffering=0) as stream:
        configure("json", "debug", stream)
        for level in LEVELS:
            getattr(log, level)("test.said")
    with open(reading, "rb") as lines:
        return lines.readlines()


def test_to_the_journal_each_line_says_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = socket.socketpair()
    found = os.fstat(writing.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    lines = heard(writing.detach(), reading.detach())
    assert [line[:3] for line in lines] == [b"<7>", b"<6>", b"<4>", b"<3>"]
    assert [json.loads(line[3:])["level"] for line in lines] == list(LEVELS)


@pytest.mark.parametrize("form", ["auto", "console"])
def test_a_process_tells_the_journal_by_its_standard_error(form: str) -> None:
    code = f"from gateway.telemetry import configure, log; configure({form!r}); log.warning('test.said')"
    reading, writing = os.pipe()
    found = os.fstat(writing)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
    subprocess.run([sys.executable, "-c", code], env=environ, stderr=writing, timeout=30, check=True)
    os.close(writing)
    with open(reading, "rb") as lines:
        (line,) = lines.readlines()
    assert (line[:3], b"test.said" in line) == (b"<4>", True)


@pytest.mark.parametrize("named", [None, "", "1:2", "x"])
def test_elsewhere_a_line_is_plain_json(named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if named is not None:
        monkeypatch.setenv("JOURNAL_STREAM", named)
    reading, writing = os.pipe()
    lines = heard(writing, reading)
    assert [json.loads(line)["level"] for line in lines] == list(LEVELS)


def test_a_stream_that_is_no_file_is_not_the_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    stream = io.BytesIO()
    configure("json", "info", stream)
    log.info("test.said")
    assert json.loads(stream.getvalue())["event"] == "test.said"
