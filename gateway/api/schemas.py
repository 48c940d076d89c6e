"""The request bodies, as far as they are checked.

Openapi.json shows the same structs.

Fields not named here reach the backend unchecked and unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

EncodingFormat = Literal["float", "base64"]
TranscriptFormat = Literal["json", "verbose_json", "text", "srt", "vtt"]
TRANSCRIPT_FORMATS: tuple[TranscriptFormat, ...] = get_args(TranscriptFormat)

# Names appear in logs, metrics and response headers, so they are short and without control characters.
MAX_NAME_CHARS = 256

Model = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS, description="a model of /v1/models, or `auto`")]
_Token = Annotated[int, Meta(ge=0)]
_Tokens = Annotated[list[_Token], Meta(min_length=1)]
_Texts = str | Annotated[list[str | _Token | _Tokens], Meta(min_length=1)]
Choices = Annotated[int, Meta(ge=1, description="how many answers to each prompt")]
Prompt = Annotated[_Texts, Meta(description="a text, tokens, or a list of texts or of token lists")]
Inputs = Annotated[_Texts, Meta(description="a text, tokens, or a list of texts or of token lists")]

# The type of `input` cannot express this: a list is all texts, all tokens, or all token lists, and never empty.
_ARRAY: dict[str, Any] = {"type": "array", "minItems": 1}
_TOKEN_ARRAY = _ARRAY | {"items": {"type": "integer", "minimum": 0}}
INPUT_SCHEMA: dict[str, Any] = {
    "description": "a text, tokens, or a list of texts or of token lists",
    "anyOf": [
        {"type": "string", "minLength": 1},
        _ARRAY | {"items": {"type": "string"}},
        _TOKEN_ARRAY,
        _ARRAY | {"items": _TOKEN_ARRAY},
    ],
}


class StreamOptions(Struct):
    """The options of a stream."""

    include_usage: bool | None = None


class Message(Struct):
    """One message of a conversation; its other fields pass unchanged."""

    role: str


class ChatRequest(Struct):
    """A conversation to answer; fields that are not listed pass unchanged."""

    model: Model
    messages: Annotated[list[Message], Meta(min_length=1)]
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionRequest(Struct):
    """A text to continue; fields that are not listed pass unchanged."""

    model: Model
    prompt: Prompt
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class EmbeddingsRequest(Struct):
    """Inputs to turn into vectors; fields that are not listed pass unchanged."""

    model: Model
    input: Inputs
    encoding_format: EncodingFormat | None = None


class OtherRequest(Struct):
    """A request that is relayed unchanged."""

    model: Annotated[str, Meta(max_length=MAX_NAME_CHARS)] | None = None
    stream: bool | None = None


# ── building schemas for openapi.json ────────────────────────────────────────────────────────────

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
EVENT_STREAM: Schema = {"type": "string", "description": "server-sent events, the last `data: [DONE]`"}


def schema_ref(name: str, section: str = "schemas") -> Schema:
    """Return a reference to a component of openapi.json."""
    return {"$ref": f"#/components/{section}/{name}"}


def object_schema(required: Iterable[str], /, **properties: Schema) -> Schema:
    """Return the schema of an object."""
    return {"type": "object", "required": list(required), "properties": properties}


def list_schema(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}
