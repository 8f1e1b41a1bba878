"""Collectives inside a stage and channels between stages: one interface each, picked in `workers.parallel`."""

from workers.collectives.channel import Channel, ProcessChannel, SharedMemoryChannel
from workers.collectives.group import CollectiveStalled, Group, SoloGroup
from workers.collectives.hierarchical import HierarchicalGroup
from workers.collectives.process_group import ProcessGroup
from workers.collectives.shared_memory import SharedMemoryGroup

__all__ = [
    "Channel",
    "CollectiveStalled",
    "Group",
    "HierarchicalGroup",
    "ProcessChannel",
    "ProcessGroup",
    "SharedMemoryChannel",
    "SharedMemoryGroup",
    "SoloGroup",
]
