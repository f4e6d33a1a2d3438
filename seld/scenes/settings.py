"""What a rendered corpus is made of. Every value here is this project's choice."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from seld.errors import InputError

Acoustics = Literal["anechoic", "reverberant", "small", "large", "outdoor", "mixed"]
PartName = Literal["unannotated", "train", "test"]

PART_NAMES: tuple[PartName, ...] = ("unannotated", "train", "test")
MAXIMUM_ROOMS = 999


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """One part of the corpus.

    Args:
        minutes: length of all its recordings together, rounded up to whole recordings.
        rooms: how many rooms; recordings visit them in turn.
        acoustics: what rooms it has; "mixed" draws each room among small, large and reverberant.
        classes: names of the classes that sound (None: all). Pictures show the same ones.
        class_skew: 0 draws all classes alike; else class number n is drawn with weight
            (n + 1) ** -class_skew, as recordings of the real world are unbalanced.
        unseen_share: share of the sounding sources that have no picture.
        silent_share: objects seen but never heard, per sounding source.
        background_music_share: share of recordings with music from everywhere, not annotated.
        max_overlap: most sources that sound at once (None: the corpus's).
    """

    minutes: float
    rooms: int
    acoustics: Acoustics = "mixed"
    classes: tuple[str, ...] | None = None
    class_skew: float = 0.0
    unseen_share: float = 0.1
    silent_share: float = 0.1
    background_music_share: float = 0.0
    max_overlap: int | None = None

    def __post_init__(self) -> None:
        where = "scenes.part"
        _check(self.minutes > 0, where, "minutes", self.minutes, "more than 0")
        _check(
            1 <= self.rooms <= MAXIMUM_ROOMS, where, "rooms", self.rooms, f"1 to {MAXIMUM_ROOMS}"
        )
        _check(self.class_skew >= 0, where, "class_skew", self.class_skew, "0 or more")
        _check(self.classes != (), where, "classes", self.classes, "at least one, or none at all")
        for name in ("unseen_share", "silent_share", "background_music_share"):
            share = getattr(self, name)
            _check(0 <= share <= 1, where, name, share, "0 to 1")
        if self.max_overlap is not None:
            _check(1 <= self.max_overlap <= 5, where, "max_overlap", self.max_overlap, "1 to 5")


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """The equirectangular video; ``width_px`` is twice ``height_px``, both even (H.264)."""

    height_px: int = 64
    width_px: int = 128
    frame_rate_hz: int = 5

    def __post_init__(self) -> None:
        where = "scenes.picture"
        _check(
            self.height_px >= 32 and self.height_px % 2 == 0,
            where,
            "height_px",
            self.height_px,
            "even, 32 or more",
        )
        _check(
            self.width_px == 2 * self.height_px,
            where,
            "width_px",
            self.width_px,
            f"twice the height, {2 * self.height_px}",
        )
        _check(1 <= self.frame_rate_hz <= 60, where, "frame_rate_hz", self.frame_rate_hz, "1 to 60")


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """The whole corpus. The same settings give the same bytes.

    Args:
        seed: of everything that is drawn.
        recording_s: length of each recording, a multiple of the 100 ms label frame.
        max_overlap: most annotated sources that sound at once, in parts that do not say their own.
        moving_share: share of the sources that move.
        ambient_noise_dbfs: mean level of the diffuse noise; each recording lies within ±6 dB.
            Sources are at about -26 dBFS in 1 m distance.
        sound_bank: folder of ``<class>/*.wav|ogg|flac``; None: the 13 STARSS22 classes, synthetic.
    """

    seed: int = 0
    recording_s: float = 20.0
    max_overlap: int = 3
    moving_share: float = 0.4
    ambient_noise_dbfs: float = -58.0
    sound_bank: str | None = None
    picture: PictureSettings = field(default_factory=PictureSettings)
    unannotated: PartSettings = field(default_factory=lambda: PartSettings(minutes=40, rooms=20))
    train: PartSettings = field(default_factory=lambda: PartSettings(minutes=12, rooms=8))
    test: PartSettings = field(default_factory=lambda: PartSettings(minutes=8, rooms=8))

    def __post_init__(self) -> None:
        where = "scenes"
        _check(self.seed >= 0, where, "seed", self.seed, "0 or more")
        label_frames = self.recording_s * 10
        _check(
            self.recording_s >= 2 and abs(label_frames - round(label_frames)) < 1e-6,
            where,
            "recording_s",
            self.recording_s,
            "2 or more, a multiple of 0.1",
        )
        _check(1 <= self.max_overlap <= 5, where, "max_overlap", self.max_overlap, "1 to 5")
        _check(0 <= self.moving_share <= 1, where, "moving_share", self.moving_share, "0 to 1")
        _check(
            -120 <= self.ambient_noise_dbfs <= -20,
            where,
            "ambient_noise_dbfs",
            self.ambient_noise_dbfs,
            "-120 to -20",
        )

    def part(self, name: PartName) -> PartSettings:
        """The settings of one part."""
        return getattr(self, name)

    @property
    def minutes(self) -> float:
        """Length of all parts together."""
        return sum(self.part(name).minutes for name in PART_NAMES)


def with_minutes(settings: SceneSettings, minutes: float) -> SceneSettings:
    """The same corpus with ``minutes`` in all, parts in the same proportion."""
    _check(minutes > 0, "scenes", "minutes", minutes, "more than 0")
    scale = minutes / settings.minutes
    parts = {
        name: replace(settings.part(name), minutes=settings.part(name).minutes * scale)
        for name in PART_NAMES
    }
    return replace(settings, **parts)


def _check(holds: bool, where: str, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(where, name, value, expected)


assert set(PART_NAMES) <= {entry.name for entry in fields(SceneSettings)}
