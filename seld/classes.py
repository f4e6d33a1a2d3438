"""The names of the sound event classes, in label order."""

from __future__ import annotations

from pathlib import Path

from seld.errors import InputError

#: Beside a corpus whose classes are not STARSS's: a name per line.
CLASSES_FILE = "classes.txt"

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


def read_class_names(path: Path, *, known_as: str | None = None) -> tuple[str, ...]:
    """The names in a text file, one per line, in the order of their labels from 0.

    Args:
        path: of the file.
        known_as: to whoever reads an error, where ``path`` is a copy.

    Raises:
        InputError: there is no such file or it is not text, has no names, or one twice.
    """
    where = known_as or path
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(where, "file", str(error), "a text file with a class per line") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(where, "classes", "none", "a class per line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(where, "classes", ", ".join(twice), "every class on one line")
    return names
