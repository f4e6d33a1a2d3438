"""Ray Train controlled from the trial's own process.

A Train run starts two processes that serve runs which are nobody's trial: one for its controller,
one that removes its placement group should the controller be killed. Here the trial's process,
which only waits otherwise, controls the run, and its death removes the placement group that it
made. On 2 cores that is 2.5 s less for every pretraining (``benchmarks/overhead.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray.train.torch
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController


class InTrialTrainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer whose controller runs in this process.

    It overrides what is private to Ray Train, whose version ``constraints.txt`` pins: without
    these methods the class is a TorchTrainer as any other.
    """

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)  # each starts an actor
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
