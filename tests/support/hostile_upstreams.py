"""Scripts of broken and malicious upstreams.

WHOLE_ANSWERS are for whole requests, STREAMS for streamed ones.
"""

from __future__ import annotations

import gzip

from support.upstream import (
    CHUNKED,
    EVENTS,
    JSON,
    Script,
    answer,
    chunk,
    endless,
    gzip_bomb,
    head,
    reset,
    sends,
    sends_and_cuts,
    sse,
    whole,
)

SPACES = b" " * 65536

WHOLE_ANSWERS: dict[str, Script] = {
    "garbage instead of HTTP": sends_and_cuts(b"\x16\x03\x01\x02\x00 hello\r\n\r\n"),
    "garbage JSON": answer(b'{"choices": ['),
    "NaN": answer(b'{"choices": NaN}'),
    "not UTF-8": answer(b'{"choices": "\xff"}'),
    "a depth bomb": answer(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a list": answer(b"[1]"),
    "an empty body": answer(b""),
    "a choice that is a string": answer(json={"choices": ["x"]}),
    "a choice that is null": answer(json={"choices": [None]}),
    "a choice that is empty": answer(json={"choices": [{}]}),
    "an error under status 200": answer(json={"error": {"message": "quota"}}),
    "another content type": answer(b'{"choices": []}', content_type="text/html"),
    "a truncated chunk": sends_and_cuts(head(200, [JSON, CHUNKED]) + b'ff\r\n{"choices":'),
    "a chunk size that is not a number": sends_and_cuts(head(200, [JSON, CHUNKED]) + b"xyz\r\n{}\r\n0\r\n\r\n"),
    "less than Content-Length": sends_and_cuts(whole(b'{"choices": []}', length=500)),
    "more than Content-Length": sends_and_cuts(whole(b'{"choices": []}', length=5)),
    "a reset in the body": reset(whole(b'{"choices": []}', length=500)),
    "a negative length": sends_and_cuts(head(200, [JSON, ("Content-Length", "-1")]) + b"{}"),
    "a length of a terabyte": sends(head(200, [JSON, ("Content-Length", str(1 << 40))])),
    "a thousand headers": sends(whole(b"{}", headers=[(f"x-{i}", "1") for i in range(1000)])),
    "a header line over 8 KiB": sends(whole(b"{}", headers=[("x-long", "x" * 8300)])),
    "an endless header": endless(b"HTTP/1.1 200 OK\r\nx-long: ", b"x" * 65536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"x-more: y\r\n" * 5000),
    "an endless run of zeros": endless(head(200, [JSON, CHUNKED]) + chunk(b"{"), chunk(bytes(65536))),
    "a flood with a Content-Length": endless(head(200, [JSON, ("Content-Length", str(60 << 20))]) + b"{", SPACES),
    "a flood of zeros below the limit": endless(head(200, [JSON, ("Content-Length", "12000000")]) + b"{", bytes(65536)),
    "a gzip bomb": gzip_bomb(256 << 20),
    "half a gzip": answer(gzip.compress(b'{"a": 1}')[:-9], headers=[("Content-Encoding", "gzip")]),
    "gzip encoding without gzip": answer(b'{"choices": []}', headers=[("Content-Encoding", "gzip")]),
    "an unrequested coding": answer(b'{"choices": []}', headers=[("Content-Encoding", "br")]),
    "an endless body": endless(head(200, [JSON, CHUNKED]) + chunk(b'{"a": "'), chunk(SPACES)),
    "an endless body of tiny chunks": endless(head(200, [JSON, CHUNKED]), chunk(b"1" * 32) * 1000),
    "an endless body without framing": endless(head(200, [JSON]), SPACES),
    "an endless error": endless(head(500, [JSON, CHUNKED]), chunk(SPACES)),
    "a flood of interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "a flood of early hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 2000),
    "a redirect": answer(b"", status=307, headers=[("Location", "http://169.254.169.254/")]),
    "an upgrade": sends(head(101, [("Upgrade", "websocket"), ("Connection", "upgrade")])),
}

STREAMS: dict[str, Script] = {
    "an endless event": endless(head(200, [EVENTS, CHUNKED]) + chunk(b"data: "), chunk(b"x" * 65536)),
    "an endless comment": endless(head(200, [EVENTS, CHUNKED]), chunk(b":" + b"x" * 65535)),
    "endless data lines": endless(head(200, [EVENTS, CHUNKED]), chunk(b"data: x\n" * 8000)),
    "a stream of garbage": sends_and_cuts(head(200, [EVENTS]) + b"\xff\x00" * 4000),
    "a role only": sse({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
    "a compressed stream": sends_and_cuts(
        head(200, [EVENTS, ("Content-Encoding", "gzip")]) + gzip.compress(b"data: [DONE]\n\n")
    ),
}
