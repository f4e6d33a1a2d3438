"""Directions: conventions, round trips, rotations, grids."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seld.errors import InputError
from seld.geometry import (
    DoaGrid,
    angular_distance_deg,
    azimuth_elevation,
    channel_swaps,
    random_rotations,
    random_transforms,
    rotation_about_z,
    unit_vectors,
)

azimuths = st.floats(-180.0, 180.0, exclude_max=True)
elevations = st.floats(-89.999, 89.999)


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "vector"),
    [(0, 0, (1, 0, 0)), (90, 0, (0, 1, 0)), (-180, 0, (-1, 0, 0)), (0, 90, (0, 0, 1))],
)
def test_axes(azimuth_deg: float, elevation_deg: float, vector: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(unit_vectors(azimuth_deg, elevation_deg), vector, atol=1e-15)


@given(azimuths, elevations)
def test_angles_survive_vectors(azimuth_deg: float, elevation_deg: float) -> None:
    azimuth, elevation = azimuth_elevation(3.0 * unit_vectors(azimuth_deg, elevation_deg))
    assert -180.0 <= azimuth < 180.0
    assert abs((azimuth - azimuth_deg + 180.0) % 360.0 - 180.0) < 1e-8
    assert elevation == pytest.approx(elevation_deg, abs=1e-10)


def test_azimuth_180_is_written_as_minus_180() -> None:
    assert azimuth_elevation([-1.0, 0.0, 0.0])[0] == -180.0


def test_torch_equals_numpy() -> None:
    azimuth_deg, elevation_deg = np.linspace(-180, 179, 50), np.linspace(-90, 90, 50)
    vectors = unit_vectors(torch.from_numpy(azimuth_deg), torch.from_numpy(elevation_deg))
    np.testing.assert_allclose(vectors.numpy(), unit_vectors(azimuth_deg, elevation_deg))
    distances = angular_distance_deg(vectors[:, None], vectors)
    np.testing.assert_allclose(
        distances.numpy(),
        angular_distance_deg(vectors.numpy()[:, None], vectors.numpy()),
        atol=1e-9,
    )


@given(azimuths, elevations, st.floats(1e-9, 179.999999))
def test_distance_is_exact_near_its_ends(
    azimuth_deg: float, elevation_deg: float, angle_deg: float
) -> None:
    start = unit_vectors(azimuth_deg, elevation_deg)
    tangent = np.cross(start, unit_vectors(azimuth_deg + 90.0, 0.0))
    angle = np.deg2rad(angle_deg)
    end = np.cos(angle) * start + np.sin(angle) * tangent / np.linalg.norm(tangent)
    assert angular_distance_deg(start, end) == pytest.approx(angle_deg, rel=1e-6, abs=1e-12)


def test_whole_numbers_do_not_cut_off_fractions() -> None:
    whole, directions = torch.tensor([10]), torch.eye(3, dtype=torch.int64)
    expected = unit_vectors(torch.tensor([10.0]), 30.7)
    assert torch.equal(unit_vectors(whole, 30.7), expected)
    assert torch.equal(unit_vectors(whole, torch.tensor([30.7])), expected)
    distance_deg = angular_distance_deg(directions, torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(distance_deg, torch.tensor([45.0, 45.0, 90.0]))
    assert unit_vectors(torch.tensor([10.0], dtype=torch.float64), 30.7).dtype == torch.float64


def test_distance_of_equal_directions_has_a_gradient() -> None:
    vector = torch.tensor([0.6, 0.0, 0.8], requires_grad=True)
    angular_distance_deg(vector, torch.tensor([0.6, 0.0, 0.8])).backward()
    assert vector.grad is not None
    assert bool(vector.grad.isfinite().all())


@given(azimuths, azimuths, elevations)
def test_rotation_about_z_adds_azimuth(turn: float, azimuth: float, elevation: float) -> None:
    turned = rotation_about_z(turn) @ unit_vectors(azimuth, elevation)
    np.testing.assert_allclose(turned, unit_vectors(azimuth + turn, elevation), atol=1e-12)


@pytest.mark.parametrize("axes", ["any", "vertical"])
def test_random_rotations_are_rotations_of_at_least_the_angle(
    axes: Literal["any", "vertical"],
) -> None:
    rotations = random_rotations(
        2000, axes=axes, generator=torch.Generator().manual_seed(1), minimum_angle_deg=60.0
    )
    torch.testing.assert_close(
        rotations @ rotations.mT, torch.eye(3).expand(2000, 3, 3), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(2000))
    trace = rotations.diagonal(dim1=1, dim2=2).sum(-1)
    assert float(torch.rad2deg(torch.acos((trace - 1.0) / 2.0)).min()) > 59.9
    if axes == "vertical":
        assert torch.equal(rotations[:, 2], torch.tensor([0.0, 0.0, 1.0]).expand(2000, 3))


def test_random_rotations_are_uniform() -> None:
    rotations = random_rotations(20000, axes="any", generator=torch.Generator().manual_seed(2))
    # Under the uniform distribution every entry has mean 0 and mean square 1/3, and a uniformly
    # turned vector has a uniform height.
    torch.testing.assert_close(rotations.mean(0), torch.zeros(3, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(
        rotations.square().mean(0), torch.full((3, 3), 1 / 3), atol=0.02, rtol=0
    )
    heights = rotations[:, 2, 0].sort().values
    torch.testing.assert_close(heights, torch.linspace(-1, 1, 20000), atol=0.03, rtol=0)
    # The angle has density (1 - cos θ)/π: its mean is π/2 + 2/π.
    trace = rotations.diagonal(dim1=1, dim2=2).sum(-1)
    angle = torch.acos(((trace - 1.0) / 2.0).clamp(-1, 1))
    assert float(angle.mean()) == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)


def test_random_rotations_repeat_with_their_generator() -> None:
    first, second = (
        random_rotations(5, axes="any", generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    with pytest.raises(InputError, match="minimum_angle_deg"):
        random_rotations(1, axes="any", generator=torch.Generator(), minimum_angle_deg=180.0)


def test_channel_swaps_are_the_published_eight() -> None:
    swaps = channel_swaps()
    azimuth, elevation = 20.0, 30.0
    expected = {
        (azimuth, elevation), (azimuth + 180, elevation),
        (azimuth + 90, -elevation), (azimuth - 90, -elevation),
        (-azimuth, -elevation), (-azimuth + 180, -elevation),
        (-azimuth + 90, elevation), (-azimuth - 90, elevation),
    }  # fmt: skip
    turned = azimuth_elevation(swaps.double() @ torch.from_numpy(unit_vectors(azimuth, elevation)))
    found = {(round(float(a)) % 360, round(float(e))) for a, e in zip(*turned, strict=True)}
    assert found == {(a % 360, e) for a, e in expected}
    assert torch.equal(swaps[0], torch.eye(3))
    assert torch.equal(swaps.abs().sum(1), torch.ones(8, 3))
    assert torch.linalg.det(swaps).sort().values.tolist() == [-1] * 4 + [1] * 4


def test_random_transforms_draw_all_swaps_and_turn_before_them() -> None:
    def drawn(rotations: Literal["none", "vertical"], swaps: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return random_transforms(64, rotations=rotations, swaps=swaps, generator=generator)

    assert torch.equal(drawn("none", False), torch.eye(3).expand(64, 3, 3))
    swaps = drawn("none", True)
    distances = (channel_swaps() - swaps[:, None]).abs().sum((2, 3))
    assert set(distances.argmin(dim=1).tolist()) == set(range(8))
    assert torch.all(distances.min(dim=1).values == 0)
    turned = drawn("vertical", True) @ drawn("vertical", False).transpose(1, 2)
    assert torch.all((channel_swaps() - turned[:, None]).abs().sum((2, 3)).min(dim=1).values < 1e-5)


@pytest.mark.parametrize("kind", ["fibonacci", "azimuth_elevation"])
def test_grids_spread_any_count(kind: Literal["fibonacci", "azimuth_elevation"]) -> None:
    for count in range(4, 65):
        vectors = DoaGrid(kind=kind, count=count).vectors()
        assert vectors.shape == (count, 3)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
        distance = angular_distance_deg(vectors[:, None], vectors) + 360.0 * np.eye(count)
        # The best any grid can do is about 218°/sqrt(K) (hexagonal packing).
        assert distance.min() > 0.45 * 218.0 / np.sqrt(count)
        everywhere = unit_vectors(*np.meshgrid(np.arange(-180, 180, 15), np.arange(-90, 91, 15)))
        reach = angular_distance_deg(everywhere[..., None, :], vectors).min(axis=-1)
        assert reach.max() < 1.6 * 120.0 / np.sqrt(count) + 5.0


def test_grid_refuses_other_counts_and_kinds() -> None:
    with pytest.raises(InputError, match="count is 3"):
        DoaGrid(count=3)
    with pytest.raises(InputError, match="kind is 'cube'"):
        DoaGrid(kind="cube")  # pyright: ignore[reportArgumentType]
