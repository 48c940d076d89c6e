"""Log lines: with a priority prefix for the systemd journal, plain JSON elsewhere."""

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
from gateway.telemetry.events import EVENTS
from support.documents import ROOT

LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    configured = structlog.get_config()
    yield
    structlog.configure(**configured)


def lines_read(writing: int, reading: int) -> list[bytes]:
    """Log one line per level to `writing` and return the lines read from `reading`."""
    with open(writing, "wb", buffering=0) as stream:
        configure("json", "debug", stream)
        for level in LEVELS:
            getattr(log, level)("test.said")
    with open(reading, "rb") as lines:
        return lines.readlines()


def test_lines_to_the_journal_begin_with_their_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = socket.socketpair()
    found = os.fstat(writing.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    lines = lines_read(writing.detach(), reading.detach())
    assert [line[:3] for line in lines] == [b"<7>", b"<6>", b"<4>", b"<3>"]
    assert [json.loads(line[3:])["level"] for line in lines] == list(LEVELS)


@pytest.mark.parametrize("form", ["auto", "console"])
def test_journal_is_detected_from_the_standard_error_of_a_process(form: str) -> None:
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
def test_lines_are_plain_json_when_the_stream_is_not_the_journal(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if named is not None:
        monkeypatch.setenv("JOURNAL_STREAM", named)
    reading, writing = os.pipe()
    lines = lines_read(writing, reading)
    assert [json.loads(line)["level"] for line in lines] == list(LEVELS)


def test_stream_without_a_file_descriptor_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    stream = io.BytesIO()
    configure("json", "info", stream)
    log.info("test.said")
    assert json.loads(stream.getvalue())["event"] == "test.said"


@pytest.mark.parametrize("value", [None, 1.5, "text", ["a", "b"], {"a": 1}], ids=repr)
def test_console_renders_every_declared_key_with_values_of_each_type(value: object) -> None:
    out = io.BytesIO()
    configure("console", "debug", out)
    for name, event in EVENTS.items():
        log.error(name, **dict.fromkeys(event.keys, value))
    assert len(out.getvalue().splitlines()) >= len(EVENTS)
