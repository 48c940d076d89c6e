"""The sink: whatever becomes of standard error, nobody waits for it and nobody falls over it."""

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
from gateway.telemetry.sink import MAX_WAITING_BYTES, Sink

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
    """All lines there are, the sink writing on as there is room."""
    os.set_blocking(fd, False)
    data = bytearray()
    while True:
        try:
            data += os.read(fd, 65_536)
        except BlockingIOError:
            return bytes(data).splitlines()
        sink.flush()


def test_what_nobody_reads_waits_and_comes_whole_and_in_order_once_somebody_does(pair: Pair) -> None:
    reading, writing = pair
    sent = [b"%d %s" % (number, LINE) for number in range(900)]
    with sink_of(writing) as sink:
        for line in sent:
            sink.msg(line)
        assert read_all(reading, sink) == sent


def test_what_is_too_much_is_counted_and_told_where_the_gap_ends(pair: Pair) -> None:
    reading, writing = pair
    told: list[int] = []

    def tell(count: int) -> None:
        told.append(count)
        sink.msg(b"dropped")

    before = metrics.LOG_DROPPED.values.get((), 0.0)
    sent = 3 * MAX_WAITING_BYTES // len(LINE)
    with sink_of(writing, tell) as sink:
        for _ in range(sent):
            sink.msg(LINE)
        lines = read_all(reading, sink)
    assert set(lines[:-1]) == {LINE}
    assert lines[-1] == b"dropped"
    assert [sent - len(lines[:-1])] == told == [metrics.LOG_DROPPED.values[()] - before]


def test_others_who_share_the_stream_find_it_as_it_was(pair: Pair) -> None:
    flags = fcntl.fcntl(pair[1], fcntl.F_GETFL)
    with sink_of(pair[1]) as sink:
        sink.msg(LINE)
        assert fcntl.fcntl(pair[1], fcntl.F_GETFL) == flags


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    with sink_of(writing) as sink:
        os.close(reading)
        sink.msg(LINE)
        sink.flush_within(0.0)
    os.close(writing)


def test_a_full_disk_is_no_error_and_a_line_begun_is_ended_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [500]

    def write(fd: int, data: bytes) -> int:
        """write(2) on a disk that has so many bytes left."""
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


def test_who_logs_while_a_line_is_being_written_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run a `__del__` at any instant, and that may log."""

    def write(fd: int, data: bytes) -> int:
        if data.startswith(b"first"):
            sink.msg(b"second")
        return really(fd, data)

    really = os.write
    monkeypatch.setattr(os, "write", write)
    with (tmp_path / "log").open("wb") as file, sink_of(file.fileno()) as sink:
        sink.msg(b"first")
    assert (tmp_path / "log").read_bytes() == b"first\nsecond\n"


def test_lines_of_many_threads_come_whole(tmp_path: Path) -> None:
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
