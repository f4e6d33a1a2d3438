"""The folder layout that STARSS22, STARSS23 and the embedded benchmark share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from seld.corpora.recording import Origin, Recording, Split, check_folder, in_order
from seld.errors import InputError
from seld.storage import absolute, join, list_files

LAYOUT = "foa_dev/<part>/fold<F>_room<R>_mix<NNN>.wav and metadata_dev/<part>/….csv"

_NAME = re.compile(r"fold(?P<fold>\d+)_room(?P<room>\d+)_mix\d+")
_SPLITS: dict[int, Split] = {3: "train", 4: "test"}
#: Those of Synth1, which the DCASE baselines take as one more part (``dev-train-synth``).
_SYNTHETIC_FOLDS = frozenset({1, 2})


def read_layout(
    root: str, corpus: str, *, with_video: bool, origin: Origin = "microphone"
) -> list[Recording]:
    """Recordings named by sound, annotations or picture; fold 3 trains, fold 4 tests.

    A part whose name starts with ``unannotated`` needs no annotation files, of any fold. One of
    folds 1 and 2 alone beside others is passed by: it is the ``synth1`` reader's.

    Raises:
        InputError: a file is named otherwise, a recording is in two parts, or of sound or
            annotations there is nothing at all.
    """
    root = absolute(root)
    top_folders = {"foa_dev": ".wav", "metadata_dev": ".csv"}
    if with_video:
        top_folders["video_dev"] = ".mp4"
    named: dict[PurePosixPath, str] = {}  # part and stem → one of the files found
    found: set[str] = set()
    for name in list_files(root):
        path = PurePosixPath(name)
        hidden = path.name.startswith(".")
        if hidden or len(path.parts) != 3 or top_folders.get(path.parts[0]) != path.suffix:
            continue
        if not _NAME.fullmatch(path.stem):
            raise InputError(join(root, name), "file name", path.stem, "fold<F>_room<R>_mix<NNN>")
        named.setdefault(PurePosixPath(*path.parts[1:]).with_suffix(""), name)
        found.add(path.parts[0])

    passed_by = _synthetic_parts(named)
    recordings = []
    by_id: dict[str, str] = {}
    for place, name in named.items():
        if place.parent.name in passed_by:
            continue
        match = _NAME.fullmatch(place.name)
        assert match
        annotated = _is_annotated(place.parent.name)
        fold = int(match["fold"])
        if annotated and fold not in _SPLITS:
            raise InputError(join(root, name), "fold", fold, "3 (training) or 4 (test)")
        other = by_id.setdefault(place.name, name)
        if other != name:
            expected = "all its files in one part"
            raise InputError(root, f"recording {place.name}", f"{other} and {name}", expected)
        recordings.append(
            Recording(
                recording_id=place.name,
                corpus=corpus,
                split=_SPLITS[fold] if annotated else "unannotated",
                room=f"room{match['room']}",
                foa_path=join(root, f"foa_dev/{place}.wav"),
                video_path=join(root, f"video_dev/{place}.mp4") if with_video else None,
                annotation_path=join(root, f"metadata_dev/{place}.csv") if annotated else None,
                origin=origin,
            )
        )
    if recordings:
        check_folder(root, "foa_dev", found)
    if any(recording.annotation_path for recording in recordings):
        check_folder(root, "metadata_dev", found)
    return in_order(recordings, root, LAYOUT)


def _is_annotated(part: str) -> bool:
    return not part.startswith("unannotated")


def _synthetic_parts(places: Iterable[PurePosixPath]) -> set[str]:
    """Annotated parts that hold nothing but Synth1's folds; none if there are no others."""
    folds: dict[str, set[int]] = {}
    for place in places:
        match = _NAME.fullmatch(place.name)
        assert match
        if _is_annotated(place.parent.name):
            folds.setdefault(place.parent.name, set()).add(int(match["fold"]))
    synthetic = {part for part, found in folds.items() if found <= _SYNTHETIC_FOLDS}
    return synthetic if len(synthetic) < len(folds) else set()
