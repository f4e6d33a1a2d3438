"""What stands on the audio encoder's latents: projection heads for pretraining, the SELD head.

Latents are (batch, label frame, dim). Projection heads pool over time, since a clip's crops have
one visual embedding each, and are thrown away after pretraining.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seld.annotations import MULTI_ACCDOA_TRACKS
from seld.errors import InputError

OutputFormat = Literal["accdoa", "multi_accdoa"]


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """Shape of a projection head.

    ``hidden_dim`` 0 makes it linear. ``time_pooling`` is the mean over frames, or ``attention``:
    each direction weighs the frames by a learnt score. ``harmonics_order`` is the order of the
    spherical harmonics by which the direction-conditioned head knows a direction.
    """

    embedding_dim: int = 128
    hidden_dim: int = 256
    time_pooling: Literal["mean", "attention"] = "mean"
    harmonics_order: int = 3

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise InputError("projection head", "embedding_dim", self.embedding_dim, "at least 1")
        if self.hidden_dim < 0:
            raise InputError("projection head", "hidden_dim", self.hidden_dim, "0 (linear) or more")
        if not 1 <= self.harmonics_order <= 10:
            raise InputError(
                "projection head", "harmonics_order", self.harmonics_order, "from 1 to 10"
            )


class GridProjectionHead(nn.Module):
    """The paper's: the embeddings of all K directions of a fixed grid jointly from the latents."""

    def __init__(self, dim: int, direction_count: int, settings: ProjectionSettings) -> None:
        super().__init__()
        self.direction_count = direction_count
        self.hidden, width = _hidden_layer(dim, settings)
        self.score = (
            nn.Linear(width, direction_count) if settings.time_pooling == "attention" else None
        )
        self.embed = nn.Linear(width, direction_count * settings.embedding_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → (batch, direction, embedding)."""
        hidden = self.hidden(latents)
        if self.score is None:
            return self.embed(hidden.mean(1)).unflatten(-1, (self.direction_count, -1))
        embeddings = self.embed(hidden).unflatten(-1, (self.direction_count, -1))
        weights = self.score(hidden).softmax(1)
        return torch.einsum("nfk,nfkd->nkd", weights, embeddings)


class DirectionConditionedHead(nn.Module):
    """One embedding for any direction asked for: the direction modulates the latents. [ours]

    The real spherical harmonics of a direction set a scale and a shift for each hidden unit
    (FiLM; Perez et al., AAAI 2018) in every frame before pooling, so that a moving or short sound
    answers in the frames where it is there. Any grid, or jittered directions, can be asked for.
    """

    def __init__(self, dim: int, settings: ProjectionSettings) -> None:
        super().__init__()
        if settings.hidden_dim == 0:
            raise InputError(
                "direction-conditioned head", "hidden_dim", 0, "at least 1: directions act there"
            )
        self.order = settings.harmonics_order
        hidden = settings.hidden_dim
        self.project = nn.Linear(dim, hidden)
        self.condition = nn.Sequential(
            nn.Linear((self.order + 1) ** 2, hidden), nn.GELU(), nn.Linear(hidden, 2 * hidden)
        )
        self.score = nn.Linear(hidden, 1) if settings.time_pooling == "attention" else None
        self.embed = nn.Linear(hidden, settings.embedding_dim)

    def forward(self, latents: Tensor, directions: Tensor) -> Tensor:
        """Latents (batch, frame, dim), unit vectors (batch, direction, 3) → (batch, direction,
        embedding)."""
        harmonics = real_spherical_harmonics(directions.float(), self.order)
        scale, shift = self.condition(harmonics).unsqueeze(1).chunk(2, dim=-1)
        # (batch, frame, direction, hidden) is the largest tensor of a step on a CPU: fused, and
        # with the frames where their sum is one of whole rows, it takes half the time.
        hidden = F.gelu(torch.addcmul(shift, self.project(latents).unsqueeze(2), 1 + scale))
        if self.score is None:
            return self.embed(hidden.sum(1) / hidden.shape[1])
        return self.embed((hidden * self.score(hidden).softmax(1)).sum(1))


class PooledProjectionHead(nn.Module):
    """One embedding per recording, without directions: the AVC baseline's."""

    def __init__(self, dim: int, settings: ProjectionSettings) -> None:
        super().__init__()
        self.grid = GridProjectionHead(dim, 1, settings)

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → (batch, embedding)."""
        return self.grid(latents).squeeze(1)


class SeldHead(nn.Module):
    """Activity-coupled direction vectors per class: ACCDOA, or three tracks of it (multi-ACCDOA).

    Shimada et al., ICASSP 2021 and 2022. A vector's length is the activity.
    """

    def __init__(self, dim: int, class_count: int, output_format: OutputFormat) -> None:
        super().__init__()
        tracks = (MULTI_ACCDOA_TRACKS,) if output_format == "multi_accdoa" else ()
        self.output_shape = (*tracks, class_count, 3)
        self.hidden = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, math.prod(self.output_shape))

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, frame, dim) → (batch, frame, class, 3), or (batch, frame, track, class, 3)."""
        output = self.output(F.gelu(self.hidden(latents))).float()
        return output.tanh().unflatten(-1, self.output_shape)


def real_spherical_harmonics(directions: Tensor, order: int) -> Tensor:
    """Real spherical harmonics of unit vectors in ACN order, N3D (each of mean square 1).

    Args:
        directions: (..., 3) unit vectors (x front, y left, z up).
        order: highest degree; at order 1 the columns are 1, √3 y, √3 z, √3 x.

    Returns:
        (..., (order + 1)²).
    """
    x, y, z = directions.unbind(-1)
    # (x + iy)^m carries azimuth and sin^m of the polar angle; what remains of the associated
    # Legendre function is a polynomial in z, by its recurrence in the degree.
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(order):
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(cosine * x - sine * y)
        sines.append(cosine * y + sine * x)
    legendre: dict[tuple[int, int], Tensor] = {}
    for m in range(order + 1):
        legendre[m, m] = torch.full_like(z, math.prod(range(2 * m - 1, 0, -2)))
        for degree in range(m + 1, order + 1):
            below = legendre[degree - 1, m] * (2 * degree - 1) * z
            if degree > m + 1:
                below = below - (degree + m - 1) * legendre[degree - 2, m]
            legendre[degree, m] = below / (degree - m)
    columns = []
    for degree in range(order + 1):
        for m in range(-degree, degree + 1):
            size = abs(m)
            ratio = math.factorial(degree - size) / math.factorial(degree + size)
            norm = math.sqrt((2 * degree + 1) * (1 if m == 0 else 2) * ratio)
            angular = sines[size] if m < 0 else cosines[size]
            columns.append(norm * legendre[degree, size] * angular)
    return torch.stack(columns, dim=-1)


def _hidden_layer(dim: int, settings: ProjectionSettings) -> tuple[nn.Module, int]:
    if settings.hidden_dim == 0:
        return nn.Identity(), dim
    return nn.Sequential(nn.Linear(dim, settings.hidden_dim), nn.GELU()), settings.hidden_dim
