"""Headers that a backend gave with its answer: which of them are the client's, beside ours."""

from __future__ import annotations

from collections.abc import Mapping

# RFC 9110 §7.6.1, and what says how long a message is: of one connection, and its sender's own business.
FRAMING = frozenset(
    {
        "connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def merge_headers(given: Mapping[str, str], *ours: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer, each once, whatever its case: those given, less framing, beside `ours`."""
    theirs = {name.lower(): (name, value) for name, value in given.items()}
    out = {name: value for headers in ours for name, value in headers.items()}
    _, hops = theirs.get("connection", ("", ""))
    dropped = FRAMING | {name.strip().lower() for name in hops.split(",")} | {name.lower() for name in out}
    return dict(each for key, each in theirs.items() if key not in dropped) | out
