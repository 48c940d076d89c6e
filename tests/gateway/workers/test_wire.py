"""Frames and settings, by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import PluginRaised
from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    Result,
    Task,
)
from gateway.workers import WorkerBackend, wire
from support.recording_services import RecordingServices
from support.worker_backends import Tool, ToolSettings
from support.workers import (
    of,
)


def test_frames_come_out_whole_however_the_bytes_are_cut() -> None:
    frames: list[Any] = [wire.Cancel(), wire.Start("a:b", {"x": 1}, "here"), wire.Cancel()]
    data = b"".join(wire.encode(frame) for frame in frames)
    for step in range(1, len(data) + 1):
        got: list[Any] = []
        channel = wire.Channel(wire.ToWorker, got.append, lambda: None)
        for at in range(0, len(data), step):
            channel.data_received(data[at : at + step])
        assert got == frames


def test_a_class_that_cannot_be_imported_is_refused_with_the_reason() -> None:
    class Inner(Backend[BackendSettings]):
        async def run(self, task: Task) -> Result:
            return Result()

    with pytest.raises(ValueError, match="importable"):
        of(Inner)


def test_an_error_arrives_as_it_was() -> None:
    sent = BackendUnavailable(
        "no", code="upstream_auth", param="p", status=401, retry_after_s=2.0, began=False, again=False, detail="d"
    )
    got = wire.error_of(wire.frame_error(sent, "`x`"))
    assert (type(got), vars(got), str(got)) == (BackendUnavailable, vars(sent), "no")


def test_what_is_no_error_of_ours_arrives_as_what_another_may_be_asked() -> None:
    got = wire.error_of(wire.frame_error(LookupError("bug"), "`x`"))
    assert isinstance(got, PluginRaised)
    assert (got.message, got.detail, got.code) == ("`x` raised LookupError", "", "plugin_error")
    assert (got.raised, got.words, got.began, got.again) == ("LookupError", "bug", True, False)


def test_settings_are_plain_before_they_travel() -> None:
    settings = ToolSettings(folder=Path("/models"), password="x", tasks=["a"])  # type: ignore[arg-type]
    backend = WorkerBackend(Tool, settings, RecordingServices(), slots=1)
    assert backend._start.settings["folder"] == "/models"
    assert ToolSettings.model_validate(backend._start.settings) == settings
