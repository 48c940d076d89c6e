from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from gateway.demo.console import HELP, NotUnderstood, converse, describe, obey
from gateway.demo.link import Link


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    async with Link("127.0.0.1", 1) as link:
        yield link


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("delay 300", "link: round trip 300 ms, unlimited"),
        ("delay 0.5", "link: round trip 0.5 ms, unlimited"),
        ("rate 1", "link: round trip 0 ms, 1 Mbit/s"),
        ("down", "link: down"),
        ("stall", "link: round trip 0 ms, unlimited, stalled"),
        ("", "link: round trip 0 ms, unlimited"),
    ],
)
async def test_a_command_changes_the_link(link: Link, line: str, expected: str) -> None:
    assert await obey(link, line)
    assert describe(link) == expected


@pytest.mark.parametrize("undo", [("down", "up"), ("stall", "go"), ("rate 1", "rate 0"), ("delay 300", "delay 0")])
async def test_every_change_can_be_undone(link: Link, undo: tuple[str, str]) -> None:
    before = describe(link)
    for line in undo:
        await obey(link, line)
    assert describe(link) == before


@pytest.mark.parametrize("line", ["quit", "exit", " q "])
async def test_quit_ends_the_conversation(link: Link, line: str) -> None:
    assert not await obey(link, line)


@pytest.mark.parametrize("line", ["delay", "delay x", "delay -1", "delay nan", "rate inf", "up 3", "help", "\x1b[A"])
async def test_unknown_command_is_answered_with_the_help_text(link: Link, line: str) -> None:
    before = describe(link)
    with pytest.raises(NotUnderstood) as caught:
        await obey(link, line)
    assert HELP in str(caught.value)
    assert describe(link) == before


async def test_commands_on_a_terminal_are_executed_and_answered(
    link: Link, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", terminal)
        talk = asyncio.ensure_future(converse(link))
        keyboard.write(b"delay 300\nnonsense\ndown\nquit\n")
        await asyncio.wait_for(talk, 10)
    said = capsys.readouterr().out
    assert "link: round trip 300 ms, unlimited\n'nonsense' is not understood" in said
    assert said.endswith("link: down\n")
