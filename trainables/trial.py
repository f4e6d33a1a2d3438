"""What Ray Tune runs: one trial, as the stages it needs.

A trial is an arm with a seed and an annotation budget. It asks the stage store for its
pretraining, its fine-tuning and its evaluation, in this order; each is computed only where no
trial, of this run or an earlier one, has made it. The trial's own process computes nothing and
holds no CPU: stages run in Ray Train workers and Ray tasks, so a trial that waits for another's
pretraining costs nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from ray import tune

from seld.errors import InputError
from seld.metrics import METRIC_VERSION
from seld.records import (
    COUNTS_FILE,
    HISTORY_FILE,
    LOG_FILE,
    PREDICTIONS_FOLDER,
    REFERENCE_FOLDER,
    TRIALS_FOLDER,
    Failure,
    StageUse,
    Status,
    TrialRecord,
    trial_folder,
    write_record,
)
from seld.storage import join, upload_folder
from trainables.cells import (
    STAGE_CODE,
    Cell,
    CellStages,
    scored_fingerprint,
    stages_of,
    with_batches,
)
from trainables.evaluate_job import EvaluateJob
from trainables.failures import BACKOFF_S, RETRIES, describe_failure, failure_kind
from trainables.finetune_job import FinetuneJob
from trainables.prepare import PreparedData
from trainables.pretrain_job import PretrainJob
from trainables.probes import has_learnt_classes
from trainables.provenance import Provenance
from trainables.resources import Placement
from trainables.stage_keys import StageKey, code_fingerprint
from trainables.stages import StageFiles, StageResult, StageStore
from trainables.workers import pretrain_on_workers, run_as_task

Result = TypeVar("Result")

#: A batch that does not fit the GPU is halved down to this part; beyond it, it would be another
#: experiment.
LARGEST_CUT = 4


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """What all trials of a run share.

    Attributes:
        data: the data sets by the names cells use.
        kept_in: URI that the plan is copied to, and each trial's folder when it has ended; None
            where the study's folder outlives the machine.
    """

    study_folder: Path
    store: StageStore
    placement: Placement
    data: Mapping[str, PreparedData]
    provenance: Provenance
    kept_in: str | None = None


def run_trial(config: Mapping[str, Any]) -> None:
    """The function Ray Tune calls: leaves a trial record whatever happens.

    Args:
        config: ``cell`` (:class:`Cell`) and ``run`` (:class:`StudyRun`).
    """
    run: StudyRun = config["run"]
    record = run_cell(config["cell"], run)
    keep_record(record, run)
    report_outcome(record)


def keep_record(record: TrialRecord, run: StudyRun) -> None:
    """Write a trial's record, last into its folder, and copy the folder to where it is kept.

    The references are kept before it, which a report draws the trial's predictions with. What
    cannot be copied, however often it is tried, is left to the end of the run, which copies the
    whole study: that a bucket was away makes no failure of a trial that has its scores.
    """
    write_record(record, run.study_folder)
    attempts = 0
    while run.kept_in is not None:
        attempts += 1
        try:
            for name in (REFERENCE_FOLDER, f"{TRIALS_FOLDER}/{record.trial_id}"):
                upload_folder(run.study_folder / name, join(run.kept_in, name))
            return
        except Exception as error:
            failure = describe_failure(error, stage="keeping the record", attempts=attempts)
        again = attempts <= RETRIES[failure.kind]
        what_next = "is tried again" if again else "is left to the end of the run"
        _log(
            trial_folder(run.study_folder, record.trial_id),
            f"copying to {run.kept_in}: {failure.kind}, {what_next}\n{failure.traceback}",
        )
        if not again:
            return
        time.sleep(BACKOFF_S * 2 ** (attempts - 1))


def run_cell(cell: Cell, run: StudyRun, *, trial_id: str | None = None) -> TrialRecord:
    """All stages of a cell and the record of it, failed or not.

    Args:
        cell: what to run.
        run: where.
        trial_id: whose folder receives the tables; by default the cell's own.
    """
    trial = _Trial(cell, run, trial_id or cell.trial_id)
    while True:
        # The one boundary at which every exception is caught: it becomes part of the record.
        try:
            return trial.run()
        except Exception as error:
            failure = trial.failure(error)
        trial.log(f"failed in {failure.stage}: {failure.kind}\n{failure.traceback}")
        smaller = smaller_batch(cell, trial.smaller_batches, failure, run.placement)
        if smaller is None:
            return trial.record("failed", failure=failure)
        trial.use_batches(smaller)
        ((name, size),) = smaller.items()
        tune.report({"stage": f"{failure.stage} with {name}={size}"})


def smaller_batch(
    cell: Cell, batches: Mapping[str, int], failure: Failure, placement: Placement
) -> dict[str, int] | None:
    """Half of the batch of a stage that ran out of GPU memory; None where that is no way out.

    What is trained so is another stage, with a key of its own, and the trial's record says so.
    """
    settings = {"pretrain": cell.pretrain, "finetune": cell.finetune}.get(failure.stage)
    if failure.kind != "gpu_memory" or settings is None:
        return None
    name = f"{failure.stage}.batch_size"
    size = batches.get(name, settings.batch_size) // 2
    if size * LARGEST_CUT < settings.batch_size:
        return None
    try:
        smaller = with_batches(cell, {name: size})
        for workers in range(placement.fewest_workers, placement.train_workers + 1):
            if smaller.pretrain is not None:
                smaller.pretrain.rank_batch_size(workers)
    except InputError:
        return None
    return {name: size}


def report_outcome(record: TrialRecord, **further: Any) -> None:
    """Tell Ray Tune, and with it console and trackers, how a trial ended."""
    failure = record.failure
    outcome = {
        "status": record.status,
        "message": failure.message if failure else "",
        "failure_kind": failure.kind if failure else "",
    }
    tune.report({**outcome, **record.metrics, **further})


class _Trial:
    """One trial under way: its stages so far, and when it started.

    Made without touching a disk, so that whatever fails there is recorded.
    """

    def __init__(self, cell: Cell, shared: StudyRun, trial_id: str) -> None:
        self.cell = cell
        self.smaller_batches: dict[str, int] = {}
        self.trial_id = trial_id
        self.shared = shared
        self.data = shared.data[cell.data]
        self.folder = trial_folder(shared.study_folder, trial_id)
        self.started_at = datetime.now(UTC)
        self.stage = ""
        self.attempts = 0
        self.results: dict[StageKey, StageResult] = {}

    @property
    def keys(self) -> CellStages:
        """Of the stages in the batches of now."""
        return stages_of(self.cell, self.data)

    def use_batches(self, sizes: Mapping[str, int]) -> None:
        """Train in batches of other sizes from now on; stages that are done stay."""
        self.smaller_batches |= sizes
        self.cell = with_batches(self.cell, sizes)

    def run(self) -> TrialRecord:
        """All stages, then the record; the trial's tables are in its folder by then."""
        self.tried("begin", lambda: self.folder.mkdir(parents=True, exist_ok=True))
        encoder = self.pretrained() if self.cell.pretrain else None
        network = self.finetuned(encoder)
        evaluation = self.evaluated(network)
        self.tried("collect", lambda: self.collect(encoder, network, evaluation))
        scores = evaluation.summary
        return self.record(
            "finished",
            metrics=scores["metrics"],
            per_class=scores["per_class"],
            per_room=scores["per_room"],
            probes=encoder.summary["probes"] if encoder else {},
            pretraining_learnt=encoder.summary["learnt"] if encoder else None,
        )

    def pretrained(self) -> StageResult:
        """The arm's audio encoder."""
        key, settings, data = self.keys.pretrain, self.cell.pretrain, self.data
        assert key is not None
        assert settings is not None
        job = PretrainJob(
            settings=settings,
            shards=data.unannotated,
            probes=data.annotated,
            validation_rooms=data.validation_rooms,
        )

        def compute(folder: Path) -> Mapping[str, Any]:
            probes = pretrain_on_workers(
                job,
                self.shared.placement,
                provenance=self.shared.provenance,
                storage_uri=self.shared.store.partial_uri(key),
                folder=folder,
            )
            return {"probes": probes, "learnt": has_learnt_classes(probes)}

        return self.obtain(key, compute)

    def finetuned(self, encoder: StageResult | None) -> StageResult:
        """The network fine-tuned on the cell's budget."""
        data = self.data
        job = FinetuneJob(
            settings=self.cell.finetune,
            shards=data.annotated,
            annotation_minutes=self.cell.annotation_minutes,
            class_names=data.class_names,
            encoder=self.files_of(encoder) if encoder else None,
            validation_rooms=data.validation_rooms,
            unfinished_uri=self.shared.store.partial_uri(self.keys.finetune),
        )
        return self.obtain(self.keys.finetune, self.as_task(job))

    def evaluated(self, network: StageResult) -> StageResult:
        """Predictions for the rooms that the cell is scored on, and their score."""
        data = self.data
        job = EvaluateJob(
            shards=data.annotated,
            network=self.files_of(network),
            class_names=data.class_names,
            rooms=data.validation_rooms if self.cell.scored_on == "validation" else None,
        )
        return self.obtain(self.keys.evaluate, self.as_task(job))

    def files_of(self, result: StageResult) -> StageFiles:
        """A stage's files for a job, which may run on another machine."""
        return StageFiles(store=self.shared.store, key=result.key)

    def as_task(self, job: FinetuneJob | EvaluateJob) -> Callable[[Path], Mapping[str, Any]]:
        """The job as the stage store wants it."""
        return lambda folder: run_as_task(
            job,
            self.shared.placement,
            provenance=self.shared.provenance,
            folder=folder,
            report=tune.report,
        )

    def obtain(self, key: StageKey, compute: Callable[[Path], Mapping[str, Any]]) -> StageResult:
        """A stage's result, its computation tried again where the kind of failure allows it."""
        awaited = ""

        def waiting(owner: str) -> None:
            nonlocal awaited
            if owner != awaited:
                self.log(f"{key.path}: waits for {owner}")
                awaited = owner
            tune.report({"stage": f"waits for {key.name} by {owner}"})

        def begin(folder: Path) -> Mapping[str, Any]:
            self.log(f"{key.path}: computes, try {self.attempts}")
            return compute(folder)

        result = self.tried(
            key.name,
            lambda: self.shared.store.obtain(key, begin, waiting=waiting),
            progress=lambda: self.shared.store.progress_of(key),
        )
        # The first time counts: asked for again, what was computed here is found in the store.
        self.results.setdefault(key, result)
        how = "computed" if result.computed else "stored already"
        self.log(f"{key.path}: {how}, {result.duration_s:.1f} s")
        return result

    def tried(
        self,
        stage: str,
        work: Callable[[], Result],
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> Result:
        """``work()``, tried again where the kind of failure allows it.

        Args:
            stage: what a record of its failure names.
            work: may be called several times.
            progress: how far it has come; tries count from the last time that it got on.
        """
        self.stage = stage
        self.attempts = 0
        kept: object = None
        while True:
            self.attempts += 1
            try:
                return work()
            except Exception as error:
                before = kept
                with suppress(Exception):  # the store may be what has failed
                    kept = progress()
                if before is not None and kept != before:
                    self.attempts = 1  # a long stage may lose its machine often, and gets on
                if self.attempts > RETRIES[failure_kind(error)]:
                    raise
                failure = self.failure(error)
            self.log(f"{stage}: {failure.kind}, is tried again\n{failure.traceback}")
            tune.report({"stage": f"{stage}, try {self.attempts + 1}"})
            time.sleep(BACKOFF_S * 2 ** (self.attempts - 1))

    def collect(
        self, encoder: StageResult | None, network: StageResult, evaluation: StageResult
    ) -> None:
        """Copy what the trial's own folder holds out of the shared stages."""
        shutil.copyfile(evaluation.folder / COUNTS_FILE, self.folder / COUNTS_FILE)
        for source, target in (
            (evaluation.folder / PREDICTIONS_FOLDER, self.folder / PREDICTIONS_FOLDER),
            (evaluation.folder / REFERENCE_FOLDER, self.shared.study_folder / REFERENCE_FOLDER),
        ):
            shutil.copytree(source, target, dirs_exist_ok=True)
        stages = (encoder, network) if encoder else (network,)
        history = pd.concat([pd.read_csv(stage.folder / HISTORY_FILE) for stage in stages])
        history.to_csv(self.folder / HISTORY_FILE, index=False)

    def log(self, text: str) -> None:
        """Add a line, or several, to the trial's ``log.txt``."""
        _log(self.folder, text)

    def failure(self, error: Exception) -> Failure:
        """The record's account of what went wrong."""
        return describe_failure(error, stage=self.stage, attempts=self.attempts)

    def record(self, status: Status, **outcome: Any) -> TrialRecord:
        """The trial's record with this outcome."""
        cell, data, provenance = self.cell, self.data, self.shared.provenance
        finished_at = datetime.now(UTC)
        return TrialRecord(
            study=cell.study,
            trial_id=self.trial_id,
            arm=cell.arm,
            seed=cell.seed,
            annotation_minutes=cell.annotation_minutes,
            status=status,
            config=cell.config(),
            parameters=cell.parameters,
            smaller_batches=self.smaller_batches,
            stages=[
                StageUse(
                    name=result.key.name,
                    key=result.key.digest,
                    computed=result.computed,
                    duration_s=result.duration_s,
                )
                for result in self.results.values()
            ],
            durations_s={result.key.name: result.duration_s for result in self.results.values()}
            | {"total": (finished_at - self.started_at).total_seconds()},
            class_names=list(data.class_names),
            unannotated_classes=data.unannotated_classes,
            versions=provenance.versions,
            git_commit=provenance.git_commit,
            git_dirty=provenance.git_dirty,
            data_fingerprint=data.fingerprint,
            test_fingerprint=scored_fingerprint(cell, data),
            code_fingerprint=code_fingerprint(*STAGE_CODE.values()),
            metric_version=METRIC_VERSION,
            started_at=self.started_at.isoformat(timespec="seconds"),
            finished_at=finished_at.isoformat(timespec="seconds"),
            **outcome,
        )


def _log(folder: Path, text: str) -> None:
    """Add a line, or several, to the ``log.txt`` of a trial's folder."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    # A full disk is for the record to tell.
    with suppress(OSError), (folder / LOG_FILE).open("a", encoding="utf-8") as stream:
        stream.write(f"{now} {text.rstrip()}\n")
