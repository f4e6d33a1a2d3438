"""STARSS23: real scenes of DCASE 2023 Task 3, annotated sound with equirectangular video.

https://doi.org/10.5281/zenodo.7880637
"""

from __future__ import annotations

from seld.corpora.recording import Recording
from seld.corpora.starss import read_layout


def read(root: str) -> list[Recording]:
    """Manifest of the folder that holds ``foa_dev``, ``metadata_dev`` and ``video_dev``."""
    return read_layout(root, "starss23", with_video=True)
