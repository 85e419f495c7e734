"""Draws CPU time per event by contender, broker and form, as an SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 860, 262, 96
BAR, GAP, HEAD, TOP, BOTTOM = 18, 5, 34, 62, 40

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; } .group { font-weight: 600; } .dim { fill: #59636e; }
  .page { fill: #ffffff; } .bar { fill: #9aa4af; } .floor { fill: #d0d7de; } .ours { fill: #1f7a4d; }
  .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .dim { fill: #9198a1; } .page { fill: #0d1117; }
    .bar { fill: #656c76; } .floor { fill: #3d444d; } .ours { fill: #3fb06f; }
  }
"""


class Bar(NamedTuple):
    """The figure of a contender; `kind` is the CSS class: "ours", "floor" or "bar"."""

    label: str
    figure: float
    kind: str


def draw(groups: Mapping[str, Sequence[Bar]], source: str) -> str:
    """Return the SVG. All bars have the same scale, so that groups can be compared."""
    longest = max((bar.figure for bars in groups.values() for bar in bars), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / longest
    parts, y = [], TOP
    for name, bars in groups.items():
        y += HEAD
        parts.append(_text(24, y - 10, name, "group"))
        for bar in bars:
            strong = "strong" if bar.kind == "ours" else ""
            length = max(1.0, bar.figure * scale)
            parts.append(_text(LEFT - 10, y + BAR - 5, bar.label, strong, "end"))
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" class="{bar.kind}"/>'
            )
            parts.append(_text(LEFT + length + 7, y + BAR - 5, f"{bar.figure:.1f} µs", strong))
            y += BAR + GAP
    height = y + BOTTOM
    head = [
        _text(24, 34, "CPU time an event costs", "title"),
        _text(24, 55, "microseconds, less is better; make bench", "dim"),
        _text(24, height - 16, source, "dim"),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>CPU time an event costs, by exporter, broker and form</title>",
            f"<style>{_STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height}" class="page"/>',
            *head,
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'
