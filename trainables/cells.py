"""What a trial is, and the keys of the stages it needs: known without Ray and without computing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from seld.metrics import METRIC_VERSION
from seld.settings import to_mapping
from trainables.finetune import FinetuneSettings
from trainables.prepare import PreparedData
from trainables.pretrain import PretrainSettings
from trainables.stage_keys import StageKey, stage_key

#: The data set of arms that do not bring their own.
DEFAULT_DATA = "default"

#: The module whose code, with all it imports, makes a stage's outcome.
STAGE_CODE = {
    "pretrain": "trainables.pretrain_job",
    "finetune": "trainables.finetune_job",
    "evaluate": "trainables.evaluate_job",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One planned trial.

    Attributes:
        pretrain: None where the encoder starts untrained.
        data: which of the study's data sets it is trained and tested on.
        scored_on: whose rooms: a search must not see those of the test.
        parameters: the settings that vary within the study, flat, for tables.
    """

    study: str
    arm: str
    seed: int
    annotation_minutes: float
    pretrain: PretrainSettings | None
    finetune: FinetuneSettings
    data: str = DEFAULT_DATA
    scored_on: Literal["test", "validation"] = "test"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trial_id(self) -> str:
        """Readable, and another one (but for 1 in 2²⁴) where any setting is another."""
        text = json.dumps(self.config(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{self.arm}-{self.annotation_minutes:g}min-seed{self.seed}-{digest}"

    def config(self) -> dict[str, Any]:
        """Every setting, nested and plain."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "annotation_minutes": self.annotation_minutes,
            "data": self.data,
            "scored_on": self.scored_on,
            "pretrain": to_mapping(self.pretrain) if self.pretrain else None,
            "finetune": to_mapping(self.finetune),
        }


@dataclass(frozen=True, kw_only=True)
class CellStages:
    """The keys of a cell's stages, known before anything is computed."""

    pretrain: StageKey | None
    finetune: StageKey
    evaluate: StageKey


def stages_of(cell: Cell, data: PreparedData) -> CellStages:
    """What a cell's stages depend on: their own settings, their data, their code; no more.

    The probes of a pretraining are those on the annotated clips of the trial that computed it:
    trials with other annotations share it, as nothing that it has learnt comes from them.
    """
    pretrain = None
    if cell.pretrain is not None:
        pretrain = stage_key(
            "pretrain",
            to_mapping(cell.pretrain),
            data_fingerprint=data.unannotated_fingerprint,
            code_of=STAGE_CODE["pretrain"],
        )
    finetune = stage_key(
        "finetune",
        to_mapping(cell.finetune)
        | {
            "annotation_minutes": cell.annotation_minutes,
            "validation_rooms": data.validation_rooms,
            "class_names": data.class_names,
        },
        data_fingerprint=data.annotated_fingerprint,
        inputs=(pretrain,) if pretrain else (),
        code_of=STAGE_CODE["finetune"],
    )
    evaluate = stage_key(
        "evaluate",
        {"metric": METRIC_VERSION},
        data_fingerprint=scored_fingerprint(cell, data),
        inputs=(finetune,),
        code_of=STAGE_CODE["evaluate"],
    )
    return CellStages(pretrain=pretrain, finetune=finetune, evaluate=evaluate)


def scored_fingerprint(cell: Cell, data: PreparedData) -> str:
    """Of the recordings that a cell is scored on."""
    return data.test_fingerprint if cell.scored_on == "test" else data.validation_fingerprint


def with_batches(cell: Cell, batches: Mapping[str, int]) -> Cell:
    """The cell with other batch sizes, by names like ``finetune.batch_size``."""
    for name, size in batches.items():
        stage = name.partition(".")[0]
        cell = replace(cell, **{stage: replace(getattr(cell, stage), batch_size=size)})
    return cell
