"""The checks on every node of a Ray cluster, by an actor on each that reserves nothing and ends with the command."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.doctor import model, versions
from cluster.doctor.diagnosis import FOR_THE_GATEWAY, Place, Say, node_needs, with_path
from cluster.doctor.finding import Finding, failed
from cluster.doctor.gateway import gateway_findings
from cluster.doctor.link import LinkError, LinkFigures, LinkListener, measure
from cluster.doctor.links import Pair, link_findings, rounds
from cluster.doctor.needs import Needs, Share
from cluster.doctor.node import NodeReport, examine
from cluster.doctor.plan import planned
from cluster.doctor.ray_token import ray_token
from cluster.lifecycle.ray_cluster import join
from cluster.spec import DeploymentSpec
from cluster.topology import RayNode, ray_nodes

_EXAMINE_S = 300.0  # the native engine may have to be compiled, and a process to import from a slow disk
_LINK_S = 30.0


class Examiner:
    """The actor on one node."""

    def examine(self, needs: Needs) -> NodeReport:
        return examine(needs)

    def listen(self, host: str, secret: str) -> int | None:
        """Lets other nodes measure the way to this one; returns the port on `host`, or None if none can be had."""
        try:
            return LinkListener(host, secret).port
        except OSError:
            return None

    def measure(self, host: str, port: int, secret: str) -> LinkFigures | str:
        """The way from here to there, or why it cannot be gone."""
        try:
            return measure(host, port, secret)
        except LinkError as error:
            return str(error)


def of_the_cluster(spec: DeploymentSpec | None, say: Say) -> list[Place]:
    """Of the cluster at RAY_ADDRESS, and, with a `spec`, of what this machine has to have to serve it.

    Raises:
        DeployError: it cannot be joined.
    """
    join(say)
    try:
        nodes = ray_nodes()
        whole, shares = [ray_token()], dict[str, Share]()
        if spec is not None:
            spec = with_path(spec)
            made, shares = planned(spec, nodes)
            whole += made
        alone = len(nodes) == 1
        needs = {
            node.name: Needs(node.address)
            if spec is None
            else node_needs(spec, shares.get(node.name, Share()), node.address, alone)
            for node in nodes
        }
        actors = {node.name: _start(node) for node in nodes}
        say(f"examining {len(nodes)} nodes: {', '.join(actors)}")
        places, reports = _examined(actors, needs, say)
        if len(reports) > 1:
            whole += versions.differences({name: report.versions for name, report in reports.items()})
            addresses = {node.name: node.address for node in nodes if node.name in reports}
            whole += link_findings(_measured(actors, addresses, say))
        if spec is not None:
            whole += model.differences({name: report.fingerprint for name, report in reports.items()})
            places = [Place(FOR_THE_GATEWAY, list(gateway_findings(spec))), *places]
        return [*places, Place("the cluster", whole)]
    finally:
        ray.shutdown()


def _start(node: RayNode) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(Examiner).options(num_cpus=0, scheduling_strategy=strategy).remote()


def _examined(
    actors: Mapping[str, Any], needs: Mapping[str, Needs], say: Say
) -> tuple[list[Place], dict[str, NodeReport]]:
    calls = {actor.examine.remote(needs[name]): name for name, actor in actors.items()}
    waiting, reports, findings = list(calls), dict[str, NodeReport](), dict[str, list[Finding]]()
    while waiting:
        done, waiting = ray.wait(waiting, timeout=_EXAMINE_S)
        for call in done or waiting:
            name = calls[call]
            try:
                reports[name] = ray.get(call, timeout=0)
                findings[name] = reports[name].findings
            except RayError as error:
                findings[name] = [_unexamined(error)]
            bad = sum(finding.level != "ok" for finding in findings[name])
            say(f"{name}: {len(findings[name])} checks, {bad} of them not ok")
        if not done:
            break
    return [Place(name, findings[name]) for name in actors], reports


def _unexamined(error: RayError) -> Finding:
    said = str(error).strip().splitlines()[-1]
    remedy = "install Phalanx there (pip install .) in the Python that Ray runs, and look at Ray's logs of that node"
    return failed("node", f"it could not be examined: {said}", remedy)


def _measured(actors: Mapping[str, Any], addresses: Mapping[str, str], say: Say) -> dict[Pair, LinkFigures | str]:
    secret = secrets.token_hex(16)
    listening = {name: actors[name].listen.remote(address, secret) for name, address in addresses.items()}
    ports = {name: ray.get(port, timeout=_LINK_S) for name, port in listening.items()}
    measured: dict[Pair, LinkFigures | str] = {}
    plan = rounds(list(addresses))
    for number, pairs in enumerate(plan, 1):
        say(f"measuring links between nodes, round {number} of {len(plan)}")
        deaf = {pair: f"it cannot listen on {addresses[pair[1]]}" for pair in pairs if ports[pair[1]] is None}
        calls = {
            (a, b): actors[a].measure.remote(addresses[b], ports[b], secret) for a, b in pairs if (a, b) not in deaf
        }
        measured |= {**deaf, **{pair: ray.get(call, timeout=_LINK_S) for pair, call in calls.items()}}
    return measured
