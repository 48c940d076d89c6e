"""What was learned, over a restart: a file in the state directory. Without it the gateway starts afresh."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from gateway.measure.measurements import Measurements
from gateway.registry import Registry
from gateway.telemetry import log


class Learned:
    """The board's knowledge at rest in `folder`. Neither call raises: a file that is no use is told, no more."""

    def __init__(self, folder: Path, board: Measurements, registry: Registry) -> None:
        self.path = folder.expanduser() / "learned.json"
        self._board, self._registry = board, registry

    def restore(self) -> None:
        """Read it; call it before the backends open."""
        try:
            self._board.restore(msgspec.json.decode(self.path.read_bytes()), self._hashes())
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, RecursionError) as exc:
            log.warning("service.state_unreadable", path=str(self.path), error=str(exc))

    def save(self) -> None:
        """Write it beside, then rename: a reader never sees half of it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(self._board.save(self._hashes())))
            fresh.replace(self.path)
        except OSError as exc:
            log.warning("service.state_not_saved", path=str(self.path), error=str(exc))

    def _hashes(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(member.settings.model_dump_json().encode()).hexdigest()[:16]
            for name, member in self._registry.members.items()
        }
