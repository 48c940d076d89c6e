"""The fields and files of a multipart/form-data body. `gateway.plugin.forms` is the one parser of forms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gateway.plugin import TaskInvalid, Upload
from gateway.plugin.forms import FormLayout, FormSpan, check_model_part, form_layout
from gateway.plugin.forms import is_form as is_multipart

__all__ = ["Form", "FormPart", "check_model_part", "collect", "form_layout", "is_multipart", "parse", "parts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormPart:
    """One part of the body.

    `filename` is None if the part has no such parameter; "" is a file name.
    """

    name: str
    data: bytes
    filename: str | None = None
    content_type: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the part has a file name, or a type that a text field never has."""
        return FormSpan(self.name, self.filename, self.content_type, 0, 0).is_file


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields and files.

    A field whose name ends in `[]` or is repeated holds a list.
    """

    fields: dict[str, Any]
    files: dict[str, Upload]


def parts_of(layout: FormLayout, body: bytes) -> list[FormPart]:
    """Return the parts of a form in order."""
    return [
        FormPart(
            name=span.name,
            data=body[span.start : span.end],
            filename=span.filename,
            content_type=span.content_type,
        )
        for span in layout.spans
    ]


def parse(content_type: str, body: bytes) -> list[FormPart]:
    """Return the parts of a form in order.

    Raises TaskInvalid for a body that is not a complete form, or that parsers read differently.
    """
    return parts_of(form_layout(content_type, body), body)


def collect(parts: Iterable[FormPart]) -> Form:
    """Return the parts by name.

    Raises TaskInvalid for a field that is not UTF-8, and for two files of the same name.
    """
    form = Form({}, {})
    for part in parts:
        if not part.is_file:
            _add_field(form.fields, part)
        elif part.name in form.files:
            raise TaskInvalid("the form has two files of one name; send one", param=part.name)
        else:
            kind = part.content_type or "application/octet-stream"
            form.files[part.name] = Upload(part.data, part.filename or "", kind)
    return form


def _add_field(fields: dict[str, Any], part: FormPart) -> None:
    try:
        text = part.data.decode()
    except UnicodeDecodeError:
        problem = f"the form field {part.name!r} is not UTF-8; send a file with a file name"
        raise TaskInvalid(problem, param=part.name) from None
    before = fields.get(part.name)
    if isinstance(before, list):
        before.append(text)
    elif before is not None:
        fields[part.name] = [before, text]
    else:
        fields[part.name] = [text] if part.name.endswith("[]") else text
