"""The registry of API operations: maps each kind of work to its operation.

A new operation is a module with a subclass of `Operation`, an entry here, and its routes in `gateway.api.routes`.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping

from gateway.api.chat import ChatOperation
from gateway.api.completions import CompletionOperation
from gateway.api.embeddings import EmbeddingsOperation
from gateway.api.json_bounds import MAX_ITEMS, check_bounds
from gateway.api.multipart import is_multipart
from gateway.api.operation import Operation, ParsedRequest
from gateway.api.relayed import RelayedOperation
from gateway.api.routes import Match
from gateway.api.tasks import TaskOperation
from gateway.api.transcriptions import TranscriptionOperation
from gateway.plugin import Kind

OPERATIONS: Mapping[Kind, Operation] = {
    operation.kind: operation
    for operation in (
        ChatOperation(),
        CompletionOperation(),
        EmbeddingsOperation(),
        TranscriptionOperation(),
        TaskOperation(),
        RelayedOperation(),
    )
}


def parse_request(match: Match, content_type: str, body: bytes, *, max_items: int = MAX_ITEMS) -> ParsedRequest:
    """Parse a request's body. Above SMALL_BYTES, call it in a thread: it may take long, in short steps.

    `content_type` may be empty or wrong if the body is JSON. A byte order mark before it is dropped (RFC 8259 §8.1):
    PowerShell and .NET write one.

    Raises TaskInvalid with what is wrong and where, and with `param` if a single field is at fault.
    """
    if not is_multipart(content_type, body):
        check_bounds(body, max_items)
    return OPERATIONS[match.route.kind].parse(match, content_type, body.removeprefix(codecs.BOM_UTF8))
