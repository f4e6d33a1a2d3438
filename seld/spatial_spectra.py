"""FOA spectra in a form that turns: all that the audio features need, computed once per clip.

A training run hears a clip dozens of times, each time turned or mirrored another way, and the
Fourier transforms cost a CPU more than a small network's whole step. But features of the *turned*
sound follow exactly from second-order statistics of the untouched one, since power is quadratic
and the intensity a vector: with a matrix R on (x, y, z), the dipoles' covariance C becomes R C Rᵀ
and the intensity R I. So those are kept instead of the waveform, summed over mel bands as
:class:`seld.ambisonics.FoaFeatures` does it, in a third of the waveform's bytes.

Spectra are (batch, 11, frame, mel): the natural logarithm of the energy, then, as shares of that
energy, the power of W and the covariances xx, yy, zz, xy, xz, yz of the dipoles, then the
intensity vector x, y, z.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seld.ambisonics import (
    AXIS_OF_DIPOLE,
    CHANNEL_OF_AXIS,
    FEATURE_CHANNELS,
    LOG_MEL_CHANNELS,
    FeatureSettings,
    FoaFeatures,
)
from seld.clip_reader import ClipReader
from seld.locks import one_at_a_time
from seld.storage import written_whole

SPECTRA_CHANNELS = 11

#: The smallest share of the energy that float16 tells from nothing.
_SMALLEST_SHARE = 6e-8

#: The dipole pairs of the six covariances, as indices into (x, y, z).
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def spatial_spectra(waveform: Tensor, features: FoaFeatures) -> Tensor:
    """FOA (batch, 4, time), ACN order → spectra (batch, 11, frame, mel).

    Args:
        waveform: float32, full scale 1.
        features: whose transform, mel bands and floor are used.
    """
    spectra = features.spectrogram(waveform)
    w_x_y_z = [0, *CHANNEL_OF_AXIS]
    real, imaginary = spectra.real[:, w_x_y_z], spectra.imag[:, w_x_y_z]

    def cross_power(first: int, second: int) -> Tensor:
        return real[:, first] * real[:, second] + imaginary[:, first] * imaginary[:, second]

    power = torch.stack([cross_power(0, 0), *(cross_power(1 + i, 1 + j) for i, j in _PAIRS)], dim=1)
    energy = (0.5 * power[:, :4].sum(dim=1, keepdim=True)).clamp(min=features.floor)
    intensity = torch.stack([cross_power(0, 1 + axis) for axis in range(3)], dim=1) / energy
    mel_energy = features.to_mel(energy)
    shares = features.to_mel(power) / mel_energy
    return torch.cat([mel_energy.log(), shares, features.to_mel(intensity)], dim=1)


def turned_features(spectra: Tensor, matrices: Tensor) -> Tensor:
    """Features (batch, 7, frame, mel) of the sound turned by ``matrices`` (batch, 3, 3).

    Equal to :class:`FoaFeatures` of the rotated or reflected waveform, up to rounding.
    """
    rows = matrices[:, AXIS_OF_DIPOLE]  # what the turned Y, Z, X are made of
    covariances = torch.stack(
        [rows[:, :, i] * rows[:, :, j] * (1.0 if i == j else 2.0) for i, j in _PAIRS], dim=2
    )  # (batch, 3, 6)
    # One product from shares and intensity to those of the turned sound, and the rest in place:
    # these are passes over megabytes, and on a CPU a twentieth of a step.
    factors = spectra.new_zeros(len(spectra), FEATURE_CHANNELS, SPECTRA_CHANNELS - 1)
    factors[:, 0, 0] = 1.0
    factors[:, 1:LOG_MEL_CHANNELS, 1:7] = covariances
    factors[:, LOG_MEL_CHANNELS:, 7:] = matrices
    features = (factors @ spectra[:, 1:].flatten(2)).unflatten(2, spectra.shape[2:])
    log_mel = features[:, :LOG_MEL_CHANNELS].clamp_(min=_SMALLEST_SHARE).log_()
    log_mel.add_(spectra[:, :1]).clamp_(min=math.log(FoaFeatures.floor))
    return features


def bytes_per_s(settings: FeatureSettings) -> float:
    """Of a recording's spectra as a store keeps them, in float16."""
    return 2 * SPECTRA_CHANNELS * settings.mel_bands * settings.sample_rate_hz / settings.hop_size


class SpectraStore:
    """Spectra of clips as float16 in one memory-mapped file, shared by all processes reading it.

    Built once per data set and feature settings; a window is then a copy of 70 kB per second.
    Frames are those of the whole clip: a window has no silence padded to its ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        table = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.frame_rate_hz: float = table["frame_rate_hz"]
        self.mel_bands: int = table["mel_bands"]
        self._clips: dict[int, tuple[int, int]] = {
            int(row): (first, frames) for row, (first, frames) in table["clips"].items()
        }
        self._values: NDArray[np.float16] | None = None
        self._source: tuple[ClipReader, FeatureSettings] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_values": None}

    @classmethod
    def open_or_build(
        cls,
        folder: Path,
        reader: ClipReader,
        settings: FeatureSettings,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        code: str = "",
    ) -> SpectraStore:
        """The store of exactly these clips and settings below ``folder``, built if missing.

        Processes of one machine that ask at once wait for the first of them to build it.

        ``code`` names the version of the code that makes spectra; those of another are not read.
        """
        clips = reader.index
        key = hashlib.sha256(
            f"{code} {clips.fingerprint} {sorted(clips.clips.index)} {settings}".encode()
        )
        path = folder / f"spectra-{key.hexdigest()[:16]}.f16"
        cls._build_if_missing(path, reader, settings, progress)
        progress(len(reader.index.clips), len(reader.index.clips))
        store = cls(path)
        store._source = (reader, settings)
        return store

    def read(
        self, clips: Sequence[int], window_start_s: Sequence[float], window_s: float
    ) -> NDArray[np.float16]:
        """One window of each clip, (clip, 11, frame, mel)."""
        if self._values is None:
            # A store that was opened on one machine of a cluster may be read on another.
            if self._source is not None:
                self._build_if_missing(self.path, *self._source, lambda done, total: None)
            self._values = np.memmap(self.path, np.float16, "r")
        count = round(window_s * self.frame_rate_hz)
        windows = np.empty((len(clips), SPECTRA_CHANNELS, count, self.mel_bands), np.float16)
        for position, (clip, start_s) in enumerate(zip(clips, window_start_s, strict=True)):
            offset, frames = self._clips[clip]
            size = SPECTRA_CHANNELS * frames * self.mel_bands
            stored = self._values[offset : offset + size]
            stored = stored.reshape(SPECTRA_CHANNELS, frames, self.mel_bands)
            first = round(start_s * self.frame_rate_hz)
            windows[position] = stored[:, first : first + count]
        return windows

    @classmethod
    def _build_if_missing(
        cls,
        path: Path,
        reader: ClipReader,
        settings: FeatureSettings,
        progress: Callable[[int, int], None],
    ) -> None:
        if _is_whole(path):
            return
        with one_at_a_time(path.with_suffix(".lock")):
            if _is_whole(path):
                return
            # Those of a killed process: nobody else is writing now.
            for left in path.parent.glob(f".{path.name}.*"):
                left.unlink(missing_ok=True)
            cls._build(path, reader, settings, progress)

    @staticmethod
    def _build(
        path: Path,
        reader: ClipReader,
        settings: FeatureSettings,
        progress: Callable[[int, int], None],
    ) -> None:
        features = FoaFeatures(settings)
        clips_s = reader.index.clips["duration_s"]
        clips: dict[int, tuple[int, int]] = {}
        offset = 0
        with written_whole(str(path)) as temporary, temporary.open("wb") as stream:
            rows_and_lengths = zip(clips_s.index.tolist(), clips_s.tolist(), strict=True)
            for done, (row, duration_s) in enumerate(rows_and_lengths):
                foa = reader.read([row], window_s=duration_s)["foa"]
                with torch.no_grad():
                    spectra = spatial_spectra(torch.from_numpy(foa).float() / 32768.0, features)
                clips[row] = (offset, spectra.shape[2])
                offset += spectra.numel()
                stream.write(spectra[0].half().numpy().tobytes())
                progress(done + 1, len(clips_s))
        with written_whole(str(path.with_suffix(".json"))) as temporary:
            rate = settings.sample_rate_hz / settings.hop_size
            described = {"frame_rate_hz": rate, "mel_bands": settings.mel_bands, "clips": clips}
            temporary.write_text(json.dumps(described), encoding="utf-8")


def _is_whole(path: Path) -> bool:
    """The description is written last."""
    return path.exists() and path.with_suffix(".json").exists()
