"""The picture-to-text example with its real library.

The library is large, so the test runs with the large client programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support.programs import CLIENTS_PYTHON

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "picture_to_text"

READS = """
import asyncio, base64, json
from gateway.testing import a_task, answer_of, running_gateway
from gateway_picture import Picture

async def main():
    body = {"picture": base64.b64encode(open("sign.png", "rb").read()).decode()}
    async with running_gateway(GATEWAY_BACKENDS__EYE__PLUGIN="gateway_picture:Picture") as gateway:
        async with gateway.session() as http, http.post(gateway.url + "/v1/tasks/read", json=body) as it:
            answer = await it.json()
        line = await gateway.line("request.finished")
    print(json.dumps([answer, line["backend"], line["site"]]))

asyncio.run(main())
"""


def run(*args: str) -> str:
    paths = [str(EXAMPLE), str(ROOT), str(ROOT / "plugins"), sysconfig.get_path("purelib")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    argv = [str(CLIENTS_PYTHON), *args]
    done = subprocess.run(argv, cwd=EXAMPLE, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.clients
@pytest.mark.timeout(120)
def test_shipped_picture_is_read_on_this_host() -> None:
    answer, backend, site = json.loads(run("-c", READS).splitlines()[-1])
    assert answer["result"] == "CONVEYOR BELT 3\nSTOP AT 250 kg"
    assert all(line["score"] > 0.9 for line in answer["lines"])
    assert (backend, site) == ("eye", "edge")


@pytest.mark.clients
@pytest.mark.timeout(120)
def test_picture_example_passes_the_conformance_kit() -> None:
    assert "FAIL" not in run("-m", "gateway.cli", "plugins", "test", "gateway_picture:Picture")
