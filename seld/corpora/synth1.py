"""Synth1: "[DCASE2022 Task 3] Synthetic SELD mixtures for baseline training", sound only.

https://doi.org/10.5281/zenodo.6406873
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from seld.corpora.recording import Recording, check_folder, in_order
from seld.errors import InputError
from seld.storage import absolute, join, list_files

LAYOUT = (
    "foa/fold<F>_room<R>_mix<NNN>.wav and metadata/….csv, "
    "or beside STARSS as foa_dev/<part>/….wav and metadata_dev/<part>/….csv"
)

_NAME = re.compile(r"fold(?P<fold>\d+)_room(?P<room>\d+)_mix\d+")
#: The DCASE baseline trains on both: what is validated and tested on is real (STARSS) scenes.
_FOLDS = (1, 2)


def read(root: str) -> list[Recording]:
    """Manifest of the folder that holds ``foa`` and ``metadata``: mixtures of one minute each.

    Or ``foa_dev`` and ``metadata_dev``, with these mixtures in a part of their own, as the DCASE
    baselines take them: STARSS's recordings, which have other folds, are passed by.
    """
    root = absolute(root)
    suffixes = {"foa": ".wav", "metadata": ".csv", "foa_dev": ".wav", "metadata_dev": ".csv"}
    places: dict[tuple[str, PurePosixPath], re.Match[str]] = {}  # ending of the top, part and stem
    found: set[str] = set()
    for name in list_files(root):
        path = PurePosixPath(name)
        top, *parts, _ = path.parts if len(path.parts) > 1 else ("", path.name)
        ending = "_dev" if top.endswith("_dev") else ""
        hidden = path.name.startswith(".")
        if hidden or suffixes.get(top) != path.suffix or len(parts) != (1 if ending else 0):
            continue
        if parts and parts[0].startswith("unannotated"):  # the embedded benchmark's
            continue
        match = _NAME.fullmatch(path.stem)
        if match is not None and parts and int(match["fold"]) not in _FOLDS:
            continue
        if match is None or int(match["fold"]) not in _FOLDS:
            expected = "fold1_room<R>_mix<NNN> or fold2_room<R>_mix<NNN>"
            raise InputError(join(root, name), "file name", path.stem, expected)
        places[ending, PurePosixPath(*parts, path.stem)] = match
        found.add(top)
    for ending in sorted({ending for ending, _ in places}):
        beside = {folder for folder in found if folder.endswith("_dev") == bool(ending)}
        for folder in ("foa", "metadata"):
            check_folder(root, folder + ending, beside)
    recordings = [
        Recording(
            recording_id=place.name,
            corpus="synth1",
            split="train",
            # Others than STARSS's rooms of the same numbers.
            room=f"synth1-room{match['room']}",
            foa_path=join(root, f"foa{ending}/{place}.wav"),
            annotation_path=join(root, f"metadata{ending}/{place}.csv"),
            origin="rendered",
        )
        for (ending, place), match in places.items()
    ]
    return in_order(recordings, root, LAYOUT)
