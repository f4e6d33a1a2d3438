"""FOA features of a 60 s recording beside a numpy/librosa implementation, both on one core.

``python benchmarks/features.py`` checks that both give the same numbers, times them in turn in one
run and prints the ratio of the medians.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import time
from collections.abc import Callable

import librosa
import numpy as np
import torch
from numpy.typing import NDArray

from seld.ambisonics import FeatureSettings, FoaFeatures


def librosa_features(
    waveform: NDArray[np.float32], settings: FeatureSettings, mel_weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The same features in the way of the DCASE baseline's ``cls_feature_class.py``.

    Args:
        waveform: (4, time).
        settings: as for :class:`FoaFeatures`.
        mel_weights: (frequency, mel), made beforehand, as the baseline does.

    Returns:
        (7, frame, mel).
    """
    frame_count = waveform.shape[1] // settings.hop_size
    spectra = np.stack(
        [
            librosa.stft(
                channel,
                n_fft=settings.fft_size,
                hop_length=settings.hop_size,
                win_length=settings.window_size,
                window="hann",
            )[:, :frame_count].T
            for channel in waveform
        ]
    )
    power = np.abs(spectra) ** 2
    log_mel = np.log(np.maximum(power @ mel_weights, FoaFeatures.floor))
    energy = np.maximum(0.5 * power.sum(axis=0), FoaFeatures.floor)
    intensity = np.real(np.conj(spectra[0]) * spectra[[3, 1, 2]]) / energy
    return np.concatenate([log_mel, intensity @ mel_weights])


def median_seconds(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall time of each function, called in turn so that all meet the same machine."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [float(np.median(taken)) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the recording")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = FeatureSettings()
    samples = round(arguments.seconds * settings.sample_rate_hz)
    noise = np.random.default_rng(0).standard_normal((4, samples))
    waveform = (0.1 * noise).astype(np.float32)
    batch = torch.from_numpy(waveform)[None]
    features = FoaFeatures(settings)
    mel = librosa.filters.mel(
        sr=settings.sample_rate_hz, n_fft=settings.fft_size, n_mels=settings.mel_bands, norm=None
    ).T
    mel_weights = (mel / mel.sum(axis=0)).astype(np.float32)

    with torch.inference_mode():
        ours = features(batch)[0].numpy()
        theirs = librosa_features(waveform, settings, mel_weights)
        difference = np.abs(ours - theirs).max()
        assert ours.shape == theirs.shape
        assert difference < 1e-3, difference
        peer_s, ours_s = median_seconds(
            [
                lambda: librosa_features(waveform, settings, mel_weights),
                lambda: features(batch),
            ],
            arguments.repeats,
        )
    print(f"features of {arguments.seconds:g} s of FOA, one core")
    print(f"  largest difference  {difference:.1e}")
    print(f"  numpy/librosa       {1e3 * peer_s:8.1f} ms")
    print(f"  seld.FoaFeatures    {1e3 * ours_s:8.1f} ms")
    print(f"  ratio               {peer_s / ours_s:8.1f} x")


if __name__ == "__main__":
    main()
