"""The settings of a hybrid backend: its two sides, the models and tasks it serves, and its mode."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.plugin import BackendSettings

Mode = Literal["scatter", "cascade", "hedge"]
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class HybridSettings(BackendSettings):
    """The two backends that share the work, and how."""

    mode: Mode = Field(
        "scatter",
        description="`scatter` divides a batch over both sides, `cascade` uses the cloud if the edge is not confident, "
        "`hedge` uses the second side if the first is late",
    )
    edge: str = Field(description="name of the backend on this site")
    cloud: str = Field(description="name of the cloud backend")
    models: dict[str, str] | None = Field(
        None, description="models it serves: list, or map from the client's name to the name on both backends"
    )
    tasks: dict[str, str] | None = Field(
        None,
        examples=[{"squares_by_both": "squares"}],
        description="tasks it serves: list, or map from the client's name to the name on both backends",
    )
    argument: str = Field("items", description="scatter: the argument of a task that holds the list")
    groups: int = Field(16, ge=2, le=4096, description="scatter: a group holds at most 1/GROUPS of a batch")
    piece_s: float = Field(
        10.0, ge=2.0, le=120.0, description="scatter: approximate length of the pieces of a recording"
    )
    threshold: float = Field(
        0.5, ge=0.0, le=1.0, description="cascade: the cloud is used if the confidence of the edge is lower than this"
    )
    validator: str | None = Field(
        None,
        description="cascade: `package.module:function` that rates an answer, as a number from 0 to 1 or a boolean",
    )
    logprobs: bool = Field(
        True, description="cascade: request the log-probabilities of tokens from the edge, to compute its confidence"
    )
    wait_s: float | None = Field(
        None,
        gt=0.0,
        description="cascade: time limit of the cloud; then the edge's answer is returned; unset: four times its p95",
    )
    budget: float = Field(0.05, ge=0.0, le=1.0, description="hedge: maximum share of second calls in all requests")

    @field_validator("edge", "cloud")
    @classmethod
    def _other_backend_exists(cls, value: str, info: ValidationInfo) -> str:
        others = {*(info.context or {}).get("backends", ())} - {(info.context or {}).get("name")}
        if info.context and value not in others:
            raise ValueError(f"there is no other backend {value!r}; there are: {', '.join(sorted(others)) or 'none'}")
        return value

    @field_validator("validator")
    @classmethod
    def _has_function_syntax(cls, value: str | None) -> str | None:
        if value is not None and not _TARGET.fullmatch(value):
            raise ValueError(f"`{value}` is not of the form `package.module:function`")
        return value

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if self.edge == self.cloud:
            raise ValueError(f"EDGE and CLOUD are both {self.edge!r}; name two different backends")
        if self.isolation == "process":
            raise ValueError(
                "ISOLATION=process is not possible: a hybrid reads the state of its sides in the gateway's event loop"
            )
        if not self.models and not self.tasks:
            raise ValueError(
                "it serves no models and no tasks; list those that both sides serve in MODELS, TASKS or both"
            )
        return self
