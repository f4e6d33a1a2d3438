"""Synth1: "[DCASE2022 Task 3] Synthetic SELD mixtures for baseline training", sound only.

https://doi.org/10.5281/zenodo.6406873
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from seld.corpora.recording import Recording, check_folder, in_order
from seld.errors import InputError
from seld.storage import absolute, join, list_files

LAYOUT = "foa/fold<F>_room<R>_mix<NNN>.wav and metadata/….csv"

_NAME = re.compile(r"fold(?P<fold>\d+)_room(?P<room>\d+)_mix\d+")
#: The DCASE baseline trains on both: what is validated and tested on is real (STARSS) scenes.
_FOLDS = (1, 2)


def read(root: str) -> list[Recording]:
    """Manifest of the folder that holds ``foa`` and ``metadata``: mixtures of one minute each."""
    root = absolute(root)
    suffixes = {"foa": ".wav", "metadata": ".csv"}
    stems: dict[str, re.Match[str]] = {}
    found: set[str] = set()
    for name in list_files(root):
        path = PurePosixPath(name)
        hidden = path.name.startswith(".")
        if hidden or len(path.parts) != 2 or suffixes.get(path.parts[0]) != path.suffix:
            continue
        match = _NAME.fullmatch(path.stem)
        if match is None or int(match["fold"]) not in _FOLDS:
            expected = "fold1_room<R>_mix<NNN> or fold2_room<R>_mix<NNN>"
            raise InputError(join(root, name), "file name", path.stem, expected)
        stems[path.stem] = match
        found.add(path.parts[0])
    for folder in suffixes if found else ():
        check_folder(root, folder, found)
    recordings = [
        Recording(
            recording_id=stem,
            corpus="synth1",
            split="train",
            # Others than STARSS's rooms of the same numbers.
            room=f"synth1-room{match['room']}",
            foa_path=join(root, f"foa/{stem}.wav"),
            annotation_path=join(root, f"metadata/{stem}.csv"),
            origin="rendered",
        )
        for stem, match in stems.items()
    ]
    return in_order(recordings, root, LAYOUT)
