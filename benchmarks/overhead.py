"""What a trial costs beyond its training, beside a bare Tune trial around a Train run.

    python -m benchmarks.overhead [--trials 5] [--cpus 2] [--steps 120]

``pretrained`` and ``scratch`` are trials of this platform as a study runs them, with the demo's
networks on a few seconds of sound: all that their stages need (workers, data streams, stores,
probes, predictions, scores, records), ``--steps`` of pretraining and one of fine-tuning. No stage
is shared. ``alone`` is what ``pretrained`` computes, as plain loops in a process that has
everything imported: what the trial takes beyond it is its fixed cost.

``bare`` is what anyone writes: a Tune trial that fits a TorchTrainer, with Train's defaults.
``ours`` fits the same as this platform's pretrainings do: Train's controller in the trial's own
process (:mod:`trainables.in_trial`), looking at its workers more often, in a process that the last
worker has had started (:mod:`trainables.successors`). These two train nothing.

All variants take turns in one run. Times are wall-clock seconds of whole trials, so they
include what the machine does besides. Measured on two cores of an old server without AMX (Ray
2.60), medians: beyond its training a pretrained trial takes 5.0, 5.7 and 5.0 s (three runs of 3
to 4 trials of 120 steps), with a single step 4.4 s (7 trials); a scratch trial takes 0.5 s in all,
a bare one that trains nothing 18.5 s. A trial that shares its pretraining costs what scratch costs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console

from ablations.cluster import (
    ClusterOptions,
    connected_machines,
    driver_resource,
    ray_cluster,
)
from ablations.console import quiet_output
from ablations.data import DataOptions, prepare_data
from ablations.run_grid import with_assignments
from benchmarks.plain_stages import run_plainly
from search_spaces.scales import find_scale
from search_spaces.studies import variants
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings
from trainables.cells import Cell
from trainables.in_trial import InTrialTrainer, TrialReports
from trainables.provenance import current_provenance
from trainables.resources import TRIAL_SHARE, plan_placement
from trainables.stages import StageStore
from trainables.successors import IMPORTS_AHEAD, start_successor
from trainables.trial import StudyRun, run_cell
from trainables.workers import train_environment

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
OURS = ("pretrained", "scratch")
VARIANTS = (*OURS, "alone", "bare", "ours")


def train_nothing(config: dict[str, Any]) -> None:
    """One report and the end."""
    ray.train.report({"loss": 0.0})
    if config["successor"]:
        start_successor()


def run_trial(config: dict[str, Any]) -> None:
    """A trial of a variant; reports how long it took."""
    started = time.perf_counter()
    variant = config["turns"][config["turn"]]
    # Variants take turns in one process: each has its own settings, not those of the one before.
    os.environ[WATCHER] = "1" if variant == "bare" else "0"
    for name, value in train_environment(config["steps"], elastic=False).items():
        os.environ.pop(name, None)
        if variant != "bare":
            os.environ[name] = value
    if variant in OURS:
        cell: Cell = config["cells"][variant]
        record = run_cell(replaced_seed(cell, config["turn"]), config["run"])
        assert record.status == "finished", record.failure
    elif variant == "alone":
        alone(replaced_seed(config["cells"]["pretrained"], config["turn"]), config["run"])
    else:
        fit_nothing(variant)
    tune.report({"variant": variant, "trial_s": time.perf_counter() - started})


def replaced_seed(cell: Cell, seed: int) -> Cell:
    """The cell with stages that no other has."""
    pretrain = replace(cell.pretrain, seed=seed) if cell.pretrain else None
    return replace(cell, seed=seed, pretrain=pretrain, finetune=replace(cell.finetune, seed=seed))


def alone(cell: Cell, run: StudyRun) -> None:
    """What a trial of this cell computes, here."""
    torch.set_num_threads(run.placement.worker_threads)
    with tempfile.TemporaryDirectory() as folder:
        run_plainly(cell, run.data[cell.data], StageStore(Path(folder)))


def fit_nothing(variant: str) -> None:
    """A Train run that does nothing."""
    kind, reports = (
        (InTrialTrainer, TrialReports())
        if variant == "ours"
        else (ray.train.torch.TorchTrainer, TuneReportCallback())
    )
    with tempfile.TemporaryDirectory() as storage:
        kind(
            train_nothing,
            train_loop_config={"successor": variant == "ours"},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=storage,
                callbacks=[reports],
                worker_runtime_env=IMPORTS_AHEAD if variant == "ours" else None,
            ),
        ).fit()


def smallest_study(folder: Path, steps: int) -> tuple[dict[str, Cell], StudyRun]:
    """Trials of a few steps, and a run of them on three half minutes of scenes."""
    half = PartSettings(minutes=0.5, rooms=2)
    scenes = SceneSettings(
        unannotated=half,
        train=half,
        test=half,
        picture=PictureSettings(height_px=32, width_px=64, frame_rate_hz=5),
        recording_s=10.0,
    )
    scale = replace(find_scale("demo"), scenes=scenes, budgets_minutes=(0.1,))
    study = with_assignments(
        variants(scale),
        [
            f"{stage}.{setting}"
            for stage, stage_steps in (("pretrain", steps), ("finetune", 1))
            for setting in (f"steps={stage_steps}", "batch_size=4", "warmup_steps=0")
        ],
    )
    placement = plan_placement(*connected_machines(ClusterOptions()))
    data = prepare_data(DataOptions(folder=folder), study, placement, Console(quiet=True))
    cells = {cell.arm: cell for cell in study.cells()}
    run = StudyRun(
        study_folder=folder / "study",
        store=StageStore(folder / "stages"),
        placement=placement,
        data=data,
        provenance=current_provenance(),
    )
    return {"pretrained": cells["doa_wise"], "scratch": cells["scratch"]}, run


def main() -> None:
    """Print the time of each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5, help="of each variant (5)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120, help="of a pretraining (120)")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet_output(Path(folder) / "ray.log") as console,
        ray_cluster(ClusterOptions(cpus=arguments.cpus)),
    ):
        cells, run = smallest_study(Path(folder) / "data", arguments.steps)
        # The first trials of all start Ray's own services and are not counted.
        warm_up = ("pretrained", "scratch", "alone", "bare")
        turns = [*warm_up, *(arguments.variants * arguments.trials)]
        results = tune.Tuner(
            tune.with_resources(run_trial, {"CPU": 0, driver_resource(): TRIAL_SHARE}),
            param_space={
                "turn": tune.grid_search(list(range(len(turns)))),
                "turns": turns,
                "cells": cells,
                "run": run,
                "steps": arguments.steps,
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(Path(folder) / "tune"), verbose=0),
        ).fit()
        for error in results.errors:
            console.print(f"a trial failed: {str(error)[-600:]}", highlight=False, markup=False)
        measured = [
            result.metrics for result in results if result.metrics and "variant" in result.metrics
        ]
        measured.sort(key=lambda metrics: metrics["config"]["turn"])
        console.print(f"seconds of a whole trial, {arguments.trials} trials each", highlight=False)
        medians: dict[str, float] = {}
        for variant in arguments.variants:
            seconds = [
                metrics["trial_s"]
                for metrics in measured
                if metrics["variant"] == variant and metrics["config"]["turn"] >= len(warm_up)
            ]
            if not seconds:
                console.print(f"{variant:10s} failed", highlight=False)
                continue
            medians[variant] = statistics.median(seconds)
            console.print(
                f"{variant:10s} median {medians[variant]:6.2f}   "
                f"fastest {min(seconds):6.2f}   slowest {max(seconds):6.2f}",
                highlight=False,
            )
        if {"pretrained", "alone"} <= medians.keys():
            fixed_s = medians["pretrained"] - medians["alone"]
            console.print(f"fixed cost of a pretrained trial {fixed_s:.2f}", highlight=False)


if __name__ == "__main__":
    main()
