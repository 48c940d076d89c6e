"""What may be typed while the demo runs: each command changes the link, and says what it is like now."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from gateway.demo.emulated_link import EmulatedLink

HELP = """\
  delay MS    round trip over the link        rate MBIT   each way; 0 is unlimited
  down, up    cut the link, join it again     stall, go   hold everything back, go on
  quit        end the demo (so does Ctrl-C)"""


class UnknownCommand(Exception):
    """The line is no command; the message says which there are."""


async def execute(link: EmulatedLink, line: str) -> bool:
    """Do what `line` says; False when it says to quit. Raises NotUnderstood."""
    match line.split():
        case []:
            pass
        case ["quit" | "exit" | "q"]:
            return False
        case ["delay", number]:
            link.set_rtt(_number(number) / 1000)
        case ["rate", number]:
            link.set_rate(_number(number) * 1e6 / 8 or None)
        case ["down"]:
            link.take_down()
        case ["up"]:
            await link.bring_up()
        case ["stall"]:
            link.stall()
        case ["go"]:
            link.resume()
        case _:
            raise UnknownCommand(f"{line.strip()!r} is not understood; there are:\n{HELP}")
    return True


def describe(link: EmulatedLink) -> str:
    """What the link is like now."""
    if link.is_down:
        return "link: down"
    rate = link.up.bytes_per_s
    speed = "unlimited" if rate is None else f"{rate * 8 / 1e6:g} Mbit/s"
    return f"link: round trip {(link.up.delay_s + link.down.delay_s) * 1000:g} ms, {speed}" + (
        ", stalled" if link.is_stalled else ""
    )


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(text)) <= 1e6:
            return number
    raise UnknownCommand(f"{text!r} is no number from 0 to a million; there are:\n{HELP}")


async def execute_typed_commands(link: EmulatedLink) -> None:
    """Obey the terminal until `quit` or end of input."""
    async for line in _typed_lines():
        try:
            if not await execute(link, line):
                return
            print(describe(link), flush=True)
        except UnknownCommand as exc:
            print(exc, flush=True)


async def _typed_lines() -> AsyncIterator[str]:
    """Lines of standard input, which is a terminal: it hands over whole lines."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, lambda: lines.put_nowait(os.read(descriptor, 4096).decode(errors="replace")))
    try:
        while line := await lines.get():
            yield line
    finally:
        loop.remove_reader(descriptor)
