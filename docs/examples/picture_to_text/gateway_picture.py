"""The task `read`: the text in a picture, with RapidOCR on ONNX Runtime. It uses no network."""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar, Self

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, Result, Task, TaskInvalid

# A PNG of 8 by 8 white pixels. It contains no text, so the result is empty.
BLANK = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR42mP4DwUMlDEA98A/wa9cD80AAAAASUVORK5CYII="


class Settings(BackendSettings):
    """Settings for the operator."""

    least_score: float = Field(0.5, ge=0, le=1, description="lines it is less sure of are left out")


class Picture(Backend[Settings]):
    """`{"picture": base64 of a PNG or JPEG}` in, `{"result": text, "lines": [{"text", "score"}]}` out."""

    isolation = "process"  # it computes for a tenth of a second and more
    slots = 1
    repeatable = True  # so that a peer in the cloud may be tried if this fails
    tasks = ("read",)

    examples: ClassVar = {"read": {"picture": BLANK}}

    async def __aenter__(self) -> Self:
        try:
            from rapidocr import RapidOCR
        except ImportError as exc:
            raise BackendUnavailable(f"it needs rapidocr: pip install -r requirements.txt ({exc})") from exc
        self._read: Any = RapidOCR(params={"Global.log_level": "error"})
        return self

    async def run(self, task: Task) -> Result:
        try:
            found = self._read(base64.b64decode(task.argument("picture", str), validate=True))
        except binascii.Error as exc:
            raise TaskInvalid(f"`picture` is not base64: {exc}", param="picture") from exc
        except Exception as exc:  # the library has no exception types of its own
            raise TaskInvalid(f"`picture` is not a readable picture: {exc}", param="picture") from exc
        said = zip(found.txts or (), found.scores or (), strict=True)
        lines = [{"text": text, "score": round(float(score), 3)} for text, score in said]
        sure = [line for line in lines if line["score"] >= self.settings.least_score]
        scores = [line["score"] for line in sure]
        confidence = sum(scores) / len(scores) if scores else None
        return Result(json={"result": "\n".join(line["text"] for line in sure), "lines": sure}, confidence=confidence)
