"""From a study to its table: prepare the data, run the missing trials, write the report."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ray import tune
from rich.console import Console
from rich.text import Text

from ablations.cluster import (
    ClusterOptions,
    cluster_limits,
    driver_resource,
    placement_of,
    ray_cluster,
)
from ablations.console import StudyProgress, quiet_output
from ablations.data import DataOptions, make_writable, prepare_data
from ablations.places import keep_results, results_uri, stages_root
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
from trainables.cells import DEFAULT_DATA, Cell, scored_fingerprint, stages_of, with_batches
from trainables.prepare import PreparedData
from trainables.provenance import current_provenance
from trainables.resources import TRIAL_SHARE
from trainables.stages import StageStore
from trainables.trial import StudyRun, run_trial

#: How often trials are started that end without a record, as when Tune loses one between processes.
ROUNDS = 3


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
        tracking = trackers(study.name, study_folder, also=track)
        console.print(Text(study.question, "bold"))
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
                *tracking,
                Watchdog(placement, partial(console.print, markup=False)),
            ]
            run_missing_trials(study, run, console, deadline, callbacks)
        exit_code = report_on(study_folder, console)
        keep_results(study_folder, storage, console)
        return exit_code


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
    refuse_results_of_other_data(cells, run)
    record_study(study, cells, run.study_folder)
    missing = [cell for cell in cells if not is_finished(cell, run)]
    if not missing:
        console.print(f"all {len(cells)} trials are finished already")
        return
    if len(missing) < len(cells):
        console.print(f"{len(cells) - len(missing)} of {len(cells)} trials are finished already")
    progress = StudyProgress(console, planned=len(cells), already_done=len(cells) - len(missing))
    with progress:
        for _ in range(ROUNDS):
            before = {cell.trial_id: _record_time_ns(cell, run) for cell in missing}
            _fit(missing, study, run, deadline, [progress, *callbacks])
            missing = [
                cell for cell in missing if _record_time_ns(cell, run) == before[cell.trial_id]
            ]
            if not missing or is_late(deadline):
                break
            console.print(f"Ray has lost {len(missing)} trials; they are run again")
    say_if_late(deadline, console)


def _fit(
    cells: Sequence[Cell],
    study: Study,
    run: StudyRun,
    deadline: float | None,
    callbacks: list[tune.Callback],
) -> None:
    """Let Ray Tune run these cells."""
    tune.Tuner(
        # Trials write their records into a folder of the driver's machine.
        tune.with_resources(run_trial, {"CPU": 0, driver_resource(): TRIAL_SHARE}),
        param_space={"cell": tune.grid_search(list(cells)), "run": run},
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
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    ).fit()


def _record_time_ns(cell: Cell, run: StudyRun) -> int | None:
    """When a cell's record was last written: every trial that ends writes one."""
    path = trial_folder(run.study_folder, cell.trial_id) / "record.json"
    return path.stat().st_mtime_ns if path.exists() else None


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


def is_late(deadline: float | None) -> bool:
    """Whether a run's limit has been reached."""
    return deadline is not None and time.monotonic() >= deadline


def say_if_late(deadline: float | None, console: Console) -> None:
    """Tell that a run ended at its limit."""
    if is_late(deadline):
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


def refuse_results_of_other_data(cells: Sequence[Cell], run: StudyRun) -> None:
    """Trials are named by their settings, so those on other recordings would be replaced."""
    for cell in cells:
        try:
            record = read_record(trial_folder(run.study_folder, cell.trial_id))
        except InputError:
            continue
        scored_on = scored_fingerprint(cell, run.data[cell.data])
        if record.status == "finished" and record.test_fingerprint != scored_on:
            expected = f"another: it has results on other test recordings ({cell.trial_id})"
            raise InputError("command line", "--results", str(run.study_folder.parent), expected)


def report_on(study_folder: Path, console: Console) -> int:
    """Write the tables and the report of all that the folder holds, print the summary.

    Returns:
        The exit code: 1 where a planned trial failed, of this command or an earlier one.
    """
    # What draws takes a second to import, and plans draw nothing.
    from analysis import Analysis
    from analysis.load import read_plan, readable_records

    planned = [cell["trial_id"] for cell in read_plan(study_folder).cells]
    place = {trial_id: number for number, trial_id in enumerate(planned)}
    records = readable_records(study_folder)
    records.sort(key=lambda record: place.get(record.trial_id, len(planned)))
    table = trials_table(records)
    table.to_parquet(study_folder / "trials.parquet", index=False)
    table.to_csv(study_folder / "trials.csv", index=False)
    analysis = Analysis.of([study_folder])
    report = analysis.write(study_folder / "report")
    analysis.print(console)
    console.print(sharing(records), highlight=False)
    for record in records:
        if record.smaller_batches:
            batches = ", ".join(f"{name}={n}" for name, n in record.smaller_batches.items())
            console.print(f"for want of GPU memory: {record.trial_id} with {batches}", markup=False)
    console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)
    return int(any(r.status == "failed" and r.trial_id in place for r in records))


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
    """Write ``study.json``, so that a report knows what should be there.

    What earlier commands planned at this scale stays planned, but for cells of the same arm, seed
    and budget.
    """
    planned = StudyRecord(
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
    )
    before = _planned_before(planned, study_folder)
    write_study(planned if before is None else _merged(before, planned), study_folder)


def _planned_before(planned: StudyRecord, study_folder: Path) -> StudyRecord | None:
    """The folder's plan, where it is one of the same study and scale."""
    from analysis.load import read_plan

    try:
        before = read_plan(study_folder)
    except InputError:  # the first command, or a file that the new plan replaces
        return None
    same = (before.name, before.scale) == (planned.name, planned.scale)
    return before if same and before.cells else None


def _merged(before: StudyRecord, planned: StudyRecord) -> StudyRecord:
    """Both plans; where they plan the same place, the later one."""
    cells = {
        (cell["arm"], cell["seed"], cell["annotation_minutes"]): cell
        for cell in (*before.cells, *planned.cells)
    }
    earlier = [line for line in before.command.splitlines() if line != planned.command]
    return replace(
        planned,
        # A command without the arm that others are compared with compares with it all the same.
        baseline=planned.baseline if before.baseline in planned.arms else before.baseline,
        arms=list(dict.fromkeys([*before.arms, *planned.arms])),
        budgets_minutes=sorted({*before.budgets_minutes, *planned.budgets_minutes}),
        seeds=sorted({*before.seeds, *planned.seeds}),
        # A line for each: the settings of the later ones hold.
        command="\n".join([*earlier, planned.command]),
        cells=list(cells.values()),
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
