"""The house, drawn from what its modules import: which room stands on which, and what each is for.

Rooms are drawn as high as the longest way down from the entry point; an arrow that two others explain is
left out. Order within a floor is what makes arrows short.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import celery_exporter

PACKAGE = Path(celery_exporter.__file__).parent
#: In pixels: a room, how far floors are apart, what a passing arrow takes, and gaps.
ROOM_WIDTH, ROOM_HEIGHT, FLOOR, PASSING, GAP = 160, 84, 118, 14, 12
#: Rooms on a floor, lines that fit into a room, and times that floors are put in order.
MOST, LINES, SWEEPS = 5, 3, 12

_STYLE = """
  text { font: 600 17px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  text { text-anchor: middle; }
  .about { font-size: 12.5px; font-weight: 400; fill: #59636e; }
  .page { fill: #ffffff; } .room { fill: #f3f5f7; stroke: #9aa4af; } .pure { fill: #dff3e7; stroke: #1f7a4d; }
  path { fill: none; stroke: #9aa4af; stroke-width: 1.4; } marker path { fill: #9aa4af; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .about { fill: #9198a1; }
    .page { fill: #0d1117; } .room { fill: #1c232c; stroke: #656c76; }
    .pure { fill: #12351f; stroke: #3fb06f; }
    path { stroke: #656c76; } marker path { fill: #656c76; }
  }
"""

_TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8Z"/></marker>'
)

Graph = Mapping[str, set[str]]


# -- what is there -------------------------------------------------------------------------------------


def rooms() -> dict[str, list[Path]]:
    """Return the modules of each room: a file or a folder of the package, which itself is none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def graph() -> Graph:
    """Return which rooms each one imports from."""
    there = rooms()
    return {
        name: {other for path in paths for other in _imported(path) if other in there and other != name}
        for name, paths in there.items()
    }


def _imported(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            yield (node.module or "").split(".")[1]


def purpose(name: str) -> str:
    """Return the first paragraph of what a room says of itself."""
    path = PACKAGE / name
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())


# -- what is drawn of it -------------------------------------------------------------------------------


def floors(of: Graph) -> list[list[str]]:
    """Return the rooms by the longest way down from an entrance; with too many, leaves go down."""
    height: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((depth(other) for other in of if name in of[other]), default=-1)
        return height[name]

    found: list[list[str]] = [[] for _ in range(1 + max(map(depth, of)))]
    for name in of:
        found[depth(name)].append(name)
    for names, below in pairwise(found):
        movable = [name for name in names if not of[name]]
        while len(names) > MOST and movable:
            names.remove(movable[-1])
            below.append(movable.pop())
    return found


def direct(of: Graph) -> dict[str, set[str]]:
    """Return the imports that no chain of others makes."""
    return {
        name: {one for one in others if not any(one in _below(of, other) for other in others)}
        for name, others in of.items()
    }


def _below(of: Graph, name: str) -> set[str]:
    return set().union(of[name], *(_below(of, other) for other in of[name]))


class Way(NamedTuple):
    """An arrow, by what it passes on each floor: rooms at its ends, gaps of their own in between."""

    stops: tuple[str, ...]


def ways(of: Graph, levels: Sequence[Sequence[str]]) -> list[Way]:
    """Return the arrows."""
    level = {name: index for index, names in enumerate(levels) for name in names}
    return [
        Way((name, *(f"{name}>{other}>{at}" for at in range(level[name] + 1, level[other])), other))
        for name, others in of.items()
        for other in sorted(others)
    ]


def placed(levels: Sequence[Sequence[str]], arrows: Sequence[Way]) -> dict[str, float]:
    """Return where the middle of each room and gap is, from left to right.

    Each floor in turn is put into the order of what it is connected with, above and below, and spread.
    """
    order = [list(names) for names in levels]
    level = {name: index for index, names in enumerate(levels) for name in names}
    joined: dict[str, list[str]] = {}
    for way in arrows:
        first = level[way.stops[0]]
        for index, (one, two) in enumerate(pairwise(way.stops)):
            joined.setdefault(one, []).append(two)
            joined.setdefault(two, []).append(one)
            if two not in level:
                order[first + index + 1].append(two)
    at: dict[str, float] = {}
    for names in order:
        at |= _spread(names, dict.fromkeys(names, 0.0))
    for _ in range(SWEEPS):
        for names in [*order, *reversed(order)]:
            wanted = {name: _mean([at[other] for other in joined.get(name, [])], at[name]) for name in names}
            names.sort(key=wanted.__getitem__)
            at |= _spread(names, wanted)
    edge = min(at[name] - _width(name) / 2 for name in at)
    return {name: GAP + place - edge for name, place in at.items()}


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _width(name: str) -> float:
    return PASSING if ">" in name else ROOM_WIDTH


def _spread(names: Sequence[str], wanted: Mapping[str, float]) -> dict[str, float]:
    """Return places near to the wanted ones, in that order, that do not overlap."""
    places = [wanted[name] for name in names]
    right = _pushed(names, places)
    left = _pushed(names[::-1], [-place for place in places[::-1]])[::-1]
    return {name: (one - other) / 2 for name, one, other in zip(names, right, left, strict=True)}


def _pushed(names: Sequence[str], wanted: Sequence[float]) -> list[float]:
    """Return places at the wanted ones or to the right, each as far from the last as it has to be."""
    found: list[float] = []
    edge = -math.inf
    for name, place in zip(names, wanted, strict=True):
        found.append(max(place, edge + _width(name) / 2))
        edge = found[-1] + _width(name) / 2 + GAP
    return found


# -- as an SVG and a table -----------------------------------------------------------------------------


def picture() -> str:
    """Return the SVG, for light and dark pages."""
    of = direct(graph())
    levels = floors(graph())
    arrows = ways(of, levels)
    x = placed(levels, arrows)
    y = {name: GAP + index * FLOOR for index, names in enumerate(levels) for name in names}
    for way in arrows:
        y |= {stop: y[way.stops[0]] + index * FLOOR for index, stop in enumerate(way.stops)}
    width = math.ceil(GAP + max(x[name] + _width(name) / 2 for name in x))
    height = 2 * GAP + (len(levels) - 1) * FLOOR + ROOM_HEIGHT
    parts = [f'<path d="{_line(way, x, y)}" marker-end="url(#tip)"/>' for way in arrows]
    parts += [_room(name, x[name], y[name]) for names in levels for name in names]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>The rooms of celery_exporter, and which import from which</title>",
            f"<style>{_STYLE}</style>",
            f"<defs>{_TIP}</defs>",
            f'<rect width="{width}" height="{height}" class="page"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _line(way: Way, x: Mapping[str, float], y: Mapping[str, float]) -> str:
    """Return the way of an arrow: down out of a room, past the floors between, into another."""
    at, top = x[way.stops[0]], y[way.stops[0]] + ROOM_HEIGHT
    drawn = f"M{at:.0f} {top:.0f}"
    for stop in way.stops[1:]:
        to, end = x[stop], y[stop]
        bend = (end - top) / 2
        drawn += f"C{at:.0f} {top + bend:.0f} {to:.0f} {end - bend:.0f} {to:.0f} {end:.0f}"
        if stop != way.stops[-1]:
            drawn += f"V{end + ROOM_HEIGHT:.0f}"
        at, top = to, end + ROOM_HEIGHT
    return drawn


def _room(name: str, x: float, y: float) -> str:
    kind = "pure" if name == "core" else "room"
    size = f'width="{ROOM_WIDTH}" height="{ROOM_HEIGHT}"'
    lines = _inscription(name)
    return "\n".join(
        [
            f'<rect x="{x - ROOM_WIDTH / 2:.0f}" y="{y}" {size} rx="6" class="{kind}"/>',
            f'<text x="{x:.0f}" y="{y + 24}">{escape(name)}</text>',
            *(
                f'<text x="{x:.0f}" y="{y + 43 + 15 * index}" class="about">{escape(line)}</text>'
                for index, line in enumerate(lines)
            ),
        ]
    )


def _inscription(name: str) -> list[str]:
    """Return as much of what a room is for as fits into it and ends well."""
    words = re.split(r"[.:;](?: |$)", purpose(name).replace("`", ""))[0]
    while len(lines := textwrap.wrap(words, 22)) > LINES and "," in words:
        words = words.rpartition(",")[0]
    return lines[:LINES]


def table() -> str:
    """Return the rooms from the top down, with what they are for and what they import from."""
    of = graph()
    lines = ["| room | what it is | imports from |", "|---|---|---|"]
    for name in (name for names in floors(of) for name in names):
        path = f"{name}/" if (PACKAGE / name).is_dir() else name
        below = ", ".join(f"`{other}`" for other in sorted(of[name])) or "nothing"
        lines.append(f"| `{path}` | {purpose(name)} | {below} |")
    return "\n".join(lines)
