"""Ray Train controlled from the trial's own process, and what a killed trial leaves given back.

A Train run starts three processes that serve runs which are nobody's trial: one for its controller,
one for a queue that brings the workers' reports from there to the trial, one that gives the
workers' resources back should the controller be killed. Here the trial's process, which only waits
otherwise, controls the run and takes its reports, and the driver looks after what killed ones
leave: half of the fixed cost of a pretraining (``benchmarks/overhead.py``), and it works where
Train's own cleaner does not, on clusters without a dashboard to ask. A fourth, at which workers
wait for each other, is kept from one run of a process to the next.

All of it reaches into Ray's private parts, whose version ``constraints.txt`` pins.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import ray.train.torch
from ray import tune
from ray._private.state import state as gcs_state
from ray.core.generated.gcs_pb2 import (
    PlacementGroupTableData,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.exceptions import RayActorError
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import state as worker_group_state
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.callback import UserCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group


class KeptMeetingPoint:
    """Makes the actor at which Train's workers meet; after a run that ended well, the same again.

    Its process would import for seconds beside a training that begins.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._in_use = False
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> KeptMeetingPoint:
        """As Train calls the actor's class."""
        self._options = options
        return self

    def remote(self, **arguments: Any) -> Any:
        """The actor, as new."""
        if self._in_use:  # by a group that did not start, and may still be waiting there
            self.discard()
        if self._actor is not None:
            try:
                ray.get(self._actor.__ray_call__.remote(_begin_anew, arguments))
            except RayActorError:
                self._actor = None
        if self._actor is None:
            self._actor = SynchronizationActor.options(**self._options).remote(**arguments)
        self._in_use = True
        return self._actor

    def give_back(self) -> None:
        """The run has ended well: nobody waits there any more."""
        self._in_use = False

    def discard(self) -> None:
        """Of a run that ended otherwise nothing is kept."""
        if self._actor is not None:
            ray.kill(self._actor)
        self._actor, self._in_use = None, False


def _begin_anew(actor: Any, arguments: dict[str, Any]) -> None:
    actor.__init__(**arguments)


MEETING_POINT = KeptMeetingPoint()
worker_group.SynchronizationActor = MEETING_POINT  # pyright: ignore[reportAttributeAccessIssue]
# Train ends it with each group of workers.
worker_group_state._shutdown_sync_actor = lambda sync_actor: None


class InTrialTrainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer whose controller runs in this process."""

    def _create_default_callbacks(self) -> list[Any]:
        # Each starts an actor: one for data sets given to the trainer, one for what
        # give_back_orphans does.
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, needless)
        ]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        async def control() -> Any:
            controller = TrainController(**arguments)
            try:
                await controller.run()
            except SystemExit:  # Tune has stopped the trial, and a report says so
                workers = controller.get_worker_group()
                if workers is not None:
                    workers.abort()
                raise
            return controller.get_result()

        try:
            result = asyncio.run(control())
        except BaseException:
            MEETING_POINT.discard()
            raise
        if result.error is None:
            MEETING_POINT.give_back()
        else:
            MEETING_POINT.discard()
        return result


class TrialReports(UserCallback):
    """Passes what the workers report on to Ray Tune, and waits until Tune has taken it."""

    def after_report(
        self,
        run_context: TrainRunContext,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Report what the first worker did."""
        del run_context, checkpoint
        tune.report(metrics[0])


def give_back_orphans() -> int:
    """Remove the placement groups of this job whose actors have died; how many there were.

    Ray keeps the group that an actor made until the whole job has ended, and with it the CPUs and
    GPUs of workers that have died with the actor.
    """
    job = ray.get_runtime_context().get_job_id()
    orphans = 0
    for serialised in gcs_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(serialised)
        if (
            group.creator_job_id.hex() == job
            and group.creator_actor_dead  # said also of groups that no actor made
            and not ray.ActorID(group.creator_actor_id).is_nil()
            and group.state != PlacementGroupTableData.REMOVED
        ):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            orphans += 1
    return orphans
