"""Request smuggling (RFC 9112): requests that two parsers may read differently.

Each request contains HIDDEN where only an incorrect parser finds a second request. With status `OK` every recipient
must accept the request; HIDDEN is then only its body. A proxy in front adds TRACEPARENT to every request it forwards.
If a request arrives without it, the proxy has treated that request as part of another one.
"""

from __future__ import annotations

from typing import NamedTuple

HIDDEN = b"POST /v1/tasks/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
OK = 200
TRACE_ID = "5" * 32
TRACEPARENT = f"00-{TRACE_ID}-{'6' * 16}-01"


class Smuggled(NamedTuple):
    """A request that two parsers may read differently.

    section: of RFC 9112 unless another is named. status: of the answer; the connection closes unless it is OK.
    """

    name: str
    section: str
    data: bytes
    status: int = 400

    def __str__(self) -> str:
        return self.name


def _post(
    *lines: bytes, body: bytes = HIDDEN, line: bytes = b"POST /v1/tasks/say HTTP/1.1", host: bool = True
) -> bytes:
    head = [line, *([b"Host: localhost"] if host else []), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _get(*lines: bytes, line: bytes = b"GET /livez HTTP/1.1", host: bool = True) -> bytes:
    return _post(*lines, line=line, host=host)


def _chunked(body: bytes, *lines: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", *lines, body=body)


def _coding(name: str, *lines: bytes, body: bytes = b"0\r\n\r\n" + HIDDEN) -> Smuggled:
    return Smuggled(f"coding: {name}", "6.1", _post(*lines, body=body))


def _length(name: str, *lines: bytes, status: int = 400) -> Smuggled:
    return Smuggled(f"length: {name}", "6.2", _post(*lines), status)


def _chunk(name: str, body: bytes, status: int = 400) -> Smuggled:
    return Smuggled(f"chunk: {name}", "7.1", _chunked(body if status == OK else body + HIDDEN), status)


def _line(name: str, line: bytes, status: int = 400) -> Smuggled:
    return Smuggled(f"line: {name}", "3", _get(line=line), status)


def _field(name: str, *lines: bytes, status: int = 400) -> Smuggled:
    return Smuggled(f"field: {name}", "5", _get(*lines), status)


def _host(name: str, *lines: bytes, status: int = 400) -> Smuggled:
    return Smuggled(f"host: {name}", "3.2", _get(*lines, host=False), status)


_CL = b"Content-Length: %d" % len(HIDDEN)
_TE = b"Transfer-Encoding: chunked"

CODINGS = [
    _coding("length, then chunked", b"Content-Length: 5", _TE),
    _coding("chunked, then length", _TE, b"Content-Length: 5"),
    _coding("full length, then chunked with an empty body", _CL, _TE),
    _coding("two lengths and chunked", b"Content-Length: 5", b"Content-Length: 5", _TE),
    _coding("gzip, chunked", b"Transfer-Encoding: gzip, chunked"),
    _coding("chunked twice in one", b"Transfer-Encoding: chunked, chunked"),
    _coding("chunked in two fields", _TE, _TE),
    _coding("chunked, then identity", _TE, b"Transfer-Encoding: identity"),
    _coding("identity, then chunked", b"Transfer-Encoding: identity", _TE),
    _coding("chunked, identity", b"Transfer-Encoding: chunked, identity"),
    _coding("identity", b"Transfer-Encoding: identity", _CL, body=HIDDEN),
    _coding("unknown", b"Transfer-Encoding: cow"),
    _coding("xchunked", b"Transfer-Encoding: xchunked"),
    _coding("chunkedx", b"Transfer-Encoding: chunkedx"),
    _coding("an underscore in its name", b"Transfer_Encoding: chunked", _CL, body=HIDDEN),
    _coding("quoted", b'Transfer-Encoding: "chunked"'),
    _coding("with a parameter", b"Transfer-Encoding: chunked;q=1"),
    _coding("with a comma", b"Transfer-Encoding: chunked,"),
    _coding("empty", b"Transfer-Encoding:", _CL, body=HIDDEN),
    _coding("space before the colon", b"Transfer-Encoding : chunked"),
    _coding("tab before the colon", b"Transfer-Encoding\t: chunked"),
    _coding("vertical tab", b"Transfer-Encoding: \x0bchunked"),
    _coding("form feed after it", b"Transfer-Encoding: chunked\x0c"),
    _coding("NUL after it", b"Transfer-Encoding: chunked\x00"),
    _coding("not-a-break space", b"Transfer-Encoding: \xa0chunked"),
    _coding("folded", b"Transfer-Encoding:\r\n chunked"),
    _coding("folded, with a length", b"Content-Length: 5", b"Transfer-Encoding:\r\n\tchunked"),
    Smuggled(
        "coding: under HTTP/1.0, which does not define it",
        "6.1",
        _post(
            b"Transfer-Encoding: chunked",
            b"Connection: keep-alive",
            line=b"POST /v1/tasks/say HTTP/1.0",
            body=b"0\r\n\r\n" + HIDDEN,
        ),
    ),
    _coding("bare CR before it", b"X: y\rTransfer-Encoding: chunked", _CL),
    _coding("bare LF in the value", b"Transfer-Encoding: chun\nked"),
    Smuggled("coding: in HTTP/1.0", "6.1", _post(_TE, body=b"0\r\n\r\n" + HIDDEN, line=b"POST /v1/tasks/say HTTP/1.0")),
    Smuggled("coding: in capitals", "6.1", _post(b"TRANSFER-ENCODING: CHUNKED", body=b"1\r\n1\r\n0\r\n\r\n"), OK),
]

LENGTHS = [
    _length("two that differ", b"Content-Length: 0", _CL),
    _length("two that agree", _CL, _CL),
    _length("a list", b"Content-Length: 0, %d" % len(HIDDEN)),
    _length("a list of equal values", b"Content-Length: 0, 0"),
    _length("plus", b"Content-Length: +0"),
    _length("minus", b"Content-Length: -1"),
    _length("minus zero", b"Content-Length: -0"),
    _length("hexadecimal", b"Content-Length: 0x0"),
    _length("underscore", b"Content-Length: 1_0"),
    _length("exponent", b"Content-Length: 0e0"),
    _length("a point", b"Content-Length: 0.0"),
    _length("two words", b"Content-Length: 0 0"),
    _length("empty", b"Content-Length:"),
    _length("a letter", b"Content-Length: 0a"),
    _length("digits of another script", "Content-Length: ٠".encode()),
    _length("superscript", b"Content-Length: \xb2"),
    _length("too large for any integer", b"Content-Length: 99999999999999999999"),
    _length("vertical tab", b"Content-Length: \x0b0"),
    _length("NUL", b"Content-Length: 0\x00"),
    _length("space before the colon", b"Content-Length : 0"),
    _length("folded", b"Content-Length:\r\n 0"),
    _length("an underscore in its name", b"Content_Length: 0", _CL),
    Smuggled("length: spaces around it", "6.2", _post(b"Content-Length:   1  ", body=b"1"), OK),
    Smuggled("length: zeros before it", "6.2", _post(b"Content-Length: 01", body=b"1"), OK),
    Smuggled("length: of a GET", "6.2", _post(_CL, line=b"GET /livez HTTP/1.1"), OK),
    Smuggled("length: of a HEAD", "6.2", _post(_CL, line=b"HEAD /livez HTTP/1.1"), OK),
]  # fmt: skip

CHUNKS = [
    _chunk("0x", b"0x1\r\n1\r\n0\r\n\r\n"),
    _chunk("plus", b"+1\r\n1\r\n0\r\n\r\n"),
    _chunk("minus", b"-1\r\n1\r\n0\r\n\r\n"),
    _chunk("space before", b" 1\r\n1\r\n0\r\n\r\n"),
    _chunk("space after", b"1 \r\n1\r\n0\r\n\r\n"),
    _chunk("superscript", b"\xb2\r\n11\r\n0\r\n\r\n"),
    _chunk("underscore", b"0_1\r\n1\r\n0\r\n\r\n"),
    _chunk("missing size", b"\r\n1\r\n0\r\n\r\n"),
    _chunk("size not a number", b"x\r\n1\r\n0\r\n\r\n"),
    _chunk("too large for any integer", b"fffffffffffffffff\r\n1\r\n0\r\n\r\n"),
    _chunk("more data than the chunk size", b"1\r\n11\r\n0\r\n\r\n"),
    _chunk("missing CRLF after the data", b"1\r\n10\r\n\r\n"),
    _chunk("LF after the size", b"1\n1\r\n0\r\n\r\n"),
    _chunk("CR after the size", b"1\r1\r\n0\r\n\r\n"),
    _chunk("LF after the data", b"1\r\n1\n0\r\n\r\n"),
    _chunk("LF in an extension", b"1;a\nb\r\n1\r\n0\r\n\r\n"),
    _chunk("CR in an extension", b"1;a\rb\r\n1\r\n0\r\n\r\n"),
    _chunk("NUL in an extension", b"1;a=\x00\r\n1\r\n0\r\n\r\n"),
    _chunk("LF at the end", b"1\r\n1\r\n0\n\n"),
    _chunk("a trailer without a colon", b"1\r\n1\r\n0\r\nbad\r\n\r\n"),
    _chunk("a trailer with NUL", b"1\r\n1\r\n0\r\nx: \x00\r\n\r\n"),
    _chunk("an extension", b"1;a=b\r\n1\r\n0\r\n\r\n", OK),
    _chunk("zeros", b"0001\r\n1\r\n000\r\n\r\n", OK),
    _chunk("a trailer", b"1\r\n1\r\n0\r\nx: y\r\n\r\n", OK),
    _chunk("a trailer that would be framing", b"1\r\n1\r\n0\r\nx: Content-Length\r\n\r\n", OK),
]

LINES = [
    _line("no path", b"GET"),
    _line("no version", b"GET /livez"),
    _line("HTTP/0.9 with its version", b"GET /livez HTTP/0.9"),
    _line("HTTP/2.0", b"GET /livez HTTP/2.0"),
    _line("HTTP/2.0, and a body", b"POST /v1/tasks/say HTTP/2.0"),
    _line("HTTP/1.10", b"GET /livez HTTP/1.10"),
    _line("HTTP/11", b"GET /livez HTTP/11"),
    _line("http in small letters", b"GET /livez http/1.1"),
    _line("another protocol", b"GET /livez HTCPCP/1.1"),
    _line("the preface of HTTP/2", b"PRI * HTTP/2.0"),
    _line("a space after the version", b"GET /livez HTTP/1.1 x"),
    _line("a space before the method", b" GET /livez HTTP/1.1"),
    _line("a space in the target", b"GET /li vez HTTP/1.1"),
    _line("a tab for a space", b"GET\t/livez\tHTTP/1.1"),
    _line("NUL in the target", b"GET /livez\x00 HTTP/1.1"),
    _line("bare CR in the target", b"GET /li\rvez HTTP/1.1"),
    _line("a method that is not a token", b"G@T /livez HTTP/1.1"),
    _line("a colon in the method", b"GET: /livez HTTP/1.1"),
    _line("CONNECT", b"CONNECT localhost:443 HTTP/1.1", 405),
    _line("TRACE", b"TRACE /livez HTTP/1.1", 405),
    _line("absolute target of another host", b"GET http://evil.example/livez HTTP/1.1", 421),
    _line("absolute target without a host", b"GET http:///livez HTTP/1.1"),
    _line("a user in an absolute target", b"GET http://localhost@evil.example/livez HTTP/1.1"),
    _line("a target without a slash", b"GET livez HTTP/1.1"),
]

FIELDS = [
    _field("no colon", b"X"),
    _field("no name", b": x"),
    _field("a space in the name", b"X Y: z"),
    _field("NUL in the name", b"X\x00: y"),
    _field("NUL in the value", b"X: \x00"),
    _field("bare CR in the value", b"X: a\rb"),
    _field("bare LF in the value", b"X: a\nY"),
    _field("folded", b"X: a\r\n b"),
    _field("parentheses in the name", b"(X): a"),
    _field("letters beyond ASCII in the name", "Ä: a".encode()),
    _field("a space before the first", b" X: a"),
    _field("too long", b"X: " + b"a" * 20_000),
    _field("too many", *(b"X%d: a" % n for n in range(300))),
    _field("two keys", b"Authorization: Bearer a", b"Authorization: Bearer b"),
    Smuggled("field: bare LF for every line", "2.2", _get(b"X: a").replace(b"\r\n", b"\n")),
    Smuggled(
        "field: an Upgrade to HTTP/2",
        "RFC 9113 3.1",
        _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAA"),
        OK,
    ),
    Smuggled(
        "field: an Upgrade to WebSocket",
        "RFC 9110 7.8",
        _get(
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: " + b"A" * 22,
        ),
        OK,
    ),
]

HOSTS = [
    _host("missing"),
    _host("two", b"Host: localhost", b"Host: localhost"),
    _host("two that differ", b"Host: localhost", b"Host: evil.example"),
    _host("empty", b"Host:"),
    _host("a list", b"Host: localhost, evil.example"),
    _host("a path", b"Host: localhost/#@evil.example"),
    _host("a user", b"Host: user@localhost"),
    _host("a port above 65535", b"Host: localhost:99999"),
    _host("a port that is not a number", b"Host: localhost:x"),
    _host("an open bracket", b"Host: [::1"),
    _host("the name of another host", b"Host: evil.example", status=421),
    _host("our name as a subdomain label", b"Host: localhost.evil.example", status=421),
    _host("a space in it", b"Host: local host"),
    _host("NUL in it", b"Host: localhost\x00"),
]

CORPUS = [*CODINGS, *LENGTHS, *CHUNKS, *LINES, *FIELDS, *HOSTS]
