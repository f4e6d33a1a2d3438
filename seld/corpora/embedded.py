"""The embedded benchmark as ``seld.scenes`` renders it: STARSS layout with video, plus a part
without annotations."""

from __future__ import annotations

from seld.corpora.recording import Recording
from seld.corpora.starss import read_layout


def read(root: str) -> list[Recording]:
    """Manifest of the rendered corpus under ``root``; rooms named in the files."""
    return read_layout(root, "embedded", with_video=True, origin="rendered")
