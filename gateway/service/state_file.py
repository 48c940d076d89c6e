"""Keeps the measurements over a restart, in a file of the state directory. A missing file is not an error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from gateway.measure.measurements import Measurements
from gateway.registry import Registry
from gateway.telemetry import log


class StateFile:
    """The measurements, saved in `folder`. Neither method raises: an unusable file is logged."""

    def __init__(self, folder: Path, measurements: Measurements, registry: Registry) -> None:
        self.path = folder.expanduser() / "learned.json"
        self._measurements, self._registry = measurements, registry

    def restore(self) -> None:
        """Read the file; call it before the backends open."""
        try:
            self._measurements.restore(msgspec.json.decode(self.path.read_bytes()), self._hashes())
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, RecursionError) as exc:
            log.warning("service.state_unreadable", path=str(self.path), error=str(exc))

    def save(self) -> None:
        """Write a new file, then rename it over the old one, so that a reader never sees a partial file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self._measurements.save(self._hashes())))
            new.replace(self.path)
        except OSError as exc:
            log.warning("service.state_not_saved", path=str(self.path), error=str(exc))

    def _hashes(self) -> dict[str, str]:
        """A hash of each backend's settings: measurements of a backend with other settings are not restored."""
        return {
            name: hashlib.sha256(backend.settings.model_dump_json().encode()).hexdigest()[:16]
            for name, backend in self._registry.members.items()
        }
