"""Which directions of a scene the pretraining loss looks at, and how much each counts.

The paper takes K fixed directions. Most of them are empty in most windows, so the loss spends
itself on pairs that have nothing in common; ``energy_peaks`` [ours] looks where the sound's
intensity points instead, which needs no labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from seld.errors import InputError
from seld.geometry import DoaGrid, random_rotations
from trainables.steps import of_first_rank

#: Directions near which energy peaks are looked for, some 24° apart.
_SEARCH_GRID = DoaGrid(kind="fibonacci", count=64)
#: Of the lobe exp(sharpness (cos - 1)) within which a direction hears; 8 halves it at 24°.
_LOBE_SHARPNESS = 8.0


@dataclass(frozen=True, kw_only=True)
class DirectionSettings:
    """How the K directions of a window are drawn.

    Attributes:
        sampling: ``grid`` (the paper's) takes every direction of ``grid``; ``energy_peaks``
            [ours] takes the ``peak_count`` directions from which most arrives and
            ``random_count`` uniform ones.
        grid: the fixed directions of ``grid`` sampling.
        grid_rotation: turns the whole grid at random at every step, about the vertical axis or
            any; the ``grid`` projection head needs ``none``, because its outputs belong to fixed
            directions.
        refinements: how often a peak, at first the loudest of 64 directions, moves to the mean of
            what arrives around it. A lone source's is 10° off with 0, and within 1° with 2, which
            the benchmark's objects, as wide as they are, do not ask for (LOG, 2026-11-28).
        suppression_deg: a peak closer than this to a stronger one is not taken.
        jitter_deg: standard deviation of the error added to each peak, so that crops are not
            always centred.
        weighting: of the K directions in the loss: ``uniform``, or (``energy``) by the amplitude,
            the square root of the energy, that arrives from them (:func:`arriving_amplitude`).
        random_weight_share: with ``energy`` weighting and ``energy_peaks``, the share of a
            window's weight that its random directions get together.
        exclusion_deg: directions of the same window closer than this are no negatives of each
            other (they show the same thing).
    """

    sampling: Literal["grid", "energy_peaks"] = "energy_peaks"
    grid: DoaGrid = field(default_factory=lambda: DoaGrid(kind="fibonacci", count=16))
    grid_rotation: Literal["none", "vertical", "any"] = "none"
    peak_count: int = 2
    random_count: int = 1
    refinements: int = 0
    suppression_deg: float = 40.0
    jitter_deg: float = 6.0
    weighting: Literal["uniform", "energy"] = "energy"
    random_weight_share: float = 0.15
    exclusion_deg: float = 35.0

    def __post_init__(self) -> None:
        if self.peak_count < 1 or self.random_count < 0:
            raise InputError(
                "directions",
                "peak_count, random_count",
                (self.peak_count, self.random_count),
                "at least one peak and no negative count",
            )
        if self.refinements < 0:
            raise InputError("directions", "refinements", self.refinements, "0 or more")
        if not 0.0 <= self.random_weight_share < 1.0:
            raise InputError(
                "directions", "random_weight_share", self.random_weight_share, "0 to below 1"
            )
        for name in ("suppression_deg", "jitter_deg", "exclusion_deg"):
            if not 0.0 <= getattr(self, name) <= 180.0:
                raise InputError("directions", name, getattr(self, name), "0 to 180 degrees")

    @property
    def count(self) -> int:
        """K, the directions per window."""
        if self.sampling == "grid":
            return self.grid.count
        return self.peak_count + self.random_count


class Directions(NamedTuple):
    """The K directions of each window of a batch.

    ``vectors`` (batch, K, 3) unit vectors; ``weights`` (batch, K) with mean 1 over the batch;
    ``excluded`` (batch, K, K) pairs that are no negatives of each other.
    """

    vectors: Tensor
    weights: Tensor
    excluded: Tensor


def choose_directions(
    intensity: Tensor, level: Tensor, settings: DirectionSettings, generator: torch.Generator
) -> Directions:
    """Draw the directions of each window.

    Args:
        intensity: (batch, 3, frames, bands) intensity vectors, length 1 for a plane wave.
        level: (batch, frames, bands) natural logarithm of the energy.
        settings: how to draw.
        generator: CPU generator; the only source of randomness.
    """
    batch, device = intensity.shape[0], intensity.device
    if settings.sampling == "grid":
        vectors = torch.from_numpy(settings.grid.vectors()).to(device)
        if settings.grid_rotation != "none":
            turn = random_rotations(1, axes=settings.grid_rotation, generator=generator)[0]
            # Recordings are compared at the same directions, whichever rank has them.
            vectors = vectors @ of_first_rank(turn.to(device)).T
        vectors = vectors.expand(batch, -1, -1)
        amplitude = arriving_amplitude(intensity, level, vectors)
        weights = amplitude / amplitude.mean(dim=1, keepdim=True)
    else:
        vectors, peak_amplitude = _peaks_and_random(intensity, level, settings, generator)
        share = settings.random_weight_share if settings.random_count else 0.0
        weights = torch.cat(
            [
                (1.0 - share) * peak_amplitude / peak_amplitude.sum(dim=1, keepdim=True),
                torch.full(
                    (batch, settings.random_count), share / max(settings.random_count, 1)
                ).to(device),
            ],
            dim=1,
        )
    if settings.weighting == "uniform":
        weights = torch.ones_like(weights)
    excluded = near_directions(vectors, vectors, settings)
    excluded &= ~torch.eye(vectors.shape[1], dtype=torch.bool, device=device)
    return Directions(vectors, weights / weights.mean(), excluded)


def near_directions(first: Tensor, second: Tensor, settings: DirectionSettings) -> Tensor:
    """Which of (batch, K, 3) and (batch, L, 3) are too near to be negatives: (batch, K, L)."""
    cosine = first @ second.transpose(1, 2)
    return cosine > math.cos(math.radians(settings.exclusion_deg))


def random_directions(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (batch, count, 3), uniform on the sphere."""
    drawn = torch.randn((batch, count, 3), generator=generator)
    return torch.nn.functional.normalize(drawn, dim=-1)


def arriving_amplitude(intensity: Tensor, level: Tensor, directions: Tensor) -> Tensor:
    """Amplitude that arrives from each direction, by where the intensity vectors point.

    A first-order beam is too wide to tell two sources apart. Instead each time-frequency cell
    gives its amplitude to the directions near its intensity vector, the less the more diffuse it
    is (as in directional audio coding, Pulkki 2007). The amplitude is the square root of the
    energy, so that a source twice as far away, 6 dB lower, counts half and not a quarter.

    Args:
        intensity: (batch, 3, frames, bands).
        level: (batch, frames, bands) natural logarithm of the energy.
        directions: (batch, K, 3) or (K, 3).

    Returns:
        (batch, K), positive, in the unit of the square root of the energy.
    """
    return _amplitude_towards(directions, *_cells(intensity, level))


def _cells(intensity: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Where sound comes from, unit vectors (batch, 3, cell), and its amplitude (batch, 1, cell)."""
    amplitude = torch.exp(0.5 * level)[:, None]
    # Cells of 100 ms and four bands: a twentieth of the work, and still mostly one source each.
    pooled = torch.nn.functional.avg_pool2d(intensity * amplitude, (5, 4), ceil_mode=True)
    cells = pooled.flatten(2)
    length = (cells.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()
    return cells / length, length


def _lobes(directions: Tensor, origins: Tensor) -> Tensor:
    """How much of each cell a direction hears: (batch, K, cell)."""
    return torch.exp(_LOBE_SHARPNESS * (directions @ origins - 1.0))


def _amplitude_towards(directions: Tensor, origins: Tensor, amplitude: Tensor) -> Tensor:
    return (_lobes(directions, origins) * amplitude).mean(dim=2) + 1e-12


def _peaks_and_random(
    intensity: Tensor, level: Tensor, settings: DirectionSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Directions (batch, K, 3), the peaks first, and the amplitude at the peaks (batch, peak)."""
    batch, device = intensity.shape[0], intensity.device
    search = torch.from_numpy(_SEARCH_GRID.vectors()).to(device)
    origins, amplitude = _cells(intensity, level)
    remaining = _amplitude_towards(search, origins, amplitude)
    near = math.cos(math.radians(settings.suppression_deg))
    peaks, amplitudes = [], []
    for _ in range(settings.peak_count):
        loudest, best = remaining.max(dim=1)
        peak = search[best][:, None]  # (batch, 1, 3)
        for _ in range(settings.refinements):
            # Mean shift (Comaniciu and Meer, 2002) on the sphere; a silent window's peak stays.
            heard = (_lobes(peak, origins) * amplitude) @ origins.transpose(1, 2)
            peak = torch.nn.functional.normalize(heard + 1e-9 * peak, dim=-1)
        peaks.append(peak)
        amplitudes.append(loudest)
        remaining = remaining.masked_fill((peak @ search.T).squeeze(1) > near, 0.0)
        # What a stronger peak is of would draw the next ones to it.
        amplitude = amplitude.masked_fill(peak @ origins > near, 0.0)
    vectors = torch.cat(peaks, dim=1)
    jitter = torch.randn(vectors.shape, generator=generator).to(device)
    vectors = vectors + torch.deg2rad(torch.tensor(settings.jitter_deg)) * jitter
    uniform = random_directions(batch, settings.random_count, generator).to(device)
    vectors = torch.cat([torch.nn.functional.normalize(vectors, dim=-1), uniform], dim=1)
    return vectors, torch.stack(amplitudes, dim=1)
