"""RIFF WAV as 16 kHz, mono, 16 bit, which is what the recogniser hears; no numpy, and no `audioop`, which Python 3.13
no longer has.

Rates that are a multiple of 16 kHz are averaged down, others are interpolated. Recordings of 16 kHz, mono, 16 bit
pass untouched.
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
_HEADER_BYTES = 44  # at least
_UNKNOWN_LENGTH = 0xFFFF_0000  # what programs that stream write for a length they do not know yet, and above


@dataclass(frozen=True, slots=True)
class Header:
    """What a WAV says of itself."""

    channels: int
    bytes_per_sample: int
    rate_hz: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one instant, all channels."""
        return self.channels * self.bytes_per_sample

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.frames / self.rate_hz


def read_pcm(data: bytes) -> array[int]:
    """The samples of a WAV at 16 kHz, mono, 16 bit. Raises TaskInvalid that says what is wrong with it."""
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
    """The length by the header alone, or a guess by the size where that cannot be read; never raises."""
    try:
        with _opened(data) as file:
            return _header(file, data).seconds
    except (TaskInvalid, ZeroDivisionError):
        return len(data) / BYTES_PER_S


def resample(samples: array[int], rate_hz: int) -> array[int]:
    """`samples`, taken at `rate_hz`, as they would have been at 16 kHz."""
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
        raise _invalid("it ends before its header does") from None
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
    if bytes_per_sample == 1:  # unsigned, by the format
        return array("h", ((byte - 128) << 8 for byte in raw))
    samples = array("h", raw)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _invalid(why: str) -> TaskInvalid:
    return TaskInvalid(f"`file` is no WAV (PCM) that can be read: {why}", param="file")
