"""The manifest row that every corpus reader yields."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from seld.errors import InputError

Split = Literal["unannotated", "train", "validation", "test"]
Origin = Literal["web", "microphone", "rendered"]


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
            sound and static pictures; a "microphone" put up for the corpus may be far from quiet
            sources before a still scene; a "rendered" picture may not change at all.
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
