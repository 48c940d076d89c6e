"""Isolation test: functions that fork, exit, print and close descriptors, among others, with a nonce in each request.

    ./run bench nonces [--requests N] [--clients N] [--seed N] [--json FILE]

A gateway serves the functions of TASKS from a folder, in two workers. Each client sends one request after another, each
with a nonce of its own. The answer must hold that nonce, or be an error; an answer with another nonce is a leak between
requests. Incomplete answers with status 200, requests that take half their deadline, and processes that outlive the
gateway are counted too. The exit status is 1 if one of these counts is above 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _serving import Serving, gateway

DEADLINE_S = 20.0
TASKS = """
import ctypes, multiprocessing, os, sys, threading, time
LIBC = ctypes.CDLL(None)

def good(nonce): return nonce
def stream(nonce):
    for _ in range(3): yield nonce
def prints(nonce):
    print("x" * 1000, nonce); print(nonce, file=sys.stderr)
    return nonce
def threads(nonce):
    thread = threading.Thread(target=print, args=(nonce,)); thread.start(); thread.join()
    return nonce
def raises(nonce): raise LookupError(nonce)
def exits(nonce): sys.exit(nonce)
def fork_exits(nonce):
    child = os.fork()
    if not child: sys.exit(0)
    os.waitpid(child, 0)
    return nonce
def fork_raises(nonce):
    child = os.fork()
    if not child: raise LookupError(nonce)
    os.waitpid(child, 0)
    return nonce
def fork_returns(nonce):
    child = os.fork()
    if not child: return f"child of {nonce}"
    os.waitpid(child, 0)
    return nonce
def fork_lingers(nonce):
    if not os.fork():
        time.sleep(0.05)
        return f"child of {nonce}"
    return nonce
def fork_stream(nonce):
    for _ in range(3):
        os.fork()
        yield nonce
def fork_in_thread(nonce):
    def fork():
        child = os.fork()
        if child: os.waitpid(child, 0)
    thread = threading.Thread(target=fork); thread.start(); thread.join()
    return nonce
def processes(nonce):
    process = multiprocessing.get_context("fork").Process(target=sys.exit); process.start(); process.join()
    return nonce
def native_fork(nonce):
    if not LIBC.fork(): return f"child of {nonce}"
    return nonce
def closes(nonce):
    os.closerange(3, 64)
    return nonce
def writes(nonce):
    for fd in range(3, 50):
        try: os.write(fd, nonce.encode() * 10)
        except OSError: pass
    return nonce
def leaves(nonce): os._exit(0)
"""
HARMLESS = ("good", "stream", "prints", "threads", "fork_exits", "fork_raises", "fork_returns", "fork_lingers")
HARMLESS += ("fork_stream", "fork_in_thread", "processes")  # they succeed
FAILING = ("raises", "exits", "native_fork", "closes", "writes", "leaves")  # the last four end their worker
WEIGHTS = {**dict.fromkeys(HARMLESS, 8), **dict.fromkeys(FAILING, 1), "raises": 4, "exits": 4, "good": 40}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="number of requests (10000)")
    parser.add_argument("--clients", type=int, default=8, help="number of clients (8)")
    parser.add_argument("--seed", type=int, default=17, help="of the order of the functions (17)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "misbehaving.py").write_text(TASKS)
        settings = {"PLUGIN": "local", "TASKS_DIR": folder, "SLOTS": "2"}
        settings = {f"BACKENDS__HERE__{name}": value for name, value in settings.items()}
        with gateway(settings | {"LOG__LEVEL": "error"}) as serving:
            figures = asyncio.run(ask_all(args.requests, args.clients, args.seed, serving))
            own = group_ids(serving.pid)
        figures["left_processes"] = float(sum(is_running(group) for group in own))
    for name, value in figures.items():
        print(f"{name:24} {value:10.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(figures[name] for name in ("foreign", "late", "unexpected", "left_processes")))


async def ask_all(requests: int, clients: int, seed: int, serving: Serving) -> dict[str, float]:
    """Send the requests. Returns the counts of outcomes."""
    rng, counts, began = random.Random(seed), Counter[str](), time.monotonic()
    names = iter(rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=requests))

    async def client(number: int) -> None:
        for count, name in enumerate(names):
            nonce = f"<{number}-{count}-{seed}>"
            sent_at = time.monotonic()
            outcome = outcome_of(await ask(serving.port, name, nonce), name, nonce)
            counts[outcome] += 1
            counts["late"] += time.monotonic() - sent_at > DEADLINE_S / 2
            if outcome in ("foreign", "unexpected"):
                print(f"{outcome}: {name} {nonce}", file=sys.stderr)

    await asyncio.gather(*(client(number) for number in range(clients)))
    kinds = ("right", "error", "foreign", "unexpected", "late")
    return {"requests": float(requests), "seconds": time.monotonic() - began, **{k: float(counts[k]) for k in kinds}}


def outcome_of(answer: bytes, name: str, nonce: str) -> str:
    """Return `right`, `error`, `foreign` for another request's nonce, or `unexpected` for an incomplete answer.

    Any function may get an error: a natively forked child can answer while its worker has the next task, which fails.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    if body.replace(nonce.encode(), b"").count(b"<"):
        return "foreign"
    if b" 200 " in head.partition(b"\r\n")[0]:
        if body.count(nonce.encode()) == (3 if "stream" in name else 1):
            return "right"
        return "unexpected" if "stream" not in name or b"[DONE]" in body else "error"  # a stream may break off
    return "error"


async def ask(port: int, name: str, nonce: str) -> bytes:
    body = json.dumps({"nonce": nonce}).encode()
    head = f"POST /v1/tasks/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    head += f"x-gateway-deadline-ms: {DEADLINE_S * 1000:.0f}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        return await reader.read()
    finally:
        writer.close()


def group_ids(pid: int) -> list[int]:
    """Return the process groups of the workers of the gateway `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def is_running(group: int) -> bool:
    """Whether a process of this group has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
