"""`Task.argument`: a member of the body, or TaskInvalid with its name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.plugin import TaskInvalid
from gateway.testing import a_task

BODY = {"text": "hello", "count": 3, "share": 0.5, "whole": 2, "is_loud": True, "list": [1], "none": None}


@pytest.mark.parametrize(
    ("name", "of", "value"),
    [("text", str, "hello"), ("count", int, 3), ("share", float, 0.5), ("is_loud", bool, True), ("list", list, [1])],
)
def test_member_of_the_right_type_is_returned(name: str, of: type[Any], value: Any) -> None:
    assert a_task("say", BODY).argument(name, of) == value


def test_integer_is_accepted_as_float() -> None:
    assert a_task("say", BODY).argument("whole", float) == 2.0


@pytest.mark.parametrize(
    ("name", "of", "told"),
    [
        ("missing", str, "`say` needs `missing`, a string"),
        ("none", str, "a string"),
        ("text", int, "a whole number"),
        ("share", int, "a whole number"),
        ("is_loud", int, "a whole number"),
        ("is_loud", float, "a number"),
        ("count", bool, "true or false"),
        ("text", list, "a list"),
    ],
)
def test_missing_or_wrong_argument_raises_task_invalid_with_its_name(name: str, of: type[Any], told: str) -> None:
    with pytest.raises(TaskInvalid, match=told) as caught:
        a_task("say", BODY).argument(name, of)
    assert caught.value.param == name


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_body_that_is_not_an_object_has_no_arguments(body: Any) -> None:
    with pytest.raises(TaskInvalid, match="`say` needs `text`"):
        a_task("say", body).argument("text", str)
