"""YT-360: ten-second segments of YouTube 360° videos with first-order ambisonics.

Morgado, Li and Vasconcelos, "Learning Representations from Audio-Visual Spatial Alignment",
NeurIPS 2020; https://github.com/pedro-morgado/AVSpatialAlignment
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from seld.corpora.recording import Recording, check_none_foreign, in_order, is_leftover
from seld.storage import absolute, join, list_files

LAYOUT = "video/<ID>-<start>.mp4 and audio/<ID>-<start>.m4a"
SEGMENT_S = 10.0

#: YouTube's ids have 11 characters and may hold or start with ``-``, which also parts the start.
_NAME = re.compile(r"(?P<video_id>[\w-]{11})-(?P<start_s>\d+)", re.ASCII)


def read(root: str) -> list[Recording]:
    """Manifest of the folder that holds ``video`` and ``audio``; a video's segments are a room."""
    root = absolute(root)
    suffixes = {"video": ".mp4", "audio": ".m4a"}
    stems: dict[str, re.Match[str]] = {}
    foreign: list[str] = []
    for name in list_files(root):
        path = PurePosixPath(name)
        hidden = path.name.startswith(".")
        if hidden or len(path.parts) != 2 or suffixes.get(path.parts[0]) != path.suffix:
            continue
        match = _NAME.fullmatch(path.stem)
        if match is not None:
            stems[path.stem] = match
        elif not is_leftover(path.stem):
            foreign.append(name)
    check_none_foreign(foreign, root, "<YouTube id of 11 characters>-<start in seconds>")
    recordings = [
        Recording(
            recording_id=stem,
            corpus="yt360",
            split="unannotated",
            room=match["video_id"],
            foa_path=join(root, f"audio/{stem}.m4a"),
            video_path=join(root, f"video/{stem}.mp4"),
            duration_s=SEGMENT_S,
            origin="web",
        )
        for stem, match in stems.items()
    ]
    return in_order(recordings, root, LAYOUT)
