"""The manifest row that every corpus reader yields."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from seld.errors import InputError
from seld.storage import join

Split = Literal["unannotated", "train", "validation", "test"]
Origin = Literal["web", "microphone", "rendered"]

#: Stems of what yt-dlp leaves when it is interrupted: one stream of several, or half a merger.
_LEFTOVER = re.compile(r".*\.(f\d+(-\w+)?|temp)", re.ASCII)
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording of a corpus: where its sound, picture and annotations are.

    Paths are local or URIs. A path names where the corpus keeps the file, whether or not it is
    there: what is missing or broken shows when the recording is decoded.

    Args:
        recording_id: unique within the corpus; prediction files are named after it.
        room: what must not be shared between training and test: the room of STARSS, the
            YouTube video of a web corpus. Corpora call the same room the same.
        channel_map: channel on disk that holds each ACN component; None: as the file says
            (its ``SA3D`` box), else already W, Y, Z, X.
        start_s: where in the file the recording starts (None: at its beginning).
        duration_s: its length at most, where the corpus fixes one (None: to the file's end).
        origin: "web" recordings are uploaded by anyone, so judged by Sphere360's rules for silent
            sound and static pictures, and by whether the picture is equirectangular; a
            "microphone" put up for the corpus may be far from quiet sources before a still scene;
            a "rendered" picture may not change at all.
    """

    recording_id: str
    corpus: str
    split: Split
    room: str
    foa_path: str
    video_path: str | None = None
    annotation_path: str | None = None
    channel_map: tuple[int, int, int, int] | None = None
    start_s: float | None = None
    duration_s: float | None = None
    origin: Origin = "microphone"


def is_leftover(stem: str) -> bool:
    """Whether an interrupted yt-dlp left the file: ``ID_10.f338.webm``, ``ID_10.temp.webm``."""
    return _LEFTOVER.fullmatch(stem) is not None


def check_none_foreign(names: list[str], root: str, expected: str) -> None:
    """Raise an :class:`InputError` that counts ``names``, which are not what is ``expected``."""
    if names:
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        found = ", ".join(sorted(names)[:_MOST_NAMED]) + more
        files = f"{len(names)} files" if len(names) > 1 else "a file"
        raise InputError(root, f"name of {files}", found, expected)


def check_folder(root: str, folder: str, found: Set[str]) -> None:
    """Raise an :class:`InputError` unless ``folder`` is among those with files of the corpus."""
    if folder not in found:
        beside = ", ".join(sorted(found))
        raise InputError(join(root, folder), "files", "none", f"some, as there are in {beside}")


def in_order(recordings: list[Recording], root: str, layout: str) -> list[Recording]:
    """``recordings`` sorted by id.

    Raises:
        InputError: there are none under ``root``, where ``layout`` was expected, or an id
            appears twice.
    """
    if not recordings:
        raise InputError(root, "recordings", "none", f"files laid out as {layout}")
    recordings = sorted(recordings, key=lambda recording: recording.recording_id)
    for first, second in pairwise(recordings):
        if first.recording_id == second.recording_id:
            found = f"{first.foa_path} and {second.foa_path}"
            raise InputError(root, f"recording {first.recording_id}", found, "one file per id")
    return recordings
