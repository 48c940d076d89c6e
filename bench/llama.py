"""The latency that the gateway adds to llama.cpp's server on this machine.

    ./run bench llama [--requests N] [--json FILE]
    ./run bench llama --url http://127.0.0.1:11434 --model llama3.2:3b      one that runs already, such as Ollama

Without --url it starts llama.cpp's server (the package xllamacpp, which `./run test --clients` installs) with a model
that counts to twenty, created on each run; if the package is missing, it prints that and measures nothing. Both ways
receive the same requests in turn, whole and streamed. An answer that differs from the direct one is a failure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from _serving import gateway

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parent / ".venv-clients" / "bin" / "python"
MODEL = "counting"
PATIENCE_S = 120.0
FIRST = 3  # per way, not counted


class Said(NamedTuple):
    """An answer with the seconds to its first text and to its end."""

    text: str
    first_ms: float
    whole_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="requests of each kind and way (100)")
    parser.add_argument("--url", help="URL of a running server, without /v1")
    parser.add_argument("--model", default=MODEL, help="the name of its model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    if args.url is None and (missing := why_not()) is not None:
        print(f"not measured: {missing}")
        return 0
    with ExitStack() as stack:
        server = args.url or stack.enter_context(llama_server())
        backend = {"PLUGIN": "http", "SITE": "edge", "URL": server, "MODELS": args.model}
        settings = {f"BACKENDS__LLAMA__{name}": value for name, value in backend.items()}
        door = stack.enter_context(gateway(settings)).url
        found = compared({"direct": server, "through the gateway": door}, args.model, args.requests)
    for name, figure in found.items():
        print(f"{name:44}{figure:10.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["answers that differ"] == 0 else 1


def why_not() -> str | None:
    """Return the missing prerequisite, or None."""
    if not PYTHON.exists():
        return "`./run test --clients` installs the server; or give the URL of a running one with --url"
    done = subprocess.run([PYTHON, "-c", "import gguf, xllamacpp"], capture_output=True, check=False)
    return (
        None
        if done.returncode == 0
        else "no wheel of xllamacpp for this machine; give the URL of a running server with --url"
    )


def compared(ways: dict[str, str], model: str, requests: int) -> dict[str, float]:
    """Return the medians of both ways and their difference, in milliseconds."""
    heard: dict[tuple[str, bool], list[Said]] = {}
    for _ in range(requests + FIRST):
        for stream in (False, True):
            for way, url in ways.items():
                heard.setdefault((way, stream), []).append(ask(url, model, stream))
    texts = {said.text for some in heard.values() for said in some}
    found = {}
    for stream, what in ((False, "whole answer"), (True, "first text of a stream")):
        direct, through = (statistics.median(_times(heard[way, stream][FIRST:], stream)) for way in ways)
        found |= {f"{what}, {way}, p50 ms": figure for way, figure in zip(ways, (direct, through), strict=True)}
        found[f"{what}, added, p50 ms"] = through - direct
    return {**found, "answers that differ": float(len(texts) - 1)}


def _times(said: list[Said], stream: bool) -> list[float]:
    return [each.first_ms if stream else each.whole_ms for each in said]


def ask(url: str, model: str, stream: bool) -> Said:
    body = {"model": model, "temperature": 0, "max_tokens": 64, "stream": stream,
            "messages": [{"role": "user", "content": "Count."}]}  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as got:
        if not stream:
            text = str(json.load(got)["choices"][0]["message"]["content"])
            return Said(text, 0.0, (time.perf_counter() - began) * 1000)
        pieces, first_at = [], began
        for piece in texts_of(got):
            first_at = first_at if pieces else time.perf_counter()
            pieces.append(piece)
        return Said("".join(pieces), (first_at - began) * 1000, (time.perf_counter() - began) * 1000)


def texts_of(lines: Iterator[bytes]) -> Iterator[str]:
    """Yield the texts in a stream of chat chunks."""
    for line in lines:
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                if text := choice["delta"].get("content"):
                    yield text


@contextmanager
def llama_server() -> Iterator[str]:
    """Run llama.cpp's server with the counting model; yields its URL."""
    command = [str(PYTHON), str(HERE / "llama_world" / "server.py")]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
