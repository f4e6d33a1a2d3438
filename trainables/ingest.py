"""Ray Data: training batches streamed to a worker, and recordings decoded in parallel."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import ray.data
import torch
from ray.data import ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seld.errors import InputError
from trainables.clips import Batch
from trainables.failures import with_retries

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Steps of one run of Ray Data.
STEPS_PER_STREAM = 1000
#: Steps read ahead of the one that trains.
PREFETCHED_STEPS = 2
#: Most bytes of the object store one stream's steps may take.
OBJECT_STORE_SHARE_BYTES = 1.5e9
#: Small steps are read several to a task: with a task each, Ray takes as long for them as reading.
#: Half of what Ray Data makes a block of, and so few steps that the first batch does not wait.
TASK_BYTES = 64e6
MOST_STEPS_PER_TASK = 8
#: Pause between two looks of Ray Data at its queues, for each step that a task reads. A look takes
#: the training process a millisecond, which with a pause of 10 ms was a tenth of its CPU time.
#: Steps read ahead outlast several.
SCHEDULING_PAUSE_S = 0.05
_PAUSE_KEY = "seld.scheduling_pause_s"


class _Unhurried(ExecutionCallback):
    """Makes Ray Data's scheduling loop pause after every round.

    While the stream is ahead of the training no task runs and nothing makes the loop wait (Ray
    2.60): it spins in a thread of the training process, takes two fifths of its CPU time and,
    holding Python's lock, slows each step to less than half its speed.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        time.sleep(executor._data_context.get_config(_PAUSE_KEY))


def steps_per_task(arrays: Mapping[str, np.ndarray]) -> int:
    """How many steps one task reads, each as large as this one."""
    step_bytes = sum(values.nbytes for values in arrays.values())
    return max(1, min(MOST_STEPS_PER_TASK, int(TASK_BYTES / max(step_bytes, 1))))


def stream_batches(
    read_step: Callable[[int], dict[str, np.ndarray]],
    *,
    start_step: int,
    steps: int,
    batch_size: int,
    cpus: float,
) -> Iterator[Batch]:
    """Batches of steps ``start_step`` … ``steps - 1``, read by Ray Data tasks, in order.

    Reading has begun when this returns, before the first batch is asked for.

    The stream is over *steps*, not over clips: which windows a step sees is a pure function of
    its number (:func:`trainables.clips.clip_schedule`), so a restarted worker continues with
    the batch it has not seen, and each rank reads its own part without a coordinating actor.

    Args:
        read_step: gives one step's batch as arrays whose first axis is the batch; runs in Ray
            Data's tasks and must be picklable.
        start_step: the first step to deliver.
        steps: one past the last step.
        batch_size: windows in every step's batch.
        cpus: what this stream may use of its machine, as the placement gives it: so many tasks read
            at once, at least one.
    """
    _set_up_streaming(cpus)
    # Ray Data divides what Train leaves of each machine by the streams of the whole cluster, in
    # whole CPUs (Ray 2.60): beside a few pretrainings every stream has none, and would read one
    # step at a time. Tasks that hold none pass; what keeps them to this stream's CPUs is their
    # number, which the placement has divided already. Nor do they wait for ever where a group of
    # workers that shrinks, as machines are lost, has taken every CPU that is left.
    most_tasks = ray.data.TaskPoolStrategy(size=max(1, math.floor(cpus)))

    # Else every task would receive the reader, whose index may take megabytes, and open its shards.
    reader = ray.put(read_step)

    def read_block(block: Any) -> Iterator[Any]:
        for step in block["step"].tolist():
            yield _kept(reader)(step) | {"step": np.full(batch_size, step)}

    background = ThreadPoolExecutor(max_workers=1)
    together = background.submit(lambda: steps_per_task(read_step(start_step)))

    # Where its batches are used and its shards are kept.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)

    def prepared(stretch: range) -> ray.data.Dataset:
        count = together.result()
        firsts = range(0, len(stretch), count)
        blocks = [pd.DataFrame({"step": stretch[first : first + count]}) for first in firsts]
        ray.data.DataContext.get_current().set_config(_PAUSE_KEY, count * SCHEDULING_PAUSE_S)
        return ray.data.from_blocks(blocks).map_batches(
            read_block,
            batch_size=None,
            num_cpus=0,
            compute=most_tasks,
            scheduling_strategy=here,
        )

    def begun(dataset: ray.data.Dataset) -> Iterator[Any]:
        arrays = iter(
            dataset.iter_batches(
                batch_size=batch_size, batch_format="numpy", prefetch_batches=PREFETCHED_STEPS
            )
        )
        return itertools.chain(list(itertools.islice(arrays, 1)), arrays)

    # Ray Data takes milliseconds for every block before the first one is read: minutes for a long
    # run. So a stretch of steps is a stream, and the next is prepared while it is trained on.
    stretches = [
        range(first, min(first + STEPS_PER_STREAM, steps))
        for first in range(start_step, steps, STEPS_PER_STREAM)
    ]
    # A stream takes a second to give its first batch; networks are built meanwhile.
    waiting = background.submit(lambda: begun(prepared(stretches[0])))

    def batches() -> Iterator[Batch]:
        stream = waiting.result()
        for following in [*stretches[1:], None]:
            dataset = background.submit(prepared, following) if following else None
            for batch in stream:
                step = batch.pop("step")
                assert (step == step[0]).all(), "Ray Data joined the rows of two steps"
                yield {
                    str(name): torch.as_tensor(np.array(values)) for name, values in batch.items()
                }
            if dataset is not None:
                stream = begun(dataset.result())

    return batches()


def _set_up_streaming(cpus: float) -> None:
    """This process's streams of Ray Data: quiet, in order, and within their part of the cluster."""
    _quiet()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if _Unhurried not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(_Unhurried)
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = ExecutionResources(
        cpu=cpus, object_store_memory=OBJECT_STORE_SHARE_BYTES
    )


@functools.lru_cache(maxsize=4)
def _kept(handle: ray.ObjectRef) -> Any:
    """What a handle stands for, once in a process."""
    return ray.get(handle)


def _quiet() -> None:
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that the progress bars are off, which is our doing.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


class RayDataExecutor:
    """Decodes recordings with Ray Data: the ``ray`` executor of :mod:`seld.shards`."""

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
    ) -> Iterator[Result]:
        """Results as they are done. A cluster is started, and ended, unless one is there."""
        _quiet()
        owns_cluster = not ray.is_initialized()
        if owns_cluster:
            # RAY_ADDRESS names a cluster to join, whose size is not ours to set.
            cpus = None if "RAY_ADDRESS" in os.environ else workers
            ray.init(num_cpus=cpus, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield from _map_unordered(function, items, workers)
        finally:
            if owns_cluster:
                ray.shutdown()


def _map_unordered(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    def run(row: dict[str, bytes]) -> dict[str, bytes]:
        try:
            result: object = with_retries(function, pickle.loads(row["item"]))
        except InputError as error:  # raised, it would come out wrapped in Ray's own
            result = error
        return {"result": pickle.dumps(result)}

    rows = [{"item": pickle.dumps(item)} for item in items]
    # One block per item: each is a task of its own, and its result comes out by itself.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = False
    results = dataset.map(run, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=workers))
    for row in results.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, InputError):
            raise result
        yield result
