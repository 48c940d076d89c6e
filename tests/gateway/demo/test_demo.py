"""The demo as a whole, in separate processes.

`edge-gateway demo --self-test` covers behaviour under load.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

import gateway.demo
from gateway.demo.calls import add
from gateway.demo.children import choose_ports

COMMAND = [sys.executable, "-P", "-c", "import sys; from gateway.cli import main; sys.exit(main())", "demo"]
LIMIT_S = 20

Process = subprocess.Popen[str]


@contextmanager
def demo(folder: Path, stdin: int = subprocess.DEVNULL) -> Iterator[Process]:
    """A demo that keeps its files below `folder`; killed on exit if it still runs."""
    command = [*COMMAND, "--port", str(choose_ports(0, count=1)[0])]
    pipe, env = subprocess.PIPE, {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(stream: IO[str] | None, text: str) -> str:
    """Read the output up to the line that contains `text`."""
    assert stream is not None
    said = ""
    for line in stream:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the output ended before {text!r}: {said}")


def family_of(pid: int) -> list[int]:
    """Every descendant of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in children for each in (int(child), *family_of(int(child)))]


def ends(pidfd: int) -> bool:
    readable, _, _ = select.select([pidfd], [], [], LIMIT_S)
    return bool(readable)


def ask(said: str) -> tuple[object, str | None]:
    """Send the `add` request to the address that the demo printed."""
    found = re.search(r"(localhost:\d+)/v1/tasks/add", said)
    assert found is not None
    body = json.dumps(add().body).encode()
    with urllib.request.urlopen(f"http://{found[1]}/v1/tasks/add", body, timeout=LIMIT_S) as response:
        return json.load(response), response.headers["x-gateway-site"]


def logs_of(said: str) -> Path:
    found = re.search(r"their logs: (\S+)", said)
    assert found is not None
    return Path(found[1])


def test_demo_on_a_terminal_runs_commands_and_serves_while_the_link_is_down(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(ours, "w", buffering=1) as keyboard, demo(tmp_path, stdin=theirs) as process:
        os.close(theirs)
        said = read_until(process.stdout, "link: round trip 50 ms, unlimited")
        print("delay 300", file=keyboard)
        read_until(process.stdout, "link: round trip 300 ms, unlimited")
        print("down", file=keyboard)
        read_until(process.stdout, "link: down")
        assert ask(said) == ({"result": 30}, "edge")
        print("quit", file=keyboard)
        assert process.wait(LIMIT_S) == 0
    assert not logs_of(said).exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_all_child_processes_end_when_the_demo_is_interrupted_or_killed(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    with demo(tmp_path) as process, ExitStack() as stack:
        read_until(process.stdout, "tail -f")
        family = [os.pidfd_open(pid) for pid in family_of(process.pid)]
        for pidfd in family:
            stack.callback(os.close, pidfd)
        assert len(family) >= 4  # two gateways, and their workers
        process.send_signal(number)
        assert process.wait(LIMIT_S) == status
        assert all(ends(pidfd) for pidfd in family)


def test_demo_ends_with_the_log_tail_when_a_gateway_dies(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        said = read_until(process.stdout, "tail -f")
        first_child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        os.kill(first_child, signal.SIGKILL)
        assert process.wait(LIMIT_S) == 1
        assert process.stderr is not None
        told = process.stderr.read()
    assert "the cloud gateway stopped by itself with status -9" in told
    assert '"event":"service.started"' in told
    assert logs_of(said).exists()


def test_a_wrong_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gateway.demo.main(["--port", "many"])
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err
