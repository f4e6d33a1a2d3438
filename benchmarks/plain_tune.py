"""A study beside the same grid as plain Ray Tune trials.

    python -m benchmarks.plain_tune [--share 0.1] [--study variants] [--seeds 0]

``plain`` is what one writes without a platform: every trial is a Tune function that fits a
TorchTrainer with Train's defaults, then fine-tunes and scores in its own process. It has this
platform's loops, streams and data, and as many trials at once; no trial knows of another's
pretraining. ``ours`` is ``run_grid.py`` from Ray's start to the written report. Both train for
``--share`` of the demo's steps, on data prepared before. Both must find the same scores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console

from ablations.cluster import ClusterOptions, connected_machines, driver_resource, ray_cluster
from ablations.console import quiet_output
from ablations.data import DataOptions, prepare_data
from ablations.grid import run_study
from ablations.options import RunOptions, numbers
from search_spaces.studies import Study, find_study
from seld.records import HISTORY_FILE
from trainables.cells import Cell, stages_of
from trainables.evaluate_job import EvaluateJob
from trainables.finetune import FinetuneSettings
from trainables.finetune_job import FinetuneJob
from trainables.jobs import ENCODER_FILE
from trainables.prepare import PreparedData
from trainables.pretrain import PretrainSettings
from trainables.pretrain_job import PretrainJob
from trainables.provenance import Provenance, current_provenance
from trainables.resources import TRIAL_SHARE, Placement, plan_placement
from trainables.stages import StageFiles, StageStore
from trainables.workers import pretrain_worker


def shortened(study: Study, share: float) -> Study:
    """The study with this share of every arm's steps."""

    def fewer(settings: PretrainSettings | FinetuneSettings) -> Any:
        steps = max(1, round(settings.steps * share))
        return replace(settings, steps=steps, warmup_steps=round(settings.warmup_steps * share))

    arms = tuple(
        replace(
            arm,
            pretrain=fewer(arm.pretrain) if arm.pretrain else None,
            finetune=fewer(arm.finetune),
        )
        for arm in study.arms
    )
    return replace(study, arms=arms)


def plain_trial(config: Mapping[str, Any]) -> None:
    """Pretrain in a Train run, fine-tune and score here."""
    cell: Cell = config["cell"]
    data: PreparedData = config["data"][cell.data]
    placement: Placement = config["placement"]
    torch.set_num_threads(placement.worker_threads)
    keys = stages_of(cell, data)
    with tempfile.TemporaryDirectory() as name:
        store = StageStore(Path(name) / "stages")  # the trial's own
        if cell.pretrain is not None:
            assert keys.pretrain is not None
            job = PretrainJob(
                settings=cell.pretrain, shards=data.unannotated, probes=data.annotated
            )
            store.obtain(
                keys.pretrain,
                lambda folder: plain_pretraining(job, placement, config["provenance"], folder),
            )
        finetuning = FinetuneJob(
            settings=cell.finetune,
            shards=data.annotated,
            annotation_minutes=cell.annotation_minutes,
            class_names=data.class_names,
            encoder=StageFiles(store=store, key=keys.pretrain) if keys.pretrain else None,
            validation_rooms=data.validation_rooms,
        )
        store.obtain(
            keys.finetune, lambda folder: finetuning.run(folder, device="cpu", report=tune.report)
        )
        evaluation = EvaluateJob(
            shards=data.annotated,
            network=StageFiles(store=store, key=keys.finetune),
            class_names=data.class_names,
        )
        folder = Path(name) / "evaluation"
        folder.mkdir()
        scores = evaluation.run(folder, device="cpu", report=tune.report)
    tune.report({"cell_id": cell.trial_id, **scores["metrics"]})


def plain_pretraining(
    job: PretrainJob, placement: Placement, provenance: Provenance, folder: Path
) -> Mapping[str, Any]:
    """A Train run as Ray's documentation has it."""
    with tempfile.TemporaryDirectory() as storage:
        result = ray.train.torch.TorchTrainer(
            pretrain_worker,
            train_loop_config={"job": job, "placement": placement, "provenance": provenance},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": placement.worker_cpus}
            ),
            run_config=ray.train.RunConfig(
                name="train", storage_path=storage, callbacks=[TuneReportCallback()]
            ),
        ).fit()
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as checkpoint:
            for file in (ENCODER_FILE, HISTORY_FILE):
                (folder / file).write_bytes((Path(checkpoint) / file).read_bytes())
    return {}


def run_plain(
    study: Study, data: Mapping[str, PreparedData], cluster: ClusterOptions
) -> dict[str, float]:
    """SELD error by trial."""
    with ray_cluster(cluster), tempfile.TemporaryDirectory() as storage:
        cells = study.cells()
        placement = plan_placement(*connected_machines(cluster)).for_trials(len(cells))
        results = tune.Tuner(
            tune.with_resources(plain_trial, {"CPU": 0, driver_resource(): TRIAL_SHARE}),
            param_space={
                "cell": tune.grid_search(cells),
                "data": data,
                "placement": placement,
                "provenance": current_provenance(),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=placement.lanes),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
    found = [result.metrics for result in results if result.metrics]
    return {metrics["cell_id"]: metrics["seld_error"] for metrics in found}


def main() -> None:
    """Print the time of either, and whether they agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.1, help="of the demo's steps (0.1)")
    parser.add_argument("--study", default="variants")
    parser.add_argument("--seeds", type=numbers(int), help="for example 0,1 (the study's)")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--data", type=Path, help="scenes and shards, where they are already")
    arguments = parser.parse_args()
    study = shortened(find_study(arguments.study), arguments.share)
    study = replace(study, seeds=arguments.seeds or study.seeds)
    cluster = ClusterOptions(cpus=arguments.cpus)
    with (
        tempfile.TemporaryDirectory() as name,
        quiet_output(Path(name) / "ray.log") as console,
    ):
        folder = Path(name)
        options = DataOptions(folder=arguments.data or folder / "data")
        with ray_cluster(cluster):
            placement = plan_placement(*connected_machines(cluster))
            data = prepare_data(options, study, placement, Console(quiet=True))

        started = time.perf_counter()
        run_study(study, RunOptions(data=options, cluster=cluster, results=folder / "results"))
        ours_s = time.perf_counter() - started
        table = pd.read_parquet(folder / "results" / study.name / "trials.parquet")
        ours = dict(zip(table["trial_id"], table["seld_error"], strict=True))

        started = time.perf_counter()
        plain = run_plain(study, data, cluster)
        plain_s = time.perf_counter() - started

        agree = sum(plain.get(trial_id) == error for trial_id, error in ours.items())
        console.print(
            f"{len(ours)} trials: ours {ours_s:.0f} s, plain {plain_s:.0f} s,"
            f" {plain_s / ours_s:.2f} times as long;"
            f" {agree} of {len(ours)} SELD errors are equal to the last bit",
            highlight=False,
        )


if __name__ == "__main__":
    main()
