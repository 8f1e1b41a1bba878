from __future__ import annotations

import pytest

from partitioning.devices import gpu, known_devices, parse_topology
from partitioning.plan import PlanError
from partitioning.topology import cpu_node, local_topology, usable_cores


def test_a_cluster_is_read_from_words() -> None:
    cluster = parse_topology("4xH100, 2 x a100", nodes=2)
    assert [(node.name, len(node.devices), node.devices[0].name) for node in cluster.nodes] == [
        ("node-0", 4, "H100"),
        ("node-1", 4, "H100"),
        ("node-2", 2, "A100-80G"),
        ("node-3", 2, "A100-80G"),
    ]


def test_a_node_of_unlike_devices_has_the_slower_link() -> None:
    node = parse_topology("1xH100+2xL40S").nodes[0]
    assert [device.name for device in node.devices] == ["H100", "L40S", "L40S"]
    assert node.link == gpu("L40S")[1]


def test_cpu_ranks_share_a_host_like_this_one() -> None:
    node = parse_topology("2xcpu").nodes[0]
    assert {device.kind for device in node.devices} == {"cpu"}
    assert sum(device.threads for device in node.devices) <= max(2, usable_cores())


def test_every_known_device_can_be_written() -> None:
    assert all(parse_topology(f"1x{name}").device_count == 1 for name in known_devices())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xH900", "unknown device 'H900': known are .*H100"),
        ("0xH100", "cannot read"),
        ("8*", "cannot read"),
        ("", "cannot"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_topology(text)


def test_ranks_of_a_host_share_its_cores_and_memory() -> None:
    node = cpu_node("host", ranks=3, cores=8, memory_bytes=9_000)
    assert [(device.threads, device.memory_bytes) for device in node.devices] == [(2, 3_000)] * 3
    assert local_topology(64).nodes[0].devices[0].threads >= 1


def test_a_host_can_be_shared_anew_and_a_gpu_cannot() -> None:
    shared = parse_topology("1xH100", nodes=2)
    assert shared.shared_by(1) == shared
    whole = local_topology(2).shared_by(1)
    assert [device.threads for device in whole.nodes[0].devices] == [usable_cores()]
