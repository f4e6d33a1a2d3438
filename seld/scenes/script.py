"""What happens in a recording: which sources are where, when they sound, and what is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seld.geometry import unit_vectors
from seld.scenes.rooms import Room
from seld.scenes.settings import PartSettings, SceneSettings

_EVENT_S = (1.5, 6.0)
#: Mean pause between the events of the first voice, the second… of a recording.
_MEAN_PAUSES_S = (1.0, 4.0, 8.0, 12.0, 16.0)
_SEEN_BEFORE_AND_AFTER_S = (0.0, 1.0)
_DISTANCE_M = (0.7, 2.5)
_WALL_MARGIN = 0.9
_ELEVATION_DEG = (-35.0, 45.0)
_AZIMUTH_SPEED_DEG_S = (8.0, 40.0)
_ELEVATION_SWING_DEG = 12.0
_LEVEL_DB = (-5.0, 5.0)
#: Sources present at once are this far apart at eight instants of the time they share (moving ones
#: may come nearer in between), unless no such place is found in so many tries.
_SEPARATION_DEG = 30.0
_PLACEMENT_TRIES = 40


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Where a source is: it circles at a constant speed and swings up and down, or stands still."""

    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    start_s: float
    azimuth_speed_deg_s: float = 0.0
    elevation_swing_deg: float = 0.0
    swing_rate_hz: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether its direction changes."""
        return self.azimuth_speed_deg_s != 0.0 or self.elevation_swing_deg != 0.0

    def directions(self, time_s: NDArray) -> NDArray:
        """Unit vectors (..., 3) at times (...) of the recording."""
        elapsed_s = time_s - self.start_s
        swing = np.sin(2 * np.pi * self.swing_rate_hz * elapsed_s)
        return unit_vectors(
            self.azimuth_deg + self.azimuth_speed_deg_s * elapsed_s,
            self.elevation_deg + self.elevation_swing_deg * swing,
        )

    def offsets_m(self, time_s: NDArray, room: Room) -> NDArray:
        """Positions (..., 3) from the microphone; walls are kept away from."""
        directions = self.directions(time_s)
        distances_m = np.minimum(self.distance_m, _WALL_MARGIN * room.wall_distance_m(directions))
        return directions * distances_m[..., None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One thing in the scene: it sounds, is seen, or both.

    ``start_s`` and ``duration_s`` are of its sound, or of what would have been; ``seen_s`` is
    when it is in the picture, or None.
    """

    class_id: int
    start_s: float
    duration_s: float
    trajectory: Trajectory
    level_db: float
    sounds: bool
    seen_s: tuple[float, float] | None

    @property
    def present_s(self) -> tuple[float, float]:
        """From when to when it is heard or seen."""
        heard = (self.start_s, self.start_s + self.duration_s)
        return self.seen_s or heard


@dataclass(frozen=True, kw_only=True)
class Script:
    """All that happens in one recording. Sources are numbered by their place in the tuple."""

    sources: tuple[Source, ...]
    background_music: bool
    noise_offset_db: float


def write_script(
    settings: SceneSettings,
    part: PartSettings,
    class_names: tuple[str, ...],
    generator: np.random.Generator,
) -> Script:
    """Draw a recording's script. At most ``max_overlap`` sources sound at once."""
    voices = settings.max_overlap if part.max_overlap is None else part.max_overlap
    class_weights = _class_weights(part, class_names)
    sources: list[Source] = []
    for voice in range(voices):
        pause_s = _MEAN_PAUSES_S[voice]
        time_s = generator.exponential(pause_s)
        while time_s < settings.recording_s - _EVENT_S[0]:
            longest_s = min(_EVENT_S[1], settings.recording_s - time_s)
            duration_s = generator.uniform(_EVENT_S[0], longest_s)
            seen = generator.random() >= part.unseen_share
            sources.append(
                _draw_source(
                    class_weights, time_s, duration_s, settings, sources, generator, seen=seen
                )
            )
            time_s += duration_s + generator.exponential(pause_s)
    for _ in range(generator.binomial(len(sources), part.silent_share)):
        duration_s = generator.uniform(*_EVENT_S)
        start_s = generator.uniform(0, max(settings.recording_s - duration_s, 0.0))
        sources.append(
            _draw_source(
                class_weights, start_s, duration_s, settings, sources, generator, sounds=False
            )
        )
    return Script(
        sources=tuple(sources),
        background_music=bool(generator.random() < part.background_music_share),
        noise_offset_db=float(generator.uniform(-6, 6)),
    )


def _class_weights(part: PartSettings, class_names: tuple[str, ...]) -> NDArray:
    ranks = np.arange(1, len(class_names) + 1)
    weights = ranks**-part.class_skew
    if part.classes is not None:
        weights = weights * np.isin(class_names, part.classes)
    return weights / weights.sum()


def _draw_source(
    class_weights: NDArray,
    start_s: float,
    duration_s: float,
    settings: SceneSettings,
    others: list[Source],
    generator: np.random.Generator,
    *,
    sounds: bool = True,
    seen: bool = True,
) -> Source:
    lead_s, lag_s = generator.uniform(*_SEEN_BEFORE_AND_AFTER_S, size=2)
    end_s = start_s + duration_s
    seen_s = (start_s - lead_s, end_s + lag_s) if seen else None
    moves = bool(generator.random() < settings.moving_share)
    source = None
    for _ in range(_PLACEMENT_TRIES):
        source = Source(
            class_id=int(generator.choice(len(class_weights), p=class_weights)),
            start_s=float(start_s),
            duration_s=float(duration_s),
            trajectory=_draw_trajectory(start_s, moves, generator),
            level_db=float(generator.uniform(*_LEVEL_DB)),
            sounds=sounds,
            seen_s=seen_s,
        )
        if all(_apart(source, other) for other in others):
            break
    assert source is not None
    return source


def _draw_trajectory(start_s: float, moves: bool, generator: np.random.Generator) -> Trajectory:
    low, high = np.sin(np.radians(_ELEVATION_DEG))
    place = {
        "azimuth_deg": float(generator.uniform(-180, 180)),
        "elevation_deg": float(np.degrees(np.arcsin(generator.uniform(low, high)))),
        "distance_m": float(generator.uniform(*_DISTANCE_M)),
        "start_s": float(start_s),
    }
    if not moves:
        return Trajectory(**place)
    speed_deg_s = generator.uniform(*_AZIMUTH_SPEED_DEG_S) * generator.choice([-1, 1])
    return Trajectory(
        **place,
        azimuth_speed_deg_s=float(speed_deg_s),
        elevation_swing_deg=float(generator.uniform(0, _ELEVATION_SWING_DEG)),
        swing_rate_hz=float(generator.uniform(0.05, 0.3)),
    )


def _apart(first: Source, second: Source) -> bool:
    start_s = max(first.present_s[0], second.present_s[0])
    end_s = min(first.present_s[1], second.present_s[1])
    if start_s >= end_s:
        return True
    time_s = np.linspace(start_s, end_s, 8)
    cosines = (first.trajectory.directions(time_s) * second.trajectory.directions(time_s)).sum(-1)
    return bool(cosines.max() < np.cos(np.radians(_SEPARATION_DEG)))
