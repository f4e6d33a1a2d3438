"""What grids and sweeps do alike: make everything ready, let Ray Tune run trials, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray.exceptions
from ray import tune
from rich.console import Console
from rich.text import Text

from ablations.cluster import (
    connected_machines,
    driver_resource,
    placement_of,
    ray_cluster,
)
from ablations.console import quiet_output
from ablations.data import make_writable, prepare_data
from ablations.deadline import Deadline, OutOfTimeError
from ablations.options import RunOptions
from ablations.places import keep_results, results_uri, stages_root
from ablations.tracking import trackers
from ablations.watchdog import Watchdog
from ablations.wording import counted
from search_spaces.studies import Study
from seld.records import TrialRecord, trials_table
from trainables.provenance import current_provenance
from trainables.resources import TRIAL_SHARE
from trainables.stages import StageStore
from trainables.trial import StudyRun

#: How often trials are started that end without a record, as when Tune loses one between processes.
ROUNDS = 3


class RunsTrials(Protocol):
    """Runs the trials that are missing; those that run at the deadline are stopped."""

    def __call__(
        self,
        run: StudyRun,
        console: Console,
        *,
        deadline: Deadline,
        callbacks: Sequence[tune.Callback],
    ) -> None: ...


def run_and_report(
    study: Study,
    options: RunOptions,
    *,
    trials: int,
    run_trials: RunsTrials,
    report: Callable[[Path, Console], int],
) -> int:
    """Prepare the study's data on its cluster, run its trials, report on its folder.

    Args:
        trials: how many there are, finished ones included.

    Returns:
        The exit code, as ``report`` gives it; 0 where the time limit came before any trial.

    Raises:
        InputError: for everything that can be known to be wrong before the work starts.
    """
    cluster, storage = options.cluster, options.storage
    deadline = Deadline.after(options.budget_hours)
    study_folder = options.results / study.name
    make_writable(study_folder, "--results")
    options.data.check(study)
    with quiet_output(study_folder / "logs" / "ray.log") as console:
        tracking = trackers(study.name, study_folder, also=options.track)
        console.print(Text(study.question, "bold"))
        with ray_cluster(cluster):
            placement = placement_of(study, connected_machines(cluster), cluster, trials=trials)
            console.print(placement.describe(), highlight=False)
            try:
                prepared = prepare_data(options.data, study, placement, console, deadline)
            except OutOfTimeError:
                console.print(
                    "time limit reached before the data were ready; rendered and decoded data "
                    "are kept, run the same command to continue"
                )
                return 0
            run = StudyRun(
                study_folder=study_folder.resolve(),
                store=StageStore(stages_root(storage, options.results)),
                placement=placement,
                data=prepared,
                provenance=current_provenance(),
                kept_in=results_uri(storage, study.name),
            )
            run_trials(run, console, deadline=deadline, callbacks=tracking)
            if deadline.is_over:
                console.print("time limit reached; run the same command to continue")
        exit_code = report(study_folder, console)
        keep_results(study_folder, storage, console)
        return exit_code


def let_tune_run(
    trainable: Callable[[Mapping[str, Any]], None],
    run: StudyRun,
    *,
    name: str,
    trials: int,
    console: Console,
    param_space: Mapping[str, Any],
    deadline: Deadline,
    callbacks: Sequence[tune.Callback],
    stop: Callable[[str, Mapping[str, Any]], bool] | None = None,
    **tune_settings: Any,
) -> bool:
    """Let Ray Tune run trials, as many at once as the placement has room for.

    Args:
        trainable: what Tune runs, on the driver's machine; trials write their records there.
        run: what all trials share; where they are fewer than it has lanes, each gets more.
        trials: how many there are to run.
        console: is told how they are laid out, where not as the run is, and of stalls.
        stop: called with a trial's id and each of its reports.
        tune_settings: of :class:`ray.tune.TuneConfig`.

    Returns:
        Whether Ray's memory monitor has killed a trial, and with it the run of all.
    """
    placement = run.placement.for_trials(trials)
    if placement != run.placement:
        console.print(placement.describe(), highlight=False)
        run = replace(run, placement=placement)
    watchdog = Watchdog(placement, partial(console.print, markup=False))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0, driver_resource(): TRIAL_SHARE}),
        param_space={**param_space, "run": run},
        tune_config=tune.TuneConfig(
            # One more, and its train worker could take the CPU that Ray Data feeds another from:
            # on one CPU both would wait for ever.
            max_concurrent_trials=placement.lanes,
            time_budget_s=deadline.seconds_left(),
            reuse_actors=True,
            **tune_settings,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(run.study_folder / "logs" / "tune"),
            callbacks=[*callbacks, watchdog],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except RuntimeError as error:
        # Tune survives trials that die of RayActorError alone, and this is none.
        if not isinstance(error.__cause__, ray.exceptions.OutOfMemoryError):
            raise
        return True
    return False


def say_lost(console: Console, count: int, *, memory_was_short: bool) -> None:
    """Say that trials have ended without a record."""
    reason = " (out of memory)" if memory_was_short else ""
    again = "it is" if count == 1 else "they are"
    console.print(f"Ray lost {counted(count, 'trial')}{reason}; {again} run again")


def write_tables(records: list[TrialRecord], study_folder: Path) -> None:
    """Write ``trials.parquet`` and ``trials.csv``."""
    table = trials_table(records)
    table.to_parquet(study_folder / "trials.parquet", index=False)
    table.to_csv(study_folder / "trials.csv", index=False)
