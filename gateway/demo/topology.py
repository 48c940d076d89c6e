"""The demo's processes: an edge gateway, an emulated link, and behind it a second gateway that acts as the cloud.

Both gateways are separate processes that compute locally; the link runs in this process, so that it can be changed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.demo.children import ChildGateway, choose_ports
from gateway.demo.emulated_link import EmulatedLink

EDGE_SLOTS = 2  # of the backend `local`: few, so that two requests occupy it
FIRST_RTT_S = 0.05
DATA = Path(__file__).parent / "data"

_TASKS = "gateway_local.functions:add,gateway.demo.task_functions:primes"
_COMPUTE = {
    "GATEWAY_BACKENDS__LOCAL__PLUGIN": "local",
    "GATEWAY_BACKENDS__LOCAL__TASKS": _TASKS,
    "GATEWAY_BACKENDS__SPEECH__PLUGIN": "speech",
    "GATEWAY_BACKENDS__SPEECH__SLOTS": "1",
}


@dataclass(frozen=True, slots=True)
class Topology:
    """The running gateways and the link."""

    edge: ChildGateway
    cloud: ChildGateway
    link: EmulatedLink

    @property
    def base(self) -> str:
        """Address of the edge gateway's data listener."""
        return f"localhost:{self.edge.port}"

    @property
    def admin(self) -> str:
        """Address of the edge gateway's admin listener."""
        return f"localhost:{self.edge.admin_port}"


@asynccontextmanager
async def start_topology(folder: Path, port: int) -> AsyncIterator[Topology]:
    """Start the cloud, the link and the edge; stop them in the opposite order. Raises ChildFailed."""
    edge_port, edge_admin = choose_ports(port)
    cloud_port, cloud_admin = choose_ports(0)
    cloud = ChildGateway("cloud", _COMPUTE, port=cloud_port, admin_port=cloud_admin, folder=folder)
    async with cloud, EmulatedLink("127.0.0.1", cloud_port) as link:
        link.set_rtt(FIRST_RTT_S)
        edge = ChildGateway("edge", edge_env(link.port), port=edge_port, admin_port=edge_admin, folder=folder)
        async with edge:
            yield Topology(edge, cloud, link)


def edge_env(link_port: int) -> dict[str, str]:
    """The edge's configuration: the cloud's local backends, the cloud behind the link, and a hybrid of both."""
    return {
        **_COMPUTE,
        "GATEWAY_BACKENDS__LOCAL__TASKS": f"{_TASKS},gateway.demo.task_functions:occupy",
        "GATEWAY_BACKENDS__LOCAL__SLOTS": str(EDGE_SLOTS),
        "GATEWAY_BACKENDS__CLOUD__PLUGIN": "http",
        "GATEWAY_BACKENDS__CLOUD__URL": f"http://127.0.0.1:{link_port}",
        "GATEWAY_BACKENDS__BOTH__PLUGIN": "hybrid",
        "GATEWAY_BACKENDS__BOTH__EDGE": "local",
        "GATEWAY_BACKENDS__BOTH__CLOUD": "cloud",
        "GATEWAY_BACKENDS__BOTH__TASKS": '{"primes_by_both": "primes"}',
    }


def recording() -> str:
    """Path of the recording, relative to the working directory if that is shorter."""
    path = DATA / "conveyor.wav"
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
