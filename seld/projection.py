"""Which video frames are not one equirectangular panorama, told from the pictures alone.

YouTube serves 360° video as an equi-angular cubemap too, and some videos hold a picture for each
eye, one above or beside the other. Taken for equirectangular, what is seen lies in wrong
directions. What a container declares (:mod:`seld.media`) is easily lost when segments are cut out
and encoded again, and FFmpeg passes by a projection given as a mesh; so the pictures must tell. All
measures are of frames averaged to about 64 rows.

**Stereo.** The halves of a picture, each less the means of its rows and columns, correlate if they
show the same twice. A panorama's upper half has a pole, where rows are constant, at its top and the
lower half has one at its bottom, so they never do. A scene that repeats itself after 180° does look
as if it were side by side; it cannot teach what is in front and what behind either.

**Cubemap.** YouTube's has the faces left, front, right above and down, back, up below, the latter
three on their sides (FFmpeg's ``v360`` filter calls it ``eac``). Its faces have eight edges that
belong together but lie apart. ``fit`` is the RMS difference of their colours, ``spread`` what it
would be were they strangers, ``seam`` the RMS difference of the picture's left and right edge,
which an equirectangular one has as neighbours. Nearly all of the eight pairs would join a
panorama's sky to its ground or its horizon, so that its ``fit`` is no less than ``spread``. (That
the seam is broken and the poles' rows are not constant was tried instead. It misses half of the
cubemaps, or rejects panoramas whose exposure steps at the seam or that have a flat caption.)

The thresholds were set on 26 photographic panoramas (Poly Haven's, as Blender and the npm package
``@pmndrs/assets`` ship them), each turned at random six times and compressed as JPEG of quality 60,
and on 2376 frames of the embedded benchmark. "Damaged" panoramas have a nadir disc, black bars, a
flat caption, an exposure step at the seam, noise, or lack 45° of elevation. Cubemaps were made by
``v360``, the second eye's pictures by shifts of up to 4°. Minimum, median and maximum:

=========================  =================  =================  ================
64 rows                    likeness           fit / spread       fit / seam
=========================  =================  =================  ================
panoramas, above           -0.67 -0.10  0.12  0.94  1.12  1.29   1.54 6.37 23.4
panoramas, beside          -0.54 -0.09  0.59
damaged, above             -0.70 -0.10  0.46  0.81  1.08  1.30   0.65 7.00 75.1
damaged, beside            -0.63 -0.11  0.60
benchmark, above           -0.35 -0.05  0.29  0.87  1.13  1.27   1.07 7.68 21.2
benchmark, beside          -0.32  0.05  0.45
cubemaps                                      0.05  0.15  0.40   0.05 0.15 0.58
cubemaps of the benchmark                     0.07  0.19  0.53   0.06 0.18 0.55
top-bottom                  0.74  0.96  0.99
side by side                0.84  0.97  1.00
threshold                   0.85              0.6                0.8
=========================  =================  =================  ================

So all 552 cubemaps, 154 of 156 top-bottom and 311 of 312 side-by-side pictures (half of them of
180°) were told, and none of the 3624 panoramas was rejected; nor were the photographs with 16 or
256 rows. At a twentieth of their brightness they gave no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["equirectangular", "cubemap", "top-bottom", "side by side"]

#: Rows to which larger frames are averaged, and fewer than which tell nothing.
_ROWS, _FEWEST_ROWS = 64, 16
#: RMS of the halves less their rows' and columns' means, in grey values, under which they are flat.
_LEAST_CONTRAST = 4.0
_LEAST_LIKENESS = 0.85
#: RMS difference of colours between strange edges, under which the edges are flat.
_LEAST_SPREAD = 10.0
_MOST_FIT_TO_SPREAD, _MOST_FIT_TO_SEAM = 0.6, 0.8
#: Of the frames that tell anything, as many must agree; of all frames, half must tell.
_AGREEING_SHARE, _TELLING_SHARE = 0.9, 0.5

#: (face, edge) that belong together but lie apart. Faces are numbered in rows: left, front, right,
#: down, back, up. Edges run clockwise round their face, so the two of a pair run against another.
_CUBEMAP_EDGES = (
    ((0, "left"), (4, "bottom")),
    ((2, "right"), (4, "top")),
    ((1, "top"), (5, "right")),
    ((1, "bottom"), (3, "left")),
    ((0, "top"), (5, "bottom")),
    ((2, "top"), (5, "top")),
    ((0, "bottom"), (3, "bottom")),
    ((2, "bottom"), (3, "top")),
)


def common_layout(layouts: Sequence[Layout | None]) -> Layout:
    """What nearly all of a video's frames look like; "equirectangular" unless that is clear."""
    telling: list[Layout] = [layout for layout in layouts if layout is not None]
    if not telling or len(telling) < _TELLING_SHARE * len(layouts):
        return "equirectangular"
    layout = max(telling, key=telling.count)
    agreeing = telling.count(layout) >= _AGREEING_SHARE * len(telling)
    return layout if agreeing else "equirectangular"


def frame_layout(frame: NDArray[np.uint8]) -> Layout | None:
    """What one frame (height, width, 3) looks like; None: too dark, flat or small to tell.

    "equirectangular" means no more than that it looks like none of the others.
    """
    picture = _averaged(frame)
    height, width, _ = picture.shape
    if min(height, width) < _FEWEST_ROWS:
        return None
    stacked = _likeness(picture[: height // 2], picture[height // 2 :])
    beside = _likeness(picture[:, : width // 2], picture[:, width // 2 :])
    if stacked is None and beside is None:
        return None
    if stacked is not None and stacked > _LEAST_LIKENESS:
        return "top-bottom"
    if beside is not None and beside > _LEAST_LIKENESS:
        return "side by side"
    fit, spread, seam = _cubemap_fit(picture)
    flat = spread < _LEAST_SPREAD
    if not flat and fit < _MOST_FIT_TO_SPREAD * spread and fit < _MOST_FIT_TO_SEAM * seam:
        return "cubemap"
    return "equirectangular"


def _averaged(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 picture of about 64 rows; height and width are even."""
    height, width, _ = frame.shape
    factor = max(height // _ROWS, 1)
    rows, columns = height // (2 * factor) * 2, width // (2 * factor) * 2
    blocks = frame[: rows * factor, : columns * factor].astype(np.float32)
    return blocks.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))


def _likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    """Correlation (-1 to 1) of two pictures less their rows' and columns' means; None: flat."""
    first, second = (
        picture - picture.mean(axis=0) - picture.mean(axis=1, keepdims=True) + picture.mean((0, 1))
        for picture in (first, second)
    )
    power = np.sqrt(np.square(first).mean() * np.square(second).mean())
    if power < _LEAST_CONTRAST**2:
        return None
    return float((first * second).mean() / power)


def _cubemap_fit(picture: NDArray[np.float32]) -> tuple[float, float, float]:
    """(fit, spread, seam) as the module's docstring defines them, in grey values."""
    height, width, _ = picture.shape
    columns = [round(third * width / 3) for third in range(4)]
    faces = [
        picture[first : first + height // 2, columns[third] : columns[third + 1]]
        for first in (0, height // 2)
        for third in range(3)
    ]
    edges = [[_edge(faces[face], side) for face, side in pair] for pair in _CUBEMAP_EDGES]
    one, other = np.array(edges).swapaxes(0, 1)  # each (pair, place, colour)
    spread = 2 * np.var(np.stack([one, other]), axis=(0, 1, 2)).sum()
    differences = (one - other[:, ::-1], picture[:, 0] - picture[:, -1])
    fit, seam = (np.square(difference).sum(axis=-1).mean() for difference in differences)
    return float(np.sqrt(fit)), float(np.sqrt(spread)), float(np.sqrt(seam))


def _edge(face: NDArray[np.float32], side: str) -> NDArray[np.float32]:
    """A face's edge, clockwise, as many samples (place, colour) as the face has rows."""
    lines = {
        "top": face[0],
        "right": face[:, -1],
        "bottom": face[-1, ::-1],
        "left": face[::-1, 0],
    }
    line, count = lines[side], len(face)
    places = (np.arange(count) + 0.5) * len(line) / count - 0.5
    colours = [np.interp(places, np.arange(len(line)), line[:, colour]) for colour in range(3)]
    return np.stack(colours, axis=1)
