"""How much of a whole answer is read, and what becomes of one that is large."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, Task
from support.http_backend import chat, job, opened, result
from support.upstream import CHUNKED, JSON, LAST_CHUNK, Script, Upstream, answer, chunk, endless, head, sends, whole

MIB = 1 << 20
MAX_GROWTH_BYTES = 16 * MIB


def embed(items: int) -> Task:
    body = msgspec.json.encode({"model": "m", "input": ["x"] * items})
    return chat(path="/v1/embeddings", body=body, deadline_s=30).replace(kind="embeddings")


def images() -> Task:
    return chat(path="/v1/images/generations", deadline_s=30).replace(kind="other")


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_GROWTH_BYTES
    finally:
        tracemalloc.stop()


def declares(size: int, start: bytes, piece: bytes) -> Script:
    return endless(head(200, [JSON, ("Content-Length", str(size))]) + start, piece)


@pytest.mark.parametrize("start", [b"{", b'{"a":"', b'{"choices": [{"message": {"content": "'])
async def test_garbage_that_says_how_long_it_is_is_given_up_at_once(start: bytes) -> None:
    script = declares(12 * MIB, start, bytes(65536))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        for task in (chat(), embed(1000), images(), job()):
            with little_memory(), pytest.raises(BackendUnavailable, match=r"not (a )?JSON"):
                await result(backend, task)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_no_answer_in_words_is_so_long(path: str) -> None:
    task = chat(path=path).replace(kind="chat" if "chat" in path else "other")
    async with Upstream(declares(13 * MIB, b"{", b" " * 65536)) as upstream, opened(upstream.url) as (backend, _):
        with little_memory(), pytest.raises(BackendUnavailable, match=f"more than {12 * MIB} bytes"):
            await result(backend, task)


def framed(body: bytes, way: str) -> Script:
    if way == "declared":
        return answer(body)
    if way == "compressed":
        return answer(gzip.compress(body, 1), headers=[("Content-Encoding", "gzip")])
    pieces = [chunk(body[at : at + MIB]) for at in range(0, len(body), MIB)]
    return sends(head(200, [JSON, CHUNKED]), *pieces, LAST_CHUNK)


WAYS = ["declared", "chunked", "compressed"]


@pytest.mark.parametrize("way", WAYS)
async def test_many_vectors_may_be_long_whatever_way_they_come(way: str) -> None:
    vector = b'{"embedding": "' + b"A" * 16384 + b'"}'
    body = b'{"object": "list", "data": [' + b",".join([vector] * 1200) + b"]}"
    async with Upstream(framed(body, way)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, embed(1200))).body == body
        with pytest.raises(BackendUnavailable, match="1200 embeddings for 1201 inputs"):
            await result(backend, embed(1201))
        with pytest.raises(BackendUnavailable, match="more than"):
            await result(backend, embed(1))


@pytest.mark.parametrize("way", WAYS)
async def test_pictures_may_be_long_whatever_way_they_come(way: str) -> None:
    body = b'{"data": [' + b",".join([b'{"b64_json": "' + b"A" * (5 * MIB) + b'"}'] * 4) + b"]}"
    async with Upstream(framed(body, way)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, images())).body == body
    async with Upstream(framed(body[:-1], way)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="not a JSON object"):
            await result(backend, images())


async def test_a_large_result_of_a_task_is_passed_and_a_cut_one_is_not() -> None:
    body = b'{"result": "' + b"A" * (20 * MIB) + b'"}'
    async with Upstream(answer(body)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, job(deadline_s=30))).body == body
        upstream.script = sends(whole(body[:-2]))
        with pytest.raises(BackendUnavailable, match="not JSON"):
            await result(backend, job(deadline_s=30))
