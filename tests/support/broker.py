"""A real mosquitto on a free loopback port, configured as in docs/mqtt.md."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from support.ports import free_port
from support.programs import program

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PASSWORDS = {"edge-gateway": "gateway's own", "lamp": "a lamp's", "meter": "a meter's", "watcher": "reads all"}


class Broker:
    """A broker that can be stopped, killed and restarted with its saved state."""

    def __init__(self, folder: Path, *, more: str = "", anonymous: bool = True, listener: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self._process: asyncio.subprocess.Process | None = None
        (folder / "acl").write_text((EXAMPLES / "mosquitto.acl").read_text())
        self._write_passwords()
        text = (EXAMPLES / "mosquitto.conf").read_text()
        text = text.replace("listener 1883 127.0.0.1", f"listener {self.port} 127.0.0.1\n{listener}")
        text = text.replace("/etc/mosquitto/", f"{folder}/").replace("/var/lib/mosquitto/", f"{folder}/")
        if anonymous:
            text = text.replace("allow_anonymous false", "allow_anonymous true")
            text = "\n".join(line for line in text.splitlines() if not line.startswith(("password_file", "acl_file")))
        self._user = "\nuser root\n" if Path("/proc/self").owner() == "root" else "\n"
        (folder / "mosquitto.conf").write_text(f"{text}{self._user}{more}\n")

    def _write_passwords(self) -> None:
        file = self.folder / "passwords"
        file.write_text("".join(f"{user}:{password}\n" for user, password in PASSWORDS.items()))
        subprocess.run([program("mosquitto_passwd"), "-U", str(file)], check=True, capture_output=True)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start the broker. Returns when it accepts connections."""
        self._process = await asyncio.create_subprocess_exec(
            program("mosquitto"), "-c", str(self.folder / "mosquitto.conf"), "-v",
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stderr is not None
        while b" running" not in (line := await self._process.stderr.readline()):
            assert line, "mosquitto did not start"
        self._reader = asyncio.create_task(self._drain(self._process.stderr))

    async def _drain(self, stream: asyncio.StreamReader) -> None:
        while await stream.readline():
            pass

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        while self._process.returncode is None:
            self._process.send_signal(how)
            with suppress(TimeoutError):  # mosquitto loses a SIGTERM that arrives just before its loop starts
                await asyncio.wait_for(self._process.wait(), 1)
        await self._reader

    async def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        await self.stop(how)
        await self.start()


@contextmanager
def broker_folder() -> Iterator[Path]:
    """Create a folder outside pytest's own, which the mosquitto user could not read."""
    folder = Path(tempfile.mkdtemp(prefix="broker-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def running_broker(
    *, more: str = "", anonymous: bool = True, listener: str = "", folder: Path | None = None
) -> AsyncIterator[Broker]:
    with broker_folder() as own:
        broker = Broker(folder or own, more=more, anonymous=anonymous, listener=listener)
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()
