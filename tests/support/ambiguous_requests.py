"""Requests that two parsers read differently: forms, queries and paths that hide a model behind another.

Every request names `bird`, which may leave the site, to one parser, and `secret`, which may not, to another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

TYPE = "multipart/form-data; boundary=b2"
HEAD = "Content-Disposition: form-data; "
END = b"--b2--\r\n"


def part(head: str, value: bytes = b"secret", line_end: str = "\r\n") -> bytes:
    """One part of the form, with its headers as they are."""
    return f"--b2\r\n{head}\r\n\r\n".encode() + value + line_end.encode()


PLAIN = part(f'{HEAD}name="model"', b"bird")
IMAGE = part(f'{HEAD}name="image"; filename="a.png"\r\nContent-Type: image/png', b"\x89PNG secret")

# Headers of a part that some parser reads as the field `model`.
HIDDEN_HEADS = (
    'name="mo\\del"', 'name="model\\"', 'name="\\model"', 'name="model"; filename=""', "name=model; filename=x",
    "name=\"model\"; filename*=utf-8''x", 'name="model"; filename="x"', 'name="x"\r\n ; name="model"',
    'name="x"; name="model"', 'name="model"; name="x"', "name=\"x\"; name*=utf-8''model",
    "name*=utf-8''x; name=\"model\"", "name*=utf-8''model", "name*=utf-8''%6Dodel", 'name*0="mo"; name*1="del"',
    'name*0="mo"; name*1="del"; name="x"', 'name="model[]"', 'name="model[0]"', 'name=" model"', 'name="model "',
    'name="mode%6C"', 'name="%6dodel"', 'name="%256dodel"', 'name="MODEL"', 'name="Model"', "name='model'",
    'name="\tmodel"', 'name="mode\u200bl"', 'name="\uff4dodel"', 'name="model\u00a0"', 'name="model"\r\nX: y',
    f'name="model"\r\n{HEAD}name="x"', f'name="x"\r\n{HEAD}name="model"', f'name="x"\nContent-Disposition: y; {HEAD}',
    'name="model"\r\nContent-Type: audio/x', 'name="model"\r\nContent-Type: text/plain; charset=utf-7',
    'name="x"; y="; name=\\"model\\""', 'name="x"; y=a"; name="model"; z="', 'name="a\\"; name=model; b=\\""',
    'filename="a\\"; name=model; b=\\""; name="x"', 'name="_charset_"',
    'name="x"; filename="a\\"b"\r\n\tname="model"', 'name="x"\r\nContent-Disposition : form-data; name="model"',
    'name="x"\rContent-Disposition: form-data; name="model"', 'name="x"\x00; name="model"', "NAME=MODEL",
    'name = "model"; x=y', '\r\n name="model"', 'name="x";\r\n\tname="model"',
)  # fmt: skip

WRAPS = {
    "preamble of LF lines": b'--b2\nContent-Disposition: form-data; name="model"\n\nsecret\n\r\n' + PLAIN + END,
    "preamble": b"x\r\n" + PLAIN + END,
    "preamble of another form": b'--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\nsecret\r\n' + PLAIN + END,
    "epilogue": PLAIN + END + part(f'{HEAD}name="model"') + END,
    "epilogue of another form": PLAIN + END + b"--b1\r\n" + b"secret",
    "LF lines within a part": PLAIN[:-2]
    + b'\n--b2\nContent-Disposition: form-data; name="model"\n\nsecret\n\r\n'
    + END,
    "CR lines within a part": PLAIN[:-2] + b'\r--b2\rContent-Disposition: form-data; name="model"\r\rsecret\r\n' + END,
    "padded delimiter": PLAIN[:-2]
    + b'\r\n--b2 \r\nContent-Disposition: form-data; name="model"\r\n\r\nsecret\r\n'
    + END,
    "delimiter that goes on": PLAIN[:-2] + b"\r\n--b2x\r\n" + part(f'{HEAD}name="model"') + END,
    "unterminated": PLAIN + part(f'{HEAD}name="model"'),
    "cut": (PLAIN + part(f'{HEAD}name="model"'))[:-10],
    "end within a line": PLAIN + b"x--b2--\r\n" + part(f'{HEAD}name="model"') + END,
    "no headers": PLAIN + b"--b2\r\n\r\nsecret\r\n" + END,
    "LF only": (PLAIN + part(f'{HEAD}name="model"') + END).replace(b"\r\n", b"\n"),
}

# Content types that two parsers read differently.
TYPES = (
    "multipart/form-data; boundary=b1; boundary*=utf-8''b2", "multipart/form-data; boundary*=utf-8''b2; boundary=b1",
    "multipart/form-data; boundary=b1; boundary=b2", "multipart/form-data; boundary=b2; boundary=b1",
    "multipart/form-data; boundary*0=b; boundary*1=2", "multipart/form-data; boundary=b2, multipart/form-data",
    'multipart/form-data; boundary="b\\2"', "multipart/form-data; boundary=b2; Boundary=b1",
    "multipart/mixed; boundary=b2", "multipart/related; boundary=b2", "multipart/form-data; charset=utf-7; boundary=b2",
    'multipart/form-data; x="; boundary=b1"; boundary=b2', "multipart/form-data; boundary=b2;boundary =b1",
)  # fmt: skip


def ambiguous_forms() -> Iterator[tuple[str, str, bytes]]:
    """Yield label, content type and body."""
    for head, place in product(HIDDEN_HEADS, ("first", "last", "alone")):
        hidden = part(HEAD + head)
        if place == "alone":
            yield f"{head!r} alone", TYPE, hidden + IMAGE + END
        else:
            yield f"{head!r} {place}", TYPE, (hidden + PLAIN if place == "first" else PLAIN + hidden) + IMAGE + END
    for label, body in WRAPS.items():
        yield label, TYPE, body
    both = PLAIN + END
    for content_type in TYPES:
        other = both.replace(b"b2", b"b1").replace(b"bird", b"secret")
        yield content_type, content_type, both
        yield f"{content_type}, two forms", content_type, both + other
        yield f"{content_type}, two forms, the other first", content_type, other + both
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
        yield f"form sent as {content_type}", content_type, both + b"&model=secret&"


QUERIES = (
    "model=secret", "Model=secret", "x=1&model=secret", "model%5B%5D=secret", "model[]=secret", "mode%6C=secret",
    "%6dodel=secret", "%256dodel=secret", "x=1;model=secret", "x=1%26model=secret", "model", "model+=secret",
    "+model=secret", "MODEL=secret", "%20model=secret", "model%00=secret", "x=1%3Bmodel=secret", "'model'=secret",
)  # fmt: skip

# Paths under which a server finds /v1/images/secret, or another endpoint, where the gateway does not.
SUB_PATHS = (
    "x%2Fsecret", "x%2fsecret", "x/..%2fsecret", "x%5Csecret", "x%5c..%5csecret", "%252e%252e/secret", "..%252fsecret",
    "x%253f/secret", "x/%2e%2e/secret", "x/./secret", "x//secret", "%2Fsecret", "x%3Bsecret", "x%23secret",
    "x%3Fsecret",    "secret%2F", "secret%5C", "..%5Csecret", "x/..", "..", "%2e%2e%2fimages/secret",
)  # fmt: skip
