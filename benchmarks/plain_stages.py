"""A trial's stages as plain loops in this process, one after the other, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seld.checkpoints import save_audio_encoder
from seld.records import HISTORY_FILE
from trainables.cells import Cell, stages_of
from trainables.clips import local_batches
from trainables.evaluate_job import EvaluateJob
from trainables.finetune_job import FinetuneJob
from trainables.jobs import ENCODER_FILE, History
from trainables.prepare import PreparedData
from trainables.pretrain import pretrain
from trainables.pretrain_job import PretrainJob
from trainables.stages import StageFiles, StageResult, StageStore


def pretrained(job: PretrainJob, folder: Path) -> Mapping[str, Any]:
    """The audio encoder and its history, into the folder; returns the last probes."""
    history = History("pretrain")
    result = pretrain(
        job.settings,
        local_batches(job.reader(), start_step=0, steps=job.settings.steps),
        report=lambda step, metrics, state: history.add(step, metrics),
        probe=job.probe(),
    )
    save_audio_encoder(folder / ENCODER_FILE, result.audio_encoder, job.settings.audio)
    history.write(folder / HISTORY_FILE)
    return {"probes": result.probes}


def run_plainly(
    cell: Cell, data: PreparedData, store: StageStore, *, probed: bool = True
) -> StageResult:
    """All stages of a cell that the store does not have yet; returns its evaluation.

    ``probed`` measures what pretraining has learnt, as trials do.
    """
    keys = stages_of(cell, data)
    encoder = None
    if cell.pretrain is not None:
        assert keys.pretrain is not None
        pretraining = PretrainJob(
            settings=cell.pretrain,
            shards=data.unannotated,
            probes=data.annotated if probed else None,
            validation_rooms=data.validation_rooms,
        )
        store.obtain(keys.pretrain, lambda folder: pretrained(pretraining, folder))
        encoder = StageFiles(store=store, key=keys.pretrain)
    finetuning = FinetuneJob(
        settings=cell.finetune,
        shards=data.annotated,
        annotation_minutes=cell.annotation_minutes,
        class_names=data.class_names,
        encoder=encoder,
        validation_rooms=data.validation_rooms,
    )
    store.obtain(
        keys.finetune,
        lambda folder: finetuning.run(folder, device="cpu", report=lambda progress: None),
    )
    evaluation = EvaluateJob(
        shards=data.annotated,
        network=StageFiles(store=store, key=keys.finetune),
        class_names=data.class_names,
        rooms=data.validation_rooms if cell.scored_on == "validation" else None,
    )
    return store.obtain(
        keys.evaluate,
        lambda folder: evaluation.run(folder, device="cpu", report=lambda progress: None),
    )
