"""The interface for authors of backends; a plugin imports no other module of the gateway.

A backend is a class with one method, `run`. It receives a `Task` and returns a `Result`, or it is an async generator
and yields `Part`s. The gateway does the queueing, enforces slots and deadlines, cancels tasks, measures and learns
durations, and runs worker processes.

    class Shout(Backend[Settings]):
        site = "edge"
        tasks = ("shout",)

        async def run(self, task: Task) -> Result:
            return Result(json={"result": task.json["text"].upper() + self.settings.suffix})

Times are float seconds, instants are on the system's monotonic clock (`time.monotonic`), sizes are in bytes.
"""

from gateway.plugin.backend import MODEL_KINDS, Backend
from gateway.plugin.checks import Upload
from gateway.plugin.errors import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    NotServed,
    TaskInvalid,
    TaskRefused,
    debug_text,
    frames_of,
)
from gateway.plugin.forms import encode_form, set_form_model
from gateway.plugin.functions import load_function
from gateway.plugin.plain_chunks import PlainChoice, PlainChunk
from gateway.plugin.result import Part, Result
from gateway.plugin.services import LinkSample, Log, Services, View
from gateway.plugin.settings import BackendSettings, Isolation
from gateway.plugin.sse import EventTooLarge, SseEvent, SseParser
from gateway.plugin.task import TERMS, Kind, Site, Task, Terms, new_id

__all__ = [
    "MODEL_KINDS",
    "TERMS",
    "Backend",
    "BackendFailed",
    "BackendSettings",
    "BackendUnavailable",
    "DeadlineExceeded",
    "EventTooLarge",
    "GatewayError",
    "Isolation",
    "Kind",
    "LinkSample",
    "Log",
    "NotServed",
    "Part",
    "PlainChoice",
    "PlainChunk",
    "Result",
    "Services",
    "Site",
    "SseEvent",
    "SseParser",
    "Task",
    "TaskInvalid",
    "TaskRefused",
    "Terms",
    "Upload",
    "View",
    "debug_text",
    "encode_form",
    "frames_of",
    "load_function",
    "new_id",
    "set_form_model",
]
