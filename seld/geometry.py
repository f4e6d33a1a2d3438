"""Directions on the sphere: angles, unit vectors, rotations and grids of directions.

The conventions of the whole project, said once:

- Axes are x front, y left, z up, in the last dimension of every vector array.
- Azimuth is in degrees in [-180, 180), counter-clockwise seen from above (+90° is left).
  Elevation is in degrees in [-90, 90], +90° is up.
- Matrices act on column vectors (x, y, z).

Functions of arrays take numpy arrays (or numbers) and give numpy arrays, or take torch tensors and
give differentiable tensors on their device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from seld.errors import InputError

GridKind = Literal["fibonacci", "azimuth_elevation"]


@overload
def unit_vectors(azimuth_deg: Tensor, elevation_deg: Tensor | float) -> Tensor: ...
@overload
def unit_vectors(azimuth_deg: ArrayLike, elevation_deg: ArrayLike) -> NDArray[Any]: ...
def unit_vectors(azimuth_deg: Any, elevation_deg: Any) -> Any:
    """Unit vectors (..., 3) of directions given by their angles, broadcast to (...)."""
    backend = _backend(azimuth_deg)
    azimuth, elevation = _broadcast(backend, azimuth_deg, elevation_deg)
    azimuth, elevation = backend.deg2rad(azimuth), backend.deg2rad(elevation)
    horizontal = backend.cos(elevation)
    components = [
        horizontal * backend.cos(azimuth),
        horizontal * backend.sin(azimuth),
        backend.sin(elevation),
    ]
    return backend.stack(components, -1)


@overload
def azimuth_elevation(vectors: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def azimuth_elevation(vectors: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]: ...
def azimuth_elevation(vectors: Any) -> Any:
    """Azimuth in [-180, 180) and elevation in degrees, each (...), of vectors (..., 3).

    Vectors may have any positive length. At the poles the azimuth is 0 or -180.
    """
    backend = _backend(vectors)
    if backend is np:
        vectors = np.asarray(vectors)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    azimuth_deg = backend.rad2deg(backend.arctan2(y, x))
    azimuth_deg = backend.where(azimuth_deg >= 180.0, azimuth_deg - 360.0, azimuth_deg)
    # The arc tangent keeps its precision near the poles, where the arc sine loses half the digits.
    elevation_deg = backend.rad2deg(backend.arctan2(z, backend.hypot(x, y)))
    return azimuth_deg, elevation_deg


@overload
def angular_distance_deg(first: Tensor, second: Tensor) -> Tensor: ...
@overload
def angular_distance_deg(first: ArrayLike, second: ArrayLike) -> NDArray[Any]: ...
def angular_distance_deg(first: Any, second: Any) -> Any:
    """Angle in [0, 180] degrees between vectors (..., 3) of any positive length, broadcast.

    From cross and dot product, so that angles near 0° and 180° are exact to rounding.
    """
    backend = _backend(first)
    first, second = _broadcast(backend, first, second)
    cross = backend.linalg.norm(backend.linalg.cross(first, second), None, -1)
    dot = (first * second).sum(-1)
    return backend.rad2deg(backend.arctan2(cross, dot))


@overload
def rotation_about_z(azimuth_deg: Tensor) -> Tensor: ...
@overload
def rotation_about_z(azimuth_deg: ArrayLike) -> NDArray[Any]: ...
def rotation_about_z(azimuth_deg: Any) -> Any:
    """Matrices (..., 3, 3) that add ``azimuth_deg`` (...) to every azimuth."""
    backend = _backend(azimuth_deg)
    angle = backend.deg2rad(azimuth_deg)
    cosine, sine = backend.cos(angle), backend.sin(angle)
    zero, one = backend.zeros_like(angle), backend.ones_like(angle)
    rows = [
        backend.stack([cosine, -sine, zero], -1),
        backend.stack([sine, cosine, zero], -1),
        backend.stack([zero, zero, one], -1),
    ]
    return backend.stack(rows, -2)


def random_rotations(
    count: int,
    *,
    axes: Literal["any", "vertical"],
    generator: torch.Generator,
    minimum_angle_deg: float = 0.0,
) -> Tensor:
    """Random rotations (count, 3, 3), float32 on the CPU.

    Args:
        count: how many.
        axes: ``any`` is uniform on SO(3), ``vertical`` uniform about z.
        generator: CPU generator, the only source of randomness.
        minimum_angle_deg: rotations by less are never drawn; the others stay uniform.

    Raises:
        InputError: for a minimum angle outside [0, 180).
    """
    if not 0.0 <= minimum_angle_deg < 180.0:
        raise InputError(
            "random_rotations", "minimum_angle_deg", minimum_angle_deg, "0 to below 180 degrees"
        )
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    if axes == "vertical":
        angle_deg = minimum_angle_deg + uniform * (360.0 - 2.0 * minimum_angle_deg)
        return rotation_about_z(angle_deg).float()
    axis = torch.randn((count, 3), generator=generator, dtype=torch.float64)
    axis = torch.nn.functional.normalize(axis, dim=-1)
    least = math.radians(minimum_angle_deg)
    least_quantile = (least - math.sin(least)) / math.pi
    angle = _angle_at_quantile(least_quantile + uniform * (1.0 - least_quantile))
    cross = torch.zeros((count, 3, 3), dtype=torch.float64)
    cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0] = axis.unbind(-1)
    cross = cross - cross.transpose(1, 2)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    rotations = torch.eye(3, dtype=torch.float64) + sine * cross + (1.0 - cosine) * cross @ cross
    return rotations.float()


@cache
def channel_swaps() -> Tensor:
    """The eight transforms (8, 3, 3) that only swap FOA channels and flip their signs.

    Azimuth becomes ±azimuth + {0, 90, 180, -90} and elevation ±elevation, in the pairs of Wang et
    al. 2021, "A Four-Stage Data Augmentation Approach to ResNet-Conformer Based Acoustic Modeling
    for Sound Event Localization and Detection", table 1. The first is the identity; four are
    reflections (determinant -1), so a picture that goes with such a sound has to be mirrored.
    """
    azimuth_sign_elevation_sign_offset_deg = [
        (1, 1, 0),
        (1, 1, 180),
        (1, -1, 90),
        (1, -1, -90),
        (-1, -1, 0),
        (-1, -1, 180),
        (-1, 1, 90),
        (-1, 1, -90),
    ]
    swaps = [
        rotation_about_z(float(offset_deg)) @ np.diag([1.0, azimuth_sign, elevation_sign])
        for azimuth_sign, elevation_sign, offset_deg in azimuth_sign_elevation_sign_offset_deg
    ]
    return torch.from_numpy(np.rint(np.stack(swaps))).float()


def random_transforms(
    count: int,
    *,
    rotations: Literal["none", "vertical", "any"],
    swaps: bool,
    generator: torch.Generator,
) -> Tensor:
    """Random orthogonal matrices (count, 3, 3), float32 on the CPU, to augment scenes with.

    Args:
        count: how many.
        rotations: about which axes each turns, see :func:`random_rotations`.
        swaps: whether one of :func:`channel_swaps` follows, drawn anew for each.
        generator: CPU generator, the only source of randomness.
    """
    transforms = torch.eye(3).expand(count, 3, 3)
    if rotations != "none":
        transforms = random_rotations(count, axes=rotations, generator=generator)
    if swaps:
        choices = channel_swaps()
        drawn = torch.randint(len(choices), (count,), generator=generator)
        transforms = choices[drawn] @ transforms
    return transforms


@dataclass(frozen=True, kw_only=True)
class DoaGrid:
    """K fixed directions of arrival, spread over the sphere.

    Attributes:
        kind: ``fibonacci`` puts them on a golden spiral, nearly evenly; ``azimuth_elevation`` on
            rings of equally spaced elevation, with as many azimuths on each as its circumference
            asks for [ours].
        count: K, 4 to 64.
    """

    kind: GridKind = "fibonacci"
    count: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ("fibonacci", "azimuth_elevation"):
            raise InputError("DOA grid", "kind", self.kind, "fibonacci or azimuth_elevation")
        if not 4 <= self.count <= 64:
            raise InputError("DOA grid", "count", self.count, "4 to 64 directions")

    def vectors(self) -> NDArray[np.float32]:
        """Unit vectors (K, 3), from the lowest direction up."""
        vectors = self._spiral() if self.kind == "fibonacci" else self._rings()
        return vectors.astype(np.float32)

    def _spiral(self) -> NDArray[np.float64]:
        index = np.arange(self.count)
        height = (2.0 * index + 1.0) / self.count - 1.0
        golden_angle_deg = 180.0 * (3.0 - math.sqrt(5.0))
        return unit_vectors(index * golden_angle_deg, np.rad2deg(np.arcsin(height)))

    def _rings(self) -> NDArray[np.float64]:
        # Equal steps of angle along rings and between them: K directions need sqrt(pi K)/2 rings.
        ring_count = round(math.sqrt(math.pi * self.count) / 2.0)
        elevation_deg = -90.0 + (np.arange(ring_count) + 0.5) * 180.0 / ring_count
        circumference = np.cos(np.deg2rad(elevation_deg))
        bounds = np.concatenate([[0.0], np.cumsum(circumference) / circumference.sum()])
        sizes = np.diff(np.rint(bounds * self.count).astype(int))
        rings = [
            # Every other ring is turned by half a step, so that directions do not line up.
            unit_vectors((np.arange(size) + 0.5 * (ring % 2)) * 360.0 / size, elevation)
            for ring, (size, elevation) in enumerate(zip(sizes, elevation_deg, strict=True))
        ]
        return np.concatenate(rings)


def _angle_at_quantile(quantile: Tensor) -> Tensor:
    """Angle (radians) of uniform rotations at a quantile: solves (θ - sin θ)/π = quantile."""
    low, high = torch.zeros_like(quantile), torch.full_like(quantile, math.pi)
    for _ in range(52):  # as many halvings as a double has digits
        middle = 0.5 * (low + high)
        below = (middle - middle.sin()) / math.pi < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _backend(array: Any) -> Any:
    """The library that the array belongs to; the functions used are spelled alike in both."""
    return torch if isinstance(array, Tensor) else np


def _broadcast(backend: Any, first: Any, second: Any) -> Any:
    if backend is np:
        return np.broadcast_arrays(first, second)
    if not first.is_floating_point():  # whose type would cut off the fractions of the second
        first = first.to(torch.get_default_dtype())
    second = torch.as_tensor(second, dtype=first.dtype, device=first.device)
    return torch.broadcast_tensors(first, second)
