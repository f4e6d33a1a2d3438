"""One reader per corpus: a folder (or URI) in its published layout → the same manifest rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from seld.corpora import embedded, sphere360, starss22, starss23, synth1, yt360
from seld.corpora.classes import read_classes
from seld.corpora.recording import Recording

Reader: TypeAlias = Callable[[str], list[Recording]]

#: Corpus name → reader of its root folder; rows come sorted by ``recording_id``.
CORPORA: dict[str, Reader] = {
    "starss22": starss22.read,
    "starss23": starss23.read,
    "synth1": synth1.read,
    "yt360": yt360.read,
    "sphere360": sphere360.read,
    "embedded": embedded.read,
}

__all__ = ["CORPORA", "Reader", "Recording", "read_classes"]
