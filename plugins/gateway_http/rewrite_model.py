"""Set the model name in a JSON body; every other byte stays the same. `gateway.plugin.set_form_model` does so in forms.

A body that cannot be rewritten is not sent: the upstream may read another model in it than the one that was judged.
"""

from __future__ import annotations

import re

import msgspec

from gateway.plugin import TaskInvalid

Members = dict[str, msgspec.Raw]


class _ModelMember(msgspec.Struct):
    model: str | None = None


def set_json_model(body: bytes, name: str) -> bytes:
    """Return the object with `name` as its `model`.

    The value is replaced in place if its position is certain. Raises TaskInvalid for a body that is not an object.
    """
    try:
        if msgspec.json.decode(body, type=_ModelMember).model == name:
            return body
        members = msgspec.json.decode(body, type=Members)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise TaskInvalid("the body is not a JSON object, so its model cannot be set; it was not sent") from exc
    value = msgspec.json.encode(name)
    if "model" not in members:
        at = body.index(b"{") + 1
        return body[:at] + b'"model":' + value + (b"," if members else b"") + body[at:]
    return _replace_value(body, members, value)


def _replace_value(body: bytes, members: Members, value: bytes) -> bytes:
    """Replace the first or the last candidate.

    The position is right if all other members decode unchanged.
    """
    is_certain = body.count(b'"model"') == 1 and b"\\u" not in body  # no escaped key; in a string `"` is escaped
    expected = {**members, "model": msgspec.Raw(value)}
    member = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*(' + re.escape(bytes(members["model"])) + b")")
    for candidate in (member.search(body), member.match(body, body.rfind(b'"model"'))):
        if candidate is None:
            continue
        changed = body[: candidate.start(1)] + value + body[candidate.end(1) :]
        if is_certain or msgspec.json.decode(changed, type=Members) == expected:
            return changed
    return msgspec.json.encode(expected)  # nested `model` members before and after it, or an escaped key
