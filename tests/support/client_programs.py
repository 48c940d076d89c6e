"""Client programs, and a gateway for them.

The gateway has `echo` at the edge, and an upstream with several models as `cloud`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.testing import RunningGateway, running_gateway
from support.chat_upstreams import CHAT, ChatUpstream
from support.programs import CLIENTS_PYTHON, program
from support.upstream import Talk, Upstream, by_path, whole
from support.wiring import backend, cloud

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
NODE_HOME = CLIENTS_PYTHON.parents[1] / "node"
VECTOR = [0.5, -0.25, 1.0]


async def embeds(talk: Talk) -> None:
    """Return base64 for any requested format."""
    request = talk.request.json
    packed = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
    data = [{"object": "embedding", "index": i, "embedding": packed} for i in range(len(request["input"]))]
    answer = {"object": "list", "data": data, "model": "embed", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    await talk.send(whole(json.dumps(answer).encode()))


async def transcribes(talk: Talk) -> None:
    assert b"RIFF" in talk.request.body
    if b"\r\n\r\ntext\r\n" in talk.request.body:
        await talk.send(whole(b"ten and twenty\n", content_type="text/plain"))
    else:
        await talk.send(whole(b'{"text": "ten and twenty"}'))


async def responds(talk: Talk) -> None:
    content = [{"type": "output_text", "text": "hello back", "annotations": []}]
    output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}]
    answer = {"id": "r", "object": "response", "created_at": 1, "model": "gpt", "status": "completed", "output": output,
              "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
    await talk.send(whole(json.dumps(answer).encode()))


@asynccontextmanager
async def client_gateway() -> AsyncIterator[RunningGateway]:
    """Run a gateway with an edge and a cloud backend."""
    paths = {
        CHAT: ChatUpstream(),
        "/v1/embeddings": embeds,
        "/v1/audio/transcriptions": transcribes,
        "/v1/responses": responds,
    }
    async with Upstream(by_path(paths)) as upstream:
        environ = backend("echo", "echo") | cloud(upstream.url, MODELS="gpt,embed,whisper")
        async with running_gateway(**environ) as gateway:
            yield gateway


async def run(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return its output.

    Fails with its error output if its exit status is not 0.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, f"{out.decode()[-4000:]}\n{errors.decode()[-4000:]}"
    return out.decode()


async def result_of_program(name: str, *arguments: str) -> Any:
    """Run the client program `programs/NAME` and return its decoded result."""
    script = str(CLIENTS / "programs" / name)
    if name.endswith(".mjs"):
        home = await with_node_modules()
        return json.loads(await run(program("node"), script, *arguments, str(home)))
    return json.loads((await run(str(CLIENTS_PYTHON), "-I", script, *arguments)).splitlines()[-1])


async def with_node_modules() -> Path:
    """Return the folder with openai-node, hash-pinned by its lock.

    Installs it if it is missing or outdated.
    """
    npm, lock = program("npm"), CLIENTS / "node" / "package-lock.json"
    installed = NODE_HOME / "package-lock.json"
    if not (NODE_HOME / "node_modules" / "openai").exists() or installed.read_bytes() != lock.read_bytes():
        shutil.rmtree(NODE_HOME, ignore_errors=True)
        shutil.copytree(CLIENTS / "node", NODE_HOME)
        await run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=NODE_HOME)
    return NODE_HOME
