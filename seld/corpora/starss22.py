"""STARSS22: real scenes of DCASE 2022 Task 3, annotated sound without video.

https://doi.org/10.5281/zenodo.6387880
"""

from __future__ import annotations

from seld.corpora.recording import Recording
from seld.corpora.starss import read_layout


def read(root: str) -> list[Recording]:
    """Manifest of the folder that holds ``foa_dev`` and ``metadata_dev``."""
    return read_layout(root, "starss22", with_video=False)
