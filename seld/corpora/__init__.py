"""One reader per corpus: a folder (or URI) in its published layout → the same manifest rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from seld.corpora import embedded
from seld.corpora.recording import Recording

Reader: TypeAlias = Callable[[str], list[Recording]]

#: Corpus name → reader of its root folder; rows come sorted by ``recording_id``.
CORPORA: dict[str, Reader] = {
    "embedded": embedded.read,
}

__all__ = ["CORPORA", "Reader", "Recording"]
