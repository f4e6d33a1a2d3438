"""Where the sounds come from: a folder of recordings, or the thirteen STARSS22 classes, synthetic.

A bank gives mono sounds at 24 kHz and keeps what trains apart from what tests: recordings by
fold or file, synthetic ones by the generator that they are drawn from.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from seld.classes import STARSS_CLASSES
from seld.clips import LABEL_FRAME_S, SAMPLE_RATE_HZ
from seld.errors import InputError
from seld.scenes.synthesis import SYNTHESISERS

Side = Literal["train", "test"]

#: RMS of the loudest tenth of a second of every sound, in 1 m distance.
LEVEL_DBFS = -26.0
SUFFIXES = (".wav", ".ogg", ".flac")

#: Frames this much below a sound's loudest frame are silence.
ACTIVITY_DB = 40.0
#: Pauses up to this long belong to the event, as between two steps.
_BRIDGED_PAUSE_FRAMES = 3

_FOLD = re.compile(r"(\d+)-")
_TEST_SHARE = 0.25


class SoundBank(Protocol):
    """What scenes need of a bank; ``digest`` changes when its sounds do."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str: ...

    def draw(
        self, class_id: int, side: Side, duration_s: float, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """A sound (time,) of at most ``duration_s`` at :data:`LEVEL_DBFS`."""
        ...


def open_bank(folder: str | None) -> SoundBank:
    """The bank of this folder, every file decoded and checked; without one the synthetic bank.

    Raises:
        InputError: no classes, an unreadable or silent file, or a class that cannot be split.
    """
    return SyntheticBank() if folder is None else _read_folder(Path(folder))


@dataclass(frozen=True)
class SyntheticBank:
    """Thirteen classes, synthesised anew each time; no two sounds are the same."""

    class_names: tuple[str, ...] = STARSS_CLASSES
    digest: str = "synthetic-1"

    def draw(
        self, class_id: int, side: Side, duration_s: float, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """See :class:`SoundBank`; a side needs nothing kept apart."""
        synthesise: Callable = SYNTHESISERS[self.class_names[class_id]]
        return _levelled(synthesise(duration_s, generator))


@dataclass(frozen=True)
class RecordedBank:
    """Recordings of a folder, in memory as int16."""

    class_names: tuple[str, ...]
    digest: str
    sounds: dict[tuple[int, Side], list[NDArray[np.int16]]] = field(repr=False)

    def draw(
        self, class_id: int, side: Side, duration_s: float, generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """See :class:`SoundBank`; longer recordings are cut somewhere at random."""
        choices = self.sounds[class_id, side]
        sound = choices[generator.integers(len(choices))]
        wanted = round(duration_s * SAMPLE_RATE_HZ)
        spare = max(len(sound) - wanted, 0)
        start = int(generator.integers(spare + 1))
        return _levelled(sound[start : start + wanted].astype(np.float32) / 32768)


def active_frames(sound: NDArray, offset_samples: int = 0) -> NDArray[np.bool_]:
    """Which 100 ms frames hold sound: (frame,), the sound beginning ``offset_samples`` into the
    first one.

    Silent are frames :data:`ACTIVITY_DB` below the loudest; short pauses are bridged.
    """
    frame_samples = round(LABEL_FRAME_S * SAMPLE_RATE_HZ)
    count = -(-(offset_samples + len(sound)) // frame_samples)
    padded = np.zeros(count * frame_samples, np.float32)
    padded[offset_samples : offset_samples + len(sound)] = sound
    energy = (padded.reshape(count, frame_samples) ** 2).sum(axis=1)
    active = energy > energy.max() * 10 ** (-ACTIVITY_DB / 10)
    sounding = np.flatnonzero(active)
    for before, after in itertools.pairwise(sounding):
        if after - before - 1 <= _BRIDGED_PAUSE_FRAMES:
            active[before:after] = True
    return active


def split_files(names: list[str]) -> dict[str, Side]:
    """File name → side: by fold if every name has a fold prefix (``3-…``), else by file."""
    folds = [_FOLD.match(name) for name in names]
    if names and all(folds):
        groups = {name: match[1] for name, match in zip(names, folds, strict=True) if match}
    else:
        groups = {name: name for name in names}
    ordered = sorted(set(groups.values()), key=lambda group: (len(group), group))
    held_back = set(ordered[len(ordered) - max(1, round(len(ordered) * _TEST_SHARE)) :])
    return {name: "test" if group in held_back else "train" for name, group in groups.items()}


def _read_folder(folder: Path) -> RecordedBank:
    if not folder.is_dir():
        raise InputError(
            folder, "sound bank", "no such folder", "a folder of <class>/<sound> files"
        )
    files = {
        entry.name: sorted(path for path in entry.iterdir() if path.suffix.lower() in SUFFIXES)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise InputError(folder, "classes", "none", "<class>/*.wav, .ogg or .flac")
    all_paths = [path for paths in files.values() for path in paths]
    by_fold = all(_FOLD.match(path.name) for path in all_paths)
    sides = split_files([path.name for path in all_paths]) if by_fold else {}
    digest = hashlib.sha256()
    sounds: dict[tuple[int, Side], list[NDArray[np.int16]]] = {}
    for class_id, (class_name, paths) in enumerate(files.items()):
        class_sides = sides or split_files([path.name for path in paths])
        for path in paths:
            sound = _read_sound(path)
            digest.update(f"{class_name}/{path.name}".encode() + sound.tobytes())
            sounds.setdefault((class_id, class_sides[path.name]), []).append(sound)
        for side in ("train", "test"):
            if (class_id, side) not in sounds:
                kind = "fold" if by_fold else "file"
                raise InputError(
                    folder / class_name, f"{side} recordings", 0, f"at least one {kind} per side"
                )
    return RecordedBank(tuple(files), digest.hexdigest()[:16], sounds)


def _read_sound(path: Path) -> NDArray[np.int16]:
    """Mono at 24 kHz without the silence at both ends."""
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(path, "sound", str(error), "a readable sound file") from error
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all() or len(mono) == 0 or np.abs(mono).max() < 1e-4:
        raise InputError(path, "sound", "silence or not finite", "something to hear")
    sound = np.asarray(soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ))
    active = np.flatnonzero(active_frames(sound))
    frame_samples = round(LABEL_FRAME_S * SAMPLE_RATE_HZ)
    sound = sound[active[0] * frame_samples : (active[-1] + 1) * frame_samples]
    return np.round(sound * (32767 / max(np.abs(sound).max(), 1e-9))).astype(np.int16)


def _levelled(sound: NDArray) -> NDArray[np.float32]:
    """Scale to :data:`LEVEL_DBFS` and take the clicks off both ends."""
    frame_samples = round(LABEL_FRAME_S * SAMPLE_RATE_HZ)
    sound = np.asarray(sound, np.float32)
    starts = np.arange(0, len(sound), frame_samples)
    loudest = np.sqrt(np.max(np.add.reduceat(sound**2, starts)) / frame_samples)
    levelled = sound * np.float32(10 ** (LEVEL_DBFS / 20) / max(float(loudest), 1e-9))
    fade = np.linspace(0, 1, min(120, len(sound) // 2), dtype=np.float32)
    levelled[: len(fade)] *= fade
    levelled[len(levelled) - len(fade) :] *= fade[::-1]
    return levelled
