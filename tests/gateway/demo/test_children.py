from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.demo.children import Child, ChildFailed, choose_ports, die_with_parent


def bound(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


# ── ports ────────────────────────────────────────────────────────────────────────────────────────


def test_preferred_ports_are_chosen_when_free() -> None:
    with bound() as sock:
        port = sock.getsockname()[1]
    assert choose_ports(port, count=1) == [port]


def test_other_ports_are_chosen_when_a_preferred_port_is_in_use() -> None:
    with bound() as sock:
        taken = sock.getsockname()[1]
        chosen = choose_ports(taken - 1)
    assert taken not in chosen
    assert len(set(chosen)) == 2


def test_ports_chosen_together_differ() -> None:
    assert len(set(choose_ports(0, count=10))) == 10


# ── start and end of child processes ─────────────────────────────────────────────────────────────


def child(folder: Path, env: dict[str, str]) -> Child:
    port, admin_port = choose_ports(0)
    return Child("edge", env, port=port, admin_port=admin_port, folder=folder)


async def test_a_gateway_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="the edge gateway ended with status 78 while it started") as caught:
        async with child(tmp_path, {"GATEWAY_BACKENDS__LOCAL__PLUGINN": "local"}):
            pass
    assert "GATEWAY_BACKENDS__LOCAL__PLUGIN" in str(caught.value)


async def test_child_gateways_do_not_inherit_gateway_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_NONSENSE", "1")
    with pytest.raises(ChildFailed) as caught:
        async with child(tmp_path, {}):
            pass
    assert "NONSENSE" not in str(caught.value)


def test_child_process_dies_when_its_parent_is_killed() -> None:
    """A middle process starts a sleeper tied to it, prints its pid, and is killed."""
    middle_program = (
        "import subprocess, sys; from gateway.demo.children import die_with_parent\n"
        "sleeper = subprocess.Popen(['sleep', '600'], preexec_fn=die_with_parent())\n"
        "print(sleeper.pid, flush=True); sleeper.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", middle_program], stdout=subprocess.PIPE) as middle:
        assert middle.stdout is not None
        sleeper = os.pidfd_open(int(middle.stdout.readline()))
        middle.kill()
    try:
        readable, _, _ = select.select([sleeper], [], [], 5)
        assert readable, "the sleeper outlived its parent"
    finally:
        os.close(sleeper)


def test_child_process_does_not_start_when_its_parent_is_already_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = die_with_parent()
    monkeypatch.setattr("os.getppid", lambda: -1)
    with subprocess.Popen([sys.executable, "-c", "print('alive')"], stdout=subprocess.PIPE, preexec_fn=prepare) as late:
        out, _ = late.communicate(timeout=10)
    assert (late.returncode, out) == (1, b"")
