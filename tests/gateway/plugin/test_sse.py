"""The event parser: independent of chunking, and bounded in size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.plugin.sse import BOM, EventTooLarge, SseEvent, SseParser

CAP = 4096


def parse(chunks: list[bytes], cap: int = CAP) -> list[SseEvent]:
    parser = SseParser(cap)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def cut_at(stream: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in pairwise(edges)]


def reference(stream: bytes) -> list[bytes]:
    """Return the data of each event by WHATWG HTML §9.2.6.

    Written for clarity, not for speed.
    """
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found, data = [], []
    for line in text.split(b"\n")[:-1]:
        if not line and data:
            found.append(b"\n".join(data))
        if not line:
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            data.append(b"")
    return found


LINES = st.sampled_from(
    [
        b"data: x",
        b"data:y",
        b"data",
        b"data:  z",
        b"event: e",
        b"id: 7",
        b": note",
        b":",
        b"",
        b"junk",
        b"odd: 1",
        b"data: \xc3\xa9",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
BODIES = st.one_of(
    st.lists(st.tuples(LINES, ENDS), max_size=30).map(lambda pairs: b"".join(a + b for a, b in pairs)),
    st.binary(max_size=200),
    st.text(alphabet="da:t \r\n\ufeff", max_size=80).map(str.encode),
)
STREAMS = st.tuples(st.sampled_from([b"", BOM, BOM[:2]]), BODIES).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=40))
def test_chunking_does_not_change_the_events(stream: bytes, places: list[int]) -> None:
    assert parse(cut_at(stream, places)) == parse([stream])


@given(STREAMS)
def test_events_match_the_whatwg_reference(stream: bytes) -> None:
    assert [event.data for event in parse([bytes([b]) for b in stream])] == reference(stream)


@given(STREAMS)
def test_reframed_events_parse_to_the_same_events(stream: bytes) -> None:
    events = parse([stream])
    again = parse([b"".join(event.raw for event in events)])
    assert [(event.data, event.name) for event in again] == [(event.data, event.name) for event in events]


def test_comments_are_dropped_and_event_names_kept() -> None:
    (event,) = parse([b": hello\nevent: delta\ndata: 1\n: again\ndata: 2\n\n"])
    assert event == SseEvent(b"event: delta\ndata: 1\ndata: 2\n\n", b"1\n2", b"delta")


def test_event_is_emitted_at_the_blank_line_with_cr_line_ends() -> None:
    assert [event.data for event in parse([b"data: 1\r\r"])] == [b"1"]


def test_event_over_the_cap_raises_in_one_line_or_many() -> None:
    for stream in (b"data: " + b"x" * CAP, b"data: xxxxxxxx\n" * CAP, b": " + b"x" * CAP):
        with pytest.raises(EventTooLarge):
            parse([stream])


def test_event_at_the_cap_is_parsed_byte_by_byte() -> None:
    data = b"x" * (CAP - 6)
    assert [event.data for event in parse([bytes([b]) for b in b"data: " + data + b"\n\n"])] == [data]


def test_unfinished_event_is_returned_only_by_finish() -> None:
    parser = SseParser(CAP)
    assert list(parser.feed(b"data: 1\n\ndata: [DONE]")) == [SseEvent(b"data: 1\n\n", b"1", b"")]
    assert parser.finish() == SseEvent(b"data: [DONE]\n\n", b"[DONE]", b"")
    assert parser.finish() is None


OBJECTS = [b'{"a":1}', b'{"b":"}"}', b"[DONE]"]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"a":1}\ndata: {"b":"}"}\ndata: [DONE]\n',
        b'Data: {"a":1}\n\nDATA:{"b":"}"}\n\ndata: [DONE]\n\n',
        b'{"a":1}\n{"b":"}"}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n\ndata: {"b":"}"}\ndata: [DONE]\n\n',
    ],
    ids=["single newlines", "capitals", "without data", "mixed"],
)
def test_events_of_lenient_servers_are_framed_correctly(stream: bytes, step: int) -> None:
    parser = SseParser(CAP)
    events = [event for at in range(0, len(stream), step) for event in parser.feed(stream[at : at + step])]
    if (last := parser.finish()) is not None:
        events.append(last)
    assert [event.data for event in events] == OBJECTS
    assert [event.data for event in parse([b"".join(event.raw for event in events)])] == OBJECTS


def test_names_of_events_that_are_parted_by_one_newline_stay_with_their_data() -> None:
    parser = SseParser(CAP)
    stream = b'event: x\ndata: {"a":1}\nevent: y\ndata: {"b":2}\nevent: z\ndata: {"c":3}\n'
    events = list(parser.feed(stream))
    assert [(event.name, event.data) for event in events] == [
        (b"x", b'{"a":1}'),
        (b"y", b'{"b":2}'),
        (b"z", b'{"c":3}'),
    ]
    assert events[1].raw == b'event: y\ndata: {"b":2}\n\n'


def test_one_object_over_several_data_lines_stays_one_event() -> None:
    stream = b'data: {"a":\ndata: {"b":1},\ndata: "c":2}\nevent: x\n\n'
    assert [(event.data, event.name) for event in parse([stream])] == [(b'{"a":\n{"b":1},\n"c":2}', b"x")]
