"""A real model on this machine, asked directly and through the gateway: the same answers, and what it adds.

    ./run bench llama --model FILE.gguf [--python PYTHON] [--requests N] [--json FILE]

Starts llama-cpp-python's server (`pip install 'llama-cpp-python[server]'`, in the venv of PYTHON) with the model file,
a gateway with that server as `SITE=edge`, and asks both the same questions with temperature 0, in turn. Without the
package or without a file it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 120.0
QUESTIONS = ("Count to five.", "Say hello.", "Name a colour.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file")
    parser.add_argument("--python", default=sys.executable, help="the Python that has llama-cpp-python")
    parser.add_argument("--requests", type=int, default=10, help="to each (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if (missing := why_not(args.python, args.model)) is not None:
        print(f"not measured: {missing}")
        return 0
    with llama_server(args.python, args.model) as server, gateway(server) as door:
        found = compared(server, door, args.requests)
    for name, figure in found.items():
        print(f"{name:24}{figure:10.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["answers that differ"] == 0 else 1


def why_not(python: str, model: Path | None) -> str | None:
    """What is missing; None where nothing is."""
    if model is None or not model.is_file():
        return "no model file; give one with --model FILE.gguf"
    if subprocess.run([python, "-c", "import llama_cpp.server"], capture_output=True).returncode:
        return f"{python} has no llama-cpp-python; pip install 'llama-cpp-python[server]' builds it in some minutes"
    return None


def compared(server: int, door: int, requests: int) -> dict[str, float]:
    took: dict[int, list[float]] = {server: [], door: []}
    differ = 0
    for n in range(requests):
        said = {}
        for port in (server, door):
            began = time.monotonic()
            said[port] = ask(port, QUESTIONS[n % len(QUESTIONS)])
            took[port].append((time.monotonic() - began) * 1000)
        differ += said[server] != said[door]
    direct, through = statistics.median(took[server]), statistics.median(took[door])
    return {
        "direct, p50 ms": direct,
        "through gateway, p50 ms": through,
        "added, p50 ms": through - direct,
        "answers that differ": differ,
    }


def ask(port: int, question: str) -> str:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": question}]}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as got:
        return str(json.load(got)["choices"][0]["message"]["content"])


@contextmanager
def llama_server(python: str, model: Path) -> Iterator[int]:
    port = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny", "--port", str(port)]
    with serving(command, os.environ, f"http://127.0.0.1:{port}/v1/models"):
        yield port


@contextmanager
def gateway(server: int) -> Iterator[int]:
    port, backend = free_port(), "GATEWAY_BACKENDS__LLAMA__"
    with tempfile.TemporaryDirectory() as state:
        environ = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")} | {
            f"{backend}PLUGIN": "http",
            f"{backend}SITE": "edge",
            f"{backend}URL": f"http://127.0.0.1:{server}",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_ADMIN_LISTEN": f"unix:{state}/admin.sock",
            "GATEWAY_STATE_DIR": state,
        }
        with serving([sys.executable, "-m", "gateway.cli", "serve"], environ, f"http://127.0.0.1:{port}/v1/models"):
            yield port


@contextmanager
def serving(command: list[str], environ: Mapping[str, str], url: str) -> Iterator[None]:
    process = subprocess.Popen(command, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE_S
        while not has_models(url):
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} does not serve")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def has_models(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as got:
            return b"tiny" in got.read()
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
