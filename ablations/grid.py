"""From a study to its table: prepare the data, run the missing trials, write the report."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray import tune
from ray._private.state import state as ray_state
from rich.console import Console

from ablations.calibrate import calibrated_durations_s
from ablations.console import StudyProgress, quiet_output
from ablations.data import DataOptions, data_for_plan, make_writable, prepare_data
from ablations.plan import plan_stages, print_plan
from ablations.tracking import trackers
from ablations.watchdog import Watchdog
from search_spaces.studies import Study
from seld.errors import InputError
from seld.records import (
    StudyRecord,
    TrialRecord,
    read_record,
    trial_folder,
    trials_table,
    write_study,
)
from seld.storage import is_local, join, upload_folder
from trainables.prepare import PreparedData
from trainables.provenance import current_provenance
from trainables.resources import TRIAL_SHARE, Placement, plan_placement
from trainables.stages import StageStore
from trainables.trial import DEFAULT_DATA, Cell, StudyRun, run_trial, stages_of, with_batches

ROOT = Path(__file__).parents[1]
OUR_PACKAGES = ("seld", "trainables", "search_spaces", "ablations", "analysis")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where Ray runs and how trials are laid out on it.

    Attributes:
        address: of a running cluster (``auto`` for this machine's); None starts one here.
        cpus: logical CPUs of a cluster started here; None for all.
        train_workers, fewest_workers: of one pretraining, and how few it may go on with.
    """

    address: str | None = None
    cpus: int | None = None
    train_workers: int = 1
    fewest_workers: int | None = None
    gpus_per_worker: float | None = None
    most_trials_at_once: int | None = None

    def __post_init__(self) -> None:
        for option, count in (
            ("--cpus", self.cpus),
            ("--train-workers", self.train_workers),
            ("--trials-at-once", self.most_trials_at_once),
        ):
            if count is not None and count < 1:
                raise InputError("command line", option, count, "at least 1")


def run_study(
    study: Study,
    *,
    data: DataOptions,
    cluster: ClusterOptions,
    results: Path,
    storage: str | None = None,
    budget_hours: float | None = None,
    track: str | None = None,
) -> int:
    """Run what is missing of a study and report on all of it.

    Returns:
        The exit code: 0, or 1 where trials failed.

    Raises:
        InputError: for everything that can be known to be wrong before the work starts.
    """
    deadline = deadline_after(budget_hours)
    study_folder = results / study.name
    make_writable(study_folder)
    data.check(study)
    with quiet_output(study_folder / "logs" / "ray.log") as console:
        console.print(f"[bold]{study.question}[/bold]")
        with ray_cluster(cluster):
            placement = placement_of(study, cluster_limits(), cluster)
            console.print(placement.describe(), highlight=False)
            prepared = prepare_data(data, study, placement, console)
            run = StudyRun(
                study_folder=study_folder.resolve(),
                store=StageStore(stages_root(storage, results)),
                placement=placement,
                data=prepared,
                provenance=current_provenance(),
                kept_in=results_uri(storage, study.name),
            )
            callbacks = [
                *trackers(study.name, study_folder, also=track),
                Watchdog(placement, console.print),
            ]
            run_missing_trials(study, run, console, deadline, callbacks)
        exit_code = report_on(study, study_folder, console)
        keep_results(study_folder, storage, console)
        return exit_code


def plan_study(
    study: Study,
    *,
    data: DataOptions,
    cluster: ClusterOptions,
    results: Path,
    storage: str | None = None,
    calibrate: bool = False,
) -> int:
    """Print what running the study would compute and cost. Starts no Ray, renders nothing."""
    data.check(study)
    console = Console()
    placement = placement_of(study, machine_resources(cluster), cluster)
    prepared = data_for_plan(data, study)
    cells = study.cells()
    scale = study.scale

    def measure(cell: Cell) -> Mapping[str, float]:
        torch.set_num_threads(placement.worker_threads)
        return calibrated_durations_s(
            cell,
            class_count=len(prepared[cell.data].class_names),
            test_minutes=scale.scenes.test.minutes,
            picture_px=(scale.shards.frame_height_px, scale.shards.frame_width_px),
        )

    store = StageStore(stages_root(storage, results))
    plans = plan_stages(cells, prepared, store, measure if calibrate else None)
    console.print(f"{study.name}: {len(cells)} trials; {placement.describe()}", highlight=False)
    print_plan(plans, placement, console)
    return 0


def placement_of(
    study: Study, resources: Mapping[str, float], cluster: ClusterOptions
) -> Placement:
    """How the study's trials are laid out on these resources.

    Raises:
        InputError: one trial does not fit, or its batch cannot be shared out to the workers.
    """
    placement = plan_placement(
        resources,
        train_workers=cluster.train_workers,
        fewest_workers=cluster.fewest_workers,
        gpus_per_worker=cluster.gpus_per_worker,
        most_lanes=cluster.most_trials_at_once,
    )
    for arm in study.arms:
        for workers in range(placement.fewest_workers, placement.train_workers + 1):
            if arm.pretrain is not None:
                arm.pretrain.rank_batch_size(workers)
    return placement


def machine_resources(cluster: ClusterOptions) -> Mapping[str, float]:
    """What the cluster has: asked of a running one, counted on this machine otherwise."""
    if cluster.address is not None:
        with ray_cluster(cluster):
            return cluster_limits()
    return {
        "CPU": float(cluster.cpus or os.cpu_count() or 1),
        "GPU": float(torch.cuda.device_count()),
    }


def run_missing_trials(
    study: Study,
    run: StudyRun,
    console: Console,
    deadline: float | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run every cell that has no finished record of exactly these settings, data and code.

    Trials still running at ``deadline`` (of ``time.monotonic()``) are stopped; their stages go on
    from their last checkpoints when the study is run again.
    """
    cells = study.cells()
    check_budgets(study, run.data[DEFAULT_DATA])
    record_study(study, cells, run.study_folder)
    missing = [cell for cell in cells if not is_finished(cell, run)]
    if not missing:
        console.print(f"all {len(cells)} trials are finished already")
        return
    if len(missing) < len(cells):
        console.print(f"{len(cells) - len(missing)} of {len(cells)} trials are finished already")
    progress = StudyProgress(console, planned=len(cells), already_done=len(cells) - len(missing))
    tuner = tune.Tuner(
        # Trials write their records into a folder of the driver's machine.
        tune.with_resources(run_trial, {"CPU": 0, driver_resource(): TRIAL_SHARE}),
        param_space={"cell": tune.grid_search(missing), "run": run},
        tune_config=tune.TuneConfig(
            # One more, and its train worker could take the CPU that Ray Data feeds another from:
            # on one CPU both would wait for ever.
            max_concurrent_trials=run.placement.lanes,
            time_budget_s=seconds_until(deadline),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(run.study_folder / "logs" / "tune"),
            callbacks=[progress, *callbacks],
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    with progress:
        tuner.fit()
    say_if_late(deadline, console)


def deadline_after(hours: float | None) -> float | None:
    """Of ``time.monotonic()``; None without a limit."""
    if hours is None:
        return None
    if not hours > 0:
        raise InputError("command line", "--budget-hours", hours, "more than 0")
    return time.monotonic() + hours * 3600


def seconds_until(deadline: float | None) -> float | None:
    """What is left for trials when the data are ready: a moment, where that took too long."""
    return None if deadline is None else max(1.0, deadline - time.monotonic())


def say_if_late(deadline: float | None, console: Console) -> None:
    """Tell that a run ended at its limit."""
    if deadline is not None and time.monotonic() >= deadline:
        console.print("the hours given are over; the same command goes on from here")


def is_finished(cell: Cell, run: StudyRun) -> bool:
    """Whether an earlier run left this cell's record, made from the same stages."""
    try:
        record = read_record(trial_folder(run.study_folder, cell.trial_id))
    except InputError:
        return False
    as_trained = with_batches(cell, record.smaller_batches)
    wanted = stages_of(as_trained, run.data[cell.data]).evaluate.digest
    made = {stage.name: stage.key for stage in record.stages}
    return record.status == "finished" and made.get("evaluate") == wanted


def report_on(study: Study, study_folder: Path, console: Console) -> int:
    """Write the tables and the report, print the summary."""
    # What draws takes a second to import, and plans draw nothing.
    from analysis import print_summary, write_report

    records = [
        read_record(trial_folder(study_folder, cell.trial_id))
        for cell in study.cells()
        if (trial_folder(study_folder, cell.trial_id) / "record.json").exists()
    ]
    table = trials_table(records)
    table.to_parquet(study_folder / "trials.parquet", index=False)
    table.to_csv(study_folder / "trials.csv", index=False)
    report = write_report([study_folder], study_folder / "report", baseline=study.baseline)
    print_summary([study_folder], console)
    console.print(sharing(records), highlight=False)
    for record in records:
        if record.smaller_batches:
            batches = ", ".join(f"{name}={n}" for name, n in record.smaller_batches.items())
            console.print(f"for want of GPU memory: {record.trial_id} with {batches}")
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    failed = sum(record.status == "failed" for record in records)
    return 1 if failed else 0


def sharing(records: Sequence[TrialRecord]) -> str:
    """How many stages the study's trials computed, and how often one served several."""
    uses = Counter(stage.name for record in records for stage in record.stages)
    unique = {
        name: len({s.key for record in records for s in record.stages if s.name == name})
        for name in uses
    }
    parts = [f"{unique[name]} {name} for {uses[name]} trials" for name in uses]
    return "stages: " + ", ".join(parts)


def record_study(study: Study, cells: Sequence[Cell], study_folder: Path) -> None:
    """Write ``study.json``, so that a report knows what should be there."""
    write_study(
        StudyRecord(
            name=study.name,
            question=study.question,
            arms=[arm.name for arm in study.arms],
            baseline=study.baseline,
            budgets_minutes=list(study.budgets_minutes),
            seeds=list(study.seeds),
            scale=study.scale.name,
            command=shlex.join(["python", *sys.argv]),
            cells=[
                {
                    "trial_id": cell.trial_id,
                    "arm": cell.arm,
                    "seed": cell.seed,
                    "annotation_minutes": cell.annotation_minutes,
                }
                for cell in cells
            ],
        ),
        study_folder,
    )


def check_budgets(study: Study, data: PreparedData) -> None:
    """Refuse budgets that the annotated part cannot give."""
    largest = max(study.budgets_minutes)
    if largest > data.trainable_minutes + 1e-6:
        raise InputError(
            f"study {study.name}",
            "annotation budget (minutes)",
            largest,
            f"at most the {data.trainable_minutes:.1f} that {data.annotated.path} has",
        )


def stages_root(storage: str | None, results: Path) -> str:
    """Where finished stages are kept: beside shards and results under a URI, else as said."""
    if storage is None:
        return str((results / "stages").resolve())
    return storage if is_local(storage) else join(storage, "stages")


def results_uri(storage: str | None, study: str) -> str | None:
    """Where a study's results are kept beside its stages; None where they stay in their folder."""
    if storage is None or is_local(storage):
        return None
    return join(storage, f"results/{study}")


def keep_results(study_folder: Path, storage: str | None, console: Console) -> None:
    """Copy tables and report beside the stages, where those are under a URI."""
    kept = results_uri(storage, study_folder.name)
    if kept is not None:
        upload_folder(study_folder, kept)
        console.print(f"kept in {kept}", highlight=False, soft_wrap=True)


def cluster_limits() -> dict[str, float]:
    """CPUs and GPUs of the connected cluster, or as many as its autoscaler may bring."""
    resources = ray.cluster_resources()
    # What Ray's own libraries ask; there is no public name for it.
    limits = ray_state.get_max_resources_from_cluster_config() or {}
    return {
        name: max(resources.get(name, 0.0), float(limits.get(name, 0.0))) for name in ("CPU", "GPU")
    }


def driver_resource() -> str:
    """What only the driver's machine has."""
    return f"node:{ray.util.get_node_ip_address()}"


@contextmanager
def ray_cluster(options: ClusterOptions) -> Iterator[None]:
    """Connect to a cluster or start one here, quietly; it ends with the block, Ctrl-C included."""
    # Tune would catch Ctrl-C itself, carry on for a while and swallow it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Its own loggers write what records, histories and trackers hold already, under other names.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    try:
        if options.address is None:
            # One machine is not preempted apart from itself; a process less per pretraining.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(
                num_cpus=options.cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                # By default Ray ends a worker that is idle for a second while there are more
                # workers than CPUs; with the actors of a few trials there always are, and every
                # batch would wait for a process to start and import again.
                _system_config={"idle_worker_killing_time_threshold_ms": 60_000},
            )
        else:
            ray.init(
                address=options.address,
                # What this process imports is what every worker imports, edits included.
                runtime_env={"py_modules": [str(ROOT / package) for package in OUR_PACKAGES]},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        yield
    finally:
        ray.shutdown()
