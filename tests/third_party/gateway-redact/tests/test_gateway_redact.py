"""The masked text by value, and the conformance kit."""

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
def test_only_identifying_text_is_masked(text: str, masked: str) -> None:
    assert redacted(text)["text"] == masked


def test_answer_counts_the_masked_items_and_masks_setting_limits_them() -> None:
    text = "a@example.org b@example.org 020 7946 0018"
    assert redacted(text)["masked"] == {"email": 2, "phone": 1}
    assert redacted(text, masks=["phone"], mask="#") == {
        "text": "a@example.org b@example.org #",
        "masked": {"phone": 1},
    }


def test_request_without_text_raises_task_invalid() -> None:
    with pytest.raises(TaskInvalid, match="`redact` needs `text`"):
        redacted(5)  # type: ignore[arg-type]


def test_redact_plugin_passes_the_conformance_kit() -> None:
    asyncio.run(check_backend(Redact))
