"""Plugins that raise while the configuration is read."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from gateway.plugin import Backend, BackendSettings, Result, Task


class RaisingSettings(BackendSettings):
    @model_validator(mode="after")
    def _raise(self) -> Any:
        raise RuntimeError("this validator is broken")


class Raises(Backend[RaisingSettings]):
    tasks = ("t",)

    async def run(self, task: Task) -> Result:
        return Result(json={})
