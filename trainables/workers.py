"""Where a stage's computation runs: Ray Train and Ray tasks around the loops.

Pretraining is a Ray Train run: its negatives may span many workers, and Train brings it back
from its last checkpoint. Fine-tuning and evaluation need one process and little time; they are
Ray tasks, whose worker processes Ray keeps where there are no GPUs, so that only the first of
them pays for importing torch.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from seld.checkpoints import save_audio_encoder
from seld.records import HISTORY_FILE
from seld.temporary import temporary_folder
from trainables.evaluate_job import EvaluateJob
from trainables.finetune_job import FinetuneJob
from trainables.in_trial import InTrialTrainer, TrialReports
from trainables.ingest import stream_batches
from trainables.jobs import ENCODER_FILE, History, Progress
from trainables.pretrain import audio_encoder_of, pretrain
from trainables.pretrain_job import PretrainJob
from trainables.provenance import Provenance, require_same_source
from trainables.resources import Placement
from trainables.stages import STATE_FILE
from trainables.steps import Metrics, TrainState
from trainables.successors import IMPORTS_AHEAD, start_successor
from trainables.work_clock import SECONDS_FILE, WorkClock

PROBES_FILE = "probes.json"
Message = TypeVar("Message")

#: A stage that says nothing for this long hangs. Computing the spectra of a large corpus, which a
#: machine does once, is the longest silence of one that does not.
SILENT_FOR_S = 3600.0

#: Ray Train looks at its workers every 2 s, so that their start, first report and end are each
#: noticed a second late. Short runs are looked at more often; long ones are not, as a look every
#: 0.2 s takes Ray's processes a tenth of a core.
LOOK_EVERY_S, LOOK_EVERY_S_PER_STEP = (0.2, 2.0), 1 / 1500
#: Ray Train gives workers a minute to find room, in which no machine comes; spot machines may not
#: for days, of which the watchdog tells.
LONGEST_START_S = 7 * 86400
#: A group that may shrink is first asked for in the size that fitted before a machine was lost;
#: only when this has passed it is asked for in a size that fits.
LONGEST_ELASTIC_START_S = 60
#: How often a group is asked for again that does not start; one that may shrink for a day.
STARTS, ELASTIC_STARTS = 2, 86400 // LONGEST_ELASTIC_START_S


def pretrain_on_workers(
    job: PretrainJob,
    placement: Placement,
    *,
    provenance: Provenance,
    storage_uri: str,
    folder: Path,
) -> Metrics:
    """One pretraining as a Ray Train run that reports to the Tune trial calling it.

    Args:
        job: settings and data.
        placement: workers and what each holds.
        provenance: the driver's code; a worker with other code refuses.
        storage_uri: where Train keeps checkpoints; a run there that did not end is continued.
        folder: receives the audio encoder and the history.

    Returns:
        The probes of the trained networks; empty where nothing was probed.
    """
    for name, value in train_environment(job.settings.steps, elastic=placement.is_elastic).items():
        os.environ.setdefault(name, value)
    resources = {"CPU": placement.worker_cpus}
    if placement.worker_gpus:
        resources["GPU"] = placement.worker_gpus
    trainer = InTrialTrainer(
        pretrain_worker,
        train_loop_config={"job": job, "placement": placement, "provenance": provenance},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(placement.fewest_workers, placement.train_workers)
            if placement.is_elastic
            else placement.train_workers,
            use_gpu=placement.worker_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=storage_uri,
            # The trial decides about tries, by the kind of failure: Train would repeat them all.
            failure_config=ray.train.FailureConfig(
                max_failures=0,
                controller_failure_limit=ELASTIC_STARTS if placement.is_elastic else STARTS,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TrialReports()],
            worker_runtime_env=IMPORTS_AHEAD,
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as checkpoint:
        for name in (ENCODER_FILE, HISTORY_FILE, SECONDS_FILE):
            (folder / name).write_bytes((Path(checkpoint) / name).read_bytes())
        return json.loads((Path(checkpoint) / PROBES_FILE).read_text(encoding="utf-8"))


def train_environment(steps: int, *, elastic: bool) -> dict[str, str]:
    """Settings that Ray Train takes from the environment only, for a run of so many steps."""
    least_s, most_s = LOOK_EVERY_S
    look_every_s = min(max(least_s, steps * LOOK_EVERY_S_PER_STEP), most_s)
    longest_s = LONGEST_ELASTIC_START_S if elastic else LONGEST_START_S
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": f"{look_every_s:g}",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{longest_s:g}",
    }


def pretrain_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    job: PretrainJob = config["job"]
    placement: Placement = config["placement"]
    require_same_source(config["provenance"])
    settings = job.settings
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(placement.worker_threads)

    start: TrainState | None = None
    history = History("pretrain")
    clock = WorkClock()
    restored = ray.train.get_checkpoint()
    if restored is not None:
        with restored.as_directory() as folder:
            start = torch.load(Path(folder) / STATE_FILE, weights_only=True)
            history = History.read("pretrain", Path(folder) / HISTORY_FILE)
            clock = WorkClock.going_on(Path(folder))

    if start is not None and start["step"] == settings.steps:
        return  # the run was lost after its last checkpoint; nothing is left to do

    def say(step: int, metrics: Metrics, state: TrainState | None) -> None:
        history.add(step, metrics)
        progress = metrics | {"stage": "pretrain", "step": step, "steps": settings.steps}
        if state is None or rank != 0:
            ray.train.report(progress)
            return
        with temporary_folder() as folder:
            torch.save(state, folder / STATE_FILE)
            save_audio_encoder(folder / ENCODER_FILE, audio_encoder_of(state), settings.audio)
            history.write(folder / HISTORY_FILE)
            clock.write(folder)
            probes = state.get("probes", {})
            (folder / PROBES_FILE).write_text(json.dumps(probes), encoding="utf-8")
            ray.train.report(progress, checkpoint=ray.train.Checkpoint.from_directory(folder))

    device = ray.train.torch.get_device()

    def work(report: Callable[[tuple[int, Metrics, TrainState | None]], None]) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        batches = stream_batches(
            job.reader(rank=rank, world_size=world_size),
            start_step=start["step"] if start is not None else 0,
            steps=settings.steps,
            batch_size=settings.rank_batch_size(world_size),
            cpus=placement.data_cpus / placement.train_workers,
        )
        pretrain(
            settings,
            batches,
            device=device,
            report=lambda step, metrics, state: report((step, metrics, state)),
            start=start,
            probe=job.probe() if rank == 0 else None,
        )

    reports = reports_of(work, silent_for_s=SILENT_FOR_S)
    for count, (step, metrics, state) in enumerate(reports):
        say(step, metrics, state)
        if count == 0:  # not before this one trains, whose start it would slow down
            start_successor()


def run_as_task(
    job: FinetuneJob | EvaluateJob,
    placement: Placement,
    *,
    provenance: Provenance,
    folder: Path,
    report: Callable[[Progress], None],
) -> dict[str, Any]:
    """Run a job in a Ray task.

    Args:
        job: what to run; needs no Ray itself.
        placement: what the task holds while it runs.
        provenance: the driver's code; a worker with other code refuses.
        folder: receives the job's files.
        report: called with the job's progress, in this process.

    Returns:
        What the job returned.
    """
    task = (_run_on_gpu if placement.worker_gpus else _run_on_cpus).options(
        num_cpus=placement.finetune_cpus,
        num_gpus=placement.worker_gpus,
        # Not inside the trial's own placement group, which holds next to nothing.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # type: ignore[arg-type]
    )
    stream: Any = task.remote(job, placement.worker_threads, provenance)
    silent_for_s = None  # until the cluster has room for it, it may wait as long as it takes
    while ray.wait([stream], timeout=silent_for_s)[0]:
        message: Any = ray.get(next(stream))
        silent_for_s = SILENT_FOR_S
        if isinstance(message, _Finished):
            for name, content in message.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            return message.summary
        if not isinstance(message, _Started):
            report(message)
    ray.cancel(stream, force=True)
    raise TimeoutError(f"said nothing for {SILENT_FOR_S:g} s")


@dataclass(frozen=True)
class _Started:
    """The task has its resources and runs."""


@dataclass(frozen=True, kw_only=True)
class _Finished:
    summary: dict[str, Any]
    files: dict[str, bytes]


def _run_job(
    job: FinetuneJob | EvaluateJob, threads: int, provenance: Provenance
) -> Iterator[_Started | Progress | _Finished]:
    """The job's progress as it goes, last its result."""
    yield _Started()
    require_same_source(provenance)
    torch.set_num_threads(threads)
    device = "cuda" if ray.get_gpu_ids() else "cpu"

    def work(report: Callable[[Progress | _Finished], None]) -> None:
        with temporary_folder() as folder:
            summary = job.run(folder, device=device, report=report)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
            report(_Finished(summary=summary, files=files))

    yield from reports_of(work)


# The trial decides about retries, by the kind of failure, so Ray itself makes none.
_run_on_cpus = ray.remote(max_retries=0, num_returns="streaming")(_run_job)
# A process stays on the first GPU it has used, and keeps memory of it: each task has its own.
_run_on_gpu = ray.remote(max_retries=0, max_calls=1, num_returns="streaming")(_run_job)


def reports_of(
    work: Callable[[Callable[[Message], None]], None], *, silent_for_s: float | None = None
) -> Iterator[Message]:
    """What ``work`` reports, as it does; its exception is raised here.

    Loops report by callback, Ray wants its messages from a thread of its own; another thread
    turns one into the other. One report may wait to be taken while the loop goes on.

    Args:
        work: called with the callback.
        silent_for_s: a TimeoutError is raised after this long without a report or the end.
    """
    messages: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)

    def run() -> None:
        try:
            work(lambda message: messages.put(("report", message)))
            messages.put(("end", None))
        except BaseException as error:
            messages.put(("error", error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            kind, message = messages.get(timeout=silent_for_s)
        except queue.Empty:
            raise TimeoutError(f"said nothing for {silent_for_s:g} s") from None
        if kind == "error":
            raise message
        if kind == "end":
            return
        yield message
