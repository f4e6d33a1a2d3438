"""FOA features of a 60 s recording beside the DCASE baseline's way of making them, on one core.

``python benchmarks/features.py`` times both in turn in one run, from the samples of a wav file, and
prints the ratios of the medians of CPU time (steady on a busy machine) and of wall time. Ours is
timed twice: channel after channel in memory, and sample after sample as soundfile reads them.

The peer has the structure of ``cls_feature_class.py`` in the DCASE 2022 baseline: float64 samples,
one ``librosa.stft`` per channel, ``abs() ** 2``, mel products per channel, ``power_to_db``, and the
intensity vector normalised before its mel product. Its conventions differ from ours: filters of
equal area instead of weighted means, decibels within 80 dB of the loudest instead of a natural
logarithm, order y, z, x, an energy that supposes N3D, and 1e-8 added to the samples. The numbers
are compared in float64 with these conventions made ours.

The target is a ratio of 10. Measured: 10.5, 10.6 and 10.5 in CPU time in three runs (233 to 22 ms)
on one core of a shared AMD EPYC, and 9.4 to 9.6 for the other layout. What is left: Fourier
transforms 8 ms, the mel product 4.5, setting real and imaginary parts apart 3, intensities 3.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import time
from collections.abc import Callable
from typing import Literal

import librosa
import numpy as np
import torch
from numpy.typing import NDArray

from seld.ambisonics import FeatureSettings, FoaFeatures


def baseline_features(
    waveform: NDArray[np.float64], settings: FeatureSettings, mel_weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Log-mel in dB and intensity vectors as the DCASE 2022 baseline makes them.

    Args:
        waveform: (time, 4), full scale 1.
        settings: as for :class:`FoaFeatures`.
        mel_weights: (frequency, mel), made beforehand, as the baseline does.

    Returns:
        (frame, 7, mel).
    """
    spectra = _spectra(waveform, settings)
    log_mel = np.zeros((len(spectra), settings.mel_bands, 4))
    for channel in range(4):
        power = np.abs(spectra[:, :, channel]) ** 2
        log_mel[:, :, channel] = librosa.power_to_db(np.dot(power, mel_weights))
    omni, dipoles = spectra[:, :, 0], spectra[:, :, 1:]
    flow = np.real(np.conj(omni)[:, :, None] * dipoles)
    energy = 1e-8 + (np.abs(omni) ** 2 + (np.abs(dipoles) ** 2).sum(axis=-1) / 3.0)
    intensity = np.dot(np.transpose(flow / energy[:, :, None], (0, 2, 1)), mel_weights)
    return np.concatenate([log_mel.transpose(0, 2, 1), intensity], axis=1)


def exact_features(
    waveform: NDArray[np.float64], settings: FeatureSettings, mel_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The baseline's steps in float64 with our conventions: (7, frame, mel)."""
    spectra = _spectra(waveform, settings)
    power = np.abs(spectra) ** 2
    mel_power = np.einsum("tfc,fm->ctm", power, mel_weights, optimize=True)
    energy = np.maximum(0.5 * power.sum(axis=-1), FoaFeatures.floor)
    flow = np.real(np.conj(spectra[:, :, :1]) * spectra[:, :, [3, 1, 2]]) / energy[:, :, None]
    intensity = np.einsum("tfc,fm->ctm", flow, mel_weights, optimize=True)
    return np.concatenate([np.log(np.maximum(mel_power, FoaFeatures.floor)), intensity])


def _spectra(waveform: NDArray[np.float64], settings: FeatureSettings) -> NDArray[np.complex128]:
    """(time, 4) → (frame, frequency, 4)."""
    frame_count = len(waveform) // settings.hop_size
    spectra = [
        librosa.stft(
            np.asfortranarray(waveform[:, channel]),
            n_fft=settings.fft_size,
            hop_length=settings.hop_size,
            win_length=settings.window_size,
            window="hann",
        )[:, :frame_count]
        for channel in range(waveform.shape[1])
    ]
    return np.array(spectra).T


def medians_s(functions: list[Callable[[], object]], repeats: int) -> NDArray[np.float64]:
    """Median CPU and wall time, (function, 2), called in turn so that all meet one machine."""
    taken = np.zeros((repeats, len(functions), 2))
    for repeat in range(repeats):
        for position, function in enumerate(functions):
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            taken[repeat, position] = time.process_time() - cpu, time.perf_counter() - wall
    return np.median(taken, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="FOA features beside the DCASE baseline's way.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the recording")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = FeatureSettings()
    length = round(arguments.seconds * settings.sample_rate_hz)
    waveform = 0.1 * np.random.default_rng(0).standard_normal((length, 4))
    by_sample = torch.from_numpy(waveform.astype(np.float32)).T[None]
    by_channel = by_sample.contiguous()
    features = FoaFeatures(settings)

    def mel(norm: Literal["slaney"] | None) -> NDArray[np.float64]:
        return librosa.filters.mel(
            sr=settings.sample_rate_hz,
            n_fft=settings.fft_size,
            n_mels=settings.mel_bands,
            norm=norm,
            dtype=np.float64,
        ).T

    baseline_weights = mel("slaney").astype(np.float32)
    mean_weights = mel(None) / mel(None).sum(axis=0)

    with torch.inference_mode():
        exact = exact_features(waveform, settings, mean_weights)
        difference = np.abs(features(by_channel)[0].numpy() - exact).max()
        assert difference < 1e-3, difference
        peer, *ours = medians_s(
            [
                lambda: baseline_features(waveform, settings, baseline_weights),
                lambda: features(by_channel),
                lambda: features(by_sample),
            ],
            arguments.repeats,
        )
    print(f"features of {arguments.seconds:g} s of FOA, one core              CPU       wall")
    print(f"  DCASE baseline's way           {1e3 * peer[0]:10.1f} {1e3 * peer[1]:10.1f} ms")
    for layout, taken in zip(("by channel", "by sample "), ours, strict=True):
        print(f"  seld.FoaFeatures, {layout}   {1e3 * taken[0]:10.1f} {1e3 * taken[1]:10.1f} ms")
        ratio = peer / taken
        print(f"    ratio                        {ratio[0]:10.1f} {ratio[1]:10.1f} x")
    print(f"  largest difference from float64 in our conventions: {difference:.1e}")


if __name__ == "__main__":
    main()
