"""Ray Train controlled from the trial's own process.

A Train run starts a process for its controller. Here the trial's process, which only waits
otherwise, controls the run: on 2 cores that is 2 s less for every pretraining
(``benchmarks/overhead.py``). Should it be killed, Train's own cleaner, a process that outlives it,
gives the workers' resources back: Ray keeps the placement group of a dead actor for as long as the
job lives.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray.train.torch
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.controller import TrainController


class InTrialTrainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer whose controller runs in this process.

    It overrides what is private to Ray Train, whose version ``constraints.txt`` pins: without
    these methods the class is a TorchTrainer as any other.
    """

    def _create_default_callbacks(self) -> list[Any]:
        # For data sets given to the trainer, of which there are none; it starts an actor.
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, DatasetsCallback)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        async def control() -> Any:
            controller = TrainController(**arguments)
            await controller.run()
            return controller.get_result()

        return asyncio.run(control())
