"""Commands that can be typed while the demo runs: each changes the emulated link and prints its state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from gateway.demo.emulated_link import EmulatedLink

HELP = """\
  delay MS    round trip over the link        rate MBIT   each direction; 0 is unlimited
  down, up    cut the link, restore it        stall, go   stop all delivery, continue
  quit        end the demo (as Ctrl-C does)"""


class UnknownCommand(Exception):
    """The line is not a command; the message lists the commands."""


async def execute(link: EmulatedLink, line: str) -> bool:
    """Execute a command line; False for `quit`. Raises UnknownCommand."""
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
            raise UnknownCommand(f"{line.strip()!r} is not a command; the commands are:\n{HELP}")
    return True


def describe(link: EmulatedLink) -> str:
    """The state of the link."""
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
    raise UnknownCommand(f"{text!r} is not a number from 0 to 1000000; the commands are:\n{HELP}")


async def execute_typed_commands(link: EmulatedLink) -> None:
    """Execute commands from the terminal until `quit` or the end of input."""
    async for line in _typed_lines():
        try:
            if not await execute(link, line):
                return
            print(describe(link), flush=True)
        except UnknownCommand as exc:
            print(exc, flush=True)


async def _typed_lines() -> AsyncIterator[str]:
    """Lines of standard input, a terminal: each read returns whole lines."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, lambda: lines.put_nowait(os.read(descriptor, 4096).decode(errors="replace")))
    try:
        while line := await lines.get():
            yield line
    finally:
        loop.remove_reader(descriptor)
