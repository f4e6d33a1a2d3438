"""The names of the sound event classes, in label order."""

from __future__ import annotations

#: DCASE 2022/2023 Task 3 (STARSS22, STARSS23, Synth1), in the order of the annotation files.
STARSS_CLASSES: tuple[str, ...] = (
    "female_speech",
    "male_speech",
    "clapping",
    "telephone",
    "laughter",
    "domestic_sounds",
    "walk_footsteps",
    "door",
    "music",
    "musical_instrument",
    "water_tap",
    "bell",
    "knock",
)
