"""Collectives inside a stage: one interface, three implementations, picked in `workers.parallel`."""

from workers.collectives.group import CollectiveStalled, Group, SoloGroup
from workers.collectives.process_group import ProcessGroup
from workers.collectives.shared_memory import SharedMemoryGroup

__all__ = ["CollectiveStalled", "Group", "ProcessGroup", "SharedMemoryGroup", "SoloGroup"]
