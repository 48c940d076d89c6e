"""Builds the rooms, joins them, starts and stops them; takes the settings apart for them.

life.py        one gateway: made, started, changed, stopped, and what it does beside requests
ground.py      the lanes and measurements of backends that open, change and go
parts.py       settings, as each room wants them
listeners.py   what it listens on, and whom it lets in
learned.py     what was learned, over a restart
main.py        the process around it: signals, what systemd hears, its exit status
loop.py        the event loop that plugins cannot end, and the end of the process
"""

from gateway.service.main import serve
from gateway.service.service import DRAIN_S, Service

__all__ = ["DRAIN_S", "Service", "serve"]
