"""A trial's jobs: each has the cell's settings, the data's rooms, and what the last has made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.tiny_training import TINY, TINY_FINETUNE
from trainables import trial as trial_module
from trainables.cells import Cell, stages_of
from trainables.jobs import ShardFolder
from trainables.prepare import PreparedData
from trainables.provenance import Provenance
from trainables.resources import plan_placement
from trainables.stages import StageStore
from trainables.trial import StudyRun, run_cell

DATA = PreparedData(
    unannotated=ShardFolder(path="unannotated"),
    annotated=ShardFolder(path="annotated"),
    class_names=("a", "b"),
    validation_rooms=("room1", "room5"),
    unannotated_fingerprint="u",
    annotated_fingerprint="a",
    test_fingerprint="t",
    trainable_minutes=10.0,
)
CELL = Cell(
    study="s", arm="doa_wise", seed=3, annotation_minutes=7.5, pretrain=TINY, finetune=TINY_FINETUNE
)


def jobs_of(cell: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a cell whose stages note their jobs and compute nothing: class of job → job."""
    jobs: dict[str, Any] = {}

    def note(job: Any, *_: Any, **__: Any) -> dict[str, Any]:
        assert type(job).__name__ not in jobs
        jobs[type(job).__name__] = job
        return {"metrics": {}, "per_class": [], "per_room": []}

    monkeypatch.setattr(trial_module, "pretrain_on_workers", note)
    monkeypatch.setattr(trial_module, "run_as_task", note)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    monkeypatch.setattr(trial_module._Trial, "collect", lambda *_: None)
    run = StudyRun(
        study_folder=folder / "study",
        store=StageStore(folder / "stages"),
        placement=plan_placement({"CPU": 1}),
        data={"default": DATA},
        provenance=Provenance(git_commit="", git_dirty=False, versions={}),
    )
    record = run_cell(cell, run)
    assert record.status == "finished", record.failure
    return jobs


@pytest.mark.parametrize("scored_on", ["test", "validation"])
def test_stages_get_their_rooms_and_what_the_stage_before_has_made(
    scored_on: Literal["test", "validation"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = replace(CELL, scored_on=scored_on)
    jobs = jobs_of(cell, tmp_path, monkeypatch)
    keys = stages_of(cell, DATA)

    pretraining = jobs.pop("PretrainJob")
    assert pretraining.settings == TINY
    assert (pretraining.shards, pretraining.probes) == (DATA.unannotated, DATA.annotated)
    assert pretraining.validation_rooms == ("room1", "room5")

    finetuning = jobs.pop("FinetuneJob")
    assert finetuning.settings == TINY_FINETUNE
    assert finetuning.shards == DATA.annotated
    assert finetuning.annotation_minutes == 7.5
    assert finetuning.class_names == ("a", "b")
    assert finetuning.validation_rooms == ("room1", "room5")
    assert finetuning.encoder.key == keys.pretrain

    evaluation = jobs.pop("EvaluateJob")
    assert evaluation.shards == DATA.annotated
    assert evaluation.class_names == ("a", "b")
    assert evaluation.network.key == keys.finetune
    assert evaluation.rooms == (("room1", "room5") if scored_on == "validation" else None)
    assert not jobs


def test_scratch_starts_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(replace(CELL, arm="scratch", pretrain=None), tmp_path, monkeypatch)
    assert set(jobs) == {"FinetuneJob", "EvaluateJob"}
    assert jobs["FinetuneJob"].encoder is None
