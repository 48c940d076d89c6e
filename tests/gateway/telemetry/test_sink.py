"""Log sink: a blocked, closed or full standard error neither blocks nor raises."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.telemetry import metrics
from gateway.telemetry.sink import MAX_BUFFERED_BYTES, Sink

LINE = b"x" * 999
Pair = tuple[int, int]


@pytest.fixture(params=["pipe", "socket", "without /proc"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A reading and a writing end, both blocking."""
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        ends = ours.detach(), theirs.detach()
    else:
        ends = os.pipe()
    if request.param == "without /proc":
        monkeypatch.setattr(os, "open", refuse)
    yield ends
    for fd in ends:
        os.close(fd)


def refuse(*_: object) -> int:
    raise FileNotFoundError


@contextmanager
def sink_of(fd: int, tell: Callable[[int], None] | None = None) -> Iterator[Sink]:
    sink = Sink(fd, tell or nothing_dropped)
    yield sink
    sink.close()


def nothing_dropped(count: int) -> None:
    raise AssertionError(f"{count} lines were dropped")


def read_all(fd: int, sink: Sink) -> list[bytes]:
    """Read all lines, flushing the sink whenever the stream is drained."""
    os.set_blocking(fd, False)
    data = bytearray()
    while True:
        try:
            data += os.read(fd, 65_536)
        except BlockingIOError:
            return bytes(data).splitlines()
        sink.flush()


def test_unread_lines_are_buffered_and_written_in_order_when_reading_resumes(pair: Pair) -> None:
    reading, writing = pair
    sent = [b"%d %s" % (number, LINE) for number in range(900)]
    with sink_of(writing) as sink:
        for line in sent:
            sink.msg(line)
        assert read_all(reading, sink) == sent


def test_overflowing_lines_are_dropped_counted_and_reported_after_the_gap(pair: Pair) -> None:
    reading, writing = pair
    told: list[int] = []

    def tell(count: int) -> None:
        told.append(count)
        sink.msg(b"dropped")

    before = metrics.LOG_DROPPED.values.get((), 0.0)
    sent = 3 * MAX_BUFFERED_BYTES // len(LINE)
    with sink_of(writing, tell) as sink:
        for _ in range(sent):
            sink.msg(LINE)
        lines = read_all(reading, sink)
    assert set(lines[:-1]) == {LINE}
    assert lines[-1] == b"dropped"
    assert [sent - len(lines[:-1])] == told == [metrics.LOG_DROPPED.values[()] - before]


def test_sink_leaves_the_flags_of_a_shared_stream_unchanged(pair: Pair) -> None:
    flags = fcntl.fcntl(pair[1], fcntl.F_GETFL)
    with sink_of(pair[1]) as sink:
        sink.msg(LINE)
        assert fcntl.fcntl(pair[1], fcntl.F_GETFL) == flags


def test_closed_reader_does_not_raise() -> None:
    reading, writing = os.pipe()
    with sink_of(writing) as sink:
        os.close(reading)
        sink.msg(LINE)
        sink.flush_within(0.0)
    os.close(writing)


def test_full_disk_does_not_raise_and_partial_lines_are_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [500]

    def write(fd: int, data: bytes) -> int:
        """write(2) on a disk with `left[0]` free bytes."""
        if not left[0]:
            raise OSError(28, "No space left on device")
        size, left[0] = min(len(data), left[0]), max(0, left[0] - len(data))
        return really(fd, data[:size])

    really = os.write
    monkeypatch.setattr(os, "write", write)
    with (tmp_path / "log").open("wb") as file, sink_of(file.fileno()) as sink:
        for number in range(3):
            sink.msg(b"%d %s" % (number, LINE))
        left[0] = 1_000_000
        sink.flush()
    assert (tmp_path / "log").read_bytes().splitlines() == [b"%d %s" % (number, LINE) for number in range(3)]


def test_line_logged_during_a_write_is_written_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run a `__del__` that logs at any point."""

    def write(fd: int, data: bytes) -> int:
        if data.startswith(b"first"):
            sink.msg(b"second")
        return really(fd, data)

    really = os.write
    monkeypatch.setattr(os, "write", write)
    with (tmp_path / "log").open("wb") as file, sink_of(file.fileno()) as sink:
        sink.msg(b"first")
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_lines_of_many_threads_are_not_interleaved(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, sink_of(file.fileno()) as sink:

        def say(who: int) -> None:
            for number in range(500):
                sink.msg(b"%d %d %s" % (who, number, LINE))

        threads = [threading.Thread(target=say, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d %s" % (who, number, LINE) for who in range(4) for number in range(500))
