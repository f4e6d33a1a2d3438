"""Directions that pretraining looks at: which are no negatives, what each counts, how peaks err."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from seld.ambisonics import FoaFeatures
from seld.geometry import DoaGrid, angular_distance_deg, unit_vectors
from seld.spatial_spectra import spatial_spectra
from tests.sound_fields import encode
from tests.tiny_training import TINY
from trainables.directions import DirectionSettings, choose_directions

GRID = DoaGrid(kind="fibonacci", count=16)
PLACES = unit_vectors(torch.tensor([40.0, -100.0, 170.0]), torch.tensor([10.0, -35.0, 60.0]))


def plane_waves() -> tuple[Tensor, Tensor]:
    """Intensity and level of three windows, each with one source at its place of ``PLACES``."""
    noise = 0.1 * torch.randn(3, 9600, generator=torch.Generator().manual_seed(0))
    spectra = spatial_spectra(encode(noise, PLACES), FoaFeatures(TINY.audio.features))
    return spectra[:, 8:], spectra[:, 0]


@pytest.mark.parametrize("sampling", ["grid", "energy_peaks"])
def test_directions_nearer_than_the_exclusion_are_no_negatives(
    sampling: Literal["grid", "energy_peaks"],
) -> None:
    settings = DirectionSettings(
        sampling=sampling, grid=GRID, peak_count=6, random_count=6, exclusion_deg=50.0
    )
    chosen = choose_directions(*plane_waves(), settings, torch.Generator().manual_seed(0))
    apart_deg = angular_distance_deg(chosen.vectors[:, :, None], chosen.vectors[:, None])
    itself = torch.eye(settings.count, dtype=torch.bool)
    assert torch.equal(chosen.excluded, (apart_deg < 50.0) & ~itself)
    assert 0 < chosen.excluded.sum() < chosen.excluded.numel() / 2


@pytest.mark.parametrize("sampling", ["grid", "energy_peaks"])
def test_uniform_weights_are_alike(sampling: Literal["grid", "energy_peaks"]) -> None:
    settings = DirectionSettings(sampling=sampling, grid=GRID, weighting="uniform")
    chosen = choose_directions(*plane_waves(), settings, torch.Generator().manual_seed(0))
    assert torch.equal(chosen.weights, torch.ones(3, settings.count))


def test_by_energy_the_grids_nearest_direction_counts_most() -> None:
    settings = DirectionSettings(sampling="grid", grid=GRID, weighting="energy")
    chosen = choose_directions(*plane_waves(), settings, torch.Generator().manual_seed(0))
    apart_deg = angular_distance_deg(chosen.vectors, PLACES[:, None])
    assert torch.equal(chosen.weights.argmax(dim=1), apart_deg.argmin(dim=1))
    assert chosen.weights.amax(dim=1).min() > 3.0


@pytest.mark.parametrize("sampling", ["grid", "energy_peaks"])
def test_weights_by_energy_are_one_in_the_mean(sampling: Literal["grid", "energy_peaks"]) -> None:
    settings = DirectionSettings(sampling=sampling, grid=GRID, weighting="energy")
    weights = choose_directions(*plane_waves(), settings, torch.Generator().manual_seed(0)).weights
    assert weights.min() >= 0.0
    assert weights.std() > 0.1
    assert weights.mean().item() == pytest.approx(1.0)


def test_peaks_err_by_the_jitter_and_random_directions_do_not() -> None:
    intensity, level = (tensor.repeat(200, *[1] * (tensor.ndim - 1)) for tensor in plane_waves())
    exact, jittered = (
        choose_directions(
            intensity,
            level,
            DirectionSettings(peak_count=2, random_count=1, jitter_deg=jitter_deg),
            torch.Generator().manual_seed(0),
        ).vectors
        for jitter_deg in (0.0, 6.0)
    )
    assert torch.allclose(jittered.norm(dim=-1), torch.ones(600, 3))
    error_deg = angular_distance_deg(exact, jittered)
    assert error_deg[:, 2].max() < 0.1
    # Of the three axes that are jittered, two turn the direction.
    assert error_deg[:, :2].square().mean().sqrt() == pytest.approx(6.0 * math.sqrt(2.0), rel=0.1)
    assert error_deg[:, :2].max() < 5 * 6.0


def peaks_of(waveform: Tensor, refinements: int = 2) -> Tensor:
    """Two peaks of each window (window, 2, 3), without jitter."""
    spectra = spatial_spectra(waveform, FoaFeatures(TINY.audio.features))
    chosen = DirectionSettings(
        peak_count=2, random_count=0, jitter_deg=0.0, refinements=refinements
    )
    generator = torch.Generator().manual_seed(0)
    return choose_directions(spectra[:, 8:], spectra[:, 0], chosen, generator).vectors


def random_places(count: int, seed: int) -> Tensor:
    drawn = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_refined_peaks_are_where_the_sound_comes_from() -> None:
    places, generator = random_places(60, seed=1), torch.Generator().manual_seed(0)
    sound = encode(0.1 * torch.randn(60, 9600, generator=generator), places)
    sound = sound + 0.02 * torch.randn(sound.shape, generator=generator)
    searched, refined = (
        angular_distance_deg(peaks_of(sound, refinements=refinements)[:, 0], places)
        for refinements in (0, 2)
    )
    assert searched.mean() > 6.0  # the nearest of 64 directions
    assert refined.max() < 3.0


def test_sounds_that_take_turns_are_both_found() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = PLACES[:1].expand(20, 3), random_places(20, seed=2)
    apart = angular_distance_deg(first, second) > 50.0
    first, second = first[apart], second[apart]
    sound = 0.1 * torch.randn(2, len(first), 9600, generator=generator)
    sound[0, :, 4800:] = 0.0
    sound[1, :, :4800] = 0.0
    peaks = peaks_of(encode(sound[0], first) + encode(0.5 * sound[1], second))
    for place, peak in ((first, peaks[:, 0]), (second, peaks[:, 1])):
        assert angular_distance_deg(peak, place).max() < 10.0


def test_the_second_peak_of_one_sound_is_not_drawn_to_the_first() -> None:
    peaks = peaks_of(encode(0.1 * torch.randn(20, 9600), random_places(20, seed=3)))
    assert angular_distance_deg(peaks[:, 0], peaks[:, 1]).min() > 30.0


def test_a_silent_windows_peaks_are_directions() -> None:
    peaks = peaks_of(torch.zeros(1, 4, 9600))
    torch.testing.assert_close(peaks.norm(dim=-1), torch.ones(1, 2))
