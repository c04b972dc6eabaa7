"""Solids of the demo: boxes, roofs, domes, walls, with windows and doors painted on them.

In: numbers. Out: solids, which are lists of faces. A face is its outline and what is painted on it, all in one plane,
the outline counter-clockwise as seen from outside.

The world has x to the right, y away from the front and z up; the ground is z = 0. A colour is red, green, blue in 0..1.
A half width is called a radius. P is the number of a polygon's corners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
Profile = Sequence[tuple[float, float, float]]  # rings of a lathe: height, half width, half depth
Shape = Sequence[tuple[float, float]]

DARK: Colour = (0.16, 0.17, 0.22)  # what cannot be seen into
RECTANGLE: Shape = ((0, 0), (1, 0), (1, 1), (0, 1))
ARCH: Shape = ((0, 0), (1, 0), (1, 0.6), (0.93, 0.8), (0.73, 0.95), (0.5, 1), (0.27, 0.95), (0.07, 0.8), (0, 0.6))
POINTED: Shape = ((0, 0), (1, 0), (1, 0.6), (0.8, 0.83), (0.5, 1), (0.2, 0.83), (0, 0.6))
DISC: Shape = tuple((0.5 + 0.5 * np.cos(a), 0.5 + 0.5 * np.sin(a)) for a in np.arange(0.1, 6.3, np.pi / 6))


class Patch(NamedTuple):
    """A flat polygon [P, 3] (a wire when P = 2); `glows` is a window, which may be lit at night."""

    points: Array
    colour: Colour
    glows: bool = False


class Decal(NamedTuple):
    """A polygon [P, 2] painted on a face, in the face's own coordinates 0..1 (right, up)."""

    points: Array
    colour: Colour
    glows: bool = False


Face = list[Patch]
Solid = list[Face]


def mix(first: Iterable[float], second: Iterable[float], share: float) -> Colour:
    """A colour between two: `share` 0 is the first, 1 the second; beyond them it is clipped."""
    # plain numbers: called 200 times for a photo, where numpy on three numbers takes ten times as long
    red, green, blue = (min(max(a + (b - a) * share, 0.0), 1.0) for a, b in zip(first, second, strict=True))
    return red, green, blue


def lathe(
    profile: Profile,
    colour: Colour,
    *,
    at: tuple[float, float] = (0, 0),
    sides: int = 4,
    facade: Sequence[Decal] = (),
    flank: Sequence[Decal] | None = None,
) -> Solid:
    """A solid of rings: four sides make boxes, roofs, pyramids; many sides cylinders, cones, domes.

    Args:
        profile: the rings from bottom to top: height, half width, half depth.
        colour: of the walls.
        at: where its axis stands (x, y).
        sides: corners of a ring.
        facade: painted on the sides that face front and back (on all of them, when more than four).
        flank: painted on the left and right sides; as `facade` when not given.
    """
    angles = (np.arange(sides) - sides / 4 - 0.5) * 2 * np.pi / sides
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1) / np.cos(np.pi / sides)  # [sides, 2]
    rings = [np.column_stack([unit * (width, depth) + at, np.full(sides, z)]) for z, width, depth in profile]
    solid: Solid = [[Patch(rings[0][::-1], mix(colour, (0, 0, 0), 0.3))], [Patch(rings[-1], colour)]]
    for below, above in pairwise(rings):
        for k in range(sides):
            following = (k + 1) % sides
            quad = np.array([below[k], below[following], above[following], above[k]])
            decals = facade if flank is None or k % 2 == 0 else flank
            solid.append([Patch(quad, colour), *_paint(quad, decals)])
    return solid


def extrude(
    outline: Shape,
    depth: float,
    colour: Colour,
    *,
    at: tuple[float, float] = (0, 0),
    facade: Sequence[Decal] = (),
) -> Solid:
    """A flat outline (x, z), counter-clockwise from the front, made `depth` deep; it may be concave.

    Args:
        outline: the corners.
        depth: of the solid, in the direction of the view.
        colour: of its faces.
        at: where its middle stands (x, y).
        facade: painted on front and back, over the outline's bounding box.
    """
    flat = np.array(outline, dtype=np.float64)
    front = np.column_stack([flat[:, 0] + at[0], np.full(len(flat), at[1] - depth / 2), flat[:, 1]])
    back = front + np.array([0, depth, 0])
    solid: Solid = [[Patch(np.array([front[k], front[k - 1], back[k - 1], back[k]]), colour)] for k in range(len(flat))]
    for sheet, order in ((back, -1), (front, 1)):
        (left, _, bottom), (right, _, top) = sheet.min(axis=0), sheet.max(axis=0)
        y = float(sheet[0, 1])
        corners = np.array([[left, y, bottom], [right, y, bottom], [right, y, top], [left, y, top]])
        solid.append([Patch(sheet[::order], colour), *_paint(corners, facade)])
    return solid


def wires(lines: Sequence[ArrayLike], colour: Colour) -> Solid:
    """Thin lines, each from one point [3] to another."""
    return [[Patch(np.array(line, dtype=np.float64), colour)] for line in lines]


def grid(
    columns: int,
    rows: int,
    colour: Colour,
    *,
    shape: Shape = RECTANGLE,
    size: tuple[float, float] = (0.5, 0.55),
    box: tuple[float, float, float, float] = (0.05, 0.05, 0.95, 0.95),
    glows: bool = True,
) -> list[Decal]:
    """A regular grid of windows, pillars or bricks.

    Args:
        columns: how many beside one another.
        rows: how many above one another.
        colour: of each.
        shape: of each, in its own coordinates 0..1.
        size: the share of a cell that it fills (width, height).
        box: the part of the face that the grid takes: left, bottom, right, top.
        glows: whether they are windows that may be lit.
    """
    left, bottom, right, top = box
    cell = np.array([(right - left) / columns, (top - bottom) / rows])
    inside = (np.array(shape) * size + (1 - np.array(size)) / 2) * cell  # [P, 2]
    places = [(left + cell[0] * i, bottom + cell[1] * j) for j in range(rows) for i in range(columns)]
    return [Decal(inside + place, colour, glows) for place in places]


def block(
    bottom: float,
    top: float,
    radius: float | tuple[float, float],
    colour: Colour,
    *,
    at: tuple[float, float] = (0, 0),
    sides: int = 4,
    facade: Sequence[Decal] = (),
    flank: Sequence[Decal] | None = None,
) -> Solid:
    """A box, or an upright prism of more sides; `radius` one for both, or (half width, half depth)."""
    width, depth = radius if isinstance(radius, tuple) else (radius, radius)
    rings = [(z, width, depth) for z in (bottom, top)]
    return lathe(rings, colour, at=at, sides=sides, facade=facade, flank=flank)


def spire(
    bottom: float, top: float, radius: float, colour: Colour, *, at: tuple[float, float] = (0, 0), sides: int = 4
) -> Solid:
    """A roof that ends in a point."""
    return lathe([(bottom, radius, radius), (top, 0.003, 0.003)], colour, at=at, sides=sides)


def gable(
    bottom: float, top: float, radius: tuple[float, float], colour: Colour, *, at: tuple[float, float] = (0, 0)
) -> Solid:
    """A roof with a ridge, whose triangle faces the front; `radius` is half width, half depth."""
    return lathe([(bottom, *radius), (top, 0, radius[1])], colour, at=at)


def dome(bottom: float, top: float, radius: float, *, bulge: float = 0.0) -> Profile:
    """The profile of a dome: `bulge` 0 is a half ellipse, towards 1 an onion."""
    steps = np.linspace(0, 1, 7)
    radii = radius * np.maximum((1 - bulge) * np.sqrt(1 - steps**2) + bulge * (1 - steps) * (1 + 3.2 * steps), 0.02)
    return [(bottom + (top - bottom) * t, r, r) for t, r in zip(steps.tolist(), radii.tolist(), strict=True)]


def corners(radius: float) -> list[tuple[float, float]]:
    """The corners (x, y) of a square on the ground, the front ones first."""
    return [(-radius, -radius), (radius, -radius), (-radius, radius), (radius, radius)]


def door(
    width: float, height: float, colour: Colour = DARK, *, shape: Shape = ARCH, centre: float = 0.5
) -> list[Decal]:
    """A door at the foot of a face; its measures are shares of the face."""
    box = (centre - width / 2, 0.0, centre + width / 2, height)
    return grid(1, 1, colour, shape=shape, size=(1, 1), box=box, glows=False)


def bands(count: int, colour: Colour, share: float) -> list[Decal]:
    """Horizontal stripes over a whole face; `share` of it, 0..1, is covered."""
    return grid(1, count, colour, size=(1, share), box=(0, 0, 1, 1), glows=False)


def _paint(quad: Array, decals: Sequence[Decal]) -> list[Patch]:
    """Decals on a face of four corners [4, 3], left bottom first."""
    patches = []
    for points, colour, glows in decals:
        u, v = points[:, :1], points[:, 1:]
        on_quad = (1 - v) * ((1 - u) * quad[0] + u * quad[1]) + v * ((1 - u) * quad[3] + u * quad[2])
        patches.append(Patch(on_quad, colour, glows))
    return patches
