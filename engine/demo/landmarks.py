"""Families of landmarks for the demo, and the anonymous streets that are none.

A landmark is a family, a style and its details. Two landmarks of one style look alike from afar and differ in what a
careful eye finds: the number of floors and windows, the proportions, what stands on top. In: numpy Generators, out:
models. Lengths are relative (`assemble` brings every model to one size); a half width is called a radius.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from engine.demo.drawing import Model, assemble
from engine.demo.solids import (
    ARCH,
    DARK,
    DISC,
    POINTED,
    RECTANGLE,
    Colour,
    Decal,
    Shape,
    Solid,
    bands,
    block,
    corners,
    dome,
    door,
    extrude,
    gable,
    grid,
    lathe,
    mix,
    spire,
    wires,
)

Rng = np.random.Generator
OptionT = TypeVar("OptionT")

_WHITE: Colour = (0.95, 0.94, 0.90)
_GILT: Colour = (0.88, 0.72, 0.28)
_WALLS: Sequence[Colour] = (
    (0.86, 0.79, 0.64),  # limestone
    (0.78, 0.62, 0.42),  # sandstone
    (0.66, 0.34, 0.26),  # brick
    (0.94, 0.93, 0.90),  # marble
    (0.62, 0.62, 0.64),  # granite
    (0.92, 0.74, 0.70),  # pink plaster
    (0.93, 0.80, 0.48),  # ochre plaster
    (0.66, 0.76, 0.80),  # pale blue plaster
    (0.47, 0.43, 0.42),  # basalt
)
_ROOFS: Sequence[Colour] = (
    (0.72, 0.36, 0.24),  # tiles
    (0.36, 0.38, 0.44),  # slate
    (0.42, 0.64, 0.56),  # old copper
    (0.88, 0.70, 0.26),  # gold
    (0.40, 0.26, 0.20),  # wood
    (0.70, 0.18, 0.18),  # lacquer
    (0.28, 0.42, 0.66),  # blue enamel
)
_SHAPES: Sequence[Shape] = (RECTANGLE, ARCH, POINTED)


class Palette(NamedTuple):
    """The colours of one building."""

    wall: Colour
    roof: Colour
    trim: Colour
    glass: Colour


class Landmark(NamedTuple):
    """A landmark: its name, the ground it stands on at home, and what it looks like."""

    name: str
    setting: str
    model: Model


def make_landmark(family: int, style: Rng, detail: Rng) -> Landmark:
    """Build one landmark.

    Args:
        family: any number from 0; the families are counted round.
        style: what look-alikes share: generators in the same state give the same style.
        detail: what tells look-alikes apart.
    """
    noun, setting, build = _FAMILIES[family % len(_FAMILIES)]
    palette = _palette(style, detail)
    return Landmark(f"{noun} of {_place_name(detail)}", setting, assemble(build(palette, style, detail)))


def make_street(rng: Rng) -> Model:
    """A row of anonymous houses, made of what landmarks are made of: the non-landmarks that are hard to tell."""
    solids: list[Solid] = []
    left = 0.0
    for _ in range(int(rng.integers(1, 5))):
        palette, radius, depth, top = (
            _palette(rng, rng),
            rng.uniform(0.12, 0.3),
            rng.uniform(0.15, 0.3),
            rng.uniform(0.25, 0.75),
        )
        at = (left + radius, rng.uniform(-0.03, 0.03))
        windows = grid(int(rng.integers(2, 6)), int(rng.integers(2, 7)), palette.glass, shape=_pick(rng, _SHAPES))
        entrance = door(0.16, 0.16, mix(palette.roof, DARK, 0.5), centre=rng.uniform(0.2, 0.8))
        solids.append(block(0, top, (radius, depth), palette.wall, at=at, facade=[*windows, *entrance]))
        ridge = _pick(rng, ((0.0, depth), (radius, 0.0), (radius * 0.6, depth * 0.6)))
        roof = [(top, radius * 1.06, depth * 1.06), (top + rng.uniform(0.02, 0.16), *ridge)]
        solids.append(lathe(roof, palette.roof, at=at))
        left += 2 * radius + max(0.0, rng.normal(0, 0.05))
    return assemble(solids)


def _pick(rng: Rng, options: Sequence[OptionT]) -> OptionT:
    return options[int(rng.integers(len(options)))]


def _palette(style: Rng, detail: Rng) -> Palette:
    wall, roof = _pick(style, _WALLS), _pick(style, _ROOFS)
    trim = mix(wall, _WHITE if style.random() < 0.7 else DARK, 0.45)
    glass = mix((0.24, 0.30, 0.40), (0.12, 0.12, 0.14), float(style.random()))
    shift = detail.normal(0, 0.025, (2, 3))  # look-alikes differ in colour by less than the light does
    return Palette(mix(wall, wall + shift[0], 1), mix(roof, roof + shift[1], 1), trim, glass)


def _place_name(rng: Rng) -> str:
    syllables = (
        ("Be", "Ka", "Lo", "Mi", "Ro", "Sa", "Te", "Va", "Zu"),
        ("la", "ri", "mo", "ne", "du", "sti"),
        ("ra", "burg", "no", "lia", "ton", "mar", "vik", "polis"),
    )
    return "".join(_pick(rng, part) for part in syllables)


def _clock_tower(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, shape, overhang = s.uniform(0.07, 0.13), _pick(s, _SHAPES), s.uniform(1.1, 1.4)
    top, belfry = d.uniform(0.55, 0.72), radius * overhang
    roof, flare = top + 2.1 * belfry, belfry * d.uniform(1.0, 1.25)
    peak = roof + d.uniform(0.12, 0.32)
    windows = grid(int(d.integers(1, 4)), int(d.integers(3, 8)), p.glass, shape=shape, size=(0.4, 0.55))
    dial = grid(1, 1, _WHITE, shape=DISC, size=(0.85, 0.85), box=(0, 0, 1, 1), glows=False)
    hands = [((0.46, 0.5), (0.54, 0.5), (0.52, 0.84)), ((0.5, 0.45), (0.76, 0.6), (0.5, 0.55))]
    solids = [
        block(0, 0.1, radius * 1.35, p.trim, facade=door(0.3, 0.8)),
        block(0.1, top, radius, p.wall, facade=[*bands(int(d.integers(2, 5)), p.trim, 0.06), *windows]),
        block(top, roof, belfry, p.trim, facade=[*dial, *[Decal(np.array(hand), DARK) for hand in hands]]),
        lathe([(roof, flare, flare), ((2 * roof + peak) / 3, flare / 2, flare / 2), (peak, 0.004, 0.004)], p.roof),
    ]
    pinnacles = corners(belfry) if d.random() < 0.5 else []
    return solids + [spire(roof, roof + 0.12, 0.02, p.roof, at=at) for at in pinnacles]


def _church(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, length, steep, sides = s.uniform(0.13, 0.2), s.uniform(0.3, 0.45), s.uniform(0.8, 1.4), _pick(s, (4, 4, 8))
    eaves, top, high = d.uniform(0.25, 0.35), d.uniform(0.5, 0.7), d.uniform(0.15, 0.4)
    thick = radius * s.uniform(0.4, 0.6)
    rose = grid(1, 1, p.glass, shape=DISC, size=(0.4, 0.5), box=(0, 0.45, 1, 1))
    aisle = grid(int(d.integers(4, 8)), 1, p.glass, shape=POINTED, size=(0.45, 0.7))
    front = [*rose, *door(0.3, 0.4, shape=POINTED)]
    bells = [*grid(1, int(d.integers(2, 5)), p.glass, shape=POINTED, size=(0.4, 0.5)), *bands(3, p.trim, 0.05)]
    solids = [
        block(0, eaves, (radius, length), p.wall, facade=front, flank=aisle),
        gable(eaves, eaves + radius * steep, (radius * 1.05, length), p.roof),
    ]
    for x in _pick(s, ((-radius - thick * 0.6, radius + thick * 0.6), (0.0,))):
        at = (x, -length - thick)
        solids.append(block(0, top, thick, p.wall, at=at, facade=bells))
        solids.append(spire(top, top + high, thick * 1.1, p.roof, at=at, sides=sides))
    return solids


def _domed_hall(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, height, round_ = s.uniform(0.25, 0.36), s.uniform(0.16, 0.28), s.uniform(0.12, 0.19)
    bulge, shape = _pick(s, ((0.0, ARCH), (0.75, POINTED)))
    arches = grid(int(d.integers(3, 9)), int(d.integers(1, 3)), p.glass, shape=shape)
    drum = height + d.uniform(0.05, 0.14)
    top = drum + round_ * d.uniform(1.0, 1.5)
    porch = height * d.uniform(1.0, 1.25)
    solids = [
        block(0, 0.03, radius * 1.25, p.trim),
        block(0.03, height, radius, p.wall, facade=arches),
        block(0.03, porch, (radius * 0.3, 0.06), p.trim, at=(0, -radius - 0.06), facade=door(0.6, 0.8, shape=shape)),
        block(height, drum, round_, p.wall, sides=12, facade=grid(1, 1, p.glass)),
        lathe(dome(drum, top, round_ * 1.02, bulge=bulge), p.roof, sides=12),
    ]
    for at in corners(radius * 1.15)[: _pick(d, (0, 2, 4))]:
        solids.append(block(0.03, drum + round_, 0.025, p.trim, at=at, sides=6, facade=bands(3, p.roof, 0.1)))
        solids.append(lathe(dome(drum + round_, drum + round_ + 0.07, 0.03, bulge=bulge), p.roof, at=at, sides=6))
    return solids


def _bridge(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    steel, leg, deck = _pick(s, (p.roof, p.wall)), _pick(s, (0.02, 0.035)), s.uniform(0.1, 0.16)
    pylon, top, sag = d.uniform(0.28, 0.5), d.uniform(0.35, 0.55), d.uniform(0.02, 0.06)
    bars = grid(1, int(d.integers(1, 4)), DARK, size=(0.5, 0.6), glows=False)
    across = np.linspace(-1, 1, 4 * int(d.integers(8, 15)) + 1)
    road, out = deck + 0.03, (np.abs(across) - pylon) / (1 - pylon)
    inner = road + sag + (top - road - sag) * (across / pylon) ** 2
    height = np.where(out <= 0, inner, top - out * (top - road))
    solids = [block(deck, road, (1, 0.07), mix(steel, DARK, 0.3))]
    for x in (-pylon, pylon):
        solids += [block(0, top, (leg, 0.02), steel, at=(x, y)) for y in (-0.1, 0.1)]
        solids.append(block(top - 0.05, top, (leg, 0.08), steel, at=(x, 0), flank=bars))
    for y in (-0.1, 0.1):
        cable = np.column_stack([across, np.full_like(across, y), height])
        hangers = [(point, (point[0], y, road)) for point in cable[::2]]
        solids.append(wires([*pairwise(cable), *hangers], steel))
    return solids


def _arch(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, top, depth, gate = s.uniform(0.38, 0.5), s.uniform(0.5, 0.75), s.uniform(0.08, 0.15), s.uniform(0.12, 0.18)
    springing, attic = top * s.uniform(0.4, 0.55), top + d.uniform(0.1, 0.22)
    openings = [(0.0, gate, springing)]
    if d.random() < 0.5:
        openings = [
            (-radius * 0.68, gate * 0.45, springing * 0.7),
            *openings,
            (radius * 0.68, gate * 0.45, springing * 0.7),
        ]
    outline: list[tuple[float, float]] = [(-radius, 0)]
    for middle, half, foot in openings:
        round_ = [(middle - half * np.cos(a), foot + half * np.sin(a)) for a in np.linspace(0, np.pi, 7)]
        outline += [(middle - half, 0), *round_, (middle + half, 0)]
    outline += [(radius, 0), (radius, top), (-radius, top)]
    relief = grid(2, 1, mix(p.wall, DARK, 0.3), size=(0.3, 0.8), box=(0, 0.74, 1, 0.92), glows=False)
    letters = grid(
        int(d.integers(5, 14)), 1, mix(p.wall, DARK, 0.5), size=(0.5, 0.4), box=(0.2, 0.2, 0.8, 0.8), glows=False
    )
    solids = [
        extrude(outline, 2 * depth, p.wall, facade=relief),
        block(top, top + 0.03, (radius * 1.06, depth * 1.15), p.trim),
        block(top + 0.03, attic, (radius * 0.96, depth), p.wall, facade=letters),
    ]
    statues = (0.0, -radius * 0.8, radius * 0.8)[: int(d.integers(0, 4))]
    return solids + [spire(attic, attic + 0.15, 0.06, p.roof, at=(x, 0), sides=6) for x in statues]


def _pyramid(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    height, stone = d.uniform(0.4, 0.8), mix(p.wall, DARK, 0.12)
    if s.random() < 0.35:
        tip = d.uniform(0.1, 0.4)
        cut = (height * (1 - tip), tip / 2, tip / 2)
        bricks = grid(int(d.integers(5, 10)), int(d.integers(4, 8)), stone, size=(0.8, 0.75), glows=False)
        return [lathe([(0, 0.5, 0.5), cut], p.wall, facade=bricks), spire(cut[0], height, cut[1], p.trim)]
    steps, stairs = int(d.integers(4, 9)), d.uniform(0.12, 0.3)
    solids = []
    for step in range(steps):
        radius = 0.5 * (1 - 0.75 * step / steps)
        flight = grid(1, 1, mix(p.wall, _WHITE, 0.4), size=(stairs * 0.25 / radius, 1), box=(0, 0, 1, 1), glows=False)
        courses = bands(2, p.trim, 0.2)
        bounds = height * step / steps, height * (step + 1) / steps
        solids.append(block(*bounds, radius, p.wall, facade=[*courses, *flight], flank=courses))
    return [*solids, block(height, height + d.uniform(0.08, 0.2), 0.1, p.trim, facade=door(0.4, 0.7))]


def _pagoda(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, flare, sides = s.uniform(0.14, 0.22), s.uniform(1.4, 1.8), _pick(s, (4, 4, 8))
    tiers, shrink = int(d.integers(3, 8)), d.uniform(0.5, 0.75)
    storey = 0.9 / tiers
    pillars = grid(4, 1, p.trim, size=(0.2, 1), box=(0, 0, 1, 0.8), glows=False)
    solids = [block(0, 0.05, radius * 1.5, (0.7, 0.68, 0.64))]
    for tier in range(tiers):
        z, r = 0.05 + storey * tier, radius * (1 - shrink * tier / tiers)
        front = [*pillars, *door(0.3, 0.75, shape=RECTANGLE)]
        solids.append(block(z, z + storey * 0.5, r, p.wall, sides=sides, facade=front))
        eave = [(0.5, flare * 1.08), (0.6, flare * 0.86), (1.0, 0.7)]
        solids.append(lathe([(z + storey * up, r * out, r * out) for up, out in eave], p.roof, sides=sides))
    return [*solids, spire(0.95, 0.95 + d.uniform(0.1, 0.25), 0.02, _GILT, sides=6)]


def _temple(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, length, top, thick = s.uniform(0.3, 0.4), s.uniform(0.35, 0.6), s.uniform(0.25, 0.35), s.uniform(0.02, 0.03)
    across, along = (
        np.linspace(-radius, radius, int(d.integers(4, 9))),
        np.linspace(-length, length, int(d.integers(4, 8))),
    )
    places = {(x, y) for x in across.tolist() for y in (-length, length)} | {
        (x, y) for y in along.tolist() for x in (-radius, radius)
    }
    frieze = grid(2 * len(across), 1, p.roof, size=(0.5, 0.7), glows=False)
    ridge = top + 0.06 + radius * d.uniform(0.3, 0.6)
    cella = mix(p.wall, DARK, 0.35)
    return [
        block(0, 0.025, (radius * 1.2, length * 1.15), p.trim),
        block(0.025, 0.05, (radius * 1.14, length * 1.1), p.trim),
        block(0.05, top, (radius * 0.75, length * 0.8), cella, facade=door(0.3, 0.8, shape=RECTANGLE)),
        *[
            lathe([(0.05, thick, thick), (top, thick * 0.8, thick * 0.8)], p.wall, at=at, sides=6)
            for at in sorted(places)
        ],
        block(top, top + 0.06, (radius * 1.1, length * 1.06), p.trim, facade=frieze),
        gable(top + 0.06, ridge, (radius * 1.14, length * 1.08), _pick(s, (p.wall, p.roof))),
    ]


def _castle(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, height, thick = s.uniform(0.3, 0.42), s.uniform(0.2, 0.3), s.uniform(0.07, 0.11)
    tall, cone, keep = height * d.uniform(1.2, 1.9), d.uniform(0.1, 0.3), height * d.uniform(1.4, 2.4)
    inner = radius * d.uniform(0.25, 0.45)
    merlons = [
        (x, height + 0.05 * (i % 4 in {1, 2})) for i, x in enumerate(np.repeat(np.linspace(radius, -radius, 9), 2))
    ]
    slits = grid(int(d.integers(3, 6)), 1, p.glass, size=(0.15, 0.4))
    gate = [*slits, *door(0.2, 0.65, mix(p.roof, DARK, 0.6))]
    windows = grid(int(d.integers(2, 4)), int(d.integers(2, 5)), p.glass, shape=ARCH, size=(0.3, 0.5))
    wall = [(-radius, 0.0), (radius, 0.0), *merlons]
    solids = [extrude(wall, 0.08, p.wall, at=(0, y), facade=gate if y < 0 else slits) for y in (-radius, radius)]
    solids += [block(0, height, (0.04, radius - 0.05), p.wall, at=(x, 0), flank=slits) for x in (-radius, radius)]
    solids += [block(0, keep, inner, p.trim, facade=windows), spire(keep, keep + cone, inner * 1.1, p.roof)]
    for at in corners(radius)[: _pick(d, (2, 4))]:
        solids.append(block(0, tall, thick, p.wall, at=at, sides=10, facade=grid(1, 3, p.glass, size=(0.3, 0.3))))
        solids.append(spire(tall, tall + cone, thick * 1.2, p.roof, at=at, sides=10))
    return solids


def _skyscraper(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    skin, pane = _pick(s, ((p.wall, p.glass), (mix(p.glass, p.roof, 0.5), (0.55, 0.68, 0.8)), (p.trim, p.glass)))
    radius, sides, ribbons = s.uniform(0.12, 0.18), _pick(s, (4, 4, 6, 8)), s.random() < 0.35
    blocks, columns, floors = int(d.integers(1, 5)), int(d.integers(3, 7)), int(d.integers(10, 18))
    cuts = [0.0, *np.sort(d.uniform(0.25, 0.8, blocks - 1)).tolist(), d.uniform(0.82, 0.92)]
    solids = []
    for low, high in pairwise(cuts):
        rows, size = max(2, round(floors * (high - low))), (0.95, 0.55) if ribbons else (0.65, 0.55)
        glass = grid(1 if ribbons else columns, rows, pane, size=size, box=(0.02, 0, 0.98, 1))
        solids.append(block(low, high, radius, skin, sides=sides, facade=glass))
        radius *= 0.8
    crown, mast = [(cuts[-1], radius, radius), (1.0, 0.004, _pick(d, (0.004, radius)))], 1 + d.uniform(0, 0.15)
    return [*solids, lathe(crown, p.roof, sides=sides), wires([((0, 0, 1), (0, 0, mast))], _WHITE)]


def _lighthouse(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    base, top, stripes = s.uniform(0.1, 0.15), s.uniform(0.6, 0.75), int(d.integers(2, 8))
    rings = [
        (0.05 + (top - 0.05) * t, base * (1 - 0.4 * t), base * (1 - 0.4 * t)) for t in np.linspace(0, 1, stripes + 1)
    ]
    window, radius = grid(1, 1, p.glass, size=(0.25, 0.4)), base * 0.6
    solids = [lathe([(0, base * 1.6, base * 1.6), (0.05, base * 1.4, base * 1.4)], p.trim, sides=10)]
    solids += [
        *[lathe(pair, (p.roof, _WHITE)[i % 2], sides=10, facade=window) for i, pair in enumerate(pairwise(rings))],
        block(top, top + 0.03, radius * 1.4, DARK, sides=10),
        block(top + 0.03, top + 0.13, radius * 0.7, _GILT, sides=8, facade=grid(1, 1, p.glass, size=(0.7, 0.9))),
        lathe(dome(top + 0.13, top + d.uniform(0.19, 0.27), radius), p.roof, sides=8),
    ]
    if d.random() < 0.6:
        at = (base * d.uniform(2.4, 3.0) * _pick(d, (-1, 1)), 0.0)
        solids.append(block(0, 0.13, (base * 0.8, base), p.wall, at=at, facade=grid(3, 1, p.glass)))
        solids.append(gable(0.13, 0.22, (base * 0.85, base * 1.05), p.roof, at=at))
    return solids


def _great_wheel(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    steel, hub, radius, size = _pick(s, (_WHITE, p.roof)), 0.52, 0.44, d.uniform(0.022, 0.036)
    cabins, inner = _pick(d, (8, 10, 12, 16, 20)), radius * d.uniform(0.7, 0.9)

    def circle(count: int, r: float) -> list[tuple[float, float, float]]:
        return [(r * np.cos(a), 0.0, hub + r * np.sin(a)) for a in np.linspace(0, 2 * np.pi, count + 1)]

    rims = [pair for r in (radius, inner) for pair in pairwise(circle(32, r))]
    places = circle(cabins, radius)[:-1]
    legs = [((x, y, 0), (0, y * 0.6, hub)) for x in (-0.25, 0.25) for y in (-0.12, 0.12)]
    window = grid(1, 1, p.glass)
    return [
        block(0, hub, (0.015, 0.02), p.wall, at=(0, 0.12)),
        wires([*rims, *[((0, 0, hub), place) for place in places]], steel),
        wires(legs, p.wall),
        *[
            block(z - size, z + size, size, (p.roof, p.trim)[i % 2], at=(x, 0), facade=window)
            for i, (x, _, z) in enumerate(places)
        ],
        block(0, hub, (0.015, 0.02), p.wall, at=(0, -0.12)),
        block(0, 0.05, (0.2, 0.16), p.trim, facade=grid(6, 1, p.glass)),
    ]


def _cathedral(p: Palette, s: Rng, d: Rng) -> list[Solid]:
    radius, base, roofs = s.uniform(0.2, 0.28), s.uniform(0.2, 0.3), [_pick(s, _ROOFS) for _ in range(3)]
    arches = grid(int(d.integers(3, 7)), 2, p.glass, shape=ARCH)
    solids = [block(0, base, radius, p.wall, facade=[*bands(2, p.trim, 0.1), *arches, *door(0.2, 0.4)])]
    window = grid(1, 2, p.glass, shape=ARCH, size=(0.35, 0.7))
    for i, at in enumerate([(0.0, 0.0), *corners(radius * 0.72)][: _pick(d, (3, 5))]):
        thick, top = (0.06, base + d.uniform(0.08, 0.22)) if i else (0.085, base + 0.35)
        onion = dome(top, top + thick * 2.9, thick * 1.1, bulge=0.9)
        stripes = bands(1, p.trim, 0.5) if d.random() < 0.5 else []
        solids.append(block(base, top, thick, p.wall, at=at, sides=8, facade=window))
        solids.append(lathe(onion, _pick(d, roofs), at=at, sides=10, facade=stripes))
        solids.append(wires([((*at, top + thick * 2.8), (*at, top + thick * 3.8))], _GILT))
    return solids


_FAMILIES: Sequence[tuple[str, str, Callable[[Palette, Rng, Rng], list[Solid]]]] = (
    ("Clock Tower", "plaza", _clock_tower),
    ("Church", "plaza", _church),
    ("Hall", "plaza", _domed_hall),
    ("Bridge", "water", _bridge),
    ("Arch", "road", _arch),
    ("Pyramid", "sand", _pyramid),
    ("Pagoda", "grass", _pagoda),
    ("Temple", "sand", _temple),
    ("Castle", "grass", _castle),
    ("Skyscraper", "road", _skyscraper),
    ("Lighthouse", "water", _lighthouse),
    ("Great Wheel", "plaza", _great_wheel),
    ("Cathedral", "plaza", _cathedral),
)
