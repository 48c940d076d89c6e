"""Speech to text on this host, offline: pocketsphinx and its English model, in worker processes.

It reads RIFF WAV (PCM, 8 or 16 bit, 1 or 2 channels, 8 to 48 kHz) and needs the extra `speech`. With a grammar (JSGF)
it recognizes commands instead of free speech, which is faster and more accurate.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, FilePath

from gateway.plugin import Backend, BackendSettings, Result, Services, Task, TaskInvalid
from gateway_speech.recognizer import Recognizer, mean_confidence, transcript
from gateway_speech.wav import RATE_HZ, read_pcm, seconds_of


class SpeechSettings(BackendSettings):
    """Settings of the `speech` plugin."""

    grammar: FilePath | None = Field(None, description="a JSGF file of sentences to recognize; unset: free English")
    background: bool = Field(
        False,
        description="with a grammar: compare with any sequence of sounds, so that the confidence is low for "
        "speech that the grammar does not cover; about 0.1 s more for each second of speech",
    )


class Speech(Backend[SpeechSettings]):
    """Transcribes recordings."""

    isolation = "process"
    kinds = frozenset({"transcription"})

    def __init__(self, settings: SpeechSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.models = {"pocketsphinx": "pocketsphinx"} if settings.models is None else settings.models

    async def __aenter__(self) -> Self:
        """Load the model, which takes about half a second."""
        self._recognizer = Recognizer(self.settings.grammar, background=self.settings.background)
        return self

    async def run(self, task: Task) -> Result:
        """Transcribe the uploaded `file`."""
        samples = read_pcm(recording_bytes(task))
        words = list(self._recognizer.words(samples))
        return Result(json=transcript(words, len(samples) / RATE_HZ), confidence=mean_confidence(words))

    def size(self, task: Task) -> float:
        """Seconds of sound."""
        upload = task.files.get("file")
        return seconds_of(upload.data) if upload else 0.0


def recording_bytes(task: Task) -> bytes:
    """Return the recording. Raises TaskInvalid if it is missing."""
    if "file" not in task.files:
        raise TaskInvalid(
            "the multipart field `file` is missing; send the recording with it, as in curl -F file=@speech.wav",
            param="file",
        )
    return task.files["file"].data
