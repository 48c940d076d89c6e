"""Programs that tests need; programs.txt lists them with their Debian packages.

If one is missing, the test is skipped with its name; with CI=true it fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import pytest

# Daemons are in sbin, which is not on every user's PATH.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
LIST = Path(__file__).with_name("programs.txt")
CLIENTS_PYTHON = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin" / "python"


class Listed(NamedTuple):
    """One line of programs.txt. part: what runs it (`test`, or the marker `net`, `clients` or `box`)."""

    name: str
    package: str
    part: str


def listed() -> list[Listed]:
    """The lines of programs.txt."""
    lines = (line.partition("#")[0].split() for line in LIST.read_text().splitlines())
    return [Listed(*words) for words in lines if words]


def what_is_skipped(parts: Collection[str]) -> list[str]:
    """Lines about the tests of these parts that cannot run on this machine, and how to make them run."""
    absent = [program for program in listed() if program.part in parts and find(program.name) is None]
    lines = []
    if absent:
        lines.append(f"skipped here: tests that run {', '.join(program.name for program in absent)}")
        packages = " ".join(sorted({program.package for program in absent}))
        lines.append(f"  to run them too: apt-get update && apt-get install -y --no-install-recommends {packages}")
    if "net" in parts and find("ip") is not None and (why := why_no_namespaces()):
        lines.append(f"skipped here: tests with emulated links ({why})")
    if "box" in parts and os.geteuid() != 0:
        lines.append("skipped here: tests on a real systemd (needs root)")
    return lines


def find(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=SEARCHED)


def needs(*names: str) -> pytest.MarkDecorator:
    """`@needs("mosquitto")` skips a test if a program is missing.

    `pytestmark = needs(...)` skips a file.
    """
    absent = [name for name in names if find(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"program not found: {', '.join(absent)}")


def program(name: str) -> str:
    """Return the path of a program in a test or fixture.

    Skips the test if it is missing.
    """
    path = find(name)
    if path is None:
        pytest.skip(f"program not found: {name}")
    return path


def why_no_namespaces() -> str | None:
    """Return what emulated links (marker `net`) lack here, or None if they work."""
    if os.geteuid() != 0:
        return "needs root"
    if find("ip") is None:
        return "program not found: ip"
    return None if Path("/dev/net/tun").exists() else "needs /dev/net/tun"
