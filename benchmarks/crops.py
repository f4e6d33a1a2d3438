"""Perspective crops beside ``py360convert.e2p``: 26 of 112×112 px from 480×960 px, one core.

``python benchmarks/crops.py`` checks that both give the same pictures, times them in turn in one
run and prints the ratios of the medians per crop, of CPU time (steady on a busy machine) and of
wall time, for a single picture and for a clip. Cameras are new, as a training run meets them: both
make a sampling map per camera, once for all frames of a clip. py360convert keeps the maps of the
last few cameras, so it takes a camera's frames one after another; what it takes once the map is
there is timed too, and set beside our clip, maps included.

The target is a ratio of 10. Measured in CPU time on one core of a busy shared AMD EPYC, three runs:
11.6, 10.3 and 12.4 for a single frame; 9.8, 8.1 and 9.1 for a clip of 8 frames, which misses it;
9.0, 7.4 and 8.2 beside maps at hand. py360convert resampled with SciPy; it would with OpenCV where
that is installed.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import time
from collections.abc import Callable

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
    parser.add_argument("--frames", type=int, default=8, help="of the clip")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    picture = smooth_picture(480, 960)
    frames = torch.from_numpy(picture).permute(2, 0, 1).contiguous()[None, None]
    directions = DoaGrid(kind="fibonacci", count=arguments.directions).vectors()
    angles = list(zip(*(part.tolist() for part in azimuth_elevation(directions)), strict=True))

    clip = frames.expand(-1, arguments.frames, -1, -1, -1).contiguous()
    clip_name = f"{arguments.frames} frames"
    others = [picture.copy() for _ in range(arguments.frames - 1)]

    def ours(pictures: torch.Tensor = frames) -> torch.Tensor:
        cameras = camera_matrices(torch.from_numpy(directions))[None]
        return perspective_crops(
            pictures, cameras, field_of_view_deg=FIELD_OF_VIEW_DEG, size_px=SIZE_PX
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
        crop_count = len(angles)
        taken: dict[str, list[tuple[NDArray, NDArray]]] = {}
        for _ in range(arguments.repeats):
            EquirecSampler.from_perspective.cache_clear()
            new, cached = np.zeros(2), np.zeros(2)
            for direction in angles:  # outermost: a camera's map serves all frames of the clip
                new += _seconds(lambda at=direction: py360convert_crop(picture, *at))
                cached += _seconds(
                    lambda at=direction: [py360convert_crop(other, *at) for other in others]
                )
            one_s, clip_s = _seconds(ours), _seconds(lambda: ours(clip)) / arguments.frames
            taken.setdefault("one frame", []).append((new, one_s))
            taken.setdefault(clip_name, []).append(((new + cached) / arguments.frames, clip_s))
            taken.setdefault("  its maps at hand", []).append((cached / len(others), clip_s))
    print(f"{crop_count} crops of {SIZE_PX}×{SIZE_PX} px from 480×960 px, one core, per crop")
    print(f"  {'largest difference':<20}{difference:.1e}")
    print(
        f"  {'':<20}{'py360convert: CPU, wall':>27}{'seld: CPU, wall':>27}{'ratio: CPU, wall':>20}"
    )
    for name, seconds in taken.items():
        theirs_ms, ours_ms = 1e3 * np.median(seconds, axis=0) / crop_count
        figures = [f"{value:10.3f} ms" for value in (*theirs_ms, *ours_ms)]
        ratios = [f"{ratio:8.1f} x" for ratio in theirs_ms / ours_ms]
        print(f"  {name:<20}" + "".join(figures + ratios))


def _edge_to_centre_deg(field_of_view_deg: float) -> float:
    """Field of view between outer edges whose outermost pixel centres span the given one."""
    half = np.tan(np.deg2rad(field_of_view_deg) / 2.0) * SIZE_PX / (SIZE_PX - 1)
    return float(np.rad2deg(2.0 * np.arctan(half)))


def _seconds(function: Callable[[], object]) -> NDArray[np.float64]:
    """CPU and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return np.array([time.process_time() - cpu, time.perf_counter() - wall])


if __name__ == "__main__":
    main()
