"""Crops of panoramas: exact projection, seam, poles, rotations and mirrors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from seld.errors import InputError
from seld.geometry import channel_swaps, random_rotations, rotation_about_z, unit_vectors
from seld.panorama import camera_matrices, perspective_crops

HEIGHT, WIDTH, SIZE = 240, 480, 64
FIELD_OF_VIEW_DEG = 60.0

#: Front, seam, both poles, beside the poles, and the seam high up: azimuth, elevation.
DIRECTIONS = [(0, 0), (100, -20), (-180, 0), (179, 40), (0, 90), (30, 85), (-120, -88), (0, -90)]


def pixel_directions() -> Tensor:
    """What each panorama pixel's centre looks at: (height, width, 3)."""
    azimuth_deg = 180.0 - (np.arange(WIDTH) + 0.5) * 360.0 / WIDTH
    elevation_deg = 90.0 - (np.arange(HEIGHT) + 0.5) * 180.0 / HEIGHT
    return torch.from_numpy(unit_vectors(azimuth_deg, elevation_deg[:, None])).float()


def marker_picture(marker: Tensor, width_deg: float = 3.0) -> Tensor:
    """A round blurred spot drawn on the sphere: (1, 1, 3, height, width)."""
    cosine = (pixel_directions() * marker).sum(-1)
    spot = torch.exp((cosine - 1.0) / math.radians(width_deg) ** 2)
    return spot.expand(1, 1, 3, HEIGHT, WIDTH)


def colour_picture(transform: Tensor) -> Tensor:
    """A smooth picture on the sphere, rotated or reflected: (1, 1, 3, height, width)."""
    x, y, z = (pixel_directions() @ transform).unbind(-1)  # what lay at Rᵀv now lies at v
    colours = [torch.sin(4 * x + y), torch.cos(3 * y - 2 * z), x * z + y]
    return (0.5 + 0.25 * torch.stack(colours))[None, None]


def crop(picture: Tensor, cameras: Tensor) -> Tensor:
    """Crops (K, 3, size, size) of one picture."""
    return perspective_crops(
        picture, cameras[None], field_of_view_deg=FIELD_OF_VIEW_DEG, size_px=SIZE
    )[0, :, 0]


def cameras_at(directions_deg: list[tuple[int, int]]) -> Tensor:
    angles = np.array(directions_deg, dtype=float).T
    return camera_matrices(torch.from_numpy(unit_vectors(*angles)))


@pytest.mark.parametrize("direction_deg", DIRECTIONS)
@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, 0.2), (-0.4, 0.1), (0.1, -0.45)])
def test_marker_appears_where_exact_projection_puts_it(
    direction_deg: tuple[int, int], offset: tuple[float, float]
) -> None:
    camera = cameras_at([direction_deg])
    left, up = offset  # tangents of the angles from the camera's axis
    marker = torch.nn.functional.normalize(camera[0] @ torch.tensor([1.0, left, up]), dim=0)
    spot = crop(marker_picture(marker), camera)[0, 0].double()
    pixels_per_tangent = SIZE / 2 / math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    column = SIZE / 2 - 0.5 - left * pixels_per_tangent
    row = SIZE / 2 - 0.5 - up * pixels_per_tangent
    brightest = np.unravel_index(int(spot.argmax()), spot.shape)
    assert abs(brightest[0] - row) < 1.0
    assert abs(brightest[1] - column) < 1.0
    # The centre of gravity finds a fraction of a pixel: no half-pixel shift anywhere.
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    near = spot * ((rows - row).square() + (columns - column).square() < 9.0**2)
    assert float((near * rows).sum() / near.sum()) == pytest.approx(row, abs=0.35)
    assert float((near * columns).sum() / near.sum()) == pytest.approx(column, abs=0.35)


def test_every_pixel_equals_the_scene_at_its_ray() -> None:
    cameras = cameras_at(DIRECTIONS)
    half = math.tan(math.radians(FIELD_OF_VIEW_DEG / 2))
    tangents = -half * ((torch.arange(SIZE) + 0.5) * 2 / SIZE - 1)
    up, left = torch.meshgrid(tangents, tangents, indexing="ij")
    rays = torch.stack([torch.ones_like(up), left, up], dim=-1) @ cameras.mT[:, None]
    x, y, z = torch.nn.functional.normalize(rays, dim=-1).unbind(-1)
    scene = [torch.sin(4 * x + y), torch.cos(3 * y - 2 * z), x * z + y]
    expected = 0.5 + 0.25 * torch.stack(scene, dim=1)
    torch.testing.assert_close(
        crop(colour_picture(torch.eye(3)), cameras), expected, atol=5e-4, rtol=0
    )


def test_rotated_or_mirrored_picture_equals_turned_cameras() -> None:
    cameras = cameras_at(DIRECTIONS)
    rotations = random_rotations(3, axes="any", generator=torch.Generator().manual_seed(0))
    mirrored_rotation = rotations[2] @ torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    for transform in [*channel_swaps(), *rotations, mirrored_rotation]:
        torch.testing.assert_close(
            crop(colour_picture(transform), cameras),
            crop(colour_picture(torch.eye(3)), transform.T @ cameras),
            atol=1e-3,
            rtol=0,
        )


def test_a_quarter_turn_of_random_pixels_is_exact() -> None:
    picture = torch.rand(1, 1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    cameras = cameras_at(DIRECTIONS)
    turned = picture.roll(-16, dims=-1)  # columns run towards the right: azimuth + 90°
    quarter = rotation_about_z(torch.tensor(90.0))
    torch.testing.assert_close(
        crop(turned, cameras), crop(picture, quarter.T @ cameras), atol=1e-3, rtol=0
    )
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    torch.testing.assert_close(
        crop(picture.flip(-1), cameras), crop(picture, mirror @ cameras), atol=1e-3, rtol=0
    )


def test_cameras_are_upright_rotations() -> None:
    cameras = cameras_at(DIRECTIONS)
    identity = torch.eye(3).expand_as(cameras)
    torch.testing.assert_close(cameras @ cameras.mT, identity, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(cameras), torch.ones(len(DIRECTIONS)))
    assert bool((cameras[:, 2, 1] == 0).all())  # left is horizontal
    assert bool((cameras[:, 2, 2] >= -1e-6).all())  # up is not down
    straight_up = camera_matrices(torch.tensor([0.0, 0.0, 1.0]))
    assert straight_up[:, 1].tolist() == [0.0, 1.0, 0.0]


def test_batch_and_time_equal_single_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 3, 3, 32, 64, generator=generator)
    cameras = random_rotations(8, axes="any", generator=generator).unflatten(0, (2, 4))
    crops = perspective_crops(frames, cameras, field_of_view_deg=80.0, size_px=16)
    assert crops.shape == (2, 4, 3, 3, 16, 16)
    for clip in range(2):
        for view in range(4):
            for moment in range(3):
                single = perspective_crops(
                    frames[clip : clip + 1, moment : moment + 1],
                    cameras[clip : clip + 1, view : view + 1],
                    field_of_view_deg=80.0,
                    size_px=16,
                )
                torch.testing.assert_close(crops[clip, view, moment], single[0, 0, 0])
    again = perspective_crops(frames, cameras, field_of_view_deg=80.0, size_px=16)
    assert torch.equal(crops, again)


def test_crops_are_float32_inside_autocast_and_have_gradients() -> None:
    frames = torch.rand(1, 1, 3, 16, 32, requires_grad=True)
    cameras = cameras_at(DIRECTIONS)[None]
    outside = perspective_crops(frames, cameras, field_of_view_deg=60.0, size_px=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = perspective_crops(frames, cameras, field_of_view_deg=60.0, size_px=8)
    assert torch.equal(inside, outside)
    outside.sum().backward()
    assert frames.grad is not None
    # Bilinear weights sum to one for every pixel, at the seam and at the poles too.
    assert float(frames.grad.sum()) == pytest.approx(outside.numel(), rel=1e-4)


@pytest.mark.parametrize("field_of_view_deg", [0.0, 180.0, math.nan])
def test_impossible_fields_of_view_are_refused(field_of_view_deg: float) -> None:
    with pytest.raises(InputError, match="field_of_view_deg"):
        perspective_crops(
            torch.zeros(1, 1, 3, 8, 16),
            torch.eye(3)[None, None],
            field_of_view_deg=field_of_view_deg,
            size_px=4,
        )


def test_odd_width_is_refused() -> None:
    with pytest.raises(InputError, match="frame width is 15"):
        perspective_crops(
            torch.zeros(1, 1, 3, 8, 15), torch.eye(3)[None, None], field_of_view_deg=60, size_px=4
        )
