"""Workers, other processes of the user, core files and the log hold no secret of the gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import SettingsError, load
from gateway.workers import SecretMask
from support.programs import needs
from support.raw import answered, post
from support.serving import Gateway, gateway, wait_until
from support.upstream import Upstream, answer
from support.wiring import cloud

SECRET = "sk-canary+3141/5926=5358"
EMBEDDING = {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
SPY = """
import os, sys
from pathlib import Path

def look() -> dict:
    try:
        block = Path("/proc/self/environ").read_bytes().decode()
    except PermissionError:  # root may read it
        block = ""
    return {"environ": dict(os.environ), "block": block}

def pid() -> int:
    return os.getpid()

def say(lines: list) -> int:
    for line in lines:
        print(line, flush=True)
    return len(lines)

def boom(text: str) -> None:
    raise ValueError(text)
"""
# What a process of the same user without privileges can read of another one.
READER = """
import sys
for name in ("environ", "mem", "maps"):
    try:
        with open(f"/proc/{sys.argv[1]}/{name}", "rb") as file:
            file.read(1) if name != "mem" else None
        print(name)
    except PermissionError:
        pass
"""


async def call(served: Gateway, name: str, **arguments: Any) -> Any:
    answer = await answered(served.url, post(f"/v1/tasks/{name}", json.dumps(arguments).encode()))
    return answer.json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spy.py").write_text(SPY)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "GATEWAY_BACKENDS__BYCRED__API_KEY").write_text(f"{SECRET}-credential")
    return tmp_path


SECRETS = {
    **cloud("http://127.0.0.1:9", "byenv", MODELS="a", API_KEY=f"{SECRET}-environment"),
    **cloud("http://127.0.0.1:9", "bycred", MODELS="b"),
    "gateway_backends__lower__plugin": "echo",
    "OPENAI_API_KEY": f"{SECRET}-of-another-program",
    "LISTEN_FDS": "0",
    "LISTEN_FDNAMES": "http",
    "WATCHDOG_USEC": "30000000",
}


# ── the environment of workers ───────────────────────────────────────────────────────────────────


async def test_function_sees_no_secret_and_nothing_of_the_service_manager(folder: Path) -> None:
    more = SECRETS | {
        "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
        "GATEWAY_BACKENDS__HERE__ENVIRONMENT": "SITE_*,HF_HOME",
        "SITE_NAME": "barn",
        "HF_HOME": "/models",
        "HF_TOKEN": SECRET,
    }
    with gateway(folder, **more) as served:
        seen = (await call(served, "look"))["result"]
    environ = seen["environ"]
    assert environ["SITE_NAME"] == "barn"
    assert environ["HF_HOME"] == "/models"
    assert environ["PATH"] == os.environ["PATH"]
    names = {name.upper() for name in environ}
    assert not [name for name in names if name.startswith(("GATEWAY_", "LISTEN_", "WATCHDOG_"))]
    assert not names & {"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "OPENAI_API_KEY", "HF_TOKEN"}
    assert SECRET not in json.dumps(seen)


@pytest.mark.parametrize(
    "names",
    ["GATEWAY_BACKENDS__X__API_KEY", "gateway_*", "NOTIFY_SOCKET", "LISTEN_*", "A=B", "*", "CREDENTIALS_DIRECTORY"],
)
def test_worker_cannot_be_given_the_variables_of_the_gateway(names: str) -> None:
    prefix = "GATEWAY_BACKENDS__HERE__"
    with pytest.raises(SettingsError, match=f"{prefix}ENVIRONMENT"):
        load({f"{prefix}PLUGIN": "local", f"{prefix}ENVIRONMENT": names})


def test_allow_list_of_a_backend_without_workers_is_an_error() -> None:
    prefix = "GATEWAY_BACKENDS__HERE__"
    own = {f"{prefix}PLUGIN": "echo", f"{prefix}ENVIRONMENT": "HF_HOME"}
    with pytest.raises(SettingsError, match="ISOLATION=process"):
        load(own)
    assert load(own | {f"{prefix}ISOLATION": "process"}).backends["here"].settings is not None


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


# Root may read every process; without capabilities it is an ordinary user.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def readable(pid: int) -> set[str]:
    """What an unprivileged process of our own user can read of this process."""
    command = [*UNPRIVILEGED, sys.executable, "-c", READER, str(pid)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@needs("setpriv")
def test_memory_of_gateway_and_worker_is_unreadable_for_the_same_user(folder: Path) -> None:
    ordinary = [*UNPRIVILEGED, sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(ordinary, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "environ" in readable(other.pid)  # the control
        other.kill()
    with gateway(folder, prefix=UNPRIVILEGED, **SECRETS) as served:
        worker = asyncio.run(call(served, "pid"))["result"]
        assert readable(served.process.pid) == set()
        assert readable(worker) == set()


def core_limits(pid: int) -> list[str]:
    (limit,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core" in line]
    return limit.split()[4:6]


async def test_crash_of_gateway_or_worker_leaves_no_core_file(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with gateway(folder) as served:
            worker = (await call(served, "pid"))["result"]
            assert core_limits(served.process.pid) == core_limits(worker) == ["0", "0"]
            os.kill(worker, signal.SIGABRT)
            await wait_until(lambda: served.lines("worker.died"))
            served.process.send_signal(signal.SIGABRT)
            assert served.process.wait(10) == -signal.SIGABRT
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert not list(Path.cwd().glob("core*"))


def test_environment_of_the_running_gateway_shows_no_value_of_its_settings(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can read it")
    with gateway(folder, **SECRETS) as served:
        block = Path(f"/proc/{served.process.pid}/environ").read_bytes().decode()
    assert "OPENAI_API_KEY=" in block  # the control: it is the environment
    assert f"{SECRET}-environment" not in block


# ── a reload after the secrets have left the environment ─────────────────────────────────────────


async def test_reload_finds_secrets_of_every_source_again(folder: Path) -> None:
    async with Upstream(answer(json=EMBEDDING)) as upstream:
        (folder / "key").write_text("from-a-file\n")
        more = (
            cloud(upstream.url, "byenv", MODELS="a", API_KEY="from-the-environment")
            | cloud(upstream.url, "byfile", MODELS="b", API_KEY_FILE=str(folder / "key"))
            | cloud(upstream.url, "bycred", MODELS="c")
        )
        credential = folder / "credentials" / "GATEWAY_BACKENDS__BYCRED__API_KEY"
        credential.write_text("from-a-credential")

        async def keys(served: Gateway) -> list[str]:
            upstream.requests.clear()
            for model in "abc":
                await answered(served.url, post("/v1/embeddings", b'{"model":"%b","input":"x"}' % model.encode()))
            sent = {r.headers.get("authorization") for r in upstream.requests if "embeddings" in r.path}
            return sorted(str(key).removeprefix("Bearer ") for key in sent)

        with gateway(folder, CREDENTIALS_DIRECTORY=str(folder / "credentials"), **more) as served:
            assert await keys(served) == ["from-a-credential", "from-a-file", "from-the-environment"]
            (folder / "key").write_text("from-a-new-file\n")
            credential.write_text("from-a-new-credential")
            with (folder / "gateway.env").open("a") as file:
                file.write("GATEWAY_BACKENDS__NEW__PLUGIN=echo\n")
            served.process.send_signal(signal.SIGHUP)
            await wait_until(lambda: served.lines("service.reloaded"))
            assert served.lines("service.reloaded")[0]["backends"] == ["bycred", "byenv", "byfile", "here", "new"]
            async with asyncio.timeout(20):  # changed backends are replaced in the background
                while await keys(served) != ["from-a-new-credential", "from-a-new-file", "from-the-environment"]:
                    pass


# ── the output of workers ────────────────────────────────────────────────────────────────────────


def spellings(secret: str) -> Iterator[str]:
    """Lines that give a secret away; a reader puts it together again without effort."""
    data = secret.encode()
    yield from (secret, f"key={secret};", repr(secret), json.dumps({"key": secret}))
    yield urllib.parse.quote(secret, safe="")
    yield from (data.hex(), base64.b64encode(data).decode(), base64.b64encode(b"user:" + data).decode())
    yield base64.b64encode(b"a:" + data + b"\n").decode()
    yield "".join(f"\x1b[3{n % 8}m{letter}" for n, letter in enumerate(secret))
    yield f"x{secret[: len(secret) // 2]}\n{secret[len(secret) // 2 :]}y"
    yield "x" * 490 + secret


async def test_log_masks_secrets_that_a_worker_prints_and_keeps_the_rest(folder: Path) -> None:
    secret = f"{SECRET}-environment"
    lines = [line for spelling in spellings(secret) for line in spelling.split("\n")]
    with gateway(folder, **SECRETS) as served:
        await call(served, "say", lines=["before", *lines, "after"])
        await call(served, "boom", text=secret)
        await wait_until(lambda: served.lines("worker.output")[-1:] and served.lines("local.raised"))
        await wait_until(lambda: any(line["line"] == "after" for line in served.lines("worker.output")))
        said = [line["line"] for line in served.lines("worker.output")]
        written = (folder / "log").read_text()
    assert said[0] == "before"
    assert said[-1] == "after"
    assert len(said) == len(lines) + 2
    assert all("***" in line for line in said[1:-1]), said
    for given_away in (secret, *(line for line in spellings(secret) if "\n" not in line and len(line) < 490)):
        assert given_away not in written


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=17, max_size=60))
def test_no_spelling_of_a_secret_passes_the_mask(secret: str) -> None:
    mask = SecretMask()
    mask.add([secret])
    for spelling in spellings(secret):
        for line in spelling.split("\n"):
            concealed = mask.conceal(line)
            assert "***" in concealed
            assert secret not in concealed


@given(st.text())
def test_mask_without_a_match_changes_nothing(line: str) -> None:
    mask = SecretMask()
    mask.add(["a secret that no line has", "short"])
    assert mask.conceal(line) == line
