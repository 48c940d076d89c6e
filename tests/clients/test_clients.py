"""Third-party clients, unmodified except for their base URL.

They are run by `./run test --clients`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from gateway_echo import vector
from support.chat_upstreams import TEXT, USAGE
from support.client_programs import VECTOR, client_gateway, result_of_program, run
from support.programs import CLIENTS_PYTHON, needs

pytestmark = [pytest.mark.clients, pytest.mark.timeout(180)]

RECORDING = str(files("gateway.demo") / "data" / "conveyor.wav")
HELLO = "hello there"
MODELS = {"echo": HELLO, "gpt": TEXT, "cloud/gpt": TEXT}
SAID = pytest.approx(vector("a text", 8), abs=1e-6)  # 32-bit floats


@pytest.mark.parametrize(
    "program", ["with_openai.py", pytest.param("with_openai.mjs", marks=needs("node", "npm"))], ids=["python", "node"]
)
@pytest.mark.parametrize("path", ["/v1", ""], ids=["with /v1", "without"])
async def test_openai_clients_work_unchanged(program: str, path: str) -> None:
    async with client_gateway() as gateway:
        found = await result_of_program(program, gateway.url + path, RECORDING)
    assert {"auto", "echo", "echo/echo", "gpt", "cloud/gpt"} <= set(found["models"])
    assert found["model"] == "echo"
    for model, text in MODELS.items():
        assert found[model] == {
            "whole": text,
            "finish_reason": "stop",
            "streamed": text,
            "usage": [] if model == "echo" else [USAGE["total_tokens"]],
        }
    assert found["completion"] == "go on"
    assert (found["embedding"], found["floats"]) == (SAID, SAID)  # requested in base64, and as floats
    assert found["relayed"] == VECTOR  # base64 from the upstream, and to the client
    assert (found["transcribed as json"], found["transcribed as text"].strip()) == ("ten and twenty", "ten and twenty")
    assert found["response"] == "hello back"
    assert found["unknown"] == ["model_not_found", "model", True]
    assert found["headers"] == ["echo", True, True]


async def test_langchain_client_works_unchanged() -> None:
    async with client_gateway() as gateway:
        found = await result_of_program("with_langchain.py", f"{gateway.url}/v1")
    for model, text in MODELS.items():
        usage = [] if model == "echo" else [USAGE["total_tokens"]]
        assert found[model] == {"whole": text, "streamed": text, "usage": usage, "batch": [text] * 3}
    assert found["embedding"] == SAID
    assert len(found["embeddings"]) == 2


async def test_litellm_client_works_unchanged() -> None:
    async with client_gateway() as gateway:
        found = await result_of_program("with_litellm.py", f"{gateway.url}/v1")
    assert {model: found[model] for model in MODELS} == {
        model: {"whole": text, "streamed": text} for model, text in MODELS.items()
    }
    assert (found["embedding"], found["unknown"]) == (SAID, 404)


async def test_every_answer_conforms_to_openapi_json(tmp_path: Path) -> None:
    """Schemathesis checks every answer against the document.

    It generates valid and invalid requests.
    """
    options = {
        "--max-examples": "15",
        "--seed": "1",
        "--phases": "examples,coverage,fuzzing",
        # Every 5xx answer is declared. JSON Schema accepts 1.0 as an integer, the gateway rejects it as a token. An
        # undeclared header violates no schema, although schemathesis reports it.
        "--exclude-checks": "not_a_server_error,positive_data_acceptance,negative_data_rejection",
    }
    async with client_gateway() as gateway:
        schemathesis = str(CLIENTS_PYTHON.with_name("schemathesis"))
        words = [word for option in options.items() for word in option]
        await run(schemathesis, "run", f"{gateway.url}/openapi.json", "--no-color", *words, cwd=tmp_path)
        lines = gateway.lines.of("request.finished")
        broke = gateway.lines.of("door.broke") + gateway.lines.of("dispatch.raised")
    assert len(lines) > 100
    assert broke == []
