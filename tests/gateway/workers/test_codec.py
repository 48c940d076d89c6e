"""Encoding of frames, errors and settings between gateway and worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    Result,
    Task,
)
from gateway.plugin.errors import PluginRaised
from gateway.workers import WorkerBackend
from gateway.workers.codec import decode_error, encode_error
from gateway.workers.frame_channel import FrameChannel, encode_frame
from gateway.workers.frames import Cancel, Start, ToWorker
from support.recording_services import RecordingServices
from support.worker_backends import Tool, ToolSettings
from support.workers import (
    of,
)


def test_frames_are_decoded_for_any_chunking_of_the_bytes() -> None:
    frames: list[Any] = [Cancel(), Start("a:b", {"x": 1}, "here"), Cancel()]
    data = b"".join(encode_frame(frame, number) for number, frame in enumerate(frames))
    for step in range(1, len(data) + 1):
        got: list[Any] = []
        channel = FrameChannel(ToWorker, lambda *frame, got=got: got.append(frame), lambda: None)
        for at in range(0, len(data), step):
            channel.data_received(data[at : at + step])
        assert got == [(frame, os.getpid(), number) for number, frame in enumerate(frames)]


def test_class_that_cannot_be_imported_is_refused_with_the_reason() -> None:
    class Inner(Backend[BackendSettings]):
        async def run(self, task: Task) -> Result:
            return Result()

    with pytest.raises(ValueError, match="importable"):
        of(Inner)


def test_gateway_error_is_decoded_with_all_its_fields() -> None:
    sent = BackendUnavailable(
        "no", code="upstream_auth", param="p", status=401, retry_after_s=2.0, began=False, again=False, detail="d"
    )
    got = decode_error(encode_error(sent, "`x`"))
    assert (type(got), vars(got), str(got)) == (BackendUnavailable, vars(sent), "no")


def test_foreign_exception_is_decoded_as_plugin_raised() -> None:
    got = decode_error(encode_error(LookupError("bug"), "`x`"))
    assert isinstance(got, PluginRaised)
    assert (got.message, got.detail, got.code) == ("`x` raised LookupError", "", "plugin_error")
    assert (got.raised, got.text, got.began, got.again) == ("LookupError", "bug", True, False)


def test_settings_are_converted_to_plain_values_for_the_wire() -> None:
    settings = ToolSettings(folder=Path("/models"), password="x", tasks=["a"])  # type: ignore[arg-type]
    backend = WorkerBackend(Tool, settings, RecordingServices(), slots=1)
    assert backend._start.settings["folder"] == "/models"
    assert ToolSettings.model_validate(backend._start.settings) == settings
