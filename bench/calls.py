"""Own Python function calls of one plain chat request, whole and streamed: a count, the same in every run.

    ./run bench calls [--json FILE]

The gateway runs in this process with one `http` backend. The backend's server and the client are in this file, so their
calls do not count. `sys.setprofile` counts the calls of functions from files in gateway/ and plugins/; a coroutine
that resumes counts again. Comprehensions and lambdas are left out, because newer versions of Python inline them. Three
requests warm up the gateway; the figure is the lowest of the next three.

The cost of a further event is the difference between streams of 3 and of 43 content events, divided by 40. It is
taken twice: with all events in one piece, which the gateway reads at once, and with each event alone, where the server
sends an event only after the client has the one before. Real streams lie between the two.

The gateway's periodic work (load, memory, link state, watchdog) is left out: these are the tasks that run before the
first connection, and a request starts its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.testing import RunningGateway, running_gateway

ROOT = Path(__file__).resolve().parent.parent
OWN = (f"{ROOT}/gateway/", f"{ROOT}/plugins/")
EQUIPMENT = f"{ROOT}/gateway/testing/"  # it collects the log lines: no part of a request
STREAMS = (3, 23, 43)
WARM_UP, RUNS = 3, 3
SETTLE_S = 0.05  # callbacks that a finished request has left in the loop
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"
WHOLE = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@dataclass
class Server:
    """A chat server; the last message is the number of content events. apart: each waits for the last to arrive."""

    apart: bool = False
    received: asyncio.Event = field(default_factory=asyncio.Event)  # the client has the event sent last

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head, body = await read_message(reader)
                if head.startswith(b"GET"):  # the list of models; after a 404 the gateway relies on MODELS
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                request = json.loads(body)
                await self._answer(writer, int(request["messages"][-1]["content"]) if request["stream"] else None)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, events: int | None) -> None:
        if events is None:
            answer = json.dumps(WHOLE).encode()
            writer.write(HEAD % (b"application/json", b"Content-Length: %d" % len(answer)) + answer)
            return
        pieces = [event({"content": f"w{number} "}) for number in range(events)]
        pieces[0] = HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked") + pieces[0]
        ending = event({}, "stop") + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        if not self.apart:
            writer.write(b"".join(pieces) + ending)
            return
        for piece in pieces:
            self.received.clear()
            writer.write(piece)
            await self.received.wait()
        writer.write(ending)


def event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunked(b"data: %s\n\n" % json.dumps(chunk).encode())


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and, where it states its length, the body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


class Client:
    """One connection to the gateway, which stays open. Sends chat requests."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer

    async def ask(self, events: int | None) -> None:
        """One request and its whole answer; events: streamed, with so many of them. Raises RuntimeError."""
        question = {"role": "user", "content": str(events or "hello")}
        body = json.dumps({"model": "m", "stream": events is not None, "messages": [question]}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer, _ = await read_message(self._reader)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the gateway returned {answer!r}")
        if events is None:
            return
        line = b""
        while line != b"0\r\n":
            line = await self._reader.readline()
            if b'"content"' in line:
                self._server.received.set()
        await self._reader.readline()


@contextmanager
def counting(periodic: set[asyncio.Task[object]]) -> Iterator[Counter[str]]:
    """Calls by package (`gateway/dispatch`) while it is open, without those of the `periodic` tasks."""
    loop = asyncio.get_running_loop()
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OWN) or code.co_name.startswith("<"):
            return
        if not code.co_filename.startswith(EQUIPMENT) and asyncio.current_task(loop) not in periodic:
            calls["/".join(Path(code.co_filename).relative_to(ROOT).parts[:2])] += 1

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def lowest(
    gateway: RunningGateway, client: Client, periodic: set[asyncio.Task[object]], events: int | None
) -> Counter[str]:
    """The calls of one such request: the fewest of RUNS, after WARM_UP."""
    found: list[Counter[str]] = []
    for number in range(WARM_UP + RUNS):
        finished = len(gateway.lines.of("request.finished"))
        await asyncio.sleep(SETTLE_S)
        with counting(periodic) as calls:
            await client.ask(events)
            await gateway.lines.wait("request.finished", finished + 1)
            await asyncio.sleep(SETTLE_S)
        if number >= WARM_UP:
            found.append(calls)
    return min(found, key=Counter.total)


async def measured() -> dict[str, Counter[str]]:
    """Calls by package, of each kind of request."""
    server = Server()
    async with server.listening() as url:
        settings = {"PLUGIN": "http", "URL": url, "MODELS": "m"}
        environ = {f"GATEWAY_BACKENDS__C__{name}": value for name, value in settings.items()}
        async with running_gateway(**environ) as gateway:
            periodic = asyncio.all_tasks() - {asyncio.current_task()}
            client = Client(server, *await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            found = {"whole": await lowest(gateway, client, periodic, None)}
            for server.apart, label in ((False, "together"), (True, "apart")):
                for events in STREAMS:
                    found[f"{events} events {label}"] = await lowest(gateway, client, periodic, events)
    return found


def per_event(found: dict[str, Counter[str]], label: str, fewest: int, most: int) -> float:
    return (found[f"{most} events {label}"].total() - found[f"{fewest} events {label}"].total()) / (most - fewest)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="./run bench calls", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    target = parser.parse_args(arguments).json
    found = asyncio.run(measured())
    fewest, _, most = STREAMS
    figures: dict[str, object] = {
        "whole": found["whole"].total(),
        "per_event_together": per_event(found, "together", fewest, most),
        "per_event_apart": per_event(found, "apart", fewest, most),
        "streams": {label: calls.total() for label, calls in found.items() if label != "whole"},
        "whole_by_package": dict(found["whole"].most_common()),
    }
    print(f"{'a whole answer':40}{figures['whole']:>8}")
    for label in ("together", "apart"):
        print(f"{f'each further event, {label}':40}{figures[f'per_event_{label}']:>8.1f}")
    for package, calls in found["whole"].most_common():
        print(f"    of a whole answer: {package:21}{calls:>4}")
    if target:
        target.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
