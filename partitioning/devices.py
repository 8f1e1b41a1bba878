"""Known devices, and clusters written in words: "8xH100", "4xH100,4xA100", "2xcpu"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import inf

from partitioning.plan import PlanError
from partitioning.topology import (
    ETHERNET,
    MOST_DEVICES,
    DeviceSpec,
    Link,
    NodeSpec,
    Topology,
    cpu_node,
    usable_cores,
    usable_memory,
)

# Round trips of small messages in collectives: over NVLink or Infinity Fabric, and over PCIe through the host.
_FABRIC_LATENCY = 3e-6
_PCIE_LATENCY = 10e-6
# One 400 gigabit InfiniBand port for each GPU.
_INFINIBAND = Link(bandwidth=50e9, latency=10e-6)


@dataclass(frozen=True)
class _Gpu:
    """Data sheet figures: GB of memory, GB/s of memory bandwidth, dense bf16 TFLOP/s, GB/s to the other GPUs of the
    node in one direction."""

    memory: int
    bandwidth: int
    tflops: float
    link: int
    latency: float = _FABRIC_LATENCY


# From the makers' data sheets (NVIDIA H100, H200, H20, HGX B200, A100, L40S, L4, A10 Tensor Core GPU data sheets; the
# Ada, Ampere and Blackwell GeForce architecture white papers for the RTX cards, with float32 accumulation; AMD
# Instinct MI300X data sheet). Figures given there "with sparsity" are halved.
_GPUS = {
    "B200": _Gpu(180, 7700, 2250, 900),
    "H200": _Gpu(141, 4800, 989, 450),
    "H100": _Gpu(80, 3350, 989, 450),
    "H20": _Gpu(96, 4000, 148, 450),
    "A100-80G": _Gpu(80, 2039, 312, 300),
    "A100-40G": _Gpu(40, 1555, 312, 300),
    "MI300X": _Gpu(192, 5300, 1307, 448),
    "L40S": _Gpu(48, 864, 362, 32, _PCIE_LATENCY),
    "L4": _Gpu(24, 300, 121, 32, _PCIE_LATENCY),
    "A10": _Gpu(24, 600, 125, 32, _PCIE_LATENCY),
    "RTX5090": _Gpu(32, 1792, 209, 64, _PCIE_LATENCY),
    "RTX4090": _Gpu(24, 1008, 165, 32, _PCIE_LATENCY),
    "RTX3090": _Gpu(24, 936, 71, 32, _PCIE_LATENCY),
}
_ALIASES = {"A100": "A100-80G", "4090": "RTX4090", "5090": "RTX5090", "3090": "RTX3090"}


def known_devices() -> list[str]:
    """Names that parse_topology understands."""
    return [*_GPUS, "cpu"]


def gpu(name: str) -> tuple[DeviceSpec, Link]:
    """A GPU of the catalogue, and its link to the others of its node.

    Raises:
        PlanError: an unknown name.
    """
    key = re.sub(r"[ _]", "", name.upper())
    key = _ALIASES.get(key, key)
    if key not in _GPUS:
        raise PlanError(f"unknown device {name!r}: known are {', '.join(known_devices())}")
    sheet = _GPUS[key]
    device = DeviceSpec(
        kind="cuda",
        name=key,
        memory_bytes=sheet.memory * 10**9,
        memory_bandwidth=sheet.bandwidth * 1e9,
        flops=sheet.tflops * 1e12,
        threads=1,
    )
    return device, Link(sheet.link * 1e9, sheet.latency)


def parse_topology(devices: str, nodes: int = 1, network_gbit: float | None = None) -> Topology:
    """The cluster that "8xH100" on each of `nodes` nodes describes.

    A comma separates kinds of node, of each of which there are `nodes`; a plus joins unlike devices in one node. A
    "cpu" is a share of a host like this machine. The network is 400 Gbit/s a GPU, or 10 Gbit/s where there are CPU
    ranks, unless `network_gbit` says otherwise.

    Raises:
        PlanError: what cannot be read, and what is known.
    """
    if nodes < 1:
        raise PlanError(f"nodes must be at least 1, got {nodes}")
    kinds = [_parse_node(text) for text in devices.split(",")]
    count = nodes * sum(len(kind.devices) for kind in kinds)
    if count > MOST_DEVICES:
        raise PlanError(f"{count:,} devices are more than {MOST_DEVICES:,}: lower the number of nodes or devices")
    specs = tuple(
        replace(kind, name=f"node-{number}") for number, kind in enumerate(kind for kind in kinds for _ in range(nodes))
    )
    has_cpu = any(device.kind == "cpu" for kind in kinds for device in kind.devices)
    network = ETHERNET if has_cpu else _INFINIBAND
    if network_gbit is not None:
        if not 0 < network_gbit < inf:
            raise PlanError(f"the network's speed must be a number above 0 Gbit/s, got {network_gbit}")
        network = Link(network_gbit / 8 * 1e9, network.latency)
    return Topology(specs, network)


def _parse_node(text: str) -> NodeSpec:
    devices: list[DeviceSpec] = []
    links: list[Link] = []
    cores = 0
    for group in text.split("+"):
        match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([\w -]+)", group.strip(), flags=re.IGNORECASE)
        if match is None or match[1] == "0":
            raise PlanError(f'cannot read devices {group!r}: write a count and a name, such as "8xH100" or "2xcpu"')
        count, name = int(match[1] or 1), match[2].strip()
        if count > MOST_DEVICES:
            raise PlanError(f"{count:,} devices on a node are more than {MOST_DEVICES:,}: write a smaller count")
        if name.lower() == "cpu":
            host = cpu_node("", count, usable_cores(), usable_memory())
            devices.extend(host.devices)
            links.append(host.link)
            cores = host.cores
        else:
            device, link = gpu(name)
            devices.extend([device] * count)
            links.append(link)
    return NodeSpec("", tuple(devices), min(links, key=lambda link: link.bandwidth), cores)
