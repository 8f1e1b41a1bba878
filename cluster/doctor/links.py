"""What the exchanges between nodes say: are all of them reachable, alike in speed, and in time?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from cluster.doctor.finding import Finding, failed, ok, warning
from cluster.doctor.link import LinkFigures

_LINK, _CLOCKS = "links", "clocks"
_SLOW_BYTES_S = 1e9 / 8 * 0.8  # of gigabit Ethernet, what TCP gets
_UNEVEN = 0.25
_ODD_S, _WRONG_S = 1.0, 60.0
_MOST_ROUNDS = 8

Pair = tuple[str, str]


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """Pairs of nodes that exchange at the same time, none of them in two: each with each, up to eight rounds."""
    seats: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    made = []
    for _ in range(min(len(seats) - 1, _MOST_ROUNDS)):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        made.append([(a, b) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return made


def link_findings(measured: Mapping[Pair, LinkFigures | str]) -> list[Finding]:
    """`measured` has, for every pair, the figures or why there are none."""
    figures = {pair: found for pair, found in measured.items() if isinstance(found, LinkFigures)}
    usual = median(found.bytes_per_s for found in figures.values()) if figures else 0.0
    findings = [_link(pair, found, usual) for pair, found in measured.items()]
    return [*findings, *([_clocks(figures)] if figures else [])]


def _link(pair: Pair, found: LinkFigures | str, usual: float) -> Finding:
    way = f"{pair[0]} to {pair[1]}"
    if isinstance(found, str):
        remedy = "open all ports between nodes (firewall, security group, network policy), as Ray wants it too"
        return failed(_LINK, f"{way}: cannot be reached: {found}", remedy)
    text = f"{way}: {found.bytes_per_s * 8 / 1e9:.1f} Gbit/s, {found.round_trip_s * 1e3:.2f} ms there and back"
    if found.bytes_per_s < _SLOW_BYTES_S:
        return warning(
            _LINK, text, "slow for tensor parallelism between nodes: keep tp within a node, use pp or replicas"
        )
    if found.bytes_per_s < usual * _UNEVEN:
        return warning(_LINK, f"{text}, others {usual * 8 / 1e9:.1f} Gbit/s", "look at this link: cable, switch, MTU")
    return ok(_LINK, text)


def _clocks(figures: Mapping[Pair, LinkFigures]) -> Finding:
    (first, second), worst = max(figures.items(), key=lambda item: abs(item[1].ahead_s))
    text = f"{second}'s is {worst.ahead_s:+.3f} s from {first}'s, and others no further apart"
    remedy = "keep time by NTP on every node (chrony, systemd-timesyncd)"
    if abs(worst.ahead_s) > _WRONG_S:
        return failed(_CLOCKS, f"{text}: certificates may count as expired or not yet valid", remedy)
    if abs(worst.ahead_s) > _ODD_S:
        return warning(_CLOCKS, f"{text}: logs and events of nodes cannot be put in order", remedy)
    return ok(_CLOCKS, text)
