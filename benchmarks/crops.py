"""Perspective crops beside ``py360convert.e2p``: 26 of 112×112 px from 480×960 px, one core.

``python benchmarks/crops.py`` checks that both give the same pictures, times them in turn in one
run and prints the ratio of the medians per crop. py360convert keeps the sampling maps of the last
few cameras; it is timed as a training run meets it (every camera new) and with its maps at hand.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import time

import numpy as np
import py360convert
import torch
from numpy.typing import NDArray
from py360convert.utils import EquirecSampler

from seld.geometry import DoaGrid, azimuth_elevation
from seld.panorama import camera_matrices, perspective_crops

FIELD_OF_VIEW_DEG = 70.0
SIZE_PX = 112


def py360convert_crop(
    picture: NDArray[np.float32], azimuth_deg: float, elevation_deg: float
) -> NDArray[np.float32]:
    """One crop (size, size, 3) of a picture (height, width, 3); py360convert counts right as +."""
    return py360convert.e2p(
        picture, FIELD_OF_VIEW_DEG, -azimuth_deg, elevation_deg, (SIZE_PX, SIZE_PX)
    )


def smooth_picture(height: int, width: int) -> NDArray[np.float32]:
    """Waves over the sphere, smooth at seam and poles, in [0, 1]: (height, width, 3)."""
    elevation = np.deg2rad(90.0 - (np.arange(height) + 0.5) * 180.0 / height)[:, None]
    azimuth = np.deg2rad(180.0 - (np.arange(width) + 0.5) * 360.0 / width)
    x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
    z = np.broadcast_to(np.sin(elevation), x.shape)
    waves = [np.sin(9.0 * x + 4.0 * y), np.sin(7.0 * y - 5.0 * z), np.sin(8.0 * z + 6.0 * x)]
    return (0.5 + 0.5 * np.stack(waves, axis=-1)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directions", type=int, default=26, help="K")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    picture = smooth_picture(480, 960)
    frames = torch.from_numpy(picture).permute(2, 0, 1).contiguous()[None, None]
    directions = DoaGrid(kind="fibonacci", count=arguments.directions).vectors()
    angles = list(zip(*(part.tolist() for part in azimuth_elevation(directions)), strict=True))

    def ours() -> torch.Tensor:
        cameras = camera_matrices(torch.from_numpy(directions))[None]
        return perspective_crops(
            frames, cameras, field_of_view_deg=FIELD_OF_VIEW_DEG, size_px=SIZE_PX
        )

    def theirs() -> NDArray[np.float32]:
        return np.stack([py360convert_crop(picture, *direction) for direction in angles])

    # py360convert puts the field of view between the centres of the outermost pixels, we between
    # their outer edges: the same cameras, spaced a little differently.
    with torch.inference_mode():
        scale = _edge_to_centre_deg(FIELD_OF_VIEW_DEG)
        cameras = camera_matrices(torch.from_numpy(directions))[None]
        same = perspective_crops(frames, cameras, field_of_view_deg=scale, size_px=SIZE_PX)
        difference = np.abs(same[0, :, 0].permute(0, 2, 3, 1).numpy() - theirs()).max()
        assert difference < 2e-3, difference
        new_s, cached_s, ours_s = [], [], []
        for _ in range(arguments.repeats):
            EquirecSampler.from_perspective.cache_clear()
            new_s.append(_seconds(theirs))
            per_camera = []
            for direction in angles:
                py360convert_crop(picture, *direction)
                per_camera.append(_seconds(lambda at=direction: py360convert_crop(picture, *at)))
            cached_s.append(sum(per_camera))
            ours_s.append(_seconds(ours))
    new_ms, cached_ms, ours_ms = (
        1e3 * float(np.median(taken)) / len(angles) for taken in (new_s, cached_s, ours_s)
    )
    print(f"{len(angles)} crops of {SIZE_PX}×{SIZE_PX} px from 480×960 px, one core, per crop")
    print(f"  largest difference           {difference:.1e}")
    print(f"  py360convert, new cameras    {new_ms:8.3f} ms")
    print(f"  py360convert, cached maps    {cached_ms:8.3f} ms")
    print(f"  seld.perspective_crops       {ours_ms:8.3f} ms")
    print(f"  ratio                        {new_ms / ours_ms:8.1f} x")
    print(f"  ratio to cached maps         {cached_ms / ours_ms:8.1f} x")


def _edge_to_centre_deg(field_of_view_deg: float) -> float:
    """Field of view between outer edges whose outermost pixel centres span the given one."""
    half = np.tan(np.deg2rad(field_of_view_deg) / 2.0) * SIZE_PX / (SIZE_PX - 1)
    return float(np.rad2deg(2.0 * np.arctan(half)))


def _seconds(function: object) -> float:
    assert callable(function)
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
