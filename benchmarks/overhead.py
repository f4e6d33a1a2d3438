"""What a trial costs beyond its training: a Tune trial around a Train run that does nothing.

    python -m benchmarks.overhead [--trials 5] [--cpus 2]

``bare`` is what anyone writes: a Tune trial that fits a TorchTrainer, with Train's defaults.
``quiet`` turns off what serves spot machines only (the watcher of preemptions). ``in_trial``
also runs Train's controller in the trial's own process instead of one of its own, and starts no
actors for data sets and placement groups it does not have; it reaches into Ray Train's private
parts and is here to know what that would save.

All variants take turns in one run. Times are wall-clock seconds of whole trials, so they
include what the machine does besides.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray import tune
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.tune.integration.ray_train import TuneReportCallback

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
VARIANTS = ("bare", "quiet", "in_trial")


class InTrialTrainer(ray.train.torch.TorchTrainer):
    """Ray Train with its controller in this process."""

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, needless)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        async def control() -> Any:
            controller = TrainController(**arguments)
            await controller.run()
            return controller.get_result()

        return asyncio.run(control())


def train_nothing(config: dict[str, Any]) -> None:
    """One report and the end."""
    ray.train.report({"loss": 0.0})


def run_trial(config: dict[str, Any]) -> None:
    """A Tune trial around a Train run; reports how long the run took."""
    started = time.perf_counter()
    os.environ[WATCHER] = "1" if config["variant"] == "bare" else "0"
    kind = InTrialTrainer if config["variant"] == "in_trial" else ray.train.torch.TorchTrainer
    with tempfile.TemporaryDirectory() as storage:
        kind(
            train_nothing,
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(
                name="train", storage_path=storage, callbacks=[TuneReportCallback()]
            ),
        ).fit()
    tune.report({"variant": config["variant"], "train_s": time.perf_counter() - started})


def main() -> None:
    """Print the time of each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5, help="of each variant (5)")
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(
        num_cpus=arguments.cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            # The first trial of all starts Ray's own services and is not counted.
            turns = ["bare", *(VARIANTS * arguments.trials)]
            results = tune.Tuner(
                tune.with_resources(run_trial, {"CPU": 0.001}),
                param_space={"variant": tune.grid_search(turns)},
                tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            ).fit()
    finally:
        ray.shutdown()
    measured = [result.metrics for result in results if result.metrics][1:]
    print(f"seconds of a trial that trains nothing, {arguments.trials} trials each")
    for variant in VARIANTS:
        seconds = [metrics["train_s"] for metrics in measured if metrics["variant"] == variant]
        print(
            f"{variant:9s} median {statistics.median(seconds):6.2f}   "
            f"fastest {min(seconds):6.2f}   slowest {max(seconds):6.2f}"
        )


if __name__ == "__main__":
    main()
