"""`edge-gateway explain`: asks the running gateway which backend it would choose for a request, and prints why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.commands.admin_client import authorization_from, post_explain
from gateway.settings import Loaded

OK, FAILED = 0, 1
COLUMNS = ("wait_s", "upload_s", "service_s", "p95_s", "t_s", "j", "usd", "joule", "samples")


def run(loaded: Loaded, args: argparse.Namespace) -> int:
    """Print the decision as a table, or as JSON; return the exit status."""
    headers = {"Content-Type": args.content_type}
    if args.edge_only:
        headers["x-gateway-locality"] = "edge-only"
    admin = loaded.settings.admin_listen
    try:
        body = Path(args.body[1:]).read_bytes() if args.body.startswith("@") else args.body.encode()
        headers |= authorization_from(args.key_file)
    except OSError as exc:
        return _fail(str(exc))
    try:
        status, explanation = post_explain(admin, args.path, body, headers)
    except OSError as exc:
        return _fail(f"cannot reach the admin listener {admin}: {exc}; is the gateway running?")
    if status in (401, 403):
        return _fail(f"{admin} refused access: {explanation['error']['message']}; name a key with --key-file")
    if status != 200:
        return _fail(f"the request would be refused: {explanation['error']['message']}")
    print(json.dumps(explanation) if args.json else "\n".join(table(explanation)))
    return OK


def _fail(message: str) -> int:
    print(f"edge-gateway: {message}", file=sys.stderr)
    return FAILED


def table(explanation: dict[str, Any]) -> Iterator[str]:
    """The explanation as lines of text: the reason, then one row for each backend, best first."""
    yield explanation["why"]
    candidates = explanation["candidates"]
    order = [*explanation["order"], *(name for name in candidates if name not in explanation["order"])]
    width = max(map(len, order), default=7)
    yield f"{'backend':{width}}  {'site':6}  " + "  ".join(f"{column:>9}" for column in COLUMNS)
    for name in order:
        row = candidates[name]
        if "refused" in row:
            yield f"{name:{width}}  {row['site']:6}  refused: {row['refused']}"
        else:
            yield f"{name:{width}}  {row['site']:6}  " + "  ".join(f"{row[column]:9.4g}" for column in COLUMNS)
