"""Programs some tests run: found, or the test is skipped with the program's name (under CI=true: fails)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Daemons live in sbin, which is not on every user's PATH.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
CLIENTS_PYTHON = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin" / "python"


def find(name: str) -> str | None:
    """Where a program is, or None."""
    return shutil.which(name, path=SEARCHED)


def needs(*names: str) -> pytest.MarkDecorator:
    """`@needs("mosquitto")` skips where a program is absent; a whole file by `pytestmark = needs(...)`."""
    absent = [name for name in names if find(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"program not found: {', '.join(absent)}")


def program(name: str) -> str:
    """The path of a program, from inside a test or fixture; skips where it is absent."""
    path = find(name)
    if path is None:
        pytest.skip(f"program not found: {name}")
    return path


def why_no_namespaces() -> str | None:
    """What is missing for emulated links (marker `net`), or None where they work."""
    if os.geteuid() != 0:
        return "needs root"
    if find("ip") is None:
        return "program not found: ip"
    return None if Path("/dev/net/tun").exists() else "needs /dev/net/tun"
