"""Sphere360: ten-second segments of YouTube 360° videos with first-order ambisonics.

Liu et al., "OmniAudio: Generating Spatial Audio from 360-Degree Video", ICML 2025;
https://github.com/liuhuadai/OmniAudio. Its download script writes ``<ID>_<start>.webm`` with sound
and picture in one file; where the sound has been taken out, a sound file of the same name is used.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from seld.corpora.recording import Recording, check_none_foreign, in_order, is_leftover
from seld.errors import InputError
from seld.storage import absolute, join, list_files

LAYOUT = "<ID>_<start>.webm (or .mp4, .mkv), in any folders, sound inside or in a file beside"
SEGMENT_S = 10.0

_VIDEO_SUFFIXES = (".webm", ".mp4", ".mkv")
_SOUND_SUFFIXES = (".wav", ".flac", ".m4a", ".opus", ".ogg")
#: Ids may hold ``_``, which also parts the start: the id has 11 characters, the start is last.
_NAME = re.compile(r"(?P<video_id>[\w-]{11})_(?P<start_s>\d+)", re.ASCII)


def read(root: str) -> list[Recording]:
    """Manifest of all segments below ``root``; a video's segments are a room."""
    root = absolute(root)
    videos: dict[str, str] = {}
    sounds: dict[str, str] = {}
    foreign: list[str] = []
    for name in list_files(root):
        path = PurePosixPath(name)
        if path.name.startswith(".") or path.suffix not in _VIDEO_SUFFIXES + _SOUND_SUFFIXES:
            continue
        if _NAME.fullmatch(path.stem) is None:
            if not is_leftover(path.stem):
                foreign.append(name)
            continue
        is_sound = path.suffix in _SOUND_SUFFIXES or path.parent.name == "audio"
        files = sounds if is_sound else videos
        if path.stem in files:
            found = f"{files[path.stem]} and {name}"
            raise InputError(root, f"segment {path.stem}", found, "one file of a kind")
        files[path.stem] = name
    check_none_foreign(foreign, root, "<YouTube id of 11 characters>_<start in seconds>")
    recordings = []
    for stem in {**videos, **sounds}:
        match = _NAME.fullmatch(stem)
        assert match
        video = videos.get(stem) or f"{stem}.webm"
        recordings.append(
            Recording(
                recording_id=stem,
                corpus="sphere360",
                split="unannotated",
                room=match["video_id"],
                foa_path=join(root, sounds.get(stem) or video),
                video_path=join(root, video),
                duration_s=SEGMENT_S,
                origin="web",
            )
        )
    return in_order(recordings, root, LAYOUT)
