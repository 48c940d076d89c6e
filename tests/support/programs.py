"""Programs that tests need.

If one is missing, the test is skipped with its name; with CI=true it fails.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Daemons are in sbin, which is not on every user's PATH.
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
CLIENTS_PYTHON = Path(__file__).resolve().parents[2] / ".venv-clients" / "bin" / "python"


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
