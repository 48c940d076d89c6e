"""Size limits of whole answers, and the handling of large ones."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, Task
from support.http_backend import chat, job, opened, result
from support.upstream import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    Script,
    Talk,
    Upstream,
    answer,
    chunk,
    endless,
    head,
    reset,
    sends,
    sends_and_cuts,
    whole,
)

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
async def test_non_json_body_is_rejected_at_once_even_with_content_length(start: bytes) -> None:
    script = declares(12 * MIB, start, bytes(65536))
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        for task in (chat(), embed(1000), images(), job()):
            with little_memory(), pytest.raises(BackendUnavailable, match=r"not (a )?JSON"):
                await result(backend, task)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_text_answer_over_12_mib_is_rejected(path: str) -> None:
    task = chat(path=path).replace(kind="chat" if "chat" in path else "other")
    async with Upstream(declares(13 * MIB, b"{", b" " * 65536)) as upstream, opened(upstream.url) as (backend, _):
        with little_memory(), pytest.raises(BackendUnavailable, match=f"more than {12 * MIB} bytes"):
            await result(backend, task)


@pytest.mark.parametrize("framing", ["chunked", "declared"])
async def test_valid_json_with_too_many_choices_is_rejected_in_bounded_memory(framing: str) -> None:
    start, piece, last, times = b'{"choices":[', b'{"message":{}},' * 4000, b'{"message":{}}]}', 190
    pieces = [start, *[piece] * times, last]
    size = sum(map(len, pieces))
    fields = [JSON, CHUNKED if framing == "chunked" else ("Content-Length", str(size))]

    async def script(talk: Talk) -> None:
        await talk.send(head(200, fields))
        for each in pieces:
            await talk.send(chunk(each) if framing == "chunked" else each)
        await talk.send(LAST_CHUNK if framing == "chunked" else b"")

    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with little_memory(), pytest.raises(BackendUnavailable, match="far too many"):
            await result(backend, chat(deadline_s=30))


def framed(body: bytes, way: str) -> Script:
    if way == "declared":
        return answer(body)
    if way == "compressed":
        return answer(gzip.compress(body, 1), headers=[("Content-Encoding", "gzip")])
    pieces = [chunk(body[at : at + MIB]) for at in range(0, len(body), MIB)]
    return sends(head(200, [JSON, CHUNKED]), *pieces, LAST_CHUNK)


WAYS = ["declared", "chunked", "compressed"]


@pytest.mark.parametrize("way", WAYS)
async def test_large_embeddings_answer_is_accepted_in_every_framing(way: str) -> None:
    vector = b'{"embedding": "' + b"A" * 16384 + b'"}'
    body = b'{"object": "list", "data": [' + b",".join([vector] * 1200) + b"]}"
    async with Upstream(framed(body, way)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, embed(1200))).body == body
        with pytest.raises(BackendUnavailable, match="1200 embeddings for 1201 inputs"):
            await result(backend, embed(1201))
        with pytest.raises(BackendUnavailable, match="more than"):
            await result(backend, embed(1))


@pytest.mark.parametrize("way", WAYS)
async def test_large_image_answer_is_accepted_in_every_framing(way: str) -> None:
    body = b'{"data": [' + b",".join([b'{"b64_json": "' + b"A" * (5 * MIB) + b'"}'] * 4) + b"]}"
    async with Upstream(framed(body, way)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, images())).body == body
    async with Upstream(framed(body[:-1], way)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="not a JSON object"):
            await result(backend, images())


async def test_large_task_result_is_accepted_and_a_truncated_one_is_rejected() -> None:
    body = b'{"result": "' + b"A" * (20 * MIB) + b'"}'
    async with Upstream(answer(body)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, job(deadline_s=30))).body == body
        upstream.script = sends(whole(body[:-2]))
        with pytest.raises(BackendUnavailable, match="not JSON"):
            await result(backend, job(deadline_s=30))


SPOKEN = {"sound": ("/v1/audio/speech", "audio/mpeg"), "a text": ("/v1/audio/translations", "text/plain")}


@pytest.mark.parametrize("name", SPOKEN)
async def test_body_delimited_by_close_fails_on_reset_and_passes_on_fin(name: str) -> None:
    path, media = SPOKEN[name]
    beginning = head(200, [("Content-Type", media)]) + b"x" * 1000
    task = chat(path=path, deadline_s=30).replace(kind="other")
    async with Upstream(reset(beginning)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="broke"):
            await result(backend, task)
        upstream.script = sends_and_cuts(beginning)
        assert (await result(backend, task)).body == b"x" * 1000


GOOD = b'{"choices": [{"message": {"content": "hi"}}]}'


@pytest.mark.parametrize("tail", [b"", b"\0" * 100])
async def test_all_gzip_members_are_decoded(tail: bytes) -> None:
    members = [gzip.compress(GOOD[at : at + 9]) for at in range(0, len(GOOD), 9)]
    script = answer(b"".join(members) + tail, headers=[("Content-Encoding", "gzip")])
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).body == GOOD
    split = [head(200, [JSON, CHUNKED, ("Content-Encoding", "gzip")])]
    split += [chunk(bytes([byte])) for byte in b"".join(members)]
    async with Upstream(sends(*split, LAST_CHUNK)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).body == GOOD


@pytest.mark.parametrize("tail", [b"more", gzip.compress(b" ", mtime=0)[:-1]])
async def test_trailing_data_after_gzip_is_a_failure(tail: bytes) -> None:
    script = answer(gzip.compress(GOOD) + tail, headers=[("Content-Encoding", "gzip")])
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match=r"compressed response that is (corrupt|cut)"):
            await result(backend, chat())


async def test_byte_order_mark_is_removed() -> None:
    async with Upstream(answer(b"\xef\xbb\xbf" + GOOD)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).body == GOOD


# --- client errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("size", [200_000, 300_000, 20 * MIB])
async def test_client_error_with_a_large_body_keeps_its_status(status: int, size: int) -> None:
    body = b'{"detail": "' + b"x" * size + b'"}'
    for script in (answer(body, status=status), sends(head(status, [JSON, CHUNKED]), chunk(body), LAST_CHUNK)):
        async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
            got = await result(backend, chat())
        assert got.status == status
        assert got.body == (body if size == 200_000 else b"")  # the gateway writes its own error body


# --- headers ----------------------------------------------------------------------------------------------------------

ODD = ["a\x01b", "a\x7fb", "a\x80b\x9f"]


@pytest.mark.parametrize("value", ODD)
async def test_header_with_control_characters_is_dropped(value: str) -> None:
    named = [("Content-Disposition", value), ("Content-Language", value), ("OpenAI-Version", "1")]
    async with Upstream(answer(GOOD, headers=named)) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).headers == {"OpenAI-Version": "1"}
        upstream.script = answer(b"{}", status=400, headers=[("Retry-After", value), ("x-should-retry", "true")])
        assert (await result(backend, chat())).headers == {"x-should-retry": "true"}


@pytest.mark.parametrize("value", ODD)
async def test_content_type_with_control_characters_is_replaced(value: str) -> None:
    script = answer(GOOD, content_type=f"application/json; charset={value}")
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, chat())).content_type == "application/json"
    sound = chat(path="/v1/audio/speech").replace(kind="other")
    async with (
        Upstream(answer(b"ID3", content_type=f"audio/{value}")) as upstream,
        opened(upstream.url) as (backend, _),
    ):
        assert (await result(backend, sound)).content_type == "application/octet-stream"
