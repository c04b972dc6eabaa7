"""How the demo's solids are seen: a camera, a light, flat shaded polygons.

In: solids, and a Pillow canvas. Out: polygons drawn on it; nothing here touches the disk. World and colours are those
of `engine.demo.solids`. Letters: V points, P patches, F faces, S solids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from engine.demo.solids import Array, Colour, Solid

_NEAR = 0.05  # nothing is projected from nearer than this, in landmark sizes
_TOUCH = 0.004  # solids that overlap by less than this are beside one another


@dataclass(frozen=True)
class Light:
    """The light of one photo.

    Attributes:
        sun: colour of the direct light.
        ambient: colour of the light from everywhere.
        direction: [3] unit vector towards the sun.
        zenith: colour of the sky above.
        horizon: colour of the sky at the horizon, and of the fog.
        lit: share of the windows that are lit, 0..1.
        fog: 0 is clear, 1 hides everything.
    """

    sun: Colour
    ambient: Colour
    direction: Array
    zenith: Colour
    horizon: Colour
    lit: float
    fog: float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: [3] in the world.
        basis: [3, 3] rows right, up, forward.
        focal: focal length in pixels.
        centre: [2] of the picture (x, y), in pixels.
    """

    position: Array
    basis: Array
    focal: float
    centre: Array

    def project(self, points: Array) -> Array:
        """Pixels [V, 2] of points [V, 3]."""
        seen = (points - self.position) @ self.basis.T  # [V, 3] right, up, forward
        depth = np.maximum(seen[:, 2:], _NEAR)
        return self.centre + seen[:, :2] * (self.focal, -self.focal) / depth

    @property
    def horizon(self) -> float:
        """The row of the horizon, in pixels."""
        ahead = self.basis[2] * (1, 1, 0)
        return float(self.centre[1] - self.focal * (self.basis[1] @ ahead) / (self.basis[2] @ ahead))


def look_at(target: Array, *, azimuth: float, elevation: float, distance: float, focal: float, centre: Array) -> Camera:
    """A camera at a distance from a target; angles in radians, azimuth 0 is the front, elevation above -pi/2..pi/2."""
    flat = np.cos(elevation)
    away = np.array([np.sin(azimuth) * flat, -np.cos(azimuth) * flat, np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    return Camera(target + distance * away, np.array([right, np.cross(right, -away), -away]), focal, centre)


@dataclass(frozen=True)
class Model:
    """Solids flattened to arrays, at most 1 high and wide, standing on the ground around the origin.

    Attributes:
        points: [V, 3].
        starts: [P + 1] where each patch begins in `points`.
        albedo: [P, 3] colours.
        glows: [P] windows.
        face_of: [P] the face that a patch lies in, ascending.
        centres: [F, 3] of the faces.
        normals: [F, 3] unit vectors; zero for wires, which are seen from every side.
        solid_of: [F] the solid that a face belongs to, ascending.
        low: [S, 3] bounding boxes.
        high: [S, 3] bounding boxes.
    """

    points: Array
    starts: NDArray[np.int64]
    albedo: Array
    glows: NDArray[np.bool_]
    face_of: NDArray[np.int64]
    centres: Array
    normals: Array
    solid_of: NDArray[np.int64]
    low: Array
    high: Array


def assemble(solids: Sequence[Solid]) -> Model:
    """Put solids together: moved to the origin and scaled to fit a box of 1 x 1 x 1."""
    faces = [face for solid in solids for face in solid]
    patches = [patch for face in faces for patch in face]
    points = np.concatenate([patch.points for patch in patches])
    low, high = points.min(axis=0), points.max(axis=0)
    middle = np.array([*((low + high) / 2)[:2], low[2]])
    scale = 1 / (high - low).max()
    outlines = [(face[0].points - middle) * scale for face in faces]
    boxes = [(np.concatenate([face[0].points for face in solid]) - middle) * scale for solid in solids]
    return Model(
        points=(points - middle) * scale,
        starts=np.cumsum([0] + [len(patch.points) for patch in patches]),
        albedo=np.array([patch.colour for patch in patches]),
        glows=np.array([patch.glows for patch in patches]),
        face_of=np.repeat(np.arange(len(faces)), [len(face) for face in faces]),
        centres=np.array([outline.mean(axis=0) for outline in outlines]),
        normals=np.array([_normal(outline) for outline in outlines]),
        solid_of=np.repeat(np.arange(len(solids)), [len(solid) for solid in solids]),
        low=np.array([box.min(axis=0) for box in boxes]),
        high=np.array([box.max(axis=0) for box in boxes]),
    )


def _normal(outline: Array) -> Array:
    """Newell's normal [3] of a polygon [P, 3]; also right for a concave one, zero for a wire."""
    normal = np.cross(outline, np.roll(outline, -1, axis=0)).sum(axis=0)
    length = float(np.linalg.norm(normal))
    return normal / length if len(outline) > 2 and length > 1e-12 else np.zeros(3)


def draw_model(draw: ImageDraw.ImageDraw, model: Model, camera: Camera, light: Light, lit: NDArray[np.bool_]) -> None:
    """Draw a model, far solids first; what is in front covers what is behind.

    Args:
        draw: on the canvas.
        model: what to draw.
        camera: where it is seen from.
        light: how it is lit.
        lit: [P] whether a patch, if it glows, is lit.
    """
    pixels = [tuple(pixel) for pixel in camera.project(model.points).tolist()]
    colours = _shade(model, light, lit)
    towards = camera.position - model.centres  # [F, 3]
    facing = np.einsum("fd,fd->f", towards, model.normals)
    seen = np.flatnonzero((facing > 0) | ~model.normals.any(axis=1))
    turn = np.empty(len(model.low), dtype=np.int64)
    turn[_far_to_near(model, camera.position)] = np.arange(len(turn))
    far = np.linalg.norm(towards, axis=1)
    first = np.searchsorted(model.face_of, np.arange(len(model.centres) + 1))
    starts = model.starts.tolist()
    for face in seen[np.lexsort((-far[seen], turn[model.solid_of[seen]]))].tolist():
        for patch in range(first[face], first[face + 1]):
            corners = pixels[starts[patch] : starts[patch + 1]]
            if len(corners) == 2:
                draw.line(corners, fill=colours[patch], width=2)
            else:
                draw.polygon(corners, fill=colours[patch])


def draw_shadow(draw: ImageDraw.ImageDraw, model: Model, camera: Camera, light: Light, colour: Colour) -> None:
    """Draw the shadow that a model's faces throw on the ground."""
    slant = light.direction[:2] / max(light.direction[2], 0.3)  # a lower sun would throw it out of the picture
    ground = model.points * (1, 1, 0) - model.points[:, 2:] * (*slant, 0)
    pixels = [tuple(pixel) for pixel in camera.project(ground).tolist()]
    fill = to_bytes(colour)
    for patch in np.unique(model.face_of, return_index=True)[1].tolist():
        corners = pixels[model.starts[patch] : model.starts[patch + 1]]
        if len(corners) > 2:
            draw.polygon(corners, fill=fill)


def to_bytes(colour: Colour) -> tuple[int, int, int]:
    """A colour as Pillow wants it, 0..255."""
    red, green, blue = colour
    return int(red * 255), int(green * 255), int(blue * 255)


def _shade(model: Model, light: Light, lit: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    lambert = np.clip(model.normals @ light.direction, 0, 1)[:, None]  # [F, 1]
    above = 0.85 + 0.15 * model.normals[:, 2:]  # the sky is above: undersides are darker
    strength = above * light.ambient + lambert * light.sun  # [F, 3]
    colours = model.albedo * strength[model.face_of]
    colours[model.glows & lit] = (1.0, 0.85, 0.45)
    fog = 0.8 * light.fog
    colours = colours * (1 - fog) + np.asarray(light.horizon) * fog
    return [tuple(colour) for colour in np.clip(colours * 255, 0, 255).astype(int).tolist()]


def _far_to_near(model: Model, eye: Array) -> list[int]:
    """Solids in an order in which none is drawn after one that it cannot cover.

    A solid cannot cover another when a plane along the axes parts them and the eye is on the other's side.
    """
    low, high = model.low, model.high
    beyond = (high[:, None] <= low[None] + _TOUCH) & (eye >= high[:, None] - _TOUCH)  # [S, S, 3]
    below = (low[:, None] >= high[None] - _TOUCH) & (eye <= low[:, None] + _TOUCH)
    cannot_cover = np.asarray((beyond | below).any(axis=2))  # [S, S]
    before = cannot_cover & ~cannot_cover.T  # [S, S] row must be drawn before column
    np.fill_diagonal(before, val=False)
    far = np.linalg.norm((low + high) / 2 - eye, axis=1)
    waiting = before.sum(axis=0).astype(np.float64)
    order: list[int] = []
    for _ in range(len(far)):
        # boxes can cover one another in a ring: then the one with the fewest before it goes first
        chosen = int(np.lexsort((-far, waiting))[0])
        order.append(chosen)
        waiting -= before[chosen]
        waiting[chosen] = np.inf
    return order
