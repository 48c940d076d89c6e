"""llama.cpp's server behind the gateway, with a model of known answers.

bench/llama_world creates the model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import openai
import pytest

from gateway.testing import RunningGateway, running_gateway
from support.chat_upstreams import QUESTION, ChatUpstream, breaks, talking
from support.documents import ROOT
from support.programs import CLIENTS_PYTHON
from support.upstream import Upstream, cut
from support.wiring import cloud

pytestmark = [pytest.mark.clients, pytest.mark.timeout(120)]

COUNT = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
CONTEXT_TOKENS = 32_768  # the context of one slot of the server


@asynccontextmanager
async def llama() -> AsyncIterator[str]:
    """Run llama.cpp's server; yields its URL."""
    server = await asyncio.create_subprocess_exec(
        str(CLIENTS_PYTHON),
        str(ROOT / "bench" / "llama_world" / "server.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield (await server.stdout.readline()).decode().strip()
    finally:
        server.stdin.close()
        await server.wait()


@asynccontextmanager
async def served(
    url: str, environ: dict[str, str] | None = None, **settings: str
) -> AsyncIterator[tuple[RunningGateway, openai.AsyncOpenAI]]:
    """Run a gateway with the server at `url` as edge backend `llama`.

    Yields it with an OpenAI client.
    """
    here = cloud(url, "llama", SITE="edge", SLOTS="2", **settings)
    async with (
        running_gateway(**here, **(environ or {})) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai,
    ):
        yield gateway, ai


async def test_llama_server_answers_ordinary_calls_through_the_gateway() -> None:
    async with llama() as url, served(url) as (gateway, ai):
        models = {model.id async for model in ai.models.list()}
        whole = await ai.chat.completions.create(model="counting", messages=[QUESTION])
        stream = await ai.chat.completions.create(
            model="auto", messages=[QUESTION], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        completion = await ai.completions.create(model="llama/counting", prompt=" tick", max_tokens=3)
        packed = await ai.embeddings.create(model="counting", input=["one two", "three"])
        floats = await ai.embeddings.create(model="counting", input=["one two", "three"], encoding_format="float")
        response = await ai.responses.create(model="counting", input="hello")
        lines = gateway.lines.of("request.finished")
    assert {"auto", "counting", "llama/counting"} <= models
    assert whole.choices[0].message.content == COUNT
    assert whole.model_extra is not None
    assert whole.model_extra["timings"]["predicted_n"] == 21  # a member specific to this server is kept
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == COUNT
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [21]
    assert completion.choices[0].text == " tock tick tock"
    assert [one.embedding for one in packed.data] == [pytest.approx(one.embedding, abs=1e-6) for one in floats.data]
    assert response.output_text == COUNT
    assert {(line["outcome"], line["backend"], line["site"]) for line in lines} == {
        ("served", "llama", "edge"),
        ("served", "none", "none"),  # the list of models
    }


async def test_stream_broken_in_the_cloud_is_resumed_by_the_llama_server() -> None:
    words = ["one ", "two ", "three ", "four"]
    far = breaks(cut(), after=len(words), speaker=ChatUpstream(name="far", words=[*words, " five"]))
    async with llama() as url, Upstream(talking(far)) as upstream:
        environ = cloud(upstream.url, "far", MODELS="counting", REPEATABLE="true")
        environ |= {"GATEWAY_POLICY__USD": "1", "GATEWAY_BACKENDS__LLAMA__USD_PER_REQUEST": "9"}
        async with served(url, environ, RESUME="prefill") as (gateway, ai):
            stream = await ai.chat.completions.create(
                model="counting", messages=[QUESTION], stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            line = await gateway.line()
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == COUNT
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert len([chunk.usage for chunk in chunks if chunk.usage]) == 1
    assert (line["backend"], line["reason"], line["outcome"], line["attempts"]) == ("llama", "resumed", "served", 2)


async def test_prompt_over_the_context_size_returns_400_without_failover() -> None:
    async with llama() as url, Upstream(talking(ChatUpstream(name="far"))) as upstream:
        environ = cloud(upstream.url, "far", MODELS="counting", USD_PER_REQUEST="9") | {"GATEWAY_POLICY__USD": "1"}
        async with served(url, environ) as (gateway, ai):
            with pytest.raises(openai.BadRequestError, match="exceeds the available context size") as raised:
                await ai.chat.completions.create(
                    model="counting", messages=[{"role": "user", "content": "x" * 2 * CONTEXT_TOKENS}]
                )
            line = await gateway.line()
    assert raised.value.body["n_ctx"] == CONTEXT_TOKENS  # type: ignore[index]
    assert (line["backend"], line["status"], line["attempts"]) == ("llama", 400, 1)
    assert [request.path for request in upstream.requests if request.method == "POST"] == []


async def test_generation_stops_when_the_client_disconnects() -> None:
    async with llama() as url, served(url) as (gateway, ai), aiohttp.ClientSession() as http:
        stream = await ai.completions.create(model="counting", prompt=" tick", stream=True)
        await anext(aiter(stream))
        await stream.close()
        assert (await gateway.line())["outcome"] == "cancelled"
        while not await is_idle(http, url):  # the request itself is the pause
            pass
        metrics = await (await http.get(f"{url}/metrics")).text()
    said = re.search(r"^llamacpp:tokens_predicted_total (\d+)", metrics, re.MULTILINE)
    assert said is not None, metrics
    assert 0 < int(said[1]) < CONTEXT_TOKENS / 2


async def is_idle(http: aiohttp.ClientSession, url: str) -> bool:
    slots = await (await http.get(f"{url}/slots")).json()
    return not any(slot["is_processing"] for slot in slots)
