"""Photos of the demo: a landmark or something else, with light, sky, ground, people and trees around it.

In: a numpy Generator and a landmark. Out: a Pillow picture, RGB, at most 128 pixels on the longest side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from engine.demo.drawing import Camera, Light, Model, draw_model, draw_shadow, look_at, to_bytes
from engine.demo.landmarks import Landmark, Rng, make_street
from engine.demo.solids import Array, Colour, mix

LONGEST = 128  # pixels: what a small backbone sees, and quick to draw
_SUPERSAMPLE = 2  # drawn at twice the size: lines of half a pixel, soft edges

# how often, sun, ambient, zenith, horizon, share of lit windows, fog at most
_LIGHTS: Sequence[tuple[float, Colour, Colour, Colour, Colour, float, float]] = (
    (0.54, (0.62, 0.58, 0.50), (0.52, 0.55, 0.60), (0.30, 0.55, 0.88), (0.75, 0.87, 0.95), 0.0, 0.2),  # noon
    (0.14, (0.70, 0.50, 0.30), (0.44, 0.40, 0.42), (0.42, 0.52, 0.75), (0.98, 0.80, 0.58), 0.1, 0.3),  # low sun
    (0.20, (0.08, 0.08, 0.08), (0.74, 0.75, 0.78), (0.66, 0.70, 0.75), (0.84, 0.85, 0.87), 0.0, 0.4),  # overcast
    (0.04, (0.00, 0.00, 0.00), (0.78, 0.79, 0.82), (0.76, 0.78, 0.80), (0.82, 0.83, 0.84), 0.1, 0.9),  # fog
    (0.05, (0.20, 0.10, 0.12), (0.40, 0.34, 0.48), (0.16, 0.18, 0.42), (0.90, 0.50, 0.42), 0.6, 0.3),  # dusk
    (0.03, (0.30, 0.24, 0.14), (0.26, 0.24, 0.32), (0.03, 0.04, 0.12), (0.12, 0.12, 0.24), 0.8, 0.1),  # night
)
_GROUNDS: dict[str, Colour] = {
    "grass": (0.42, 0.55, 0.28),
    "plaza": (0.70, 0.67, 0.62),
    "water": (0.30, 0.47, 0.58),
    "sand": (0.86, 0.76, 0.56),
    "road": (0.42, 0.42, 0.45),
    "snow": (0.92, 0.93, 0.96),
}
_LAMPS: Sequence[Colour] = ((1.0, 0.92, 0.80), (0.92, 0.94, 0.98))  # light indoors
_SKINS: Sequence[Colour] = ((0.96, 0.80, 0.69), (0.82, 0.60, 0.45), (0.55, 0.37, 0.27), (0.36, 0.24, 0.18))


@dataclass(frozen=True)
class Stage:
    """A canvas with the light that falls on it; lengths are shares of its height, 0..1, from the top left corner."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    light: Light
    rng: Rng

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.image.width / self.image.height

    def tint(self, colour: Colour) -> tuple[int, int, int]:
        """A colour in this light, for Pillow."""
        light = zip(colour, self.light.ambient, self.light.sun, strict=True)
        return to_bytes(mix((c * (a + 0.6 * s) for c, a, s in light), self.light.horizon, 0.3 * self.light.fog))

    def blob(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """An ellipse around (x, y), `width` and `height` its half axes."""
        h = self.image.height
        self.draw.ellipse(
            ((x - width) * h, (y - height) * h, (x + width) * h, (y + height) * h), fill=self.tint(colour)
        )

    def shape(self, corners: Array, colour: Colour) -> None:
        """A polygon [P, 2]."""
        self.draw.polygon([tuple(c) for c in (corners * self.image.height).tolist()], fill=self.tint(colour))

    def bar(self, left: float, top: float, width: float, height: float, colour: Colour) -> None:
        """A rectangle."""
        h = self.image.height
        self.draw.rectangle((left * h, top * h, (left + width) * h, (top + height) * h), fill=self.tint(colour))


def landmark_photo(landmark: Landmark, rng: Rng) -> Image.Image:
    """A photo of a landmark: from somewhere, at some time, with something in front of it."""
    canvas = _canvas(rng)
    camera = _camera(landmark.model, canvas.size, rng)
    setting = landmark.setting if rng.random() < 0.6 else str(rng.choice(list(_GROUNDS)))
    stage = _open_air(canvas, camera, setting, rng)
    _place(stage, landmark.model, camera)
    for _ in range(int(rng.choice([0, 1, 2, 4], p=[0.5, 0.32, 0.14, 0.04]))):
        _FOREGROUND[int(rng.integers(len(_FOREGROUND)))](stage)
    if rng.random() < 0.03:
        _portrait(stage)
    return _develop(stage)


def other_photo(rng: Rng) -> Image.Image:
    """A photo that shows no landmark: streets, landscapes, people, animals, food, rooms."""
    subject = _SUBJECTS[int(rng.choice(len(_SUBJECTS), p=[share for share, _ in _SUBJECTS]))][1]
    canvas = _canvas(rng)
    street = subject is _street or (subject is _portrait and rng.random() < 0.5)
    model = make_street(rng) if street else None
    camera = _camera(model, canvas.size, rng)
    stage = _open_air(canvas, camera, str(rng.choice(list(_GROUNDS))), rng)
    if model is not None:
        _place(stage, model, camera)
    if subject in {_room, _food}:
        stage = replace(stage, light=replace(stage.light, sun=(0, 0, 0), ambient=_LAMPS[int(rng.integers(2))], fog=0))
    subject(stage)
    return _develop(stage)


def _canvas(rng: Rng) -> Image.Image:
    longest = int(rng.integers(100, LONGEST + 1)) * _SUPERSAMPLE
    shortest = round(longest * float(rng.choice([0.67, 0.75, 1.0]))) // _SUPERSAMPLE * _SUPERSAMPLE
    return Image.new("RGB", (longest, shortest) if rng.random() < 0.6 else (shortest, longest))


def _camera(model: Model | None, size: tuple[int, int], rng: Rng) -> Camera:
    """Somewhere in front of the model, mostly: it fills from a third of the picture to more than all of it."""
    extent = model.high.max(axis=0) - model.low.min(axis=0) if model is not None else np.ones(3)  # [3] x, y, z
    azimuth = rng.normal(0, 0.33) if rng.random() < 0.96 else rng.uniform(-np.pi, np.pi)
    elevation = abs(rng.normal(0.03, 0.12)) if rng.random() < 0.95 else rng.uniform(0.3, 0.8)
    distance = rng.uniform(1.8, 5)
    across = extent[0] * abs(np.cos(azimuth)) + extent[1] * abs(np.sin(azimuth))
    fill = np.exp(rng.normal(-0.12, 0.2)) * min(size[0] / max(across, 0.3), size[1] / extent[2])
    centre = np.array(size) * (0.5 + rng.normal(0, (0.1, 0.06)))
    target = np.array([0, 0, extent[2] * 0.45])
    return look_at(
        target, azimuth=azimuth, elevation=elevation, distance=distance, focal=float(fill) * distance, centre=centre
    )


def _light(camera: Camera, rng: Rng) -> Light:
    _, sun, ambient, zenith, horizon, lit, fog = _LIGHTS[int(rng.choice(len(_LIGHTS), p=[row[0] for row in _LIGHTS]))]
    power, shift = np.exp(rng.normal(0, 0.1)), rng.normal(0, 0.03, 3)
    away = np.arctan2(*-camera.basis[2, :2] * (1, -1)) + rng.uniform(-1.7, 1.7)  # behind the photographer, or beside
    height = rng.uniform(0.35, 1.1)
    direction = np.array([np.sin(away) * np.cos(height), -np.cos(away) * np.cos(height), np.sin(height)])
    tints = [mix((np.asarray(colour) + shift) * power, colour, 0.3) for colour in (sun, ambient, zenith, horizon)]
    return Light(tints[0], tints[1], direction, tints[2], tints[3], lit, fog * float(rng.random()))


def _open_air(canvas: Image.Image, camera: Camera, setting: str, rng: Rng) -> Stage:
    """Sky, what stands far away, and the ground."""
    light = _light(camera, rng)
    stage = Stage(canvas, ImageDraw.Draw(canvas), light, rng)
    horizon = camera.horizon / canvas.height
    _sky(stage, max(horizon, 0.1))
    if rng.random() < 0.8:
        _FAR[int(rng.integers(len(_FAR)))](stage, horizon)
    ground = mix(_GROUNDS[setting], rng.random(3), 0.08)
    for near in np.linspace(0, 1, 6).tolist():  # far away it takes the colour of the sky
        stage.bar(0, horizon + near**1.5, stage.aspect, 3, mix(ground, light.horizon, 0.25 * (1 - near)))
    long = {"water": 0.2, "grass": 0.02}.get(setting, 0.08)
    marks = (mix(ground, (1, 1, 1), 0.12), mix(ground, (0, 0, 0), 0.12))
    for x, depth, pale in rng.random((50, 3)).tolist():  # waves, tufts, stones: longer close by
        near = depth**2
        place = ((stage.aspect + 0.1) * x - 0.1, horizon + 0.01 + near * 0.8)
        stage.bar(*place, long * (0.2 + near), 0.004 + 0.015 * near, marks[pale < 0.5])
    return stage


def _sky(stage: Stage, horizon: float) -> None:
    height, rng = stage.image.height, stage.rng
    share = np.clip(np.arange(height) / (height * horizon), 0, 1)[:, None]
    rows = np.asarray(stage.light.zenith) * (1 - share) + np.asarray(stage.light.horizon) * share
    strip = Image.fromarray((np.clip(rows, 0, 1) * 255).astype(np.uint8)[:, None])
    stage.image.paste(strip.resize(stage.image.size))
    if rng.random() < 0.6:
        clouds = Image.new("L", (32, 32))
        draw = ImageDraw.Draw(clouds)
        for x, y in rng.uniform((-4, -2), (32, 20), (int(rng.integers(2, 9)), 2)).tolist():
            draw.ellipse((x, y, x + rng.uniform(3, 14), y + rng.uniform(1, 4)), fill=int(rng.integers(60, 230)))
        mask = clouds.filter(ImageFilter.GaussianBlur(1)).resize(stage.image.size)
        stage.image.paste(to_bytes(mix(stage.light.horizon, (1, 1, 1), 0.5)), (0, 0), mask)


def _place(stage: Stage, model: Model, camera: Camera) -> None:
    """Draw a model with its shadow, when the sun throws one."""
    if max(stage.light.sun) > 0.4:
        ground = stage.image.getpixel((stage.image.width // 2, stage.image.height - 1))
        draw_shadow(stage.draw, model, camera, stage.light, mix(np.asarray(ground) / 255, (0.05, 0.05, 0.15), 0.45))
    lit = stage.rng.random(len(model.albedo)) < stage.light.lit
    draw_model(stage.draw, model, camera, stage.light, lit)


def _hills(stage: Stage, horizon: float) -> None:
    rng, x = stage.rng, np.linspace(-0.1, stage.aspect + 0.1, 24)
    for layer in range(int(rng.integers(1, 4))):
        waves = sum(rng.uniform(0.01, 0.08) / k * np.sin(k * x * 4 + rng.uniform(0, 6)) for k in (1, 2, 3, 5))
        ridge = horizon - np.abs(waves) - 0.03 * (3 - layer)
        colour = mix(mix((0.3, 0.42, 0.25), stage.light.horizon, 0.6 - 0.2 * layer), rng.random(3), 0.1)
        stage.shape(np.column_stack([np.r_[x, x[::-1]], np.r_[ridge, np.full(24, horizon + 0.02)]]), colour)


def _skyline(stage: Stage, horizon: float) -> None:
    rng = stage.rng
    for left in np.arange(-0.1, stage.aspect, rng.uniform(0.05, 0.12)).tolist():
        top = horizon - abs(rng.normal(0.06, 0.08))
        colour = mix(rng.uniform(0.35, 0.8, 3), stage.light.horizon, 0.45)
        stage.bar(left, top, rng.uniform(0.05, 0.14), horizon + 0.02 - top, colour)
        for y in np.arange(top + 0.015, horizon - 0.02, 0.03).tolist():
            stage.bar(left + 0.01, y, 0.03, 0.01, mix(colour, (0.1, 0.1, 0.2), 0.3))


def _wood(stage: Stage, horizon: float) -> None:
    rng, green = stage.rng, mix(stage.rng.uniform((0.15, 0.3, 0.1), (0.4, 0.5, 0.25)), stage.light.horizon, 0.2)
    for x in np.arange(0, stage.aspect, 0.03).tolist():
        r = rng.uniform(0.02, 0.07)
        stage.blob(x, horizon - r * 0.6, r, r, mix(green, (0, 0.1, 0), rng.uniform(0, 0.3)))


def _tree(stage: Stage) -> None:
    rng = stage.rng
    x, base, r = rng.uniform(0, stage.aspect), rng.uniform(0.75, 1.1), rng.uniform(0.06, 0.17)
    green: Colour = ((0.24, 0.42, 0.16), (0.36, 0.48, 0.2), (0.62, 0.42, 0.16))[int(rng.choice(3, p=[0.5, 0.4, 0.1]))]
    stage.bar(x - r * 0.1, base - r * 2.5, r * 0.2, r * 2.5, (0.34, 0.25, 0.18))
    for dx, dy in rng.normal(0, 0.45, (14, 2)).tolist():
        leaf = mix(green, (1, 1, 0.6) if dy < 0 else (0, 0, 0), rng.uniform(0, 0.2))
        stage.blob(x + r * dx, base - r * 2.6 + r * dy, r * 0.5, r * 0.45, leaf)


def _person(stage: Stage) -> None:
    rng = stage.rng
    x, feet, h = rng.uniform(0, stage.aspect), rng.uniform(0.85, 1.15), rng.uniform(0.12, 0.42)
    shirt, legs = mix(rng.random(3), (1, 1, 1), 0.1), mix(rng.random(3) * 0.5, (0, 0, 0), 0.1)
    stage.bar(x - h * 0.1, feet - h * 0.48, h * 0.09, h * 0.48, legs)
    stage.bar(x + h * 0.01, feet - h * 0.48, h * 0.09, h * 0.48, legs)
    stage.blob(x, feet - h * 0.62, h * 0.16, h * 0.22, shirt)
    skin = _SKINS[int(rng.integers(len(_SKINS)))]
    stage.blob(x, feet - h * 0.92, h * 0.085, h * 0.1, skin)
    stage.blob(x, feet - h * 0.97, h * 0.09, h * 0.06, mix(rng.random(3) * 0.4, (0, 0, 0), 0.3))


def _car(stage: Stage) -> None:
    rng = stage.rng
    x, y, s = rng.uniform(0, stage.aspect), rng.uniform(0.85, 1.0), rng.uniform(0.1, 0.28)
    paint = mix(rng.random(3), (0.5, 0.5, 0.5), 0.2)
    cabin = np.array([(-0.55, -0.3), (-0.3, -0.62), (0.3, -0.62), (0.6, -0.3)])
    stage.shape(cabin * s + (x, y), paint)
    stage.shape(cabin * (0.8, 0.85) * s + (x, y - 0.03 * s), (0.25, 0.3, 0.36))
    stage.bar(x - s, y - 0.32 * s, 2 * s, 0.3 * s, paint)
    for wheel in (-0.6, 0.6):
        stage.blob(x + wheel * s, y - 0.02 * s, 0.19 * s, 0.19 * s, (0.1, 0.1, 0.1))
        stage.blob(x + wheel * s, y - 0.02 * s, 0.09 * s, 0.09 * s, (0.6, 0.6, 0.62))


def _lamp(stage: Stage) -> None:
    x, top = stage.rng.uniform(0, stage.aspect), stage.rng.uniform(0.15, 0.5)
    stage.bar(x - 0.008, top, 0.016, 1, (0.15, 0.16, 0.18))
    stage.bar(x - 0.05, top, 0.1, 0.012, (0.15, 0.16, 0.18))
    for side in (-0.045, 0.045):
        stage.blob(x + side, top + 0.02, 0.02, 0.025, (0.95, 0.93, 0.8))


def _branches(stage: Stage) -> None:
    rng, side = stage.rng, float(stage.rng.integers(2)) * stage.aspect
    for dx, dy in np.abs(rng.normal(0, (0.22, 0.14), (40, 2))).tolist():
        leaf = mix((0.2, 0.34, 0.12), (0.5, 0.6, 0.25), rng.random())
        stage.blob(side + (dx if side == 0 else -dx), dy, rng.uniform(0.015, 0.04), rng.uniform(0.01, 0.03), leaf)


def _street(stage: Stage) -> None:
    for _ in range(int(stage.rng.integers(0, 4))):
        _FOREGROUND[int(stage.rng.integers(len(_FOREGROUND)))](stage)


def _landscape(stage: Stage) -> None:
    for _ in range(int(stage.rng.integers(0, 5))):
        (_tree, _tree, _branches, _person)[int(stage.rng.integers(4))](stage)


def _portrait(stage: Stage) -> None:
    """A face close by, as in a selfie."""
    rng = stage.rng
    x, y, r = stage.aspect * rng.uniform(0.25, 0.75), rng.uniform(0.5, 0.75), rng.uniform(0.14, 0.3)
    skin, hair = _SKINS[int(rng.integers(len(_SKINS)))], mix(rng.random(3) * 0.5, (0.1, 0.06, 0.04), 0.5)
    long = rng.random() < 0.5
    stage.blob(x, y - 0.1 * r, 1.1 * r, (1.7 if long else 1.25) * r, hair)
    stage.blob(x, y + 2.3 * r, 1.6 * r, 1.2 * r, mix(rng.random(3), (1, 1, 1), 0.2))
    stage.bar(x - 0.3 * r, y + 0.8 * r, 0.6 * r, 0.6 * r, mix(skin, (0, 0, 0), 0.15))
    stage.blob(x, y + 0.1 * r, 0.88 * r, 1.12 * r, skin)
    stage.blob(x, y - 0.85 * r, 0.85 * r, 0.4 * r, hair)
    for side in (-0.36, 0.36):
        stage.blob(x + side * r, y, 0.16 * r, 0.11 * r, (0.97, 0.97, 0.97))
        stage.blob(x + side * r, y, 0.08 * r, 0.1 * r, mix(rng.random(3) * 0.5, (0, 0, 0), 0.3))
        stage.bar(x + side * r - 0.2 * r, y - 0.28 * r, 0.4 * r, 0.06 * r, hair)
    stage.blob(x, y + 0.3 * r, 0.09 * r, 0.14 * r, mix(skin, (0.5, 0.2, 0.1), 0.25))
    smile = rng.uniform(0.05, 0.16) * r
    stage.blob(x, y + 0.6 * r, 0.34 * r, 0.1 * r + smile, (0.75, 0.25, 0.25))
    stage.blob(x, y + 0.6 * r - smile, 0.34 * r, 0.1 * r + smile * 0.5, skin)


def _animal(stage: Stage) -> None:
    rng = stage.rng
    x, y, r = stage.aspect * rng.uniform(0.35, 0.65), rng.uniform(0.6, 0.75), rng.uniform(0.14, 0.24)
    fur = mix(
        ((0.8, 0.55, 0.28), (0.3, 0.26, 0.25), (0.92, 0.9, 0.86), (0.55, 0.5, 0.46))[int(rng.integers(4))],
        rng.random(3),
        0.15,
    )
    dark, side = mix(fur, (0, 0, 0), 0.3), float(rng.choice([-1, 1]))
    for leg in (-0.7, -0.4, 0.3, 0.6):
        stage.bar(x + leg * r, y + 0.2 * r, 0.22 * r, 1.1 * r, dark)
    stage.blob(x - side * 1.3 * r, y - 0.4 * r, 0.14 * r, 0.6 * r, dark)
    stage.blob(x, y, 1.3 * r, 0.65 * r, fur)
    hx, hy = x + side * 1.1 * r, y - 0.75 * r
    ears = np.array(
        [
            (-0.55, -0.2),
            (-0.5, -rng.uniform(0.7, 1.1)),
            (-0.05, -0.45),
            (0.05, -0.45),
            (0.5, -rng.uniform(0.7, 1.1)),
            (0.55, -0.2),
        ]
    )
    stage.shape(ears * r + (hx, hy), dark)
    stage.blob(hx, hy, 0.6 * r, 0.52 * r, fur)
    stage.blob(hx, hy + 0.2 * r, 0.28 * r, 0.22 * r, mix(fur, (1, 1, 1), 0.4))
    stage.blob(hx, hy + 0.1 * r, 0.09 * r, 0.07 * r, (0.1, 0.05, 0.05))
    for eye in (-0.24, 0.24):
        stage.blob(hx + eye * r, hy - 0.1 * r, 0.09 * r, 0.1 * r, (0.05, 0.05, 0.05))


def _indoors(stage: Stage, wall: Colour, floor: Colour) -> None:
    """Cover the sky by the back wall, the side walls, the ceiling and the floor of a room."""
    rng, a = stage.rng, stage.aspect
    left, right, top, bottom = (
        a * rng.uniform(0, 0.25),
        a * rng.uniform(0.75, 1),
        rng.uniform(0, 0.2),
        rng.uniform(0.6, 0.75),
    )
    stage.bar(0, 0, a, 1, mix(wall, (0, 0, 0), 0.15))
    stage.shape(np.array([(0, 0), (a, 0), (right, top), (left, top)]), mix(wall, (1, 1, 1), 0.4))
    stage.shape(np.array([(0, 1), (a, 1), (right, bottom), (left, bottom)]), floor)
    stage.bar(left, top, right - left, bottom - top, wall)


def _room(stage: Stage) -> None:
    rng, a = stage.rng, stage.aspect
    _indoors(stage, mix(rng.random(3), (0.9, 0.87, 0.8), 0.6), mix(rng.random(3), (0.5, 0.36, 0.25), 0.7))
    x, w = a * rng.uniform(0.25, 0.55), rng.uniform(0.15, 0.3)
    stage.bar(x, rng.uniform(0.12, 0.2), w, 0.28, (0.95, 0.95, 0.92))
    stage.bar(x + 0.015, 0.2, w - 0.03, 0.18, mix(rng.random(3), (0.6, 0.8, 0.95), 0.6))
    sofa, left, width = mix(rng.random(3), (0.5, 0.4, 0.4), 0.3), a * rng.uniform(0, 0.4), rng.uniform(0.4, 0.7)
    stage.bar(left, 0.55, width, 0.2, mix(sofa, (0, 0, 0), 0.15))
    stage.bar(left - 0.05, 0.66, width + 0.1, 0.18, sofa)
    for end in (left - 0.05, left + width - 0.03):
        stage.bar(end, 0.6, 0.08, 0.25, mix(sofa, (1, 1, 1), 0.1))
    lamp = a * rng.uniform(0.75, 0.95)
    stage.bar(lamp - 0.01, 0.4, 0.02, 0.45, (0.2, 0.18, 0.16))
    shade = np.array([(-0.05, 0.31), (0.05, 0.31), (0.09, 0.44), (-0.09, 0.44)])
    stage.shape(shade + np.array([lamp, 0]), (1.0, 0.93, 0.7))


def _food(stage: Stage) -> None:
    """A plate on a table, from above."""
    rng, a = stage.rng, stage.aspect
    table, flat = mix(rng.random(3), (0.6, 0.45, 0.3), 0.5), rng.uniform(0.6, 1.0)
    stage.bar(0, 0, a, 1, table)
    for y in np.arange(rng.uniform(0, 0.2), 1, 0.2).tolist():
        stage.bar(0, y, a, 0.01, mix(table, (0, 0, 0), 0.2))
    x, y, r = a * rng.uniform(0.4, 0.6), rng.uniform(0.45, 0.6), rng.uniform(0.28, 0.42)
    for size, plate in ((1.04, 0.55), (1.0, 0.96), (0.72, 0.88)):
        stage.blob(x, y, r * size, r * size * flat, (plate, plate, plate * 0.98))
    for _ in range(int(rng.integers(2, 5))):
        kind = mix(
            ((0.8, 0.3, 0.15), (0.35, 0.6, 0.2), (0.92, 0.8, 0.4), (0.5, 0.3, 0.18))[int(rng.integers(4))],
            rng.random(3),
            0.1,
        )
        place, piece = rng.normal(0, 0.3, 2) * r, rng.uniform(0.06, 0.3) * r
        for dx, dy in rng.normal(0, 0.18, (int(rng.integers(1, 9)), 2)).tolist():
            stage.blob(
                x + place[0] + dx * r,
                y + (place[1] + dy * r) * flat,
                piece,
                piece * flat,
                mix(kind, (1, 1, 1), rng.uniform(0, 0.2)),
            )
    stage.bar(x + r * 1.2, y - r * 0.6, 0.015, r * 1.2, (0.8, 0.8, 0.82))
    stage.bar(x - r * 1.25, y - r * 0.6, 0.02, r * 1.2, (0.75, 0.75, 0.78))


_FOREGROUND: Sequence[Callable[[Stage], None]] = (_tree, _tree, _person, _person, _car, _lamp, _branches)
_FAR: Sequence[Callable[[Stage, float], None]] = (_hills, _skyline, _wood)
_SUBJECTS: Sequence[tuple[float, Callable[[Stage], None]]] = (
    (0.35, _street),
    (0.15, _landscape),
    (0.15, _portrait),
    (0.12, _animal),
    (0.12, _food),
    (0.11, _room),
)


def _develop(stage: Stage) -> Image.Image:
    """What the camera does to the picture: it is held askew, and has its own colours, contrast and noise."""
    rng, image = stage.rng, stage.image
    angle, zoom = rng.uniform(-0.08, 0.08), rng.uniform(0.84, 0.9)  # a zoom of .9 hides the corners of 5 degrees
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * zoom
    middle = np.array(image.size) / 2
    shift = middle - turn @ middle  # the middle stays where it is
    size = (image.width // _SUPERSAMPLE, image.height // _SUPERSAMPLE)
    turn *= _SUPERSAMPLE  # from the photo's pixels to the canvas's
    coefficients = (*turn[0], shift[0], *turn[1], shift[1])
    photo = image.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    if rng.random() < 0.04:
        photo = photo.convert("L").convert("RGB")
    balance = rng.normal(1, 0.03, (3, 1)) * rng.uniform(0.8, 1.1)
    curves = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.15)) * balance * 255  # [3, 256] one per channel
    toned = photo.point(np.clip(curves, 0, 255).astype(int).ravel().tolist())
    noise = rng.normal(0, rng.uniform(1, 6), (toned.height, toned.width, 1))
    return Image.fromarray(np.clip(np.asarray(toned) + noise, 0, 255).astype(np.uint8))
