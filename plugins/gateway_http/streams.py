"""A stream relayed event by event, and the rule that says whether it ended or was cut.

To both OpenAI SDKs a stream that just stops is a complete answer (research: they report success with
truncated text). So every stream has a proper end here, and one without it is a failure.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import msgspec

from gateway.plugin import Task

from .counted import choices
from .exchange import Exchange
from .faults import bad_response
from .refusals import Refused, is_answer
from .sse import DONE, DONE_EVENT, Event, EventTooLarge, Parser

MAX_EVENT_BYTES = 1 << 20
SLICE_BYTES = 16384  # parsed in one go, so that a flood of tiny lines stalls nobody
TAIL_S = 0.05  # after [DONE], for the end of the body: then the connection can be kept
MAX_MESSAGE_CHARS = 300
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,40}")

# Streams of one typed event after the other end in one of these.
LAST_EVENTS = frozenset(
    {
        "image_edit.completed", "image_generation.completed", "message_stop", "response.completed",
        "response.failed", "response.incomplete", "speech.audio.done", "transcript.text.done",
    }
)  # fmt: skip


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: Any = None
    delta: Any = None
    text: Any = None

    @property
    def says_something(self) -> bool:
        delta = self.delta if isinstance(self.delta, dict) else {}
        return bool(self.text) or any(value for name, value in delta.items() if name != "role")


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    error: Any = None
    type: Any = None


class Progress:
    """What a stream has shown so far. `is_done`: its last event was seen; `has_ended`: it may end here.

    A choice is finished by a `finish_reason` that is not empty: some servers send "" until then.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._by_choice = task.kind in ("chat", "completion")
        self._unfinished: dict[int, bool] = {}
        self._has_said = False
        self._saw_last = False
        self.is_done = False

    @property
    def has_ended(self) -> bool:
        """Whether the stream is complete if nothing more comes."""
        return self.is_done or self._saw_last or (self._all_finished and len(self._unfinished) >= choices(self._task))

    @property
    def _all_finished(self) -> bool:
        return bool(self._unfinished) and not any(self._unfinished.values())

    def note(self, event: Event) -> None:
        """Take account of an event. Raises where it reports an error, or is none of this protocol."""
        if event.data.strip() == DONE:
            if self._by_choice:
                self._check_done()
            self.is_done = True
            return
        try:
            chunk = msgspec.json.decode(event.data, type=_Chunk)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise bad_response(f"sent a malformed event: {exc}") from exc
        _check_no_error(event, chunk)
        if self._by_choice:
            for choice in chunk.choices or ():
                self._note_choice(choice)
        elif isinstance(chunk.type, str) and chunk.type in LAST_EVENTS:
            self._saw_last = True

    def _note_choice(self, choice: _Choice) -> None:
        unfinished = self._unfinished.get(choice.index, True)
        self._unfinished[choice.index] = unfinished and not choice.finish_reason
        self._has_said = self._has_said or choice.says_something

    def _check_done(self) -> None:
        """[DONE] is believed: from servers that know no `n`, and from those that know no finish_reason, after text."""
        if not self._unfinished:
            raise bad_response("ended its stream before it had begun the answer")
        if self._all_finished:
            return
        if not all(self._unfinished.values()):
            raise bad_response("ended its stream before each of its choices was finished")
        if not self._has_said:
            raise bad_response("ended its stream before it had said anything")


def _check_no_error(event: Event, chunk: _Chunk) -> None:
    if is_answer(chunk.error):
        raise Refused(chunk.error)
    if chunk.error is not None:
        raise bad_response(f"ended its stream with an error{code_of(chunk.error)}", said=message_of(chunk.error))
    if event.name == b"error" or chunk.type == "error":
        raise bad_response("ended its stream with an error")


def code_of(error: Any) -> str:
    """`, CODE` of an upstream's error object, where it has a plain word for it; else nothing."""
    words = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    return next((f", {word}" for word in words if isinstance(word, str) and PLAIN.fullmatch(word)), "")


def message_of(error: Any) -> str:
    """The text of an upstream's error object, shortened."""
    text = error.get("message") if isinstance(error, dict) else error
    text = text if isinstance(text, str) and text.strip() else "no message"
    return " ".join(text.split())[:MAX_MESSAGE_CHARS]


async def relay(task: Task, exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Every event, framed, up to the proper end. Raises what aiohttp raises, BackendUnavailable, and Refused."""
    parser, progress = Parser(MAX_EVENT_BYTES), Progress(task)
    while not progress.is_done:
        try:
            chunk = await exchange.read()
        except (aiohttp.ClientError, OSError):
            if not progress.has_ended:
                raise
            break  # it hung up without ceremony; the answer was complete
        if not chunk:
            break
        for start in range(0, len(chunk), SLICE_BYTES):
            if start:
                await asyncio.sleep(0)
            for event in _events(parser, chunk[start : start + SLICE_BYTES]):
                progress.note(event)
                exchange.is_whole = progress.is_done
                yield event.raw
                if progress.is_done:
                    await _read_tail(exchange)
                    return
    for raw in _ending(parser, progress):
        yield raw


def _events(parser: Parser, chunk: bytes) -> Iterator[Event]:
    try:
        yield from parser.feed(chunk)
    except EventTooLarge as exc:
        raise bad_response(f"sent {exc}") from exc


def _ending(parser: Parser, progress: Progress) -> Iterator[bytes]:
    """The last event, where its blank line is missing; [DONE], where the answer is complete without."""
    last = parser.finish()
    if last is not None:
        progress.note(last)
        yield last.raw
    if not progress.has_ended:
        raise bad_response("ended its stream before the answer was complete: the stream was cut")
    if progress._by_choice and not progress.is_done:
        yield DONE_EVENT


async def _read_tail(exchange: Exchange) -> None:
    """Read what follows the last event, if it is only the body's end; else the connection is dropped later."""
    with suppress(OSError, aiohttp.ClientError):
        async with asyncio.timeout(TAIL_S):
            await exchange.read()
