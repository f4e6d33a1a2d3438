"""Rooms, and how a point source sounds in them at a first-order ambisonics microphone.

The direct path and the early reflections (image sources, Allen and Berkley 1979, up to second
order) are encoded from their own directions with their own delays and levels. The rest is a
diffuse tail: Gaussian noise under the room's exponential decay, with the energy that statistical
room acoustics gives it (Kuttruff, Room Acoustics, chapter 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from seld.ambisonics import plane_wave_gains
from seld.clips import SAMPLE_RATE_HZ
from seld.scenes.settings import Acoustics

SPEED_OF_SOUND_M_S = 343.0
#: Positions of moving sources are given at this rate; between them all is linear.
CONTROL_RATE_HZ = 50

_IMAGE_ORDER = 2
_SINC_HALF_WIDTH = 16
_OVERSAMPLING = 2  # of delay lines: keeps linear interpolation within 0.7 dB up to 6 kHz
_GROUND_REFLECTION = 0.6
_NEPERS_PER_RT60 = 6 * np.log(10)  # energy falls by 60 dB

RoomKind = Literal["anechoic", "outdoor", "small", "large", "reverberant"]

#: Ranges drawn from: side lengths, height (m), RT60 (s).
_ROOM_RANGES: dict[RoomKind, tuple[tuple[float, float], ...]] = {
    "small": ((2.6, 4.2), (2.3, 2.8), (0.15, 0.4)),
    "large": ((7.0, 14.0), (3.2, 6.0), (0.5, 1.0)),
    "reverberant": ((4.0, 9.0), (2.6, 4.5), (0.8, 1.4)),
}
_OPEN_SIZE_M = (12.0, 12.0, 12.0)
_MICROPHONE_HEIGHT_M = (1.2, 1.6)


@dataclass(frozen=True, kw_only=True)
class Room:
    """A shoebox with a microphone; ``rt60_s`` is None where there are no walls.

    ``size_m`` and ``microphone_m`` are (x front, y left, z up) from the corner on the floor. In
    the open the "walls" only bound where sources are.
    """

    kind: RoomKind
    size_m: tuple[float, float, float]
    microphone_m: tuple[float, float, float]
    rt60_s: float | None

    @property
    def absorption(self) -> float:
        """Mean energy absorption of the walls (Eyring)."""
        if self.rt60_s is None:
            return 1.0
        return float(1 - np.exp(-0.161 * self._volume_m3 / (self.rt60_s * self._surface_m2)))

    @property
    def reverberant_energy(self) -> float:
        """Energy of the whole diffuse field where the direct sound has 1 in 1 m distance."""
        if self.rt60_s is None:
            return 0.0
        room_constant_m2 = self._surface_m2 * self.absorption / (1 - self.absorption)
        return 16 * np.pi / room_constant_m2

    @property
    def _volume_m3(self) -> float:
        return float(np.prod(self.size_m))

    @property
    def _surface_m2(self) -> float:
        length, width, height = self.size_m
        return 2 * (length * width + length * height + width * height)

    def wall_distance_m(self, directions: NDArray) -> NDArray:
        """How far the wall is in ``directions`` (..., 3) from the microphone: (...)."""
        microphone = np.asarray(self.microphone_m)
        ahead = np.where(directions > 0, np.asarray(self.size_m) - microphone, microphone)
        return (ahead / np.maximum(np.abs(directions), 1e-9)).min(axis=-1)


def draw_room(acoustics: Acoustics, generator: np.random.Generator) -> Room:
    """A room of this kind; "mixed" draws the kind as well."""
    height_range = _MICROPHONE_HEIGHT_M
    if acoustics in ("anechoic", "outdoor"):
        x, y, _ = _OPEN_SIZE_M
        z = generator.uniform(*height_range) if acoustics == "outdoor" else _OPEN_SIZE_M[2] / 2
        return Room(
            kind=acoustics, size_m=_OPEN_SIZE_M, microphone_m=(x / 2, y / 2, float(z)), rt60_s=None
        )
    if acoustics == "mixed":
        kinds = tuple(_ROOM_RANGES)
        kind = kinds[int(generator.integers(len(kinds)))]
    else:
        kind = acoustics
    sides, heights, decays = _ROOM_RANGES[kind]
    length, width = generator.uniform(*sides, size=2)
    height = generator.uniform(*heights)
    return Room(
        kind=kind,
        size_m=(float(length), float(width), float(height)),
        microphone_m=(
            float(length * generator.uniform(0.4, 0.6)),
            float(width * generator.uniform(0.4, 0.6)),
            float(generator.uniform(*height_range)),
        ),
        rt60_s=float(generator.uniform(*decays)),
    )


def render_source(
    dry: NDArray[np.float32],
    offsets_m: NDArray,
    room: Room,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """What the microphone hears of ``dry`` (time,), as it is in 1 m distance: FOA (4, longer).

    ``offsets_m`` is where the source is, seen from the microphone: (3,) for one that stands
    still, else (control, 3) at :data:`CONTROL_RATE_HZ`, at least as long as the sound.
    """
    if offsets_m.ndim == 1:
        response = impulse_response(offsets_m, room, generator)
        return _convolve(dry, response)
    heard = _moving_early(dry, offsets_m, room)
    if room.rt60_s is None:
        return heard
    diffuse = _convolve(dry, _diffuse_tail(offsets_m[0], room, generator))
    shorter, longer = sorted((heard, diffuse), key=lambda foa: foa.shape[1])
    longer[:, : shorter.shape[1]] += shorter
    return longer


def impulse_response(
    offset_m: NDArray, room: Room, generator: np.random.Generator
) -> NDArray[np.float32]:
    """FOA impulse response (4, time) for a source at ``offset_m`` (3,) from the microphone."""
    delays_s, gains, directions = _paths(offset_m[None], room)
    delays, gains, directions = delays_s[:, 0] * SAMPLE_RATE_HZ, gains[:, 0], directions[:, 0]
    early = np.zeros((4, int(delays.max()) + 2 * _SINC_HALF_WIDTH + 1))
    whole = np.floor(delays).astype(int)
    taps = np.arange(-_SINC_HALF_WIDTH + 1, _SINC_HALF_WIDTH + 1)
    from_peak = taps - (delays - whole)[:, None]
    window = np.cos(np.pi * from_peak / (2 * _SINC_HALF_WIDTH + 2)) ** 2
    pulses = np.sinc(from_peak) * window * gains[:, None]
    places = whole[:, None] + taps
    kept = places >= 0  # a source so near that the kernel would begin before the sound
    encoded = plane_wave_gains(directions)[:, :, None] * pulses[:, None]
    for channel in range(4):
        np.add.at(early[channel], places[kept], encoded[:, channel][kept])
    if room.rt60_s is None:
        return early.astype(np.float32)
    response = _diffuse_tail(offset_m, room, generator)
    if response.shape[1] < early.shape[1]:
        response = np.pad(response, ((0, 0), (0, early.shape[1] - response.shape[1])))
    response[:, : early.shape[1]] += early
    return response


def diffuse_noise(
    sample_count: int, level_dbfs: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Pink-like noise from everywhere: FOA (4, time), W at ``level_dbfs`` RMS."""
    white = generator.standard_normal((4, sample_count), dtype=np.float32)
    # Kellet's economy pinking filter, three first-order sections, as one transfer function.
    pink = np.zeros_like(white)
    for gain, pole in ((0.0990460, 0.99765), (0.2965164, 0.96300), (1.0526913, 0.57000)):
        pink += np.asarray(signal.lfilter([gain], [1, -pole], white, axis=1))
    pink *= 10 ** (level_dbfs / 20) / np.std(pink[0])
    pink[1:] /= np.sqrt(3)  # each SN3D component of a diffuse field has a third of W's energy
    return pink.astype(np.float32)


def surround(dry: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """``dry`` (time,) from everywhere at its own level, as from loudspeakers all over a room."""
    length = SAMPLE_RATE_HZ // 10
    kernel = generator.standard_normal((4, length)).astype(np.float32)
    kernel *= np.exp(-np.arange(length) * _NEPERS_PER_RT60 / length / 2).astype(np.float32)
    kernel /= np.sqrt((kernel[0] ** 2).sum())
    kernel[1:] /= np.sqrt(3)
    return _convolve(dry, kernel)[:, : len(dry)]


def _paths(offsets_m: NDArray, room: Room) -> tuple[NDArray, NDArray, NDArray]:
    """Delays in s (path, control), gains (path, control), directions (path, control, 3).

    The first path is the direct one.
    """
    if room.kind == "anechoic":
        lattice = np.zeros((1, 3), int)
    elif room.kind == "outdoor":
        lattice = np.array([[0, 0, 0], [0, 0, -1]])
    else:
        steps = np.arange(-_IMAGE_ORDER, _IMAGE_ORDER + 1)
        lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
        orders = np.abs(lattice).sum(1)
        lattice = lattice[np.argsort(orders, kind="stable")][: int((orders <= _IMAGE_ORDER).sum())]
    size = np.asarray(room.size_m)
    microphone = np.asarray(room.microphone_m)
    sources = offsets_m + microphone
    mirrored = (lattice % 2).astype(bool)[:, None]
    images = lattice[:, None] * size + np.where(mirrored, size - sources, sources)
    from_microphone = images - microphone
    distances = np.linalg.norm(from_microphone, axis=-1)
    reflection = _GROUND_REFLECTION if room.kind == "outdoor" else np.sqrt(1 - room.absorption)
    gains = reflection ** np.abs(lattice).sum(1)[:, None] / distances
    return distances / SPEED_OF_SOUND_M_S, gains, from_microphone / distances[..., None]


def _moving_early(dry: NDArray[np.float32], offsets_m: NDArray, room: Room) -> NDArray[np.float32]:
    """Every path as a delay line of its own, so that motion brings its true Doppler shift."""
    delays_s, gains, directions = _paths(offsets_m, room)
    encoded = (gains[..., None] * plane_wave_gains(directions)).astype(np.float32)
    longest = int(np.ceil(delays_s.max() * SAMPLE_RATE_HZ))
    sample_count = len(dry) + longest
    dense = signal.resample_poly(dry, _OVERSAMPLING, 1).astype(np.float32)
    dense = np.pad(dense, (1, 1 + _OVERSAMPLING * (longest + 1)))
    control = np.arange(sample_count, dtype=np.float32) * (CONTROL_RATE_HZ / SAMPLE_RATE_HZ)
    control = np.minimum(control, np.float32(len(offsets_m) - 1))
    before = np.minimum(control.astype(np.int32), len(offsets_m) - 2)
    share = control - before
    ticks = np.arange(sample_count, dtype=np.float64)
    heard = np.zeros((4, sample_count), np.float32)
    for path_delays_s, path_gains in zip(delays_s, encoded, strict=True):
        control_delays = path_delays_s * SAMPLE_RATE_HZ
        slopes = np.diff(control_delays)
        read_at = (ticks - control_delays[before] - slopes[before] * share) * _OVERSAMPLING + 1
        np.clip(read_at, 0, len(dense) - 2, out=read_at)
        whole = read_at.astype(np.int32)
        fraction = (read_at - whole).astype(np.float32)
        delayed = dense[whole]
        delayed += fraction * (dense[whole + 1] - delayed)
        gain_slopes = np.diff(path_gains, axis=0)
        for channel in range(4):
            gain = path_gains[before, channel] + gain_slopes[before, channel] * share
            heard[channel] += gain * delayed
    return heard


def _diffuse_tail(
    offset_m: NDArray, room: Room, generator: np.random.Generator
) -> NDArray[np.float32]:
    """The reverberation after the image sources: (4, time) with the room's RT60."""
    assert room.rt60_s is not None
    direct_s = np.linalg.norm(offset_m) / SPEED_OF_SOUND_M_S
    crossing_s = min(room.size_m) / SPEED_OF_SOUND_M_S
    time_s = np.arange(int((direct_s + room.rt60_s) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    rate = _NEPERS_PER_RT60 / room.rt60_s
    energy = room.reverberant_energy * rate / SAMPLE_RATE_HZ * np.exp(-rate * time_s)
    # Images of second order are complete for about two crossings, then thin out.
    grown = np.clip((time_s - direct_s - crossing_s) / (_IMAGE_ORDER * crossing_s), 0, 1)
    tail = generator.standard_normal((4, len(time_s)), dtype=np.float32)
    tail *= (np.sqrt(energy) * grown).astype(np.float32)
    tail[1:] /= np.float32(np.sqrt(3))
    return tail


def _convolve(dry: NDArray[np.float32], response: NDArray[np.float32]) -> NDArray[np.float32]:
    """(time,) with (4, taps) → (4, time + taps - 1)."""
    length = len(dry) + response.shape[1] - 1
    size = fft.next_fast_len(length, real=True)
    spectrum = np.asarray(fft.rfft(dry, size)) * np.asarray(fft.rfft(response, size))
    return np.asarray(fft.irfft(spectrum, size))[:, :length]
