"""Equirectangular pictures: a room, and the objects in it at their true directions.

A class is a shape, a texture, a pair of hues and a way to move while sounding; each object
varies all of them but the shape and the kind of texture. Conventions as in :mod:`seld.geometry`.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_GOLDEN_RATIO = 0.618034
_RADIUS_DEG = (14.0, 24.0)
_RADIUS_M = (0.35, 0.7)
_CORNER = 1.45  # the farthest point of any shape, in radii
#: Each pixel of a small picture is the mean of this many squared.
_SUPERSAMPLING_BELOW = ((128, 3), (512, 2))

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross", "bar")
TEXTURES = ("stripes", "rings", "checks", "spokes", "halves")
MOTIONS = ("flow", "pulse", "swing", "flash")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one object looks. Colours are RGB (3,) in 0-1."""

    shape: str
    texture: str
    motion: str
    colours: tuple[NDArray, NDArray]
    cycles: float
    phase: float
    roll_rad: float
    radius_m: float
    motion_rate_hz: float


def draw_look(class_id: int, class_count: int, generator: np.random.Generator) -> Look:
    """An object of a class; neighbouring classes share hues, so colour alone does not tell."""
    hue = class_id / class_count + generator.normal(0, 0.04)
    other_hue = hue + 0.25 + 0.5 * (class_id * _GOLDEN_RATIO % 1) + generator.normal(0, 0.06)
    colours = tuple(
        np.array(colorsys.hsv_to_rgb(value % 1, generator.uniform(0.55, 1), brightness))
        for value, brightness in (
            (hue, generator.uniform(0.7, 1)),
            (other_hue, generator.uniform(0.25, 0.7)),
        )
    )
    return Look(
        shape=SHAPES[class_id % len(SHAPES)],
        texture=TEXTURES[class_id % len(TEXTURES)],
        motion=MOTIONS[class_id % len(MOTIONS)],
        colours=(colours[0], colours[1]),
        cycles=float(generator.uniform(0.8, 1.4)),
        phase=float(generator.uniform(0, 1)),
        roll_rad=float(generator.normal(0, 0.3)),
        radius_m=float(generator.uniform(*_RADIUS_M)),
        motion_rate_hz=float(generator.uniform(0.7, 1.6)),
    )


def draw_background(
    height_px: int, room: np.random.Generator, recording: np.random.Generator
) -> NDArray[np.float32]:
    """A room (height, width, 3) in 0-1: floor, walls, ceiling and dull furniture."""
    width_px = 2 * height_px
    elevation = 90 - (np.arange(height_px) + 0.5) * 180 / height_px
    azimuth = 180 - (np.arange(width_px) + 0.5) * 360 / width_px
    floor, wall, ceiling = (
        np.array(colorsys.hsv_to_rgb(room.random(), room.uniform(0, 0.3), room.uniform(low, high)))
        for low, high in ((0.2, 0.5), (0.35, 0.7), (0.6, 0.9))
    )
    corners = 8 * np.abs(np.cos(np.radians(2 * (azimuth + room.uniform(0, 90)))))
    upper = np.degrees(np.arctan(room.uniform(0.4, 1.0))) + corners
    lower = -np.degrees(np.arctan(room.uniform(0.4, 0.8))) - corners
    picture = np.where(
        (elevation[:, None] > upper)[..., None],
        ceiling,
        np.where((elevation[:, None] < lower)[..., None], floor, wall),
    )
    for _ in range(room.integers(4, 10)):
        centre_deg, width_deg = room.uniform(-180, 180), room.uniform(5, 25)
        bottom_deg = room.uniform(-40, 10)
        top_deg = bottom_deg + room.uniform(8, 45)
        colour = colorsys.hsv_to_rgb(room.random(), room.uniform(0, 0.45), room.uniform(0.15, 0.85))
        across = np.abs((azimuth - centre_deg + 180) % 360 - 180) < width_deg
        upright = (elevation > bottom_deg) & (elevation < top_deg)
        picture[upright[:, None] & across] = colour
    grain = room.standard_normal((height_px, width_px))
    for size, strength in ((height_px / 32, 0.25), (height_px / 8, 0.5)):
        smooth = ndimage.gaussian_filter(grain, size, mode=["nearest", "wrap"])  # type: ignore[arg-type]
        picture = picture + (strength * 0.12 * smooth / smooth.std())[..., None]
    return np.clip(picture * recording.uniform(0.75, 1.15), 0, 1).astype(np.float32)


class PanoramaPainter:
    """Paints objects into equirectangular pictures of one size."""

    def __init__(self, height_px: int) -> None:
        self.height_px, self.width_px = height_px, 2 * height_px
        self.supersampling = next(
            (factor for below, factor in _SUPERSAMPLING_BELOW if height_px < below), 1
        )
        rows = (np.arange(height_px * self.supersampling) + 0.5) / self.supersampling
        columns = (np.arange(self.width_px * self.supersampling) + 0.5) / self.supersampling
        elevation = np.radians(90 - rows * 180 / height_px).astype(np.float32)
        azimuth = np.radians(180 - columns * 360 / self.width_px).astype(np.float32)
        self._sin_elevation, self._cos_elevation = np.sin(elevation), np.cos(elevation)
        self._sin_azimuth, self._cos_azimuth = np.sin(azimuth), np.cos(azimuth)

    def paint(
        self,
        picture: NDArray[np.float32],
        look: Look,
        direction: NDArray,
        distance_m: float,
        sounding_s: float | None,
    ) -> None:
        """Paint one object into ``picture`` (height, width, 3) in place.

        ``direction`` is a unit vector (3,); ``sounding_s`` how long it has been sounding, None
        while it does not.
        """
        radius = np.clip(np.degrees(np.arctan2(look.radius_m, distance_m)), *_RADIUS_DEG)
        cycle = 0.0 if sounding_s is None else sounding_s * look.motion_rate_hz
        beat = np.sin(2 * np.pi * cycle)
        radius *= 1 + 0.2 * beat * (look.motion == "pulse")
        roll = look.roll_rad + 0.5 * beat * (look.motion == "swing")
        brightness = 1 + 0.35 * beat * (look.motion == "flash")
        phase = look.phase + cycle * (look.motion == "flow")
        rows, columns = self._box(direction, np.radians(_CORNER * radius))
        right, up, ahead = self._in_view(rows, columns, direction)
        scale = np.tan(np.radians(radius))
        right, up = right / scale, up / scale
        x = right * np.cos(roll) + up * np.sin(roll)
        y = up * np.cos(roll) - right * np.sin(roll)
        inside = _shape(look.shape, x, y) & ahead
        mix = _texture(look.texture, x, y, look.cycles, phase)[..., None].astype(np.float32)
        first, second = (
            np.float32(brightness) * colour.astype(np.float32) for colour in look.colours
        )
        colour = np.clip(mix * first + (1 - mix) * second, 0, 1) * inside[..., None]
        colour = colour.astype(np.float32)
        cover, colour = self._pooled(inside[..., None].astype(np.float32)), self._pooled(colour)
        places = np.ix_(rows, columns)
        picture[places] = picture[places] * (1 - cover) + colour

    def _box(self, direction: NDArray, reach_rad: float) -> tuple[NDArray, NDArray]:
        """Rows and columns that can hold anything within ``reach_rad`` of ``direction``."""
        azimuth = np.arctan2(direction[1], direction[0])
        elevation = np.arcsin(np.clip(direction[2], -1, 1))
        row_rad = np.pi / self.height_px
        first = max(int((np.pi / 2 - elevation - reach_rad) / row_rad), 0)
        last = min(int(np.ceil((np.pi / 2 - elevation + reach_rad) / row_rad)), self.height_px)
        to_side = np.sin(reach_rad) / max(np.cos(elevation), 1e-6)
        if abs(elevation) + reach_rad >= np.pi / 2 or to_side >= 1:
            return np.arange(first, last), np.arange(self.width_px)
        half = int(np.ceil(np.arcsin(to_side) / row_rad)) + 1
        centre = int((np.pi - azimuth) / row_rad)
        columns = np.arange(centre - half, centre + half + 1)[: self.width_px] % self.width_px
        return np.arange(first, last), columns

    def _in_view(
        self, rows: NDArray, columns: NDArray, direction: NDArray
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Gnomonic coordinates (right, up) around ``direction``, and what is ahead at all."""
        fine = np.arange(self.supersampling)
        rows = (rows[:, None] * self.supersampling + fine).ravel()
        columns = (columns[:, None] * self.supersampling + fine).ravel()
        horizontal = self._cos_elevation[rows, None]
        x = horizontal * self._cos_azimuth[columns]
        y = horizontal * self._sin_azimuth[columns]
        z = self._sin_elevation[rows, None]
        cos_elevation = max(float(np.hypot(direction[0], direction[1])), 1e-9)
        sin_a, cos_a = direction[1] / cos_elevation, direction[0] / cos_elevation
        outward = x * cos_a + y * sin_a
        forward = outward * cos_elevation + z * direction[2]
        ahead = forward > 0.1
        forward = np.where(ahead, forward, 1)
        right = (x * sin_a - y * cos_a) / forward
        up = (z * cos_elevation - outward * direction[2]) / forward
        return right, up, ahead

    def _pooled(self, fine: NDArray[np.float32]) -> NDArray[np.float32]:
        factor = self.supersampling
        height, width, channels = fine.shape
        blocks = fine.reshape(height // factor, factor, width // factor, factor, channels)
        return blocks.mean(axis=(1, 3))


def _shape(name: str, x: NDArray, y: NDArray) -> NDArray[np.bool_]:
    """Where the object is, in units of its radius."""
    if name == "disc":
        return x * x + y * y < 1
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) < 0.88
    if name == "triangle":
        return (y > -0.7) & (np.abs(x) * 1.75 + y < 1.05)
    if name == "star":
        return np.hypot(x, y) < 0.8 + 0.32 * np.cos(5 * np.arctan2(x, y))
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.75) < 0.3
    if name == "cross":
        return (np.minimum(np.abs(x), np.abs(y)) < 0.34) & (np.maximum(np.abs(x), np.abs(y)) < 1.05)
    assert name == "bar", name
    return (np.abs(x) < 0.42) & (np.abs(y) < 1.3)


def _texture(name: str, x: NDArray, y: NDArray, cycles: float, phase: float) -> NDArray:
    """How much of the first colour, 0-1."""
    turn = 2 * np.pi
    if name == "stripes":
        wave = np.sin(turn * (cycles * x + phase))
    elif name == "rings":
        wave = np.sin(turn * (cycles * 1.2 * np.hypot(x, y) - phase))
    elif name == "checks":
        wave = 1.6 * np.sin(turn * (0.8 * cycles * x + phase)) * np.sin(turn * 0.8 * cycles * y)
    elif name == "spokes":
        wave = np.sin(3 * np.arctan2(y, x) + turn * phase)
    else:
        assert name == "halves", name
        wave = y * np.cos(turn * phase) + x * np.sin(turn * phase)
    return 0.5 + 0.5 * np.clip(2.5 * wave, -1, 1)
