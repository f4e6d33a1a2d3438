"""First-order ambisonics of known content: plane waves, and what turning a sound field does."""

from __future__ import annotations

import torch
from torch import Tensor

from seld.ambisonics import plane_wave_gains


def encode(signal: Tensor, directions: Tensor) -> Tensor:
    """Plane waves (..., 4, time) of signals (..., time) from unit vectors (..., 3)."""
    gains = torch.from_numpy(plane_wave_gains(directions.numpy()))
    return gains[..., None] * signal[..., None, :]


def rotate(foa: Tensor, matrix: Tensor) -> Tensor:
    """Rotate or reflect the sound field.

    Args:
        foa: (..., 4, time).
        matrix: (..., 3, 3) orthogonal, acting on (x, y, z); broadcast over (...).

    Returns:
        (..., 4, time): what came from direction v comes from ``matrix @ v``.
    """
    xyz_to_acn = [1, 2, 0]
    dipoles = matrix[..., xyz_to_acn, :][..., xyz_to_acn] @ foa[..., 1:, :]
    omni = foa[..., :1, :].expand(*dipoles.shape[:-2], 1, -1)
    return torch.cat([omni, dipoles], dim=-2)
