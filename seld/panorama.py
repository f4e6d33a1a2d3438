"""Equirectangular video → perspective crops at directions, batched on the tensor's device.

An equirectangular picture has azimuth +180° at its left edge, 0 in the middle and -180° at its
right edge, elevation +90° at the top. See :mod:`seld.geometry` for the axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seld.errors import InputError


def camera_matrices(directions: Tensor) -> Tensor:
    """Upright cameras (..., 3, 3) that look at ``directions`` (..., 3).

    The columns are the camera's forward, left and up in the scene's axes. A camera that looks
    straight up or down has its left at +y, as if it had been tilted from azimuth 0.
    """
    forward = F.normalize(directions.float(), dim=-1)
    x, y = forward[..., 0], forward[..., 1]
    horizontal = torch.hypot(x, y)
    at_pole = horizontal < 1e-6
    length = torch.where(at_pole, 1.0, horizontal)
    left_x = torch.where(at_pole, 0.0, -y / length)
    left_y = torch.where(at_pole, 1.0, x / length)
    left = torch.stack([left_x, left_y, torch.zeros_like(x)], dim=-1)
    return torch.stack([forward, left, torch.linalg.cross(forward, left)], dim=-1)


def perspective_crops(
    frames: Tensor, cameras: Tensor, *, field_of_view_deg: float, size_px: int
) -> Tensor:
    """Square perspective pictures of a panorama, bilinearly interpolated.

    Interpolation goes over the seam and over the poles. A picture rotated or reflected by an
    orthogonal R shows a camera what the untouched one shows ``R.T @ camera``, so augmentation
    turns cameras and never resamples the panorama.

    Args:
        frames: (batch, time, 3, height, width) equirectangular pictures of even width.
        cameras: (batch, K, 3, 3) as :func:`camera_matrices` gives them, or any orthogonal
            matrices; a reflection mirrors the crop. They hold for all frames of a clip.
        field_of_view_deg: between the outer edges of the crop's outermost pixels, below 180.
        size_px: height and width of the crop.

    Returns:
        float32 (batch, K, time, 3, size, size), differentiable in the frames.

    Raises:
        InputError: for an odd width, a field of view outside (0, 180) or a size below 1.
    """
    if not 0.0 < field_of_view_deg < 180.0:
        raise InputError("crops", "field_of_view_deg", field_of_view_deg, "between 0 and 180")
    if size_px < 1:
        raise InputError("crops", "size_px", size_px, "at least 1")
    batch, time, colours, height, width = frames.shape
    if width % 2:
        raise InputError("crops", "frame width", width, "an even number of pixels")
    views = cameras.shape[1]
    with torch.autocast(frames.device.type, enabled=False):
        grid = _sampling_grid(cameras.float(), height, width, field_of_view_deg, size_px)

        def seen(moment: int) -> Tensor:
            pictures = F.grid_sample(_wrapped(frames[:, moment]), grid, align_corners=False)
            return pictures.unflatten(2, (views, size_px)).transpose(1, 2)

        if time == 1:
            return seen(0).unsqueeze(2)  # as it is: copied into fresh memory it costs a sixth more
        crops = torch.empty(batch, views, time, colours, size_px, size_px, device=frames.device)
        # A camera sees all frames of its clip through the same grid. Frame by frame the pictures
        # stay in a CPU's cache, which is twice as fast as time in the channels.
        for moment in range(time):
            crops[:, :, moment] = seen(moment)
    return crops


@torch.no_grad()
def _sampling_grid(
    cameras: Tensor, height: int, width: int, field_of_view_deg: float, size_px: int
) -> Tensor:
    """Where each crop pixel lies in the wrapped picture: (batch, K * size, size, 2) in [-1, 1]."""
    half_extent = math.tan(math.radians(field_of_view_deg) / 2.0)
    centres = (torch.arange(size_px, device=cameras.device) + 0.5) * (2.0 / size_px) - 1.0
    # Left and up are positive, columns and rows count the other way.
    offsets = -half_extent * centres
    forward, left, up = (axis[..., None, None] for axis in cameras.unbind(-1))
    rays = (forward + up * offsets[:, None]) + left * offsets  # (batch, K, 3, size, size)
    x, y, z = rays.unbind(2)
    grid = cameras.new_empty(*x.shape, 2)
    # In wrapped pictures of two more rows and columns, full width is no longer 2.
    azimuth = torch.atan2(y, x)
    torch.mul(azimuth, -width / (math.pi * (width + 2)), out=grid[..., 0])
    horizontal = x.square_().addcmul_(y, y).sqrt_()
    elevation = torch.atan2(z, horizontal, out=horizontal)
    torch.mul(elevation, -2.0 * height / (math.pi * (height + 2)), out=grid[..., 1])
    return grid.flatten(1, 2)


def _wrapped(pictures: Tensor) -> Tensor:
    """Pictures as float32 with a border of one pixel: the neighbours across seam and poles."""
    *others, height, width = pictures.shape
    wrapped = torch.empty(*others, height + 2, width + 2, device=pictures.device)
    wrapped[..., 1:-1, 1:-1] = pictures
    half = width // 2
    for border, edge in ((0, 1), (-1, -2)):
        wrapped[..., border, 1 : half + 1] = wrapped[..., edge, half + 1 : -1]
        wrapped[..., border, half + 1 : -1] = wrapped[..., edge, 1 : half + 1]
    wrapped[..., 0] = wrapped[..., -2]
    wrapped[..., -1] = wrapped[..., 1]
    return wrapped
