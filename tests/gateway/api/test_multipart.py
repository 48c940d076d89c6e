"""Parsing of multipart forms; truncated or malformed forms are refused."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.api.multipart import FormPart, collect, is_multipart, parse
from gateway.plugin import TaskInvalid, Upload
from support.forms import encode

TYPE = "multipart/form-data; boundary=xx"
FIELD = b'--xx\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'

# Valid names. Clients do not escape percent signs, so `%22` would come back as a quote.
names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="%"), min_size=1, max_size=20).filter(
    lambda name: name == name.strip()
)
texts = st.text(st.characters(exclude_categories=("Cs",)))
values = st.one_of(texts, st.lists(texts, min_size=2, max_size=4))
files = st.builds(
    Upload, st.binary(max_size=300), names, st.sampled_from(["audio/wav", "application/octet-stream", "text/plain"])
)


def one_part(head: bytes, data: bytes = b"1") -> bytes:
    return b"--xx\r\n" + head + b"\r\n\r\n" + data + b"\r\n--xx--\r\n"


@given(st.dictionaries(names, values, max_size=5), st.dictionaries(names, files, max_size=3))
def test_a_form_survives_the_round_trip(fields: dict, files: dict) -> None:
    assume((fields or files) and fields.keys().isdisjoint(files))
    form = collect(parse(*encode(fields, files)))
    expected = {k: [v] if k.endswith("[]") and isinstance(v, str) else v for k, v in fields.items()}
    assert form.fields == expected
    assert form.files == files


@given(st.lists(st.tuples(names, st.binary(max_size=200)), min_size=1, max_size=6), st.data())
def test_parts_are_parsed_unchanged_for_any_order_and_bytes(parts: list, data: st.DataObject) -> None:
    parts = data.draw(st.permutations(parts))
    lines = [
        b'--B\r\nContent-Disposition: form-data; name="' + str(i).encode() + b'"\r\n\r\n' + content + b"\r\n"
        for i, (_, content) in enumerate(parts)
    ]
    assume(all(b"--B" not in content for _, content in parts))
    found = parse("multipart/form-data; boundary=B", b"".join(lines) + b"--B--")
    assert [part.data for part in found] == [content for _, content in parts]


@given(st.integers(0, 400))
def test_a_form_cut_anywhere_is_refused(cut: int) -> None:
    content_type, body = encode({"model": "m"}, {"file": Upload(b"\x00\xff" * 40, "a.wav", "audio/wav")})
    assume(cut < len(body) - 2)  # the line end after the last delimiter belongs to no part
    with pytest.raises(TaskInvalid):
        parse(content_type, body[:cut])


@given(st.binary(max_size=500))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    for tried in (body, b"--xx\r\n" + body + b"\r\n--xx--", FIELD + body):
        with suppress(TaskInvalid):
            parse(TYPE, tried)


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", FIELD + b"--xx--", "names no usable boundary"),
        ("multipart/form-data; boundary=", FIELD + b"--xx--", "names no usable boundary"),
        (f"multipart/form-data; boundary={'x' * 71}", FIELD, "names no usable boundary"),
        ("multipart/form-data; boundary=é", FIELD, "names no usable boundary"),
        ("multipart/form-data; boundary=yy", FIELD + b"--xx--", "its boundary never occurs"),
        (TYPE, b"", "its boundary never occurs"),
        (TYPE, FIELD, "final boundary is missing"),
        (TYPE, FIELD + b"--xx", "final boundary is missing"),
        (TYPE, FIELD.replace(b"\r\n", b"\n") + b"--xx--", "goes on"),
        (TYPE, b"--xx\r\n\r\ndata\r\n--xx--", "a part has no"),
        (TYPE, one_part(b"Content-Type: text/plain"), 'name="…"'),
        (TYPE, one_part(b'Content-Disposition: attachment; name="a"'), 'name="…"'),
        (TYPE, one_part(b"Content-Disposition: form-data"), 'name="…"'),
        (TYPE, one_part(b'Content-Disposition: form-data; name="\xff"'), "not UTF-8"),
        (TYPE, one_part(b"X: " + b"y" * 9000), "no end of headers within 8192 bytes"),
        (TYPE, FIELD * 65 + b"--xx--", "more than 64 parts"),
        (TYPE, FIELD * 5000, "more than 64 parts"),
    ],
    ids=range(17),
)
def test_malformed_form_is_refused_with_the_reason(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(TaskInvalid) as refused:
        parse(content_type, body)
    assert words in refused.value.message


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b"x-gzip"])
def test_an_encoded_part_is_refused(encoding: bytes) -> None:
    head = b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: ' + encoding
    with pytest.raises(TaskInvalid, match="Content-Transfer-Encoding"):
        parse(TYPE, one_part(head))
    assert parse(TYPE, one_part(head.replace(encoding, b"Binary")))[0].data == b"1"


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        (b'form-data; name="f"; filename="a.wav"', "a.wav"),
        (b"form-data; name=f; filename=a.wav", "a.wav"),
        (b'FORM-DATA; NAME="f"; FILENAME=""', ""),
        (b'form-data; name="f"; filename="a\\"b.wav"', 'a"b.wav'),
        (b'form-data; name="f"; filename="a%22b.wav"', 'a"b.wav'),
        (b'form-data; name="f"; filename="C:\\dir\\a.wav"', "C:\\dir\\a.wav"),
        ('form-data; name="f"; filename="über.wav"'.encode(), "über.wav"),
        (b"form-data; name=f; filename=x; filename*=utf-8''%C3%BCber.wav", "über.wav"),
        (b'form-data; filename="a.wav"; name="f"', "a.wav"),
    ],
)
def test_file_names_are_parsed_in_the_spellings_of_clients(disposition: bytes, filename: str) -> None:
    part = parse(TYPE, one_part(b"content-disposition: " + disposition))[0]
    assert (part.name, part.filename) == ("f", filename)


def test_boundary_may_be_quoted_and_a_line_end_may_precede_it() -> None:
    body = b"\r\n" + FIELD + b"--xx--\r\n"
    assert parse('Multipart/Form-Data; charset=utf-8; boundary="xx"', body) == [FormPart(name="a", data=b"1")]


def test_part_without_a_file_name_is_a_file_when_it_has_a_file_type() -> None:
    head = b'Content-Disposition: form-data; name="file"\r\nContent-Type: audio/wav'
    assert collect(parse(TYPE, one_part(head, b"\xff"))).files["file"].data == b"\xff"


def test_duplicate_file_names_and_binary_fields_are_refused() -> None:
    with pytest.raises(TaskInvalid, match="two files"):
        collect([FormPart(name="f", data=b"", filename="a")] * 2)
    with pytest.raises(TaskInvalid, match="not UTF-8"):
        collect([FormPart(name="f", data=b"\xff")])


def test_form_is_recognised_by_its_content_type_or_first_bytes() -> None:
    assert is_multipart(" multipart/form-data; boundary=x", b"")
    assert is_multipart("", b"--x\r\n")
    assert not is_multipart("application/json", b"{}")


def test_large_file_full_of_near_boundaries_is_parsed_in_linear_time() -> None:
    data = b"\r\n--x" * 500_000
    began = time.perf_counter()
    assert parse(TYPE, one_part(b'Content-Disposition: form-data; name="f"', data))[0].data == data
    with pytest.raises(TaskInvalid):
        parse(TYPE, one_part(b'Content-Disposition: form-data; name="f"', data + b"\r\n--xxx" * 500_000))
    assert time.perf_counter() - began < 5
