"""What the jobs of all stages share: the clips they read, the files they leave, their curves.

A job (:mod:`trainables.pretrain_job`, :mod:`trainables.finetune_job`,
:mod:`trainables.evaluate_job`) is a stage's computation as a value: settings and data in, files
out. No Ray: it can be sent to a Ray worker, run in a test or on a machine that has torch and
nothing else. Each has a module of its own, whose code belongs to its stage's key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from seld.ambisonics import FeatureSettings
from seld.clip_reader import ClipReader
from seld.clips import ShardIndex
from seld.errors import InputError
from seld.spatial_spectra import SpectraStore
from trainables.stage_keys import code_fingerprint

#: What a computation says while it runs: ``stage``, ``step``, ``steps`` and metrics.
Progress = dict[str, Any]

ENCODER_FILE = "audio_encoder.safetensors"
NETWORK_FILE = "seld_network.safetensors"

#: Version of the code that makes spectra: stored ones of another version are not read.
SPECTRA_CODE = code_fingerprint("seld.ambisonics", "seld.spatial_spectra", with_imports=False)


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """Clip shards to train from.

    Attributes:
        path: folder or URI.
        spectra: local folder of their precomputed spectra, or None to compute features from the
            waveform on the training device: the better choice on a GPU.
        fingerprint: of the clips that the study was planned with; None: of any.
    """

    path: str
    spectra: str | None = None
    fingerprint: str | None = None

    def index(self) -> ShardIndex:
        """The clips.

        Raises:
            InputError: they are others than the study was planned with, as where another run has
                decoded what has been added to a corpus: results would be stored as those of the
                clips before.
        """
        index = ShardIndex.open(self.path)
        if self.fingerprint is not None and index.fingerprint != self.fingerprint:
            expected = f"{self.fingerprint}, as when the run began (start it again)"
            raise InputError(self.path, "fingerprint of the clips", index.fingerprint, expected)
        return index

    def store(
        self,
        features: FeatureSettings,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> SpectraStore | None:
        """Spectra of all clips of the folder, built by whoever asks first."""
        if self.spectra is None:
            return None
        return SpectraStore.open_or_build(
            Path(self.spectra), ClipReader(self.path), features, progress, code=SPECTRA_CODE
        )


class History:
    """Curves of one stage, as rows ``stage, step, name, value``."""

    def __init__(self, stage: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        self._stage = stage
        self._rows = rows or []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step."""
        self._rows += [(self._stage, step, name, float(value)) for name, value in metrics.items()]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """What has been recorded so far."""
        return self._rows

    def write(self, path: Path) -> None:
        """Write ``history.csv``."""
        table = pd.DataFrame(self._rows, columns=["stage", "step", "name", "value"])
        table.to_csv(path, index=False)

    @classmethod
    def read(cls, stage: str, path: Path) -> History:
        """What an interrupted run had recorded."""
        return cls(stage, list(pd.read_csv(path).itertuples(index=False, name=None)))
