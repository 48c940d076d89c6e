"""Plots as SVG, written by hand: lines in a frame, with ticks and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 34, 46
COLOURS = ("#1f6fb2", "#c8553d", "#4a8c4a", "#7a5195")
FONT = 'font-family="sans-serif" font-size="11"'


@dataclass(frozen=True)
class Line:
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """A plot: its axis labels, their ranges and its lines."""

    title: str
    x: str
    y: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    lines: Sequence[Line] = field(default_factory=tuple)


def svg(plots: Sequence[Plot]) -> str:
    """Return the plots side by side."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(plots)} {HEIGHT}" role="img">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for n, plot in enumerate(plots):
        parts += [f'<g transform="translate({n * WIDTH} 0)">', *_plot(plot), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot(plot: Plot) -> list[str]:
    out = [
        _text(WIDTH / 2, 18, plot.title, "middle", bold=True),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, plot.x, "middle"),
        f'<g transform="rotate(-90 14 {HEIGHT / 2})">{_text(14, HEIGHT / 2, plot.y, "middle")}</g>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" '
        'fill="none" stroke="#888"/>',
    ]
    for value in _ticks(*plot.x_range):
        at = _x(plot, value)
        out += [_rule(at, TOP, at, HEIGHT - BOTTOM), _text(at, HEIGHT - BOTTOM + 15, f"{value:g}", "middle")]
    for value in _ticks(*plot.y_range):
        at = _y(plot, value)
        out += [_rule(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 6, at + 4, f"{value:g}", "end")]
    for n, line in enumerate(plot.lines):
        out.append(_line(plot, line, COLOURS[n % len(COLOURS)]))
        at = HEIGHT - BOTTOM - 12 - 14 * (len(plot.lines) - 1 - n)
        out.append(_text(WIDTH - RIGHT - 10, at, line.name, "end", colour=COLOURS[n % len(COLOURS)]))
    return out


def _line(plot: Plot, line: Line, colour: str) -> str:
    path = " ".join(f"{_x(plot, x):.1f},{_y(plot, y):.1f}" for x, y in line.points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    return [round(low + (high - low) * n / count, 6) for n in range(count + 1)]


def _x(plot: Plot, value: float) -> float:
    low, high = plot.x_range
    return LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(plot: Plot, value: float) -> float:
    low, high = plot.y_range
    return HEIGHT - BOTTOM - (min(max(value, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd" stroke-width="0.6"/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False, colour: str = "#222") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" {FONT} fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
