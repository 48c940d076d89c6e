"""Prompts, responses and secrets appear in no output at any log level.

A canary is a word that occurs nowhere else. The tests put canaries into prompts and responses of requests of every
kind, including failing ones, and into the secrets of the configuration. Then they search all output of the process.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from support.broker import running_broker
from support.chat_upstreams import CHAT, ChatUpstream, breaks, refuses
from support.documents import ROOT, free_port
from support.mqtt_clients import device
from support.notify import NotifySocket
from support.polling import wait_until
from support.programs import needs
from support.raw import answered, connected, post, read_to_end
from support.upstream import Talk, Upstream, by_path, cut, whole
from support.wiring import backend

SAID, ANSWERED, SECRET = "canarysaid", "canaryanswered", "canarysecret"
KEY = f"egw_ada_{SECRET}{'a' * (SECRET_CHARS - len(SECRET))}"
JOBS = """
def repeat(text: str) -> str:
    return text

def boom(text: str) -> str:
    raise ValueError(f"cannot do anything with {text}")

def count(text: str):
    yield text
    raise LookupError(text)
"""
CONVERSATION = {"messages": [{"role": "user", "content": SAID}]}
BOUNDARY = b"--b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n"


class Process:
    """A running gateway process and its output files."""

    def __init__(self, folder: Path, port: int, admin: int) -> None:
        self.folder, self.url, self.admin_url = folder, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"

    async def asked(self, path: str, body: Any, *lines: str) -> int:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with connected(self.url) as (reader, writer):
            writer.write(post(path, data, "Connection: close", *lines))
            return int((await read_to_end(reader)).split(b" ", 2)[1])

    def written(self) -> str:
        files = [self.folder / "log", *(self.folder / "state").rglob("*")]
        return "\n".join(f"{file}\n{file.read_text()}" for file in files if file.is_file())


@contextmanager
def gateway(folder: Path, environ: dict[str, str]) -> Iterator[Process]:
    port, admin = free_port(), free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with NotifySocket(folder / "notify") as notify, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gateway.cli", "serve"],
            env=inherited
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]),
                "NOTIFY_SOCKET": str(notify.path),
                "GATEWAY_LISTEN": f"127.0.0.1:{port}",
                "GATEWAY_ADMIN_LISTEN": f"127.0.0.1:{admin}",
                "GATEWAY_STATE_DIR": str(folder / "state"),
                "GATEWAY_LOG__LEVEL": "debug",
                **environ,
            },
            stdout=log,
            stderr=log,
        )
        try:
            notify.wait_for("READY=1")
            yield Process(folder, port, admin)
        finally:
            process.terminate()
            process.wait(30)


async def echoes_its_mistake(talk: Talk) -> None:
    """Answer 500 with an error that quotes the request body and the API key."""
    quoted = {"message": f"cannot read {talk.request.body.decode()}, {talk.request.headers.get('authorization')}"}
    await talk.send(whole(json.dumps({"error": quoted}).encode(), status=500))


UPSTREAM = by_path(
    {
        CHAT: ChatUpstream(words=[ANSWERED, " and more"]),
        "/v1/embeddings": echoes_its_mistake,
        "/v1/completions": refuses(400, "context_length_exceeded"),
        "/v1/responses": breaks(cut(), after=1, speaker=ChatUpstream(words=[ANSWERED])),
    }
)


def settings(folder: Path, url: str) -> dict[str, str]:
    (folder / "jobs").mkdir()
    (folder / "jobs" / "jobs.py").write_text(JOBS)
    write_keys(folder / "keys.json", {"ada": Key(sha256=hash_of(KEY.removeprefix("egw_ada_")))})
    return {
        **backend("here", "local", TASKS_DIR=str(folder / "jobs")),
        **backend("bird", "echo"),
        **backend("far", "http", URL=url, MODELS="gpt", API_KEY=f"sk-{SECRET}"),
        **backend("proxied", "http", URL="http://far.example", MODELS="p", PROXY=f"http://me:{SECRET}@127.0.0.1:9"),
        "GATEWAY_KEYS_FILE": str(folder / "keys.json"),
    }


async def ask_everything(process: Process) -> set[int]:
    """Send valid and invalid requests of every kind; return the set of statuses."""
    key, wrong = f"Authorization: Bearer {KEY}", f"x-api-key: {KEY}x"
    chat = {"model": "gpt", **CONVERSATION}
    form = BOUNDARY % (b'"model"', b"far/gpt") + BOUNDARY % (f'"file"; filename="{SAID}.wav"'.encode(), SAID.encode())
    statuses = {
        await process.asked("/v1/tasks/repeat", {"text": SAID}, key),
        await process.asked("/v1/tasks/boom", {"text": SAID}, key),
        await process.asked("/v1/tasks/count", {"text": SAID}, key),
        await process.asked("/v1/tasks/repeat", {"text": SAID, SAID: 1}, key),
        await process.asked("/v1/tasks/repeat", f'{{"text": "{SAID}'.encode(), key),
        await process.asked("/v1/tasks/echo", SAID.encode() + b"\xff", key),
        await process.asked("/v1/tasks/repeat", {"text": SAID}, wrong),
        await process.asked("/v1/tasks/repeat", {"text": SAID}, key, f"Cookie: {SECRET}", f"X-Note: {SECRET}"),
        await process.asked("/v1/tasks/repeat", {"text": SAID}, key, f"traceparent: {SECRET}"),
        await process.asked("/v1/tasks/repeat", {"text": SAID}, key, "Content-Encoding: gzip"),
        await process.asked(f"/v1/tasks/repeat?api-key={SECRET}", {"text": SAID}),
        await process.asked("/v1/chat/completions", chat, key),
        await process.asked("/v1/chat/completions", {**chat, "stream": True}, key),
        await process.asked("/v1/chat/completions", {**chat, "temperature": SAID, "n": [SAID]}, key),
        await process.asked("/v1/chat/completions", {"model": "gpt", "messages": SAID}, key),
        await process.asked("/v1/chat/completions", {"model": "p", **CONVERSATION}, key),
        await process.asked("/v1/chat/completions", {"model": "bird/echo", **CONVERSATION, "stream": True}, key),
        await process.asked("/v1/embeddings", {"model": "gpt", "input": [SAID]}, key),
        await process.asked("/v1/completions", {"model": "gpt", "prompt": SAID}, key),
        await process.asked("/v1/responses", {"model": "gpt", "input": SAID, "stream": True}, key),
        await process.asked(
            "/v1/audio/transcriptions", form + b"--b--\r\n", key, "Content-Type: multipart/form-data; boundary=b"
        ),
    }
    for broken in (
        f"POST /v1/tasks/repeat?{SECRET} HTTP/9.9\r\n\r\n",
        f"POST /v1/tasks/repeat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\x00\r\n\r\n",
        f"POST /v1/tasks/repeat HTTP/1.1\r\nHost: localhost\r\nBad {SECRET}: x\r\n\r\n",
        f"POST /v1/tasks/repeat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {SECRET}\r\n\r\n",
        f"{SECRET}\r\n\r\n",
    ):
        async with connected(process.url) as (reader, writer):
            writer.write(broken.encode())
            await read_to_end(reader)
    return statuses


async def admin_output_of(process: Process) -> str:
    """Return the bodies of all admin pages."""
    pages = [await answered(process.admin_url, f"GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
             for page in ("/status", "/metrics")]  # fmt: skip
    body = json.dumps({"model": "gpt", **CONVERSATION}).encode()
    pages.append(await answered(process.admin_url, post("/explain?path=/v1/chat/completions", body)))
    assert {page.status for page in pages} == {200}
    return "".join(page.body.decode() for page in pages)


def assert_no_canary(text: str) -> None:
    forms = [form for word in (SAID, ANSWERED, SECRET) for form in (word, base64.b64encode(word.encode()).decode())]
    found = [line[:400] for line in text.splitlines() if any(form.lower() in line.lower() for form in forms)]
    assert not found


@pytest.mark.parametrize("shape", ["json", "console"])
async def test_prompts_responses_and_secrets_are_written_to_no_output(tmp_path: Path, shape: str) -> None:
    async with Upstream(UPSTREAM) as upstream:
        with gateway(tmp_path, settings(tmp_path, upstream.url) | {"GATEWAY_LOG__FORMAT": shape}) as process:
            statuses = await ask_everything(process)
            told = await admin_output_of(process)
    assert {200, 400, 401, 415, 500} <= statuses
    text = process.written()
    assert text.count("request.finished") >= 21
    assert all(word in text for word in ("http.rejected", "local.raised", "egress.sent", "learned.json"))
    assert_no_canary(text + told)


@needs("mosquitto")
async def test_prompts_and_secrets_of_mqtt_requests_are_written_to_no_output(tmp_path: Path) -> None:
    async with running_broker() as broker:
        environ = settings(tmp_path, "http://127.0.0.1:9") | {
            "GATEWAY_MQTT__URL": broker.url,
            "GATEWAY_MQTT__KEY": "ada",
            "GATEWAY_MQTT__USERNAME": "edge-gateway",
            "GATEWAY_MQTT__PASSWORD": SECRET,
        }
        with gateway(tmp_path, environ) as process:
            await wait_until(lambda: "mqtt.connected" in process.written())
            async with device(broker.port) as lamp:
                for n, (path, body) in enumerate(
                    (("repeat", {"text": SAID}), ("boom", {"text": SAID}), ("repeat", {SAID: 1}), ("repeat", SAID))
                ):
                    await lamp.ask(f"/v1/tasks/{path}", n, json.dumps(body).encode(), qos=1)
    text = process.written()
    assert text.count('"door":"mqtt"') == 4
    assert_no_canary(text)


def test_no_command_prints_a_secret(tmp_path: Path) -> None:
    environ = settings(tmp_path, "http://127.0.0.1:9") | {"GATEWAY_STATE_DIR": str(tmp_path / "state")}
    environ |= {
        "GATEWAY_MQTT__URL": "mqtt://127.0.0.1:9",
        "GATEWAY_MQTT__USERNAME": "u",
        "GATEWAY_MQTT__KEY": "ada",
        "GATEWAY_MQTT__PASSWORD": SECRET,
    }
    said = ""
    for command in (["config"], ["check"], ["doctor", "--json"], ["plugins", "list"], ["keys", "list"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gateway.cli", *command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        said += done.stdout + done.stderr
    assert "GATEWAY_MQTT__PASSWORD" in said
    assert_no_canary(said)
