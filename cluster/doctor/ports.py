"""Can the ports be had that a deployment listens on?"""

from __future__ import annotations

import socket

import psutil

from cluster.doctor.finding import Finding, failed, ok

_CHECK = "ports"


def port_finding(host: str, port: int, purpose: str, remedy: str) -> Finding:
    """Whether `port` (0 for any) of `host` can be listened on; `remedy` is for a port that is taken."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        # Python adds the address once more.
        cause = (error.strerror or str(error)).partition(" (while")[0]
        text = f"{purpose} cannot listen on {host}:{port} ({cause}){_owner(port)}"
        return failed(_CHECK, text, remedy)
    return ok(_CHECK, f"{purpose} can listen on {host or 'every address'}, port {port or 'any'}")


def node_ports(address: str, registry_port: int) -> list[Finding]:
    """Of a node: any port of its address, for ranks, and the registry's, if one is fixed."""
    remedy = f"let {address} be an address of the node's own: ray start --node-ip-address"
    findings = [port_finding(address, 0, "ranks", remedy)]
    if registry_port:
        remedy = "end what listens there, or choose another port: registry_listen in the spec"
        findings.append(port_finding(address, registry_port, "the registry", remedy))
    return findings


def _owner(port: int) -> str:
    """Who listens there, as far as this user may see it."""
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid is not None:
            return f": process {connection.pid} ({psutil.Process(connection.pid).name()}) does"
    return ""
