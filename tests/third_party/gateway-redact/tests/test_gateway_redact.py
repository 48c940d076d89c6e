"""What it masks, by value; and every promise of a backend, by the kit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_redact import Redact

from gateway.plugin import TaskInvalid
from gateway.testing import a_task, answer_of, check_backend


def redacted(text: str, **settings: Any) -> Any:
    return asyncio.run(answer_of(Redact, a_task("redact", {"text": text}), **settings)).json["result"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ada.l+x@mail.example.org.", "Write to [email]."),
        ("Pay DE89 3704 0044 0532 0130 00 today", "Pay [iban] today"),
        ("Call +44 (20) 7946-0018 now", "Call [phone] now"),
        ("Room 12, at 10:30, for 250 people", "Room 12, at 10:30, for 250 people"),
    ],
)
def test_it_masks_what_names_somebody_and_nothing_else(text: str, masked: str) -> None:
    assert redacted(text)["text"] == masked


def test_it_says_how_much_it_masked_and_masks_what_it_is_told_to() -> None:
    text = "a@example.org b@example.org 020 7946 0018"
    assert redacted(text)["masked"] == {"email": 2, "phone": 1}
    assert redacted(text, masks=["phone"], mask="#") == {
        "text": "a@example.org b@example.org #",
        "masked": {"phone": 1},
    }


def test_a_request_without_a_text_is_the_clients_mistake() -> None:
    with pytest.raises(TaskInvalid, match="`redact` needs `text`"):
        redacted(5)  # type: ignore[arg-type]


def test_it_keeps_the_promises_of_a_backend() -> None:
    asyncio.run(check_backend(Redact))
