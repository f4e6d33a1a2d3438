"""From a space to its best settings: Optuna proposes, Ray Tune runs, validation rooms decide."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray import tune
from rich.console import Console
from rich.markup import escape

from ablations.console import StudyProgress
from ablations.data import make_writable
from ablations.deadline import Deadline
from ablations.options import RunOptions
from ablations.places import (
    JOURNAL_FILE,
    fetch_kept,
    keep_journal,
    keep_plan,
    only_head,
    only_run,
    print_report_path,
    results_uri,
)
from ablations.runs import (
    ROUNDS,
    let_tune_run,
    run_and_report,
    say_lost,
    write_tables,
)
from ablations.searcher import (
    REDUCTION,
    SAMPLER_SEEDS,
    OptunaSearcher,
    ask,
    done_trials,
    mend_journal,
    propose_again,
    require_same,
)
from ablations.wording import counted
from search_spaces.scales import ScaleSettings
from search_spaces.spaces import (
    BUDGET,
    OBJECTIVE,
    OBJECTIVES,
    Parameters,
    Suggests,
    cell_of,
    propose,
    setting_names,
)
from search_spaces.studies import Arm, Study
from seld.errors import InputError
from seld.records import (
    FAILURE_KINDS,
    StudyRecord,
    TrialRecord,
    read_record,
    readable_records,
    trial_folder,
    write_atomically,
    write_study,
)
from seld.settings import flat_mapping, to_mapping
from trainables.cells import DEFAULT_DATA, STAGE_CODE, Cell
from trainables.stage_keys import code_fingerprint
from trainables.trial import StudyRun, keep_record, report_outcome, run_cell

#: Among the terms that a study keeps: the settings of its space that it does not search.
FIXED_TERM = "what is not searched"
#: What can be minimised, and what it is: results that every trial reports.
GOALS: dict[str, str] = {
    "seld_error": "on the validation rooms",
    "compute_s": "seconds of pretraining and fine-tuning",
    "annotation_minutes": "the annotation budget",
}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search: what varies, how many trials, what is minimised.

    Attributes:
        objectives: of pretraining; one or several to choose from.
        budgets_minutes: likewise.
        goals: several make it a search for the Pareto front, without early stopping.
        rungs: 1 trains every trial in full; more first try it with fewer steps.
        fixed: settings of the space that stay as the scale's recipes have them.
        seed: of the proposals and of every trial.
    """

    name: str
    scale: ScaleSettings
    objectives: tuple[str, ...]
    budgets_minutes: tuple[float, ...]
    trials: int
    goals: tuple[str, ...] = ("seld_error",)
    rungs: int = 3
    seed: int = 0
    fixed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise InputError("--objectives", "name", name, f"one of {', '.join(OBJECTIVES)}")
        for name in self.goals:
            if name not in GOALS:
                raise InputError("--minimise", "goal", name, f"one of {', '.join(GOALS)}")
        for option, count in (("--trials", self.trials), ("--rungs", self.rungs)):
            if count < 1:
                raise InputError("command line", option, count, "at least 1")
        if len(set(self.goals)) < len(self.goals):
            raise InputError("--minimise", "goals", ",".join(self.goals), "different ones")
        if self.seed < 0:
            raise InputError("command line", "--seed", self.seed, "0 or more")
        if len(self.goals) > 1 and self.rungs > 1:
            raise InputError("command line", "--rungs", self.rungs, "1 with several goals")
        if not self.budgets_minutes or min(self.budgets_minutes) <= 0:
            raise InputError("--budgets", "minutes", self.budgets_minutes, "more than 0")
        recipes = [getattr(self.scale.recipe, name) for name in self.objectives]
        fewest = min(stage.steps for stage in (*recipes, self.scale.finetune))
        most = 1
        while REDUCTION**most <= fewest:
            most += 1
        if self.rungs > most:
            expected = f"at most {most}: of {fewest} steps, the first has one then"
            raise InputError("command line", "--rungs", self.rungs, expected)

    def propose(self, trial: Suggests) -> Parameters:
        """The next point."""
        return propose(
            trial,
            scale=self.scale,
            objectives=self.objectives,
            budgets_minutes=self.budgets_minutes,
            fixed=self.fixed,
        )

    @property
    def searched(self) -> frozenset[str]:
        """Settings that its trials may be given values for, beside objective and budget."""
        return setting_names(scale=self.scale, objectives=self.objectives, fixed=self.fixed)

    def cells(self, parameters: Parameters) -> tuple[Cell, ...]:
        """The trial's rungs, from few steps to all; the last is the trial itself."""
        return tuple(
            cell_of(
                parameters,
                self.scale,
                study=self.name,
                seed=self.seed,
                objective=self.objectives[0],
                budget_minutes=max(self.budgets_minutes),
                fidelity=1.0 / REDUCTION ** (self.rungs - 1 - rung),
            )
            for rung in range(self.rungs)
        )


def expected_trials(sweep: Sweep) -> list[list[Cell]]:
    """What a sweep would run, for its plan: random proposals, each rung passed by one in three.

    Returns:
        Of each trial the rungs that it gets to.
    """
    sampler = optuna.samplers.RandomSampler(seed=sweep.seed % SAMPLER_SEEDS)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    trials: list[list[Cell]] = []
    for number in range(sweep.trials):
        rungs = sweep.cells(sweep.propose(study.ask()))
        passed = [number % REDUCTION**rung == 0 for rung in range(len(rungs))]
        trials.append(list(itertools.compress(rungs, passed)))
    return trials


def open_study(sweep: Sweep, folder: Path) -> optuna.Study:
    """The Optuna study of a results folder, with what earlier runs found.

    Raises:
        InputError: it was begun as a search of something else, or its journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mend_journal(folder / JOURNAL_FILE)
    study = optuna.create_study(
        study_name=sweep.name,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL_FILE))),
        directions=[StudyDirection.MINIMIZE] * len(sweep.goals),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=REDUCTION, min_early_stopping_rate=0
        ),
        load_if_exists=True,
    )
    require_same(
        study,
        folder,
        {
            "--objectives": list(sweep.objectives),
            "--budgets": list(sweep.budgets_minutes),
            "--minimise": list(sweep.goals),
            "--rungs": sweep.rungs,
            "--seed": sweep.seed,
            "--scale": sweep.scale.name,
            **{f"--set {name}": value for name, value in recipe_settings(sweep).items()},
        },
    )
    require_same_search(study, folder, sweep)
    return study


def require_same_search(study: optuna.Study, folder: Path, sweep: Sweep) -> None:
    """Refuse to go on with a study of this space that searches other settings of it."""
    known = study.user_attrs["terms"].get(FIXED_TERM)
    if known is not None and known != sorted(sweep.fixed):
        as_it_began = replace(sweep, fixed=frozenset(known)).searched
        expected = f"{listed(as_it_began)} as it began, or another --name"
        raise InputError(folder, "--search", listed(sweep.searched), expected)
    require_same(study, folder, {FIXED_TERM: sorted(sweep.fixed)})


def listed(names: Collection[str]) -> str:
    """As ``--search`` takes them."""
    return ",".join(sorted(names)) or "nothing"


def recipe_settings(sweep: Sweep) -> dict[str, Any]:
    """Every setting of the recipes that trials start from, flat; fine-tuning's steps by budget."""
    recipe = sweep.scale.recipe
    stages = {name: getattr(recipe, name) for name in sweep.objectives}
    flat = flat_mapping(
        {
            name: to_mapping(stage)
            for name, stage in (stages | {"finetune": recipe.finetune}).items()
        }
    )
    trials = (sweep.cells({BUDGET: minutes})[-1] for minutes in sweep.budgets_minutes)
    steps = [trial.finetune.steps for trial in trials]
    return flat | {"finetune.steps": steps[0] if len(set(steps)) == 1 else steps}


def run_sweep(
    sweep: Sweep,
    options: RunOptions,
    *,
    grid_options: Sequence[str] = (),
    mix_code: bool = False,
) -> int:
    """Run the trials that are missing of a sweep and report on all of them.

    Args:
        grid_options: scale, settings and places as the sweep was given them, for the command that
            scores what was found on the test.
        mix_code: go on where earlier trials were trained with other code.

    Returns:
        The exit code: 0, or 1 where no trial finished.

    Raises:
        InputError: for everything that can be known to be wrong before the work starts.
    """
    folder, storage, console = options.results / sweep.name, options.storage, Console()
    make_writable(folder, "--results")
    with only_run(folder), only_head(storage, sweep.name, console):
        fetch_kept(folder, results_uri(storage, sweep.name), console)
        refuse_what_cannot_go_on(sweep, folder, mix_code=mix_code)
        return run_and_report(
            as_study(sweep),
            options,
            trials=sweep.trials,
            run_trials=partial(run_missing_trials, sweep),
            report=partial(report_on, sweep, grid_options=grid_options),
        )


def refuse_what_cannot_go_on(sweep: Sweep, folder: Path, *, mix_code: bool) -> None:
    """Refuse, before anything is started, to go on with a sweep on other terms or by other code.

    Raises:
        InputError: what is different, and what would go on.
    """
    if not (folder / JOURNAL_FILE).exists():
        return  # terms are kept once the data are ready: until then nothing has begun
    study = open_study(sweep, folder)
    if mix_code or len(done_trials(study)) >= sweep.trials:
        return
    ranked = ranked_records(study, folder)
    others = [r for r in ranked if r.code_fingerprint not in ("", trained_by())]
    if others:
        commits = sorted({record.commit for record in others} - {""})
        raise InputError(
            folder,
            f"the code of {len(others)} of {counted(len(ranked), 'trial')}",
            f"other than now (commit {', '.join(commits) or 'unknown'})",
            "the same: check that commit out to go on with it, begin anew with another --name, "
            "or rank the scores of both together with --mix-code",
        )


def trained_by() -> str:
    """Fingerprint of the code that trials are trained and scored with, as in their records."""
    return code_fingerprint(*STAGE_CODE.values())


def ranked_records(study: optuna.Study, folder: Path) -> list[TrialRecord]:
    """Records of the trials whose scores later ones are ranked with, as far as they are there."""
    records = []
    for trial in study.get_trials(deepcopy=False):
        if trial.values or trial.intermediate_values:
            with suppress(InputError):
                records.append(read_record(trial_folder(folder, trial.user_attrs["trial_id"])))
    return records


def as_study(sweep: Sweep) -> Study:
    """What data and budgets the sweep needs, in a grid's terms."""
    arms = tuple(
        Arm(name=name, pretrain=getattr(sweep.scale.recipe, name), finetune=sweep.scale.finetune)
        for name in sweep.objectives
    )
    return Study(
        name=sweep.name,
        question=f"Which settings have the lowest {' and '.join(sweep.goals)}?",
        scale=sweep.scale,
        arms=arms,
        baseline=arms[0].name,
        budgets_minutes=sweep.budgets_minutes,
        seeds=(sweep.seed,),
    )


def run_missing_trials(
    sweep: Sweep,
    run: StudyRun,
    console: Console,
    *,
    deadline: Deadline,
    callbacks: Sequence[tune.Callback],
) -> None:
    """Let Ray Tune ask and run until the sweep has its trials.

    Those that were running when a run was killed come first, their finished stages and checkpoints
    waiting for them; so do those that a command before has put off.
    """
    if not run.data[DEFAULT_DATA].validation_rooms:
        raise InputError(
            "sweep", "validation rooms", "none", "training clips from at least two rooms"
        )
    study = open_study(sweep, run.study_folder)
    require_same(study, run.study_folder, {"data": run.data[DEFAULT_DATA].fingerprint})
    write_sweep_record(sweep, run.study_folder)
    keep_plan(run.study_folder, run.kept_in)
    done = len(done_trials(study))
    if done >= sweep.trials:
        console.print(f"all {counted(sweep.trials, 'trial')} done already")
        return
    if done:
        console.print(f"{done} of {counted(sweep.trials, 'trial')} done already")

    progress = StudyProgress(console, planned=sweep.trials, already_done=done)
    put_off: dict[int, str] = {}
    with progress:
        for _ in range(ROUNDS):
            propose_again(study, but=put_off)
            searcher = searcher_for(sweep, study, run, console)
            to_run = sweep.trials - done - len(put_off)
            memory_was_short = let_tune_run(
                run_sweep_trial,
                run,
                name=sweep.name,
                trials=to_run,
                console=console,
                param_space={},
                deadline=deadline,
                callbacks=[progress, *callbacks],
                stop=searcher.should_stop,
                search_alg=searcher,
                num_samples=to_run,
                trial_dirname_creator=lambda trial: trial.trial_id,
            )
            put_off |= searcher.put_off
            done = len(done_trials(study))
            lost = sweep.trials - done - len(put_off)
            if lost <= 0 or searcher.gives_up or deadline.is_over:
                break
            say_lost(console, lost, memory_was_short=memory_was_short)
    if put_off:
        say_put_off(console, put_off, missing=sweep.trials - done)


def searcher_for(
    sweep: Sweep, study: optuna.Study, run: StudyRun, console: Console
) -> OptunaSearcher:
    """What proposes the sweep's trials to Ray Tune, and tells them whether they go on."""

    def config_of(trial: optuna.Trial) -> dict[str, Any]:
        rungs = sweep.cells(sweep.propose(trial))
        trial_id = own_name(trial, rungs[-1])
        trial.set_user_attr("trial_id", trial_id)
        return {"rungs": rungs, "cell": rungs[-1], "trial_id": trial_id}

    def decided(trial: optuna.Trial, rung: int, stops: bool) -> None:
        path = decision_path(run, trial.user_attrs["trial_id"], rung)
        write_atomically(path, "stop" if stops else "go on")

    return OptunaSearcher(
        study,
        ask=lambda: ask(study, sweep.seed),
        config_of=config_of,
        goals=sweep.goals,
        decided=decided,
        changed=partial(keep_journal, run.study_folder, run.kept_in, console),
    )


def say_put_off(console: Console, put_off: Mapping[int, str], *, missing: int) -> None:
    """Say that trials ended for what is not of theirs, and what becomes of them."""
    reasons = {FAILURE_KINDS.get(kind, "the trial's process died") for kind in put_off.values()}
    trials = counted(len(put_off), "trial has", "trials have")
    console.print(
        f"[bold]{trials} ended by no fault of the settings[/bold]: {'; '.join(sorted(reasons))}. "
        f"Once that is mended, run the same command for the {counted(missing, 'trial')} missing.",
        highlight=False,
    )


def own_name(trial: optuna.Trial, cell: Cell) -> str:
    """What a trial and its folder are called: nothing keeps Optuna from the same settings twice.

    A later one computes nothing, but may stop where the earlier one has finished.
    """
    earlier = trial.study.get_trials(deepcopy=False)[: trial.number]
    if any(other.user_attrs.get("trial_id") == cell.trial_id for other in earlier):
        return f"{cell.trial_id}-again{trial.number}"
    return cell.trial_id


def write_sweep_record(sweep: Sweep, folder: Path) -> None:
    """Write ``study.json``; which trials there will be is not known beforehand."""
    write_study(
        StudyRecord(
            name=sweep.name,
            question=as_study(sweep).question,
            arms=list(sweep.objectives),
            baseline=sweep.objectives[0],
            budgets_minutes=list(sweep.budgets_minutes),
            seeds=[sweep.seed],
            scale=sweep.scale.name,
            command=shlex.join(["python", *sys.argv]),
            goals=list(sweep.goals),
            notes=[
                "Scores are of validation rooms held out of the training part, not of the test."
            ],
        ),
        folder,
    )


def report_on(
    sweep: Sweep, folder: Path, console: Console, *, grid_options: Sequence[str] = ()
) -> int:
    """Write the tables and the report; print the best trials and how to test them."""
    from analysis import Analysis

    records = readable_records(folder)
    write_tables(records, folder)
    by_id = {record.trial_id: record for record in records}
    study = open_study(sweep, folder)
    counts = Counter(trial.state.name.lower() for trial in done_trials(study))
    under_way = (TrialState.RUNNING, TrialState.WAITING)
    if unfinished := len(study.get_trials(deepcopy=False, states=under_way)):
        counts["begun, and not ended"] = unfinished
    states = (f"{counted(count, 'trial')} {state}" for state, count in sorted(counts.items()))
    console.print(", ".join(states))
    best = study.best_trials if counts["complete"] else []
    best = list({str(trial.params): trial for trial in best}.values())  # each settings once
    for trial in best:
        values = ", ".join(
            f"{goal} {value:.4g}" for goal, value in zip(sweep.goals, trial.values, strict=True)
        )
        trial_id = trial.user_attrs["trial_id"]
        console.print(f"[bold]{values}[/bold]  {escape(trial_id)}", highlight=False)
        record = by_id.get(trial_id)
        if record is None:
            console.print("  its record is missing or cannot be read")
            continue
        command = grid_command(record, grid_options)
        console.print(f"  on the test: {command}", markup=False, highlight=False, soft_wrap=True)
    analysis = Analysis.of([folder])
    for warning in analysis.warnings:
        console.print(warning, style="bold yellow", markup=False, highlight=False)
    print_report_path(analysis.write(folder / "report"), console)
    return 0 if best else 1


def grid_command(record: TrialRecord, options: Sequence[str] = ()) -> str:
    """The grid that scores a trial's settings on the test rooms, in a folder of its own.

    What is fine-tuned otherwise is nothing to compare the arms of another grid with.

    Args:
        record: of the trial.
        options: as :func:`run_sweep`'s ``grid_options``; what was searched comes after them.
    """
    command = ["python", "ablations/run_grid.py", "--name", f"{record.trial_id}-tested"]
    command += ["--arms", f"scratch,{record.arm}"]
    command += ["--budgets", f"{record.annotation_minutes:g}", *options]
    for name, value in record.parameters.items():
        if name not in (OBJECTIVE, BUDGET):
            command += ["--set", f"{name}={value}"]
    return shlex.join(command)


def run_sweep_trial(config: Mapping[str, Any]) -> None:
    """What Ray Tune runs: the rungs of a trial until it is stopped; always leaves a record.

    Args:
        config: ``rungs`` (:class:`Cell` by rising number of steps), ``cell`` (the last of them),
            ``trial_id`` (whose folder is written) and ``run`` (:class:`StudyRun`).
    """
    rungs: Sequence[Cell] = config["rungs"]
    trial_id: str = config["trial_id"]
    run: StudyRun = config["run"]
    for number, cell in enumerate(rungs, start=1):
        record = run_cell(cell, run, trial_id=trial_id)
        last = number == len(rungs)
        if record.status == "finished" and not last:
            # What stands if the trial goes no further.
            record = replace(record, status="stopped")
        keep_record(record, run)
        decision = decision_path(run, trial_id, number)
        decision.unlink(missing_ok=True)  # of an earlier run, which may have known less
        report_outcome(
            record,
            rung=number,
            rungs=len(rungs),
            compute_s=sum(record.durations_s.get(stage, 0.0) for stage in ("pretrain", "finetune")),
            annotation_minutes=cell.annotation_minutes,
        )
        if last or record.status == "failed":
            return
        # A report should wait for Tune's decision, but in Ray 2.60 each report of a nested Train
        # run lets a later one of the trial's own pass at once. A trial that went on would be
        # killed on its next rung, and its record tell of a failure.
        while not decision.exists():
            time.sleep(0.05)
        if decision.read_text(encoding="utf-8") == "stop":
            return


def decision_path(run: StudyRun, trial_id: str, rung: int) -> Path:
    """Where the driver tells a trial whether it goes on after a rung; they share the folder."""
    return trial_folder(run.study_folder, trial_id) / f"after-rung-{rung}.txt"
