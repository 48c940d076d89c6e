"""Convert RIFF WAV to 16 kHz, mono, 16 bit, the input of the recognizer. Uses no `audioop` (removed in Python 3.13).

A rate that is a multiple of 16 kHz is averaged down, any other rate is interpolated. Recordings of 16 kHz, mono, 16 bit
are not changed.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import wave
from array import array
from dataclasses import dataclass

from gateway.plugin import TaskInvalid

RATE_HZ = 16_000
BYTES_PER_S = RATE_HZ * 2
_RATES_HZ = range(8_000, 48_001)
_HEADER_BYTES = 44  # minimum
_UNKNOWN_LENGTH = 0xFFFF_0000  # written by programs that stream and do not know the length; larger values too


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a WAV file."""

    channels: int
    bytes_per_sample: int
    rate_hz: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.bytes_per_sample

    @property
    def seconds(self) -> float:
        return self.frames / self.rate_hz


def read_pcm(data: bytes) -> array[int]:
    """Return the samples of a WAV at 16 kHz, mono, 16 bit. Raises TaskInvalid, which names the fault."""
    with _opened(data) as file:
        header = _header(file, data)
        _check(header)
        raw = file.readframes(header.frames)
    raw = raw[: len(raw) // header.frame_bytes * header.frame_bytes]
    samples = _samples(raw, header.bytes_per_sample)
    if header.channels == 2:
        samples = array("h", ((a + b) >> 1 for a, b in zip(samples[::2], samples[1::2], strict=True)))
    return resample(samples, header.rate_hz)


def seconds_of(data: bytes) -> float:
    """Return the length from the header, or an estimate from the size if the header is not readable. Never raises."""
    try:
        with _opened(data) as file:
            return _header(file, data).seconds
    except (TaskInvalid, ZeroDivisionError):
        return len(data) / BYTES_PER_S


def resample(samples: array[int], rate_hz: int) -> array[int]:
    """Resample from `rate_hz` to 16 kHz."""
    if rate_hz == RATE_HZ or not samples:
        return samples
    step, rest = divmod(rate_hz, RATE_HZ)
    if not rest:
        phases = [samples[i::step] for i in range(step)]
        return array("h", (sum(group) // step for group in zip(*phases, strict=False)))
    return _interpolate(samples, rate_hz)


def _interpolate(samples: array[int], rate_hz: int) -> array[int]:
    out = array("h")
    last = len(samples) - 1
    for n in range(len(samples) * RATE_HZ // rate_hz):
        at, part = divmod(n * rate_hz, RATE_HZ)
        here, there = samples[at], samples[min(at + 1, last)]
        out.append(here + (there - here) * part // RATE_HZ)
    return out


def _opened(data: bytes) -> wave.Wave_read:
    try:
        return wave.open(io.BytesIO(data), "rb")
    except EOFError:
        raise _invalid("it ends within its header") from None
    except (wave.Error, RuntimeError) as exc:
        raise _invalid(str(exc) or "its header is broken") from exc


def _header(file: wave.Wave_read, data: bytes) -> Header:
    header = Header(*file.getparams()[:4])
    promised, present = header.frames * header.frame_bytes, len(data) - _HEADER_BYTES
    if promised >= _UNKNOWN_LENGTH:
        return dataclasses.replace(header, frames=max(present, 0) // header.frame_bytes)
    if promised > present:
        raise _invalid(f"it is cut off: its header promises {promised} bytes of sound, {max(present, 0)} are there")
    return header


def _check(header: Header) -> None:
    if header.bytes_per_sample not in (1, 2):
        raise _invalid(f"its samples have {header.bytes_per_sample * 8} bits; send 8 or 16")
    if header.channels not in (1, 2):
        raise _invalid(f"it has {header.channels} channels; send 1 or 2")
    if header.rate_hz not in _RATES_HZ:
        raise _invalid(f"its rate is {header.rate_hz} Hz; send {_RATES_HZ[0]} to {_RATES_HZ[-1]}")


def _samples(raw: bytes, bytes_per_sample: int) -> array[int]:
    if bytes_per_sample == 1:  # unsigned in WAV
        return array("h", ((byte - 128) << 8 for byte in raw))
    samples = array("h", raw)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _invalid(why: str) -> TaskInvalid:
    return TaskInvalid(f"`file` is not a readable WAV file (PCM): {why}", param="file")
