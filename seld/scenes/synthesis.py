"""Synthetic sounds of the thirteen STARSS22 classes.

Each function draws one sound, (time,) at 24 kHz of any level, whose pitch, timbre, rhythm and
texture vary as widely as within the class, so that the class is more than one feature.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal

from seld.classes import STARSS_CLASSES
from seld.clips import SAMPLE_RATE_HZ

_FRAME = 512
_HOP = 256
_FREQUENCIES_HZ = np.arange(_FRAME // 2 + 1) * SAMPLE_RATE_HZ / _FRAME
#: First three formants of five vowels of an adult male (Peterson and Barney 1952), Hz.
_FORMANTS_HZ = np.array(
    [[270, 2290, 3010], [530, 1840, 2480], [730, 1090, 2440], [570, 840, 2410], [300, 870, 2240]]
)

Generator = np.random.Generator


def _time(duration_s: float) -> NDArray:
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _phase(frequency_hz: NDArray) -> NDArray:
    """Cycles so far of a tone of varying frequency."""
    return np.cumsum(frequency_hz) / SAMPLE_RATE_HZ


def _sawtooth(frequency_hz: NDArray) -> NDArray:
    return 1 - 2 * np.mod(_phase(frequency_hz), 1)


def _control(values: NDArray, sample_count: int) -> NDArray:
    """A few values, evenly spaced, as a smooth curve over the samples."""
    return np.interp(np.linspace(0, len(values) - 1, sample_count), np.arange(len(values)), values)


def _shaped(source: NDArray, gains: NDArray) -> NDArray:
    """``source`` filtered by gains (frame, bin), the frames spread evenly over it."""
    padded = np.pad(source, (_FRAME, _FRAME))
    starts = np.arange(0, len(padded) - _FRAME, _HOP)
    window = signal.get_window("hann", _FRAME)
    pieces = padded[starts[:, None] + np.arange(_FRAME)] * window
    rows = np.linspace(0, len(gains) - 1, len(starts)).round().astype(int)
    pieces = np.asarray(fft.irfft(fft.rfft(pieces) * gains[rows], _FRAME))
    shaped = np.zeros(len(padded))
    for first in range(2):  # every other frame does not overlap
        block = pieces[first::2].ravel()
        shaped[first * _HOP : first * _HOP + len(block)] += block
    return shaped[_FRAME : _FRAME + len(source)]


def _resonances(
    centres_hz: NDArray, widths_hz: NDArray | float, levels: NDArray | float = 1.0
) -> NDArray:
    """Gains (frame, bin) of resonators with centres (frame, resonator)."""
    distance = (_FREQUENCIES_HZ - centres_hz[..., None]) / np.asarray(widths_hz)[..., None]
    return (np.asarray(levels)[..., None] / (1 + distance**2)).sum(axis=-2)


def _band(source: NDArray, low_hz: float, high_hz: float) -> NDArray:
    sections = signal.butter(
        2, [low_hz, min(high_hz, 11_500)], "bandpass", fs=SAMPLE_RATE_HZ, output="sos"
    )
    return np.asarray(signal.sosfilt(sections, source))


def _strikes(times_s: NDArray, strengths: NDArray, hit: NDArray, duration_s: float) -> NDArray:
    """``hit`` at each of the times."""
    impulses = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    places = (times_s * SAMPLE_RATE_HZ).astype(int)
    kept = places < len(impulses)
    np.add.at(impulses, places[kept], strengths[kept])
    return signal.oaconvolve(impulses, hit)[: len(impulses)]


def _regular(rate_hz: float, jitter: float, duration_s: float, generator: Generator) -> NDArray:
    """Times of something that repeats, each off by up to ``jitter`` periods."""
    times = np.arange(0, duration_s, 1 / rate_hz)
    return np.sort(np.abs(times + generator.uniform(-jitter, jitter, len(times)) / rate_hz))


def _decay(length_s: float, fall_s: float) -> NDArray:
    return np.exp(-_time(length_s) / fall_s)


def _speech(duration_s: float, generator: Generator, pitch_hz: float, tract: float) -> NDArray:
    time = _time(duration_s)
    syllable_rate_hz = generator.uniform(3, 5.5)
    syllables = max(2, int(duration_s * syllable_rate_hz))
    pitch = pitch_hz * 2 ** generator.uniform(-0.25, 0.25, syllables + 1)
    pitch *= np.linspace(1.1, 0.9, syllables + 1)
    vibration = 1 + 0.01 * np.sin(2 * np.pi * generator.uniform(4, 7) * time)
    voiced = _sawtooth(_control(pitch, len(time)) * vibration)
    source = voiced + generator.uniform(0.03, 0.15) * generator.standard_normal(len(time))
    vowels = _FORMANTS_HZ[generator.integers(len(_FORMANTS_HZ), size=syllables + 1)] * tract
    frames = np.linspace(0, syllables, int(duration_s * 100) + 2)
    centres = np.stack(
        [np.interp(frames, np.arange(syllables + 1), formant) for formant in vowels.T], axis=-1
    )
    speech = _shaped(
        source, _resonances(centres, np.array([70.0, 110, 160]), np.array([1, 0.6, 0.4]))
    )
    position = np.mod(time * syllable_rate_hz, 1)
    loudness = np.sin(np.pi * position) ** generator.uniform(0.5, 1.2)
    loudness *= _control(generator.uniform(0.4, 1, syllables + 1), len(time))
    hiss = _band(generator.standard_normal(len(time)), 3500 * tract, 8000)
    fricatives = (generator.random(syllables + 1) < 0.4)[
        (time * syllable_rate_hz).astype(int).clip(0, syllables)
    ]
    return speech / speech.std() * loudness + 0.5 * hiss * fricatives * (position < 0.25)


def female_speech(duration_s: float, generator: Generator) -> NDArray:
    """Voice of 170-260 Hz from a short vocal tract."""
    return _speech(
        duration_s, generator, generator.uniform(170, 260), generator.uniform(1.12, 1.25)
    )


def male_speech(duration_s: float, generator: Generator) -> NDArray:
    """Voice of 80-145 Hz."""
    return _speech(duration_s, generator, generator.uniform(80, 145), generator.uniform(0.92, 1.05))


def clapping(duration_s: float, generator: Generator) -> NDArray:
    """One person's steady claps, or a few people's."""
    people = generator.choice([1, 1, 2, 5])
    claps = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    for _ in range(people):
        centre_hz = generator.uniform(800, 2600)
        hit = _band(generator.standard_normal(1440), centre_hz * 0.6, centre_hz * 2.2)
        hit *= _decay(0.06, generator.uniform(0.004, 0.012))
        times = _regular(generator.uniform(2.5, 6), 0.08, duration_s, generator)
        claps += _strikes(times, generator.uniform(0.5, 1, len(times)), hit, duration_s)
    return claps


def telephone(duration_s: float, generator: Generator) -> NDArray:
    """A bell-like warble or a melody of tones, ringing and pausing."""
    time = _time(duration_s)
    base_hz = generator.uniform(500, 1500)
    if generator.random() < 0.5:
        warble = np.mod(time * generator.uniform(12, 25), 1) < 0.5
        pitch_hz = np.where(warble, base_hz, base_hz * generator.uniform(1.15, 1.4))
    else:
        notes = base_hz * 2 ** (generator.choice([0, 2, 4, 7, 9, 12], 8) / 12)
        pitch_hz = notes[(time * generator.uniform(5, 9)).astype(int) % 8]
    phase = 2 * np.pi * _phase(pitch_hz)
    harmonics = generator.uniform(0.1, 0.6, 3)
    tone = np.sin(phase) + sum(
        level * np.sin(number * phase) for number, level in enumerate(harmonics, start=2)
    )
    period_s = generator.uniform(1.2, 2.2)
    return tone * (np.mod(time, period_s) < period_s * generator.uniform(0.5, 0.8))


def laughter(duration_s: float, generator: Generator) -> NDArray:
    """Bouts of breathy, falling "ha"."""
    time = _time(duration_s)
    rate_hz, bout_s = generator.uniform(4, 6.5), generator.uniform(0.9, 2.0)
    position, bout = np.mod(time * rate_hz, 1), np.mod(time, bout_s) / bout_s
    pitch_hz = generator.uniform(140, 380) * (1.25 - 0.5 * bout) * (1.1 - 0.2 * position)
    breath = generator.standard_normal(len(time))
    source = _sawtooth(pitch_hz) * (position > 0.25) + generator.uniform(0.3, 0.6) * breath
    centres = _FORMANTS_HZ[2] * generator.uniform(0.95, 1.25)
    ha = _shaped(
        source, _resonances(centres[None], np.array([150.0, 200, 300]), np.array([1, 0.7, 0.4]))
    )
    return ha * np.exp(-3 * position) * np.minimum(1, 8 * position) * np.exp(-1.5 * bout)


def domestic_sounds(duration_s: float, generator: Generator) -> NDArray:
    """A machine (motor and air), or dishes that clatter."""
    time = _time(duration_s)
    noise = generator.standard_normal(len(time))
    if generator.random() < 0.6:
        wander = _control(generator.uniform(0.94, 1.06, 8), len(time))
        motor = _sawtooth(generator.uniform(60, 220) * wander)
        air = _band(noise, generator.uniform(150, 600), generator.uniform(2000, 7000))
        motor = _band(motor, 50, generator.uniform(800, 3000))
        return motor / motor.std() * generator.uniform(0.4, 1) + air / air.std()
    partials_hz = generator.uniform(1500, 7000, 6)
    ring = np.sin(2 * np.pi * partials_hz[:, None] * _time(0.3)).sum(axis=0)
    hit = ring * _decay(0.3, generator.uniform(0.02, 0.07))
    times = np.sort(
        generator.uniform(0, duration_s, max(3, int(duration_s * generator.uniform(3, 7))))
    )
    return _strikes(times, generator.uniform(0.1, 1, len(times)), hit, duration_s) + 0.03 * noise


def walk_footsteps(duration_s: float, generator: Generator) -> NDArray:
    """Heel and toe on some floor."""
    thump_hz = generator.uniform(70, 190)
    length = _time(0.16)
    thump = np.sin(2 * np.pi * thump_hz * length) * np.exp(-length / generator.uniform(0.015, 0.04))
    low_hz = generator.uniform(400, 2500)
    scuff = _band(generator.standard_normal(len(length)), low_hz, low_hz * 3)
    scuff *= np.exp(-length / generator.uniform(0.008, 0.03))
    hit = thump + generator.uniform(0.2, 0.8) * scuff
    times = _regular(generator.uniform(1.5, 2.5), 0.05, duration_s, generator)
    strengths = generator.uniform(0.7, 1, len(times))
    toe_s = generator.uniform(0.06, 0.12)
    return _strikes(times, strengths, hit, duration_s) + _strikes(
        times + toe_s, 0.5 * strengths, scuff, duration_s
    )


def door(duration_s: float, generator: Generator) -> NDArray:
    """Creaks that end in a slam."""
    time = _time(duration_s)
    slams_s = _regular(1 / generator.uniform(1.2, 2.5), 0.2, duration_s, generator)[1:]
    slams_s = np.append(slams_s, 0.8 * duration_s)
    rate_hz = generator.uniform(20, 70) * _control(generator.uniform(0.6, 1.5, 9), len(time))
    centres = generator.uniform(400, 2200, (12, 2)).cumsum(axis=1)
    creak = _shaped(_sawtooth(rate_hz), _resonances(centres, 90.0))
    creak *= _control(generator.uniform(0, 1, 14), len(time)) ** 2
    length = _time(0.4)
    boom = np.sin(2 * np.pi * generator.uniform(50, 110) * length) * np.exp(-length / 0.07)
    clack = generator.standard_normal(len(length)) * np.exp(-length / generator.uniform(0.01, 0.04))
    slam = boom + 0.6 * _band(clack, 150, generator.uniform(1500, 4000))
    return 0.3 * creak / creak.std() + 2 * _strikes(
        slams_s, np.ones(len(slams_s)), slam, duration_s
    )


def music(duration_s: float, generator: Generator) -> NDArray:
    """Chords, bass and drums."""
    time = _time(duration_s)
    beat_s = 60 / generator.uniform(85, 150)
    root_hz = 110 * 2 ** (generator.integers(12) / 12)
    degrees = generator.choice([0, 5, 7, 9, 2], 16)[(time / (2 * beat_s)).astype(int) % 16]
    chord_hz = root_hz * 2 ** (degrees / 12)
    chord = sum(_sawtooth(chord_hz * 2 ** (step / 12)) for step in (12, 16, 19))
    bass = np.sin(2 * np.pi * _phase(chord_hz)) * np.exp(-4 * np.mod(time / beat_s, 1))
    chord = _band(np.asarray(chord), 200, generator.uniform(1500, 5000))
    hat = _band(generator.standard_normal(1200), 6000, 11000) * _decay(0.05, 0.012)
    length = _time(0.15)
    kick = np.sin(2 * np.pi * 60 * length) * np.exp(-length / 0.05)
    beats = np.arange(0, duration_s, beat_s)
    offbeats = np.arange(0, duration_s, beat_s / 2)
    return (
        chord * generator.uniform(0.2, 0.6)
        + bass
        + _strikes(beats, np.ones(len(beats)), kick, duration_s)
        + _strikes(offbeats, np.ones(len(offbeats)), 0.5 * hat, duration_s)
    )


def musical_instrument(duration_s: float, generator: Generator) -> NDArray:
    """A melody on one plucked or bowed instrument."""
    time = _time(duration_s)
    note_s = generator.uniform(0.2, 0.7)
    scale = np.array([0, 2, 4, 7, 9, 12, 14])
    notes = generator.choice(scale, int(duration_s / note_s) + 1)
    pitch_hz = generator.uniform(180, 600) * 2 ** (notes[(time / note_s).astype(int)] / 12)
    position = np.mod(time, note_s)
    plucked = generator.random() < 0.5
    if not plucked:
        pitch_hz = pitch_hz * (1 + 0.008 * np.sin(2 * np.pi * generator.uniform(4, 7) * time))
    phase = 2 * np.pi * _phase(pitch_hz)
    rolloff = generator.uniform(0.8, 2.2)
    only_odd = generator.random() < 0.3
    tone = sum(
        np.sin(number * phase) / number**rolloff for number in range(1, 9, 2 if only_odd else 1)
    )
    if plucked:
        return tone * np.exp(-position / generator.uniform(0.1, 0.4))
    return tone * np.minimum(1, position / 0.06) * np.minimum(1, (note_s - position) / 0.04)


def water_tap(duration_s: float, generator: Generator) -> NDArray:
    """Running water: steady hiss and bubbles."""
    time = _time(duration_s)
    noise = generator.standard_normal(len(time))
    hiss = _band(noise, generator.uniform(800, 2500), generator.uniform(6000, 11000))
    stream = (
        hiss / hiss.std() * _control(generator.uniform(0.7, 1, int(duration_s * 12) + 2), len(time))
    )
    length = _time(0.05)
    for _ in range(4):
        bubble_hz = generator.uniform(400, 1800)
        sweep = bubble_hz * (1 + 8 * length)
        bubble = np.sin(2 * np.pi * _phase(sweep)) * np.exp(-length / 0.012)
        times = generator.uniform(0, duration_s, int(duration_s * generator.uniform(3, 12)))
        stream += _strikes(times, generator.uniform(0.5, 2, len(times)), bubble, duration_s)
    return stream


def bell(duration_s: float, generator: Generator) -> NDArray:
    """Inharmonic partials that ring on."""
    base_hz = generator.uniform(350, 1400)
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.66, 3.0, 4.1]) * generator.uniform(0.98, 1.02, 8)
    levels = generator.uniform(0.2, 1, 8)
    length = _time(1.5)
    falls_s = generator.uniform(0.2, 0.9) / np.sqrt(ratios)
    partials = np.sin(2 * np.pi * base_hz * ratios[:, None] * length)
    hit = (levels[:, None] * partials * np.exp(-length / falls_s[:, None])).sum(axis=0)
    times = _regular(generator.uniform(0.7, 3.5), 0.08, duration_s, generator)
    return _strikes(times, generator.uniform(0.6, 1, len(times)), hit, duration_s)


def knock(duration_s: float, generator: Generator) -> NDArray:
    """Groups of two to five knocks on wood."""
    length = _time(0.12)
    centre_hz = generator.uniform(180, 600)
    ring = sum(
        np.sin(2 * np.pi * centre_hz * ratio * length) * np.exp(-length / (0.03 / ratio))
        for ratio in (1, 1.7, 2.9)
    )
    click = _band(generator.standard_normal(len(length)), 800, 5000) * np.exp(-length / 0.004)
    hit = ring + generator.uniform(0.2, 0.8) * click
    times: list[float] = []
    start_s = 0.0
    while start_s < duration_s:
        gap_s = 1 / generator.uniform(4, 8)
        count = int(generator.integers(2, 6))
        times += [start_s + number * gap_s for number in range(count)]
        start_s += count * gap_s + generator.uniform(0.4, 1.0)
    strikes_s = np.array(times)
    return _strikes(strikes_s, generator.uniform(0.6, 1, len(times)), hit, duration_s)


SYNTHESISERS: dict[str, Callable[[float, Generator], NDArray]] = {
    synthesise.__name__: synthesise
    for synthesise in (
        female_speech,
        male_speech,
        clapping,
        telephone,
        laughter,
        domestic_sounds,
        walk_footsteps,
        door,
        music,
        musical_instrument,
        water_tap,
        bell,
        knock,
    )
}
assert tuple(SYNTHESISERS) == STARSS_CLASSES
