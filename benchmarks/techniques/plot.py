"""Speed against accuracy as a picture: a dot for every technique, its area the memory of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10, sqrt

_WIDTH, _HEIGHT, _LEGEND = 640, 420, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 20, 50
_LARGEST = 16.0  # radius


@dataclass(frozen=True)
class Dot:
    """`low` and `high` bound the accuracy, which like these is in percent."""

    name: str
    tokens_per_s: float
    accuracy: float
    low: float
    high: float
    weight_mb: float


def svg(dots: Sequence[Dot]) -> str:
    """Dots are numbered, and named at the side: many are near one another."""
    xs = _Scale(0, max(dot.tokens_per_s for dot in dots) * 1.08, _LEFT, _WIDTH - _RIGHT)
    lowest, highest = min(dot.low for dot in dots), max(dot.high for dot in dots)
    ys = _Scale(lowest - 1, highest + 1, _HEIGHT - _BOTTOM, _TOP)
    largest = max(dot.weight_mb for dot in dots)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + _LEGEND} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for value in xs.ticks():
        x = xs(value)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#e4e4e4"/>')
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, f"{value:g}", "middle"))
    for value in ys.ticks():
        y = ys(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", "end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "tokens a second, one stream", "middle"))
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text x="16" y="{middle:.1f}" transform="rotate(-90 16 {middle:.1f})" text-anchor="middle">'
        "questions answered rightly, % (bars: 95 %)</text>"
    )
    for number, dot in enumerate(dots, start=1):
        x, y = xs(dot.tokens_per_s), ys(dot.accuracy)
        radius = max(3.0, _LARGEST * sqrt(dot.weight_mb / largest))
        hue = round(360 * number / len(dots))
        parts.append(
            f'<line x1="{x:.1f}" y1="{ys(dot.low):.1f}" x2="{x:.1f}" y2="{ys(dot.high):.1f}" stroke="#bbb"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="hsl({hue} 60% 50%)" fill-opacity="0.5" '
            f'stroke="hsl({hue} 60% 30%)"/>'
        )
        parts.append(_text(x, y + 4, str(number), "middle"))
        figures = f"{dot.tokens_per_s:.0f} tok/s, {dot.accuracy:.1f} %, {dot.weight_mb:.0f} MB"
        parts.append(_text(_WIDTH, _TOP + 18 * number, f"{number}  {dot.name}: {figures}", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Scale:
    """From `low` to `high` on pixels `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """About five round values."""
        rough = (self.high - self.low) / 5
        unit = 10 ** floor(log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
        first = floor(self.low / step) + 1
        return [number * step for number in range(first, floor(self.high / step) + 1)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
