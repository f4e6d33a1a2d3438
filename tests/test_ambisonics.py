"""FOA and its features: physics, an independent reference, batches, precision."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from seld.ambisonics import FeatureSettings, FoaFeatures, mel_filters
from seld.errors import InputError
from seld.geometry import DoaGrid, channel_swaps, random_rotations, unit_vectors
from tests.sound_fields import encode, rotate

SETTINGS = FeatureSettings()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(*shape: int, generator: torch.Generator) -> Tensor:
    return 0.1 * torch.randn(shape, generator=generator)


def test_gains_are_acn_sn3d() -> None:
    azimuth_deg, elevation_deg = 40.0, 25.0
    azimuth, elevation = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    foa = encode(torch.ones(1), torch.from_numpy(unit_vectors(azimuth_deg, elevation_deg)))
    expected = [
        1.0,
        np.sin(azimuth) * np.cos(elevation),
        np.sin(elevation),
        np.cos(azimuth) * np.cos(elevation),
    ]
    np.testing.assert_allclose(foa[:, 0], expected, atol=1e-7)


def test_plane_wave_has_an_intensity_vector_of_length_one_pointing_there(
    generator: torch.Generator,
) -> None:
    directions = torch.from_numpy(DoaGrid(count=64).vectors())
    features = FoaFeatures(SETTINGS)(encode(noise(64, 9600, generator=generator), directions))
    expected = directions[:, :, None, None].expand(64, 3, 20, 64)
    torch.testing.assert_close(features[:, 4:], expected, atol=1e-5, rtol=0)


def test_no_sound_field_has_a_longer_intensity_vector(generator: torch.Generator) -> None:
    intensity = FoaFeatures(SETTINGS)(noise(4, 4, 9600, generator=generator))[:, 4:]
    assert float(intensity.norm(dim=1).max()) <= 1.0 + 1e-5
    # Four independent channels of equal power: diffuse, so no direction stands out.
    assert float(intensity.mean(dim=(2, 3)).abs().max()) < 0.1


def test_rotated_sound_has_rotated_intensity(generator: torch.Generator) -> None:
    foa = noise(9, 4, 9600, generator=generator)
    matrices = torch.cat([random_rotations(1, axes="any", generator=generator), channel_swaps()])
    module = FoaFeatures(SETTINGS)
    before, after = module(foa), module(rotate(foa, matrices))
    expected = torch.einsum("nij,njtm->nitm", matrices, before[:, 4:])
    torch.testing.assert_close(after[:, 4:], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(after[:, 0], before[:, 0])


def test_rotation_moves_the_source(generator: torch.Generator) -> None:
    signal = noise(8, 100, generator=generator)
    directions = torch.from_numpy(DoaGrid(count=8).vectors())
    for matrix in [*channel_swaps(), *random_rotations(3, axes="any", generator=generator)]:
        torch.testing.assert_close(
            rotate(encode(signal, directions), matrix), encode(signal, directions @ matrix.T)
        )


def test_channel_swaps_swap_channels(generator: torch.Generator) -> None:
    foa = noise(4, 50, generator=generator)
    for swap in channel_swaps():
        swapped = rotate(foa, swap)
        for channel in swapped:
            assert any(torch.equal(channel, sign * other) for sign in (1, -1) for other in foa)


def test_features_equal_librosa(generator: torch.Generator) -> None:
    waveform = noise(4, 24321, generator=generator)
    spectra = np.stack(
        [
            librosa.stft(channel, n_fft=1024, hop_length=480, win_length=960)[:, :50].T
            for channel in waveform.double().numpy()
        ]
    )
    mel = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=64, norm=None, dtype=np.float64).T
    mel /= mel.sum(axis=0)
    power = np.abs(spectra) ** 2
    intensity = np.real(np.conj(spectra[0]) * spectra[[3, 1, 2]]) / (0.5 * power.sum(axis=0))
    expected = np.concatenate([np.log(power @ mel), intensity @ mel])
    features = FoaFeatures(SETTINGS)(waveform[None])[0]
    assert features.shape == (7, 50, 64)
    np.testing.assert_allclose(features, expected, atol=2e-4)


@pytest.mark.parametrize("mel_bands", [2, 31, 64])
def test_mel_filters_equal_librosa(mel_bands: int) -> None:
    settings = FeatureSettings(mel_bands=mel_bands)
    expected = librosa.filters.mel(sr=24000, n_fft=1024, n_mels=mel_bands, norm=None).T
    np.testing.assert_allclose(mel_filters(settings), expected, atol=1e-5)
    cells = torch.rand(3, 5, 513)
    weights = mel_filters(settings) / mel_filters(settings).sum(dim=0)
    torch.testing.assert_close(FoaFeatures(settings).to_mel(cells), cells @ weights)


@pytest.mark.parametrize("samples", [480, 959, 960, 24000, 25001])
def test_frame_count(samples: int) -> None:
    assert FoaFeatures(SETTINGS)(torch.zeros(1, 4, samples)).shape == (1, 7, samples // 480, 64)


def test_too_short_sound_is_refused() -> None:
    with pytest.raises(InputError, match="479 samples"):
        FoaFeatures(SETTINGS)(torch.zeros(1, 4, 479))


def test_sound_that_is_not_floating_point_is_refused() -> None:
    features = FoaFeatures(FeatureSettings())
    sound = torch.zeros(1, 4, 4800, dtype=torch.int16)
    for function in (features, features.spectrogram):
        with pytest.raises(InputError, match=r"torch.int16.*full scale 1 \(.*32768"):
            function(sound)


def test_batch_equals_single_and_runs_repeat(generator: torch.Generator) -> None:
    foa = noise(5, 4, 30000, generator=generator)
    module = FoaFeatures(SETTINGS)
    batch = module(foa)
    assert torch.equal(batch, module(foa))
    assert torch.equal(batch, torch.cat([module(recording[None]) for recording in foa]))


def test_silence_is_finite_and_points_nowhere() -> None:
    features = FoaFeatures(SETTINGS)(torch.zeros(1, 4, 4800))
    assert bool((features[:, :4] == np.log(FoaFeatures.floor)).all())
    assert bool((features[:, 4:] == 0.0).all())


def test_features_are_float32_inside_autocast(generator: torch.Generator) -> None:
    foa, module = noise(2, 4, 9600, generator=generator), FoaFeatures(SETTINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(foa)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, module(foa))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(generator: torch.Generator) -> None:
    foa, module = noise(3, 4, 30000, generator=generator), FoaFeatures(SETTINGS)
    expected = module(foa)
    torch.testing.assert_close(module.cuda()(foa.cuda()).cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"hop_size": 0}, {"window_size": 2048}, {"mel_bands": 1}, {"mel_bands": 400}]
)
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        FeatureSettings(**wrong)
