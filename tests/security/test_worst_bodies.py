"""No content of a body holds the event loop for long: the worst bodies known for each parser, by their size."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.admit.keyfile import write_keys
from gateway.admit.keys import SECRET_CHARS, Key, hash_of
from gateway.api.operations import parse_request
from gateway.api.routes import match
from gateway.plugin import TaskInvalid
from gateway.plugin.spelling import nearest
from gateway.testing import running_gateway
from gateway.testing.monitors import LoopMonitor
from support.raw import answered, post
from support.recording_backend import RecordingBackend
from support.wiring import backend

MIB = 1 << 20
NEAR = backend("near", "support.recording_backend:RecordingBackend", MODELS='{"m":"bird"}', TASKS='{"echo":"sing"}')
# By size. Of the largest bodies, one call of the JSON decoder takes 15 to 30 ms, and Python cannot interrupt it. The
# bounds allow for other tests on the same processors.
MAX_HELD_S = {MIB // 8: 0.02, MIB: 0.03, 31 * MIB: 0.1}
FORM = ("Content-Type: multipart/form-data; boundary=b2",)
PART = b'--b2\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


def chat(more: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],' + more + b"}"


def filled(start: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


FIRST = PART % (b"x", b"")
BODIES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "task items, numbers": ("/v1/tasks/echo", lambda n: filled(b'{"items":[', b"0,", b"0]}", n)),
    "task items, objects": ("/v1/tasks/echo", lambda n: filled(b'{"items":[', b"{},", b"{}]}", n)),
    "task items, texts": ("/v1/tasks/echo", lambda n: filled(b'{"items":[', b'"",', b'""]}', n)),
    "task items, nested": ("/v1/tasks/echo", lambda n: filled(b'{"items":[[', b"[],", b"[]]]}", n)),
    "prompts of one token": ("/v1/completions", lambda n: filled(b'{"model":"m","prompt":[', b"[1],", b"[1]]}", n)),
    "prompts, empty": ("/v1/completions", lambda n: filled(b'{"model":"m","prompt":[', b'"",', b'""]}', n)),
    "prompt of tokens": ("/v1/completions", lambda n: filled(b'{"model":"m","prompt":[', b"1,", b"1]}", n)),
    "inputs of one token": ("/v1/embeddings", lambda n: filled(b'{"model":"m","input":[', b"[1],", b"[1]]}", n)),
    "input of tokens": ("/v1/embeddings", lambda n: filled(b'{"model":"m","input":[', b"1,", b"1]}", n)),
    "messages": (
        "/v1/chat/completions",
        lambda n: filled(b'{"model":"m","messages":[', b'{"role":"u"},', b'{"role":"u"}]}', n),
    ),
    "tools": ("/v1/chat/completions", lambda n: filled(chat(b'"tools":[')[:-1], b"{},", b"{}]}", n)),
    "keys": ("/v1/chat/completions", lambda n: filled(chat(b"")[:-1], b'"k":0,', b'"k":0}', n)),
    "keys named model, nested": ("/v1/responses", lambda n: filled(b'{"model":"m","x":[', b'{"model":1},', b"0]}", n)),
    "deep": ("/v1/responses", lambda n: filled(b'{"model":"m","x":', b"[", b"]}", n)),
    "escapes": ("/v1/responses", lambda n: filled(b'{"model":"m","x":"', b"\\u006d", b'"}', n)),
    "quotes": ("/v1/responses", lambda n: filled(b'{"model":"m","x":"', b'\\",', b'"}', n)),
    "two-byte letters": ("/v1/responses", lambda n: filled(b'{"model":"m","x":"', "\u00e9".encode(), b'"}', n)),
    "spaces": ("/v1/responses", lambda n: filled(b'{"model":"m"', b" ", b"}", n)),
    "unfinished": ("/v1/responses", lambda n: filled(b'{"model":"m","x":["', b",", b"", n)),
    "model name": ("/v1/responses", lambda n: filled(b'{"model":"', b"m", b'"}', n)),
    "form, near delimiters": ("/v1/images/edits", lambda n: filled(FIRST, b"\r\n--b2x", b"\r\n--b2--\r\n", n)),
    "form, nearer delimiters": ("/v1/images/edits", lambda n: filled(FIRST, b"\r\n--b", b"\r\n--b2--\r\n", n)),
    "form, parts": ("/v1/images/edits", lambda n: filled(b"", PART % (b"x", b"1"), b"--b2--\r\n", n)),
    "form, line ends": ("/v1/images/edits", lambda n: filled(FIRST, b"\r\n", b"\r\n--b2--\r\n", n)),
    "form, dashes": ("/v1/images/edits", lambda n: filled(FIRST, b"-", b"\r\n--b2--\r\n", n)),
    "form, header": ("/v1/images/edits", lambda n: filled(b"--b2\r\nContent-Disposition: form-data; ", b"a;", b"", n)),
}  # fmt: skip


def send(url: str, data: bytes) -> bytes:
    """Send a request from a thread, with blocking calls, so that the client does not use the event loop."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as client:
        with suppress(ConnectionError):
            client.sendall(data)
        return client.recv(64)


@pytest.mark.parametrize("size", MAX_HELD_S, ids=lambda size: f"{size // 1024} KiB")
@pytest.mark.parametrize("label", BODIES)
async def test_worst_body_does_not_hold_the_event_loop(label: str, size: int) -> None:
    path, make = BODIES[label]
    data = post(path, make(size), *(FORM if label.startswith("form") else ()), "Connection: close")
    held: list[float] = []
    async with running_gateway(**NEAR) as gateway:
        for _ in range(3):  # another process on this machine may hold the loop, too
            with LoopMonitor() as monitor:
                assert b"HTTP/1.1 " in await asyncio.to_thread(send, gateway.url, data)
            RecordingBackend.received.clear()
            held.append(monitor.longest_s)
            if held[-1] <= MAX_HELD_S[size]:
                break
    print(f"{label:28} {size // MIB:3} MiB  {min(held) * 1000:6.1f} ms")
    assert min(held) <= MAX_HELD_S[size]


def test_list_with_more_elements_than_the_limit_is_refused_and_one_with_as_many_is_parsed() -> None:
    for path, start, unit, end in (
        ("/v1/tasks/x", b'{"items":[', b'"a,[",', b'{"a":[1,2]}]}'),
        ("/v1/embeddings", b'{"model":"m","input":[', b'"\\"",', b'""]}'),
        ("/v1/embeddings", b'{"model":"m","input":[', b"[1, 2],", b"[3]]}"),
        ("/v1/completions", b'{"model":"m","prompt":[', b'"x",', b'"y"]}'),
        ("/v1/chat/completions", b'{"model":"m","messages":[', b'{"role":"u"},', b'{"role":"u"}]}'),
    ):
        matched = match("POST", path)
        for most in (20_000, 19_999):
            body = start + unit * 19_999 + end
            if most == 20_000:
                assert parse_request(matched, "", body, max_items=most).items in (1, 20_000)
            else:
                with pytest.raises(TaskInvalid, match="GATEWAY_MAX_ITEMS"):
                    parse_request(matched, "", body, max_items=most)


def test_long_texts_full_of_commas_and_quotes_are_one_element() -> None:
    for text in (b"," * MIB, b'\\",' * 300_000, b"[{," * 300_000, b"\\\\" * 300_000):
        body = b'{"model":"m","input":["' + text + b'"]}'
        assert parse_request(match("POST", "/v1/embeddings"), "", body, max_items=2).items == 1


async def test_key_that_may_use_nothing_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {"none": Key(sha256=hash_of("a" * SECRET_CHARS), models=(), tasks=())})
    async with running_gateway(**NEAR, GATEWAY_KEYS_FILE=str(tmp_path / "keys.json")) as gateway:
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/images/edits", "/v1/tasks/echo"):
            asked = post(path, b"", f"x-api-key: egw_none_{'a' * SECRET_CHARS}", length=31 * MIB)
            assert (await answered(gateway.url, asked)).status == 403, path


def test_nearest_name_among_many_long_ones_is_found_in_milliseconds() -> None:
    known = [f"{'model-' * 40}{number}" for number in range(1000)]
    began = time.process_time()
    nearest("model-" * 42, known)
    assert time.process_time() - began < 0.1
    assert nearest("lama3", [*known[:100], "llama3"]) == "llama3"
    assert nearest("zzz", ["llama3"]) is None
