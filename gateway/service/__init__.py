"""Builds the packages from the settings, connects them, starts and stops them.

service.py            one gateway: construction, start, reload, stop, and the periodic work
main.py               the process: signals, notifications to systemd, the exit status
event_loop.py         the event loop, which plugin code cannot end
shutdown.py           the end of the process
listeners.py          the data and admin listeners
sockets.py            the listening sockets: binding, names, checks of exposure
systemd.py            sd_notify and passed sockets
wiring.py             settings, converted to the arguments of each package
backend_resources.py  lanes and measurements of backends that open, change and close
state_file.py         measurements, kept over a restart
memory_guard.py       load shedding when memory is short
loop_watchdog.py      reports code that blocks the event loop
"""

from gateway.service.main import serve
from gateway.service.service import DRAIN_S, Service

__all__ = ["DRAIN_S", "Service", "serve"]
