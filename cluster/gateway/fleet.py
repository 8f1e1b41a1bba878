"""The replicas a gateway knows, and its connections to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from cluster.gateway.link import Link, Patience
from cluster.router import least_loaded
from phalanx.v1 import registry_pb2
from workers.security.peers import Dialler

# A replica that drains finishes what it has.
_SERVING = (registry_pb2.REPLICA_STATE_READY, registry_pb2.REPLICA_STATE_DRAINING)


class Fleet:
    """Keeps a link to every ready replica of the cluster. Lives on one event loop.

    `on_change` is called whenever a replica becomes usable or stops being so, `on_registry` with the address where a
    replica says that the registry is.
    """

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        on_registry: Callable[[str], None] = lambda address: None,
        dialler: Dialler | None = None,
    ) -> None:
        self._dialler = dialler or Dialler(None)
        self._on_change, self._on_registry = on_change, on_registry
        self.patience = Patience()
        self._links: dict[tuple[int, int], Link] = {}  # by replica and epoch
        self._replicas: list[registry_pb2.Replica] = []
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def replicas(self) -> list[tuple[registry_pb2.Replica, Link | None]]:
        """Every replica the coordinator named, with this gateway's link if it has one."""
        return [(replica, self._links.get((replica.id, replica.epoch))) for replica in self._replicas]

    @property
    def usable(self) -> list[Link]:
        """Those that may get sequences."""
        ready = registry_pb2.REPLICA_STATE_READY
        return [link for link in self._links.values() if link.connected and link.replica.state == ready]

    def update(self, replicas: Collection[registry_pb2.Replica], link_secrets: Mapping[int, str]) -> None:
        """Connects to the replicas that are ready now, and leaves those that are not. `link_secrets`, by the replica's
        id, are shown to them."""
        self._replicas = list(replicas)
        ready = {(r.id, r.epoch): r for r in replicas if r.state in _SERVING}
        for key in self._links.keys() - ready.keys():
            task = asyncio.create_task(self._links.pop(key).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        for key in ready.keys() - self._links.keys():
            secret = link_secrets.get(ready[key].id, "")
            self._links[key] = Link(ready[key], secret, self._dialler, self.patience, self._notice, self._on_registry)
        for key, replica in ready.items():
            self._links[key].replica = replica
        self._notice()

    def choose(self, avoid: Collection[Link] = ()) -> Link | None:
        """The link that the next sequence should go to; None when none is usable."""
        links = [link for link in self.usable if link not in avoid]
        return links[least_loaded([link.burden for link in links])] if links else None

    async def change(self) -> None:
        """Returns at the next change of what is usable."""
        await self._changed.wait()

    async def close(self) -> None:
        """Leaves every replica. What is running on them is not waited for, and goes nowhere else."""
        self.closed = True
        self.update([], {})
        await asyncio.gather(*self._closing)

    def _notice(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change()
