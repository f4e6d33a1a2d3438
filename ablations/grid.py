"""From a study to its table: which trials are missing, and what is known once they have run."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

from ray import tune
from rich.console import Console

from ablations.console import StudyProgress
from ablations.deadline import Deadline
from ablations.options import RunOptions
from ablations.places import (
    JOURNAL_FILE,
    PLAN_LOCK_FILE,
    fetch_trials,
    keep_plan,
    print_report_path,
)
from ablations.runs import (
    ROUNDS,
    let_tune_run,
    run_and_report,
    say_lost,
    write_tables,
)
from ablations.wording import counted
from search_spaces.studies import Study
from seld.errors import InputError
from seld.locks import one_at_a_time
from seld.records import (
    RECORD_FILE,
    STUDY_FILE,
    StudyRecord,
    TrialRecord,
    read_record,
    read_study,
    readable_records,
    trial_folder,
    write_study,
)
from seld.storage import join, local_copy, refusals
from trainables.cells import DEFAULT_DATA, Cell, stages_of, with_batches
from trainables.trial import StudyRun, run_trial


def run_study(study: Study, options: RunOptions) -> int:
    """Run what is missing of a study and report on all of it.

    Returns:
        The exit code: 0, or 1 where trials failed.

    Raises:
        InputError: for everything that can be known to be wrong before the work starts.
    """
    folder = options.results / study.name
    if (folder / JOURNAL_FILE).exists():
        raise InputError(folder, "study", study.name, "another --name: this is a sweep's folder")
    return run_and_report(
        study,
        options,
        trials=len(study.cells()),
        run_trials=partial(run_missing_trials, study),
        report=report_on,
    )


def run_missing_trials(
    study: Study,
    run: StudyRun,
    console: Console,
    *,
    deadline: Deadline,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Run every cell that has no finished record of exactly these settings, data and code.

    Trials still running at the deadline are stopped; their stages go on from their last
    checkpoints when the study is run again.
    """
    cells = study.cells()
    missing = plan_what_is_missing(study, cells, run, console)
    if not missing:
        console.print(f"all {counted(len(cells), 'trial')} finished already")
        return
    if len(missing) < len(cells):
        of_all = counted(len(cells), "trial")
        console.print(f"{len(cells) - len(missing)} of {of_all} finished already")
    progress = StudyProgress(console, planned=len(cells), already_done=len(cells) - len(missing))
    with progress:
        for _ in range(ROUNDS):
            before = {cell.trial_id: _record_time_ns(cell, run) for cell in missing}
            memory_was_short = let_tune_run(
                run_trial,
                run,
                name=study.name,
                trials=len(missing),
                console=console,
                param_space={"cell": tune.grid_search(missing)},
                deadline=deadline,
                callbacks=[progress, *callbacks],
            )
            missing = [
                cell for cell in missing if _record_time_ns(cell, run) == before[cell.trial_id]
            ]
            if not missing or deadline.is_over:
                break
            say_lost(console, len(missing), memory_was_short=memory_was_short)
    take_in_others(study, run, console)


def plan_what_is_missing(
    study: Study, cells: Sequence[Cell], run: StudyRun, console: Console
) -> list[Cell]:
    """Add the cells to what is planned, here and where results are kept; those not finished.

    One command at a time: of two, each would leave out what the other plans.
    """
    notes = [note for data in run.data.values() for note in data.notes]
    with one_at_a_time(run.study_folder / PLAN_LOCK_FILE):
        fetch_trials(run.study_folder, run.kept_in, console)
        plan = plan_of(study, cells, run.study_folder, run.kept_in)
        plan = replace(plan, notes=list(dict.fromkeys(notes)))
        missing = [cell for cell in cells if not is_finished(cell, run)]
        finished = {cell.trial_id for cell in cells} - {cell.trial_id for cell in missing}
        refuse_results_of_other_data(plan, run, finished)
        write_study(plan, run.study_folder)
        keep_plan(run.study_folder, run.kept_in)
    return missing


def take_in_others(study: Study, run: StudyRun, console: Console) -> None:
    """Learn what other machines have planned and finished since, where results are kept.

    The report that takes the place of theirs tells of it then, too.
    """
    if run.kept_in is None:
        return
    try:
        with one_at_a_time(run.study_folder / PLAN_LOCK_FILE):
            fetch_trials(run.study_folder, run.kept_in, console)
            if plans := plans_before(study, run.study_folder, run.kept_in):
                write_study(reduce(_merged, plans), run.study_folder)
    except (InputError, *refusals(run.kept_in)) as error:
        said = f"what other machines have kept is left out: {error}"
        console.print(said, markup=False, highlight=False)


def _record_time_ns(cell: Cell, run: StudyRun) -> int | None:
    """When a cell's record was last written: every trial that ends writes one."""
    path = trial_folder(run.study_folder, cell.trial_id) / RECORD_FILE
    return path.stat().st_mtime_ns if path.exists() else None


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


def refuse_results_of_other_data(
    plan: StudyRecord, run: StudyRun, finished: Collection[str] = ()
) -> None:
    """What is planned counts together, by this command and earlier ones: it has to have one data.

    Trials are named by their settings, too, so those on other recordings would be replaced.

    Args:
        plan: of this command and earlier ones.
        run: whose data they have to be of.
        finished: trials of this command that its data would make again: without pretraining it is
            all the same what the others pretrain on.
    """
    # Arms with scenes of their own share the test recordings.
    scored_on = next(iter(run.data.values())).test_fingerprint
    for trial_id in (cell["trial_id"] for cell in plan.cells):
        try:
            record = read_record(trial_folder(run.study_folder, trial_id))
        except InputError:
            continue
        if record.status != "finished" or trial_id in finished:
            continue
        data = run.data.get(record.config.get("data", DEFAULT_DATA))
        if record.test_fingerprint != scored_on:
            other = "test recordings"
        elif data is not None and record.data_fingerprint not in ("", data.fingerprint):
            other = "recordings to train on"
        else:
            continue
        expected = f"another: it has results on other {other} ({trial_id})"
        raise InputError("command line", "--results", str(run.study_folder.parent), expected)


def report_on(study_folder: Path, console: Console) -> int:
    """Write the tables and the report of all that the folder holds, print the summary.

    Returns:
        The exit code: 1 where a planned trial failed, of this command or an earlier one.
    """
    # What draws takes a second to import, and plans draw nothing.
    from analysis import Analysis

    planned = [cell["trial_id"] for cell in read_study(study_folder).cells]
    place = {trial_id: number for number, trial_id in enumerate(planned)}
    records = readable_records(study_folder)
    records.sort(key=lambda record: place.get(record.trial_id, len(planned)))
    write_tables(records, study_folder)
    analysis = Analysis.of([study_folder])
    report = analysis.write(study_folder / "report")
    analysis.print(console)
    console.print(sharing(records), highlight=False)
    for record in records:
        if record.smaller_batches:
            batches = ", ".join(f"{name}={n}" for name, n in record.smaller_batches.items())
            console.print(f"for want of GPU memory: {record.trial_id} with {batches}", markup=False)
    print_report_path(report, console)
    return int(any(r.status == "failed" and r.trial_id in place for r in records))


def sharing(records: Sequence[TrialRecord]) -> str:
    """How many stages the study's trials computed, and how often one served several."""
    uses = Counter(stage.name for record in records for stage in record.stages)
    unique = {
        name: len({s.key for record in records for s in record.stages if s.name == name})
        for name in uses
    }
    parts = [f"{unique[name]} {name} for {counted(uses[name], 'trial')}" for name in uses]
    return "stages: " + ", ".join(parts)


def plan_of(
    study: Study, cells: Sequence[Cell], study_folder: Path, kept: str | None = None
) -> StudyRecord:
    """What ``study.json`` is to say, so that a report knows what should be there.

    What earlier commands planned at this scale stays planned, but for cells of the same arm, seed
    and budget.

    Args:
        kept: where results of several machines are kept, if anywhere.
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
    return reduce(_merged, [*plans_before(study, study_folder, kept), planned])


def plans_before(study: Study, study_folder: Path, kept: str | None) -> list[StudyRecord]:
    """Plans of the same study and scale: the folder's, then the kept one, whose cells hold.

    Other machines may have added to the kept one.
    """
    plans: list[StudyRecord] = []
    with ExitStack() as stack:
        folders = [study_folder]
        if kept is not None:
            with suppress(FileNotFoundError):
                folders.append(stack.enter_context(local_copy(join(kept, STUDY_FILE))).parent)
        for folder in folders:
            with suppress(InputError):  # the first command, or a file that the new plan replaces
                plans.append(read_study(folder))
    same = (study.name, study.scale.name)
    return [plan for plan in plans if (plan.name, plan.scale) == same and plan.cells]


def _merged(before: StudyRecord, planned: StudyRecord) -> StudyRecord:
    """Both plans; where they plan the same place, the later one."""
    cells = {
        (cell["arm"], cell["seed"], cell["annotation_minutes"]): cell
        for cell in (*before.cells, *planned.cells)
    }
    commands = planned.command.splitlines()
    earlier = [line for line in before.command.splitlines() if line not in commands]
    return replace(
        planned,
        # A command without the arm that others are compared with compares with it all the same.
        baseline=planned.baseline if before.baseline in planned.arms else before.baseline,
        arms=list(dict.fromkeys([*before.arms, *planned.arms])),
        budgets_minutes=sorted({*before.budgets_minutes, *planned.budgets_minutes}),
        seeds=sorted({*before.seeds, *planned.seeds}),
        # A line for each: the settings of the later ones hold.
        command="\n".join([*earlier, *commands]),
        cells=list(cells.values()),
    )
