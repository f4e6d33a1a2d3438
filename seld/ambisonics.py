"""First-order ambisonics (FOA): channel order, gains of plane waves and the audio features.

FOA is (..., 4, time) in ACN order (W, Y, Z, X) with SN3D normalisation: a plane wave from a unit
vector (x, y, z) has the gains (1, y, z, x). See :mod:`seld.geometry` for the axes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from seld.errors import InputError

#: Which channel is the dipole along x, y and z.
CHANNEL_OF_AXIS = (3, 1, 2)
#: Along which axis the dipoles point, in the order of their channels Y, Z, X.
AXIS_OF_DIPOLE = (1, 2, 0)

#: Log-mel of the four channels, then the intensity vector.
LOG_MEL_CHANNELS = 4
INTENSITY_CHANNELS = 3
FEATURE_CHANNELS = LOG_MEL_CHANNELS + INTENSITY_CHANNELS


def plane_wave_gains(directions: NDArray[Any]) -> NDArray[Any]:
    """Gains (..., 4) of plane waves from unit vectors (..., 3)."""
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack([np.ones_like(x), y, z, x], axis=-1)


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Short-time spectra and mel bands; the defaults are the DCASE baseline's at 24 kHz.

    Attributes:
        sample_rate_hz: of the waveform.
        fft_size: samples of one Fourier transform.
        window_size: samples of the Hann window, centred in the transform.
        hop_size: samples from frame to frame; 480 is 20 ms.
        mel_bands: from 0 Hz to half the sample rate.
    """

    sample_rate_hz: int = 24000
    fft_size: int = 1024
    window_size: int = 960
    hop_size: int = 480
    mel_bands: int = 64

    def __post_init__(self) -> None:
        for name in ("sample_rate_hz", "fft_size", "window_size", "hop_size", "mel_bands"):
            if getattr(self, name) < 1:
                raise InputError("features", name, getattr(self, name), "a positive number")
        if self.mel_bands < 2:
            raise InputError("features", "mel_bands", self.mel_bands, "at least 2")
        if self.window_size > self.fft_size:
            raise InputError(
                "features", "window_size", self.window_size, f"at most fft_size ({self.fft_size})"
            )
        if _has_empty_band(self):
            raise InputError(
                "features", "mel_bands", self.mel_bands, "few enough that no band is empty"
            )

    @property
    def frame_rate_hz(self) -> float:
        """Feature frames per second."""
        return self.sample_rate_hz / self.hop_size


@cache
def _has_empty_band(settings: FeatureSettings) -> bool:
    return bool((mel_filters(settings).sum(dim=0) == 0).any())


class FoaFeatures(nn.Module):
    """FOA waveform → log-mel spectrograms and intensity vectors.

    Of (batch, 4, time) it makes (batch, 7, frame, mel), frame = time // hop_size:

    - 0 to 3: natural logarithm of the mean power in each mel band, of W, Y, Z, X.
    - 4 to 6: intensity vector x, y, z, pointing to where the sound comes from.

    The intensity of a time-frequency cell is Re(conj(W)·(X, Y, Z)) divided by its energy
    (|W|² + |X|² + |Y|² + |Z|²)/2. That is the physical energy density in SN3D: a plane wave has
    |X|² + |Y|² + |Z|² = |W|², so that its vector has length 1, and no sound field gives more. (The
    DCASE baseline's denominator |W|² + (|X|² + |Y|² + |Z|²)/3 supposes N3D and would give 0.75.)
    Mel bands are weighted means over cells (triangles of Slaney's scale with weights that sum to
    one), which keeps that length.

    Frames are centred at multiples of the hop, with silence before the start and after the end.
    Everything is computed in float32, inside ``torch.autocast`` too, and without gradients.

    On a CPU most of the time would go to memory, not to arithmetic: fresh memory costs a page fault
    per 4 KB, and complex numbers keep their parts interleaved. So recordings are worked through in
    blocks, every block writes into the same buffers, real and imaginary parts are set apart once,
    and the mel product is cut into pieces that skip what is zero. The Fourier
    transforms take about a third of the time.
    """

    #: Power below which a cell counts as silent: less than the rounding noise of 16-bit sound.
    floor = 1e-8

    #: Frames of one recording worked on together on a CPU.
    frames_at_once = 150

    #: Pieces of the mel product: narrow bands need few frequencies, wide ones none of the lowest.
    mel_pieces = 4

    window: Tensor
    mel_weights: Tensor

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        self.settings = settings
        margin = settings.fft_size - settings.window_size
        window = nn.functional.pad(
            torch.hann_window(settings.window_size), (margin // 2, margin - margin // 2)
        )
        self.register_buffer("window", window, persistent=False)
        filters = mel_filters(settings)
        weights = filters / filters.sum(dim=0)
        self.register_buffer("mel_weights", weights, persistent=False)
        self._pieces: list[tuple[slice, slice]] = []  # rows (frequencies), columns (bands)
        for bands in torch.arange(settings.mel_bands).tensor_split(self.mel_pieces):
            if len(bands):
                columns = slice(int(bands[0]), int(bands[-1]) + 1)
                used = weights[:, columns].any(dim=1).nonzero()
                self._pieces.append((slice(int(used.min()), int(used.max()) + 1), columns))

    @torch.no_grad()
    def forward(self, waveform: Tensor) -> Tensor:
        """(batch, 4, time), full scale 1 → (batch, 7, frame, mel)."""
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = _as_float32(waveform)
            batch, frame_count = waveform.shape[0], self._frame_count(waveform)
            features = waveform.new_empty(batch, 7, frame_count, self.settings.mel_bands)
            # A GPU takes all at once. A CPU takes the same blocks of a recording whatever else
            # is in the batch, so that the numbers are the same to the last bit.
            on_cpu = waveform.device.type == "cpu"
            recordings = range(batch) if on_cpu else [slice(None)]
            block = min(self.frames_at_once, frame_count) if on_cpu else frame_count
            buffers = _Buffers.like(waveform[recordings[0]], block, self.settings)
            for recording in recordings:
                for first in range(0, frame_count, block):
                    count = min(block, frame_count - first)
                    fitting = buffers
                    if count < block:
                        fitting = _Buffers.like(waveform[recording], count, self.settings)
                    self._block_features(
                        self._framed(waveform[recording], first, count),
                        fitting,
                        out=features[recording, :, first : first + count],
                    )
            return features

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """(batch, channel, time) → complex64 (batch, channel, frame, frequency)."""
        with torch.autocast(waveform.device.type, enabled=False):
            framed = self._framed(_as_float32(waveform), 0, self._frame_count(waveform))
            return torch.fft.rfft(framed * self.window)

    def to_mel(self, cells: Tensor) -> Tensor:
        """Means over mel bands: (..., frame, frequency) → (..., frame, mel)."""
        with torch.autocast(cells.device.type, enabled=False):
            rows = cells.reshape(-1, cells.shape[-1])
            return self._mel_product(
                rows, out=rows.new_empty(len(rows), self.settings.mel_bands)
            ).unflatten(0, cells.shape[:-1])

    def _mel_product(self, cells: Tensor, *, out: Tensor) -> Tensor:
        """(cell, frequency) → (cell, mel)."""
        for rows, columns in self._pieces:
            torch.mm(cells[:, rows], self.mel_weights[rows, columns], out=out[:, columns])
        return out

    def _frame_count(self, waveform: Tensor) -> int:
        samples, hop = waveform.shape[-1], self.settings.hop_size
        if samples < hop:
            raise InputError("features", "waveform", f"{samples} samples", f"at least {hop}")
        return samples // hop

    def _framed(self, waveform: Tensor, first: int, count: int) -> Tensor:
        """``count`` overlapping frames (..., frame, fft_size) of (..., time), as a view of it.

        Only where they reach beyond its ends, their samples are copied and silence is added.
        """
        hop, size = self.settings.hop_size, self.settings.fft_size
        start = first * hop - size // 2
        end = start + (count - 1) * hop + size
        before, after = max(-start, 0), max(end - waveform.shape[-1], 0)
        samples = waveform[..., start + before : end - after]
        if before or after:
            samples = nn.functional.pad(samples, (before, after))
        return samples.unfold(-1, size, hop)

    def _block_features(self, framed: Tensor, buffers: _Buffers, *, out: Tensor) -> None:
        """(..., 4, frame, fft_size) → (..., 7, frame, mel)."""
        torch.mul(framed, self.window, out=buffers.windowed)
        spectra = torch.fft.rfft(buffers.windowed)  # a fifth slower into a buffer (PyTorch 2.14)
        real, imaginary = buffers.real.copy_(spectra.real), buffers.imaginary.copy_(spectra.imag)
        power, flow = buffers.cells.tensor_split([4], dim=-3)
        torch.mul(real, real, out=power)
        power.addcmul_(imaginary, imaginary)
        omni, dipoles = slice(0, 1), slice(1, 4)
        torch.mul(real[..., omni, :, :], real[..., dipoles, :, :], out=flow)
        flow.addcmul_(imaginary[..., omni, :, :], imaginary[..., dipoles, :, :])
        twice_energy = torch.sum(power, dim=-3, keepdim=True, out=buffers.twice_energy)
        flow.div_(twice_energy.clamp_(min=2.0 * self.floor))
        self._mel_product(buffers.cells.flatten(0, -2), out=buffers.bands.flatten(0, -2))
        w_y_z_x, half_intensity = buffers.bands.tensor_split([4], dim=-3)
        torch.log(w_y_z_x.clamp_(min=self.floor), out=out[..., :4, :, :])
        for dipole, axis in enumerate(AXIS_OF_DIPOLE):
            torch.mul(half_intensity[..., dipole, :, :], 2.0, out=out[..., 4 + axis, :, :])


def _as_float32(waveform: Tensor) -> Tensor:
    if not waveform.is_floating_point():
        # As loud as it is, it would be heard as sound that no network has been trained on.
        expected = "floating point with full scale 1 (16-bit samples divided by 32768)"
        raise InputError("features", "waveform", str(waveform.dtype), expected)
    return waveform.float()


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """Intermediate results of one block of frames."""

    windowed: Tensor  # (..., 4, frame, fft_size)
    cells: Tensor  # power and intensity (..., 7, frame, frequency), in the memory of ``windowed``
    real: Tensor  # (..., 4, frame, frequency)
    imaginary: Tensor
    twice_energy: Tensor  # (..., 1, frame, frequency)
    bands: Tensor  # (..., 7, frame, mel)

    @classmethod
    def like(cls, waveform: Tensor, frames: int, settings: FeatureSettings) -> _Buffers:
        """Buffers for a waveform (..., 4, time), on its device."""
        frequencies = settings.fft_size // 2 + 1

        def shape(channels: int, size: int) -> torch.Size:
            return torch.Size((*waveform.shape[:-2], channels, frames, size))

        windowed, cells = shape(4, settings.fft_size), shape(7, frequencies)
        shared = waveform.new_empty(max(windowed.numel(), cells.numel()))
        return cls(
            windowed=shared[: windowed.numel()].view(windowed),
            cells=shared[: cells.numel()].view(cells),
            real=waveform.new_empty(shape(4, frequencies)),
            imaginary=waveform.new_empty(shape(4, frequencies)),
            twice_energy=waveform.new_empty(shape(1, frequencies)),
            bands=waveform.new_empty(shape(7, settings.mel_bands)),
        )


def mel_filters(settings: FeatureSettings) -> Tensor:
    """Triangular filters (frequency, mel) of height 1, equally spaced on Slaney's mel scale.

    Slaney's "Auditory Toolbox" (1998): linear below 1 kHz, logarithmic above; as in librosa.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands, which the settings refuse
        return melscale_fbanks(
            settings.fft_size // 2 + 1,
            f_min=0.0,
            f_max=settings.sample_rate_hz / 2.0,
            n_mels=settings.mel_bands,
            sample_rate=settings.sample_rate_hz,
            norm=None,
            mel_scale="slaney",
        )
