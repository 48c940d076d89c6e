"""What an operator may say about a hybrid: its two sides, what it offers, and how it puts both to use."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.plugin import BackendSettings

Mode = Literal["scatter", "cascade", "hedge"]
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class HybridSettings(BackendSettings):
    """Which two backends share the work, and how."""

    mode: Mode = Field(
        "scatter",
        description="`scatter` divides a batch over both sides, `cascade` asks the cloud where the edge is not sure, "
        "`hedge` asks the second side where the first is late",
    )
    edge: str = Field(description="name of the backend on this site")
    cloud: str = Field(description="name of the backend far away")
    models: dict[str, str] | None = Field(
        None, description="models it offers: list, or map from the client's name to what both backends call it"
    )
    tasks: dict[str, str] | None = Field(
        None,
        examples=[{"squares_by_both": "squares"}],
        description="tasks it offers: list, or map from the client's name to what both backends call it",
    )
    argument: str = Field("items", description="scatter: the argument of a task that holds the list")
    groups: int = Field(16, ge=2, le=4096, description="scatter: no group holds more than this part of a batch")
    piece_s: float = Field(10.0, ge=2.0, le=120.0, description="scatter: about how long the pieces of a recording are")
    threshold: float = Field(
        0.5, ge=0.0, le=1.0, description="cascade: the cloud is asked where the edge is less sure than this"
    )
    validator: str | None = Field(
        None, description="cascade: `package.module:function` that says how good an answer is, as a number or a boolean"
    )
    logprobs: bool = Field(
        True, description="cascade: ask the edge for the log-probabilities of its tokens, to tell how sure it is"
    )
    wait_s: float | None = Field(
        None,
        gt=0.0,
        description="cascade: how long the cloud may take before the edge's answer is given; unset: four times its p95",
    )
    budget: float = Field(0.05, ge=0.0, le=1.0, description="hedge: second calls, at most this share of all requests")

    @field_validator("edge", "cloud")
    @classmethod
    def _is_another_backend(cls, value: str, info: ValidationInfo) -> str:
        others = {*(info.context or {}).get("backends", ())} - {(info.context or {}).get("name")}
        if info.context and value not in others:
            raise ValueError(f"there is no other backend {value!r}; there are: {', '.join(sorted(others)) or 'none'}")
        return value

    @field_validator("validator")
    @classmethod
    def _is_a_function(cls, value: str | None) -> str | None:
        if value is not None and not _TARGET.fullmatch(value):
            raise ValueError(f"`{value}` is not of the form `package.module:function`")
        return value

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if self.edge == self.cloud:
            raise ValueError(f"EDGE and CLOUD are both {self.edge!r}; name two different backends")
        if self.isolation == "process":
            raise ValueError(
                "ISOLATION=process: a hybrid looks at its sides as they stand, from the gateway's own loop"
            )
        if not self.models and not self.tasks:
            raise ValueError("it offers nothing; name models and tasks that both sides serve in MODELS, TASKS or both")
        return self
