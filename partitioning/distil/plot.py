"""The loss of a training as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT, _MARGIN = 720, 360, 48
_LEAST = 1e-6  # float32 knows nothing below


def loss_plot(losses: Sequence[float]) -> str:
    """An SVG document: the loss of each step, pale, and its running mean, over a logarithmic axis in nats."""
    losses = [max(loss, _LEAST) for loss in losses]
    smooth, mean = [], losses[0]
    for loss in losses:
        mean += 0.05 * (loss - mean)
        smooth.append(mean)
    low, high = _decades(min(losses), max(losses))
    ticks = [10**power * digit for power in range(low, high) for digit in (1, 2, 5)] + [10**high]

    def x(step: int) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * step / max(len(losses) - 1, 1)

    def y(loss: float) -> float:
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (math.log10(loss) - low) / (high - low)

    def line(values: Sequence[float], colour: str) -> str:
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(values))
        return f'<polyline points="{points}" fill="none" stroke="{colour}"/>'

    grid = [
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
        f'<text x="{_MARGIN - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            *grid,
            line(losses, "#9ecae1"),
            line(smooth, "#08519c"),
            f'<text x="{_MARGIN}" y="24">divergence from the teacher, nats a token</text>',
            f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 16}" text-anchor="end">step {len(losses)}</text>',
            "</svg>\n",
        ]
    )


def _decades(least: float, most: float) -> tuple[int, int]:
    low = math.floor(math.log10(least))
    return low, max(math.ceil(math.log10(most)), low + 1)
