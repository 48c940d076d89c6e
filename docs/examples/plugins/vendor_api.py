"""Call a vendor's own API: the task `translate`, with a service that has its own JSON format."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import ClassVar, Self

import aiohttp
from pydantic import Field, HttpUrl, SecretStr

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    DeadlineExceeded,
    Result,
    Task,
    TaskInvalid,
)


class Settings(BackendSettings):
    """The service's address and key; the key may come from a file, API_KEY_FILE."""

    url: HttpUrl = Field(description="the service's address")
    api_key: SecretStr = Field(SecretStr(""), description="sent as `X-Key`")


class Translate(Backend[Settings]):
    """Translate a text to English."""

    site = "cloud"  # the text leaves the site: edge-only requests never use this backend
    slots = 8
    tasks = ("translate",)
    examples: ClassVar = {"translate": {"text": "guten Tag"}}

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers={"X-Key": self.settings.api_key.get_secret_value()})
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.close()

    async def run(self, task: Task) -> Result:
        text = task.argument("text", str)
        try:
            async with asyncio.timeout(task.deadline - time.monotonic()):
                return await self._translated(text)
        except TimeoutError as exc:
            raise DeadlineExceeded("the translator did not answer in time") from exc
        except (aiohttp.ClientError, ValueError, TypeError, KeyError) as exc:
            raise BackendUnavailable(f"the translator did not answer as agreed: {type(exc).__name__}") from exc

    async def _translated(self, text: str) -> Result:
        async with self._http.post(str(self.settings.url), json={"q": text}) as answer:
            if answer.status in (400, 422):  # the client's mistake: pass the vendor's message on
                raise TaskInvalid(f"the translator refuses it: {(await answer.text())[:200]}", param="text")
            answer.raise_for_status()
            return Result(json={"result": (await answer.json())["translated"]})
