"""What happened to a deployment lately, as one can tell from how its replicas' states change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import time

from phalanx.v1 import registry_pb2

_MOST_EVENTS = 64
_MOST_CHARACTERS = 500  # a report on a hung step has a clause for every rank

_BY_STATE = {
    registry_pb2.REPLICA_STATE_STARTING: registry_pb2.EVENT_KIND_EPOCH_STARTED,
    registry_pb2.REPLICA_STATE_READY: registry_pb2.EVENT_KIND_EPOCH_READY,
    registry_pb2.REPLICA_STATE_FAILED: registry_pb2.EVENT_KIND_EPOCH_ENDED,
    registry_pb2.REPLICA_STATE_DRAINING: registry_pb2.EVENT_KIND_REPLICA_DRAINING,
}


class EventLog:
    """The last events, oldest first. `follow` has to be shown the replicas after every change."""

    def __init__(self) -> None:
        self.events: deque[registry_pb2.Event] = deque(maxlen=_MOST_EVENTS)
        self._states: dict[int, tuple[int, registry_pb2.ReplicaState]] = {}  # epoch and state by replica

    def note(
        self, kind: registry_pb2.EventKind, detail: str, replica: int | None = None, epoch: int | None = None
    ) -> None:
        """Something has happened just now."""
        detail = detail[:_MOST_CHARACTERS]
        event = registry_pb2.Event(unix_seconds=time(), kind=kind, detail=detail, replica=replica, epoch=epoch)
        self.events.append(event)

    def follow(self, replicas: Iterable[registry_pb2.Replica]) -> None:
        """Notes what has become of the replicas since the last call."""
        before, self._states = self._states, {}
        for replica in replicas:
            now = self._states[replica.id] = replica.epoch, replica.state
            if now != before.pop(replica.id, None) and (kind := _BY_STATE.get(replica.state)) is not None:
                self.note(kind, replica.detail, replica.id, replica.epoch)
        for number, (epoch, _) in before.items():
            self.note(registry_pb2.EVENT_KIND_REPLICA_GONE, "", number, epoch)
