"""Sweeps: conditional spaces, early stopping, and studies that continue where they were."""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from ablations import run_grid, run_sweep
from ablations import sweep as sweep_module
from ablations.deadline import Deadline
from ablations.options import run_options
from ablations.places import only_run
from ablations.searcher import OptunaSearcher, ask, done_trials, propose_again
from ablations.sweep import (
    GOALS,
    Sweep,
    expected_trials,
    grid_command,
    open_study,
    recipe_settings,
    report_on,
    trained_by,
    write_sweep_record,
)
from analysis.sweeps import GOALS as REPORTED_GOALS
from search_spaces.scales import SCALES, find_scale
from search_spaces.spaces import OBJECTIVES, Parameters
from seld.errors import InputError
from seld.records import FAILURE_KINDS, TrialRecord, read_record, trial_folder, write_record
from trainables.cells import DEFAULT_DATA, Cell

SWEEP = Sweep(
    name="s",
    scale=find_scale("demo"),
    objectives=OBJECTIVES,
    budgets_minutes=(1.5, 6.0),
    trials=20,
)


def proposals(count: int, sweep: Sweep = SWEEP) -> list[Parameters]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [sweep.propose(study.ask()) for _ in range(count)]


def test_parameters_are_asked_for_only_where_they_mean_something() -> None:
    drawn = proposals(200)
    for parameters in drawn:
        objective = parameters["pretrain.objective"]
        negatives = parameters.get("pretrain.rotated_negatives")
        assert (negatives is not None) == (objective == "recording_wise")
        assert ("pretrain.negative_axes" in parameters) == bool(negatives)
        gridded = objective == "recording_wise" or (
            parameters.get("pretrain.directions.sampling") == "grid"
        )
        assert ("pretrain.directions.grid.count" in parameters) == gridded
        if objective == "avc":
            assert not any(name.startswith("pretrain.directions") for name in parameters)
    assert {parameters["pretrain.objective"] for parameters in drawn} == set(OBJECTIVES)


def test_every_proposal_is_a_valid_trial_that_never_sees_the_test() -> None:
    for parameters in proposals(100):
        cells = SWEEP.cells(parameters)
        full = getattr(SWEEP.scale, parameters["pretrain.objective"]).steps
        assert [cell.pretrain.steps for cell in cells if cell.pretrain] == [
            round(full / 9),
            round(full / 3),
            full,
        ]
        assert {cell.scored_on for cell in cells} == {"validation"}
        trial = cells[-1]
        assert trial.pretrain is not None
        assert trial.pretrain.temperature == parameters["pretrain.temperature"]
        assert trial.finetune.encoder_rate == parameters["finetune.encoder_rate"]
        assert trial.annotation_minutes == parameters["annotation_minutes"]
        assert trial.parameters == parameters


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_can_be_searched(scale: str) -> None:
    """``paper`` has a head that answers for its fixed grid only."""
    sweep = replace(SWEEP, scale=find_scale(scale))
    drawn = proposals(60, sweep)
    for parameters in drawn:
        assert sweep.cells(parameters)[-1].pretrain is not None
        assert parameters["pretrain.learn_temperature"] is False
    rotated = any("pretrain.directions.grid_rotation" in parameters for parameters in drawn)
    assert rotated == (sweep.scale.doa_wise.head != "grid")


def error_of(parameters: Parameters) -> float:
    return abs(parameters["pretrain.temperature"] - 0.1)


def run_trials(folder: Path, count: int) -> list[dict[str, Any]]:
    """A sweep's trials one after the other, in a process that then ends."""
    study = open_study(SWEEP, folder)
    for _ in range(count):
        trial = ask(study, SWEEP.seed)
        study.tell(trial, error_of(SWEEP.propose(trial)))
    return [trial.params for trial in study.get_trials()]


def test_a_continued_study_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run_trials(tmp_path / "whole", 16)
    for count in (3, 1, 12):
        parts = run_trials(tmp_path / "parts", count)
    assert parts == whole
    assert len({str(parameters) for parameters in whole}) == 16


@pytest.mark.parametrize("seed", [4295, 5_000_000_000])
def test_a_seed_may_be_large(seed: int, tmp_path: Path) -> None:
    sweep = replace(SWEEP, seed=seed)
    assert {cell.seed for trial in expected_trials(sweep) for cell in trial} == {seed}
    assert sweep.propose(ask(open_study(sweep, tmp_path), seed))


def test_a_killed_trial_is_proposed_again_and_counted_once(tmp_path: Path) -> None:
    run_trials(tmp_path, 2)
    study = open_study(SWEEP, tmp_path)
    killed = ask(study, SWEEP.seed)
    SWEEP.propose(killed)
    continued = open_study(SWEEP, tmp_path)
    propose_again(continued)
    assert len(done_trials(continued)) == 2
    again = ask(continued, SWEEP.seed)
    SWEEP.propose(again)
    assert again.params == killed.params
    continued.tell(again, 0.5)
    assert len(done_trials(open_study(SWEEP, tmp_path))) == 3


def test_a_line_that_a_full_disk_cut_off_is_forgotten(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    run_trials(tmp_path, 2)
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:40])
    run_trials(tmp_path, 1)
    assert journal.read_bytes().startswith(whole)
    assert len(done_trials(open_study(SWEEP, tmp_path))) == 3


def test_a_damaged_journal_is_named_with_its_line(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    run_trials(tmp_path, 1)
    first, second, *rest = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([first, second[:40], second, *rest]))
    with pytest.raises(InputError, match=r"optuna\.journal: line 2 is '.*as JSON"):
        open_study(SWEEP, tmp_path)


def test_a_second_run_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    arguments = sweep_arguments(monkeypatch, "--name", "s", "--results", str(tmp_path))
    write_sweep_record(SWEEP, folder)
    with only_run(folder):
        searcher, study = searcher_of(folder)
        for trial_id in "ab":
            searcher.suggest(trial_id)
        with pytest.raises(InputError, match=r"a run is 'python run_sweep.py --name s .*process"):
            run_sweep.run_sweep(SWEEP, run_options(arguments))
        report_on(SWEEP, folder, Console(file=io.StringIO()))
        assert not searcher.should_stop("a", rung(1, 1.0))
        searcher.on_trial_complete("b", rung(3, 0.4))
        assert study.best_value == 0.4
    with only_run(folder):
        pass


def test_a_study_is_not_continued_on_other_terms(tmp_path: Path) -> None:
    run_trials(tmp_path, 1)
    recipe = SWEEP.scale.recipe
    longer = replace(recipe, finetune=replace(recipe.finetune, steps=9))
    for changes, name in (
        ({"objectives": OBJECTIVES[:2]}, "--objectives"),
        ({"budgets_minutes": (3.0,)}, "--budgets"),
        ({"seed": 1}, "--seed"),
        ({"scale": replace(SWEEP.scale, recipe=longer)}, "--set finetune.steps"),
    ):
        with pytest.raises(InputError, match=f"{name} is .*as it began, or another --name"):
            open_study(replace(SWEEP, **changes), tmp_path)
    fixed = SWEEP.searched - {"pretrain.temperature", "finetune.encoder_rate"}
    few = replace(SWEEP, fixed=fixed)
    with pytest.raises(
        InputError,
        match=r"--search is 'finetune\.encoder_rate,pretrain\.temp.*',"
        r" expected finetune\.encoder_rate,finetune\..* as it began, or another",
    ):
        open_study(few, tmp_path)
    (tmp_path / "few").mkdir()
    open_study(few, tmp_path / "few")
    with pytest.raises(
        InputError, match=r"expected finetune\.encoder_rate,pretrain\.temperature as"
    ):
        open_study(SWEEP, tmp_path / "few")
    assert len(done_trials(open_study(replace(SWEEP, trials=50), tmp_path))) == 1


def searcher_of(folder: Path, sweep: Sweep = SWEEP) -> tuple[OptunaSearcher, optuna.Study]:
    study = open_study(sweep, folder)
    propose_again(study)

    def config_of(trial: optuna.Trial) -> dict[str, Any]:
        return {"parameters": sweep.propose(trial)}

    return OptunaSearcher(study, lambda: ask(study, 0), config_of, sweep.goals), study


def rung(number: int, error: float, loss: float = 0.02) -> dict[str, Any]:
    scores = {"seld_error": error, "loss": loss}
    return {"rung": number, "rungs": 3, "status": "finished"} | scores


def test_a_trial_worse_than_two_thirds_at_its_rung_is_stopped(tmp_path: Path) -> None:
    """None finds a sound so early, and all have the same SELD error: their losses decide."""
    searcher, study = searcher_of(tmp_path)
    for number, loss in enumerate((0.02, 0.03, 0.04)):
        searcher.suggest(str(number))
        # Reports in between rungs say nothing of the error.
        assert not searcher.should_stop(
            str(number), {"stage": "finetune", "step": 5, "loss": 0.1 - loss}
        )
        stopped = searcher.should_stop(str(number), rung(1, 1.0, loss))
        assert stopped == (number > 0)
        if not stopped:
            assert not searcher.should_stop(str(number), rung(2, 0.45))
            assert not searcher.should_stop(str(number), rung(3, 0.4))
        searcher.on_trial_complete(str(number), rung(1 if stopped else 3, 0.4))
    assert study.best_value == 0.4
    states = [trial.state for trial in study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert len(done_trials(study)) == 3


@pytest.mark.filterwarnings("ignore:The reported value is ignored")
def test_an_interrupted_trial_competes_with_others_not_with_itself(tmp_path: Path) -> None:
    searcher, _ = searcher_of(tmp_path)
    passed = []
    for number, loss in enumerate((0.01, 0.09, 0.08, 0.07, 0.06, 0.02, 0.05, 0.04, 0.03)):
        parameters = searcher.suggest(str(number))["parameters"]
        if not searcher.should_stop(str(number), rung(1, 1.0, loss)):
            passed.append((parameters, loss))
        # The others have been told of, though their run dies before they have ended.
    assert [loss for _, loss in passed] == [0.01, 0.02, 0.03]
    searcher, study = searcher_of(tmp_path)
    assert len(done_trials(study)) == 6
    for number, (parameters, loss) in enumerate(passed):
        assert searcher.suggest(str(number))["parameters"] == parameters
        assert not searcher.should_stop(str(number), rung(1, 1.0, loss))
    # The third best of ten.
    searcher.suggest("new")
    assert not searcher.should_stop("new", rung(1, 1.0, 0.025))
    assert searcher.should_stop("2", rung(2, 0.5, 0.03)) is False
    assert searcher.should_stop("new", rung(2, 0.5, 0.04)) is True
    searcher.on_trial_complete("2", rung(3, 0.4))
    assert (study.best_value, len(study.get_trials())) == (0.4, 10)


def failed(kind: str) -> dict[str, Any]:
    return {"status": "failed", "failure_kind": kind, "message": f"for {kind}"}


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_a_failed_trial_counts_where_it_would_fail_again(kind: str, tmp_path: Path) -> None:
    counts = kind in ("gpu_memory", "non_finite_loss", "bad_data", "code_error")
    searcher, study = searcher_of(tmp_path)
    parameters = searcher.suggest("fails")["parameters"]
    searcher.on_trial_complete("fails", failed(kind))
    assert [trial.user_attrs["failure"] for trial in done_trials(study)] == [f"for {kind}"] * counts
    assert searcher.put_off == ({} if counts else {0: kind})
    # The next command.
    searcher, _ = searcher_of(tmp_path)
    assert (searcher.suggest("next")["parameters"] == parameters) == (not counts)


def test_interrupted_trials_do_not_count_nor_those_whose_process_died(tmp_path: Path) -> None:
    searcher, study = searcher_of(tmp_path)
    for trial_id in ("dies", "interrupted"):
        searcher.suggest(trial_id)
    searcher.on_trial_complete("dies", {"stage": "pretrain"}, error=True)
    searcher.on_trial_complete("interrupted", {"stage": "pretrain"})
    assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING] * 2
    assert searcher.put_off == {0: ""}
    assert done_trials(study) == []


def test_settings_are_not_chosen_blindly_while_no_trial_gets_anywhere(tmp_path: Path) -> None:
    searcher, study = searcher_of(tmp_path)
    for number, outcome in enumerate(
        [failed("disk_full"), failed("disk_full"), rung(3, 0.4), *[failed("disk_full")] * 3]
    ):
        assert isinstance(searcher.suggest(str(number)), dict)
        searcher.on_trial_complete(str(number), outcome)
    assert searcher.suggest("more") == Searcher.FINISHED
    assert len(study.get_trials()) == 6


class PretendTune:
    """Runs a sweep's trials one after the other, each with the next of these outcomes."""

    def __init__(self, folder: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.sweep = sweep
        self.outcomes: list[dict[str, Any]] = []
        self.ran: list[str] = []
        monkeypatch.setattr(sweep_module, "let_tune_run", self._run)

    def command(self, *outcomes: dict[str, Any]) -> str:
        """What a command prints whose trials end like this, the others finishing."""
        self.outcomes, self.ran = list(outcomes), []
        data = SimpleNamespace(trainable_minutes=9.0, validation_rooms=("r",), fingerprint="f")
        run: Any = SimpleNamespace(study_folder=self.folder, data={"default": data}, kept_in=None)
        console = Console(file=io.StringIO(), width=300)
        sweep_module.run_missing_trials(self.sweep, run, console, deadline=Deadline(), callbacks=[])
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def _run(self, *_: Any, search_alg: OptunaSearcher, num_samples: int, **__: Any) -> bool:
        for number in map(str, range(num_samples)):
            config = search_alg.suggest(number)
            if config == Searcher.FINISHED:
                break
            self.ran.append(config["trial_id"])
            outcome = self.outcomes.pop(0) if self.outcomes else rung(3, 0.4)
            search_alg.on_trial_complete(number, outcome, error=not outcome)
        return False


def test_after_an_outage_the_same_command_runs_what_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = PretendTune(tmp_path, replace(SWEEP, trials=6), monkeypatch)
    outage, lost = failed("storage_unreachable"), {"stage": "pretrain"}
    printed = tune.command(rung(3, 0.5), outage, failed("non_finite_loss"), outage, {}, lost)
    # What Tune loses is run again by the same command, but not what it has put off.
    assert tune.ran[6:] == [tune.ran[5]]
    assert len(set(tune.ran)) == 6
    assert "Ray lost 1 trial; it is run again" in printed
    assert "3 trials have ended by no fault of the settings" in printed
    assert "or the network to it, was out of reach; the trial's process died" in printed
    assert "run the same command for the 3 trials missing" in printed
    ended = [tune.ran[place] for place in (1, 3, 4)]
    assert "3 of 6 trials done already" in tune.command()
    assert tune.ran == ended
    assert "all 6 trials done already" in tune.command()


def test_a_full_disk_uses_up_no_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = PretendTune(tmp_path, replace(SWEEP, trials=9), monkeypatch)
    printed = tune.command(*[failed("disk_full")] * 9)
    assert len(tune.ran) == 3
    assert "the disk or bucket had no room" in printed
    assert "run the same command for the 9 trials missing" in printed
    ended = tune.ran
    tune.command()
    assert len(tune.ran) == 9
    assert tune.ran[:3] == ended


def record_of(trial: optuna.Trial, code: str, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "study": "s", "trial_id": f"trial{trial.number}", "arm": "avc", "seed": 0,
        "annotation_minutes": 6.0, "status": "stopped", "code_fingerprint": code,
        "git_commit": f"{code}-0123456789abcdef", "metrics": {"seld_error": 0.5},
    }  # fmt: skip
    return TrialRecord(**(values | changes))


def write_code_trials(folder: Path, *codes: str) -> None:
    """A sweep's trials, trained with these codes."""
    write_sweep_record(SWEEP, folder)
    study = open_study(SWEEP, folder)
    for number, code in enumerate(codes):
        trial = ask(study, SWEEP.seed)
        parameters = SWEEP.propose(trial)
        trial.set_user_attr("trial_id", f"trial{trial.number}")
        study.tell(trial, 0.5)
        ended = f"2026-01-0{number + 1}T00:00:00+00:00"
        write_record(record_of(trial, code, finished_at=ended, parameters=parameters), folder)


def test_a_sweep_does_not_go_on_with_other_code_unless_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Ray is started: a run would be one."""
    runs: list[str] = []
    monkeypatch.setattr(sweep_module, "run_and_report", lambda *_, **__: runs.append("a run") or 0)
    (tmp_path / "s").mkdir()
    options = run_options(sweep_arguments(monkeypatch, "--results", str(tmp_path)))
    run_sweep.run_sweep(SWEEP, options)  # nothing is there yet
    assert not (tmp_path / "s/optuna.journal").exists()  # nor are terms, before there are data
    write_code_trials(tmp_path / "s", trained_by(), "before", "before", trained_by(), "")
    # What failed is ranked with nothing.
    study = open_study(SWEEP, tmp_path / "s")
    failed_trial = ask(study, SWEEP.seed)
    failed_trial.set_user_attr("trial_id", "trial5")
    study.tell(failed_trial, state=TrialState.FAIL)
    write_record(record_of(failed_trial, "older"), tmp_path / "s")
    with pytest.raises(InputError, match=r"2 of 5 trials is .*commit before-01234\).*--mix-code"):
        run_sweep.run_sweep(SWEEP, options)
    with pytest.raises(InputError, match="--seed is 1, expected 0 as it began"):
        run_sweep.run_sweep(replace(SWEEP, seed=1), options, mix_code=True)
    assert len(runs) == 1
    run_sweep.run_sweep(SWEEP, options, mix_code=True)
    run_sweep.run_sweep(replace(SWEEP, trials=5), options)  # nothing is left to train
    assert len(runs) == 3
    assert sweep_arguments(monkeypatch, "--mix-code").mix_code


def test_trials_of_other_code_are_told_of_where_results_are_shown(tmp_path: Path) -> None:
    write_code_trials(tmp_path, "before", "now", "before", "now")
    console = Console(file=io.StringIO(), width=300)
    report_on(SWEEP, tmp_path, console)
    said = f"2 of 4 trials of {tmp_path.name} were trained with other code than the last "
    said += "(commit before-01234)"
    assert isinstance(console.file, io.StringIO)
    assert said in console.file.getvalue()
    assert said in (tmp_path / "report/index.html").read_text()
    (tmp_path / "same").mkdir()
    write_code_trials(tmp_path / "same", "now", "now")
    report_on(SWEEP, tmp_path / "same", console)
    assert "trained with other code" not in (tmp_path / "same/report/index.html").read_text()


def test_several_goals_keep_the_pareto_front(tmp_path: Path) -> None:
    sweep = replace(SWEEP, goals=("seld_error", "annotation_minutes"), rungs=1)
    searcher, study = searcher_of(tmp_path, sweep)
    for number, (error, minutes) in enumerate([(0.5, 6.0), (0.6, 1.5), (0.7, 6.0)]):
        searcher.suggest(str(number))
        result = rung(1, error) | {"rungs": 1, "annotation_minutes": minutes}
        assert not searcher.should_stop(str(number), result)
        searcher.on_trial_complete(str(number), result)
    assert [trial.values for trial in study.best_trials] == [[0.5, 6.0], [0.6, 1.5]]


def test_settings_that_are_proposed_again_leave_the_finished_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "pretrain.rotated_negatives,pretrain.directions.grid.kind"
    options = ("--objectives", "recording_wise", "--budgets", "6", "--search", few)
    searched = run_sweep.sweep_of(sweep_arguments(monkeypatch, *options, "--trials", "20"))

    def run_cell(cell: Cell, run: Any, *, trial_id: str) -> TrialRecord:
        settings = cell.config()  # the same settings, the same result
        error = int(sha256(json.dumps(settings).encode()).hexdigest()[:6], 16) / 2**24
        return TrialRecord(
            study=cell.study, trial_id=trial_id, arm=cell.arm, seed=cell.seed,
            annotation_minutes=cell.annotation_minutes, status="finished",
            parameters=cell.parameters, metrics={"seld_error": error, "loss": error},
        )  # fmt: skip

    def let_tune_run(trainable: Any, run: Any, *, search_alg: OptunaSearcher, **_: Any) -> None:
        result: dict[str, Any] = {}
        running = ""

        def report(record: TrialRecord, **further: Any) -> None:
            result.update(status=record.status, **record.metrics, **further)
            search_alg.should_stop(running, result)

        monkeypatch.setattr(sweep_module, "report_outcome", report)
        for running in map(str, range(searched.trials)):
            trainable(search_alg.suggest(running) | {"run": run})
            search_alg.on_trial_complete(running, result)

    monkeypatch.setattr(sweep_module, "run_cell", run_cell)
    monkeypatch.setattr(sweep_module, "let_tune_run", let_tune_run)
    data = SimpleNamespace(trainable_minutes=9.0, validation_rooms=("r",), fingerprint="f")
    run: Any = SimpleNamespace(study_folder=tmp_path, data={DEFAULT_DATA: data}, kept_in=None)
    console = Console(file=io.StringIO(), width=200)
    sweep_module.run_missing_trials(searched, run, console, deadline=Deadline(), callbacks=[])
    trials = done_trials(open_study(searched, tmp_path))
    assert len(trials) == 20
    assert len({str(trial.params) for trial in trials}) <= 10
    for trial in trials:
        record = read_record(trial_folder(tmp_path, trial.user_attrs["trial_id"]))
        finished = trial.state == TrialState.COMPLETE
        assert record.status == ("finished" if finished else "stopped")
        assert record.metrics["seld_error"] == trial.value
        assert trial.params.items() <= record.parameters.items()
    report_on(searched, tmp_path, console)
    with (tmp_path / "trials.csv").open(encoding="utf-8") as table:
        assert len({row["trial_id"] for row in csv.DictReader(table)}) == 20
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("on the test: ") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectives": ("avcc",)}, "avcc"),
        ({"goals": ("loss",)}, "goal is 'loss'"),
        ({"trials": 0}, "--trials is 0"),
        ({"seed": -1}, "--seed is -1, expected 0 or more"),
        ({"goals": ("seld_error", "compute_s")}, "1 with several goals"),
        ({"budgets_minutes": (0.0,)}, "more than 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(SWEEP, **changes)


def test_a_best_trial_without_its_record_is_named(tmp_path: Path) -> None:
    sweep = replace(SWEEP, rungs=1)
    write_sweep_record(sweep, tmp_path)
    study = open_study(sweep, tmp_path)
    trial = ask(study, sweep.seed)
    sweep.propose(trial)
    trial.set_user_attr("trial_id", "avc-1.5min-seed0-abcdef")
    study.tell(trial, 0.5)
    console = Console(file=io.StringIO(), width=200)
    assert report_on(sweep, tmp_path, console) == 0
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "avc-1.5min-seed0-abcdef" in printed
    assert "record is missing" in printed


def sweep_arguments(monkeypatch: pytest.MonkeyPatch, *typed: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["run_sweep.py", *typed])
    return run_sweep.parse_arguments()


def test_the_finding_can_be_typed_into_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    record = TrialRecord(
        study="s",
        trial_id="t",
        arm="doa_wise",
        seed=0,
        annotation_minutes=6.0,
        status="finished",
        parameters={"pretrain.objective": "doa_wise", "pretrain.temperature": 0.1},
    )
    arguments = sweep_arguments(
        monkeypatch, "--scale", "small", "--set", "pretrain.steps=500", "--data", "/my data",
        "--annotated", "starss22=/s", "--unannotated", "yt360=/y", "--storage", "s3://b/run",
    )  # fmt: skip
    command = grid_command(record, run_sweep.grid_options(arguments))
    assert command == (
        "python ablations/run_grid.py --name t-tested --arms scratch,doa_wise --budgets 6"
        " --scale small"
        " --set pretrain.steps=500 --data '/my data' --annotated starss22=/s"
        " --unannotated yt360=/y --storage s3://b/run --set pretrain.temperature=0.1"
    )
    # The grid takes it, and its arms have the settings of the trial.
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    typed = run_grid.parse_arguments()
    study = run_grid.study_of(typed)
    (_, pretrained) = study.arms
    assert pretrained.pretrain is not None
    assert (pretrained.pretrain.steps, pretrained.pretrain.temperature) == (500, 0.1)
    assert (study.scale.name, typed.sound_bank) == ("small", None)


@pytest.mark.parametrize(
    ("typed", "steps", "kept"),
    [
        ((), {2.0: 1500, 6.0: 2500}, [1500, 2500]),
        (("--set", "finetune.steps=900"), {2.0: 900, 6.0: 900}, 900),
    ],
)
def test_a_sweep_trains_as_long_as_the_grid_that_tests_its_findings(
    typed: tuple[str, ...],
    steps: dict[float, int],
    kept: int | list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--scale", "evidence", "--objectives", "doa_wise", "--budgets", "2,6", *typed)
    arguments = sweep_arguments(monkeypatch, *options)
    sweep = run_sweep.sweep_of(arguments)
    # What a continued sweep is held to.
    assert recipe_settings(sweep)["finetune.steps"] == kept
    for minutes, full in steps.items():
        cells = sweep.cells({"annotation_minutes": minutes})
        assert [cell.finetune.steps for cell in cells] == [round(full / 9), round(full / 3), full]
        record = TrialRecord(
            study="s",
            trial_id="t",
            arm="doa_wise",
            seed=0,
            annotation_minutes=minutes,
            status="finished",
        )
        command = grid_command(record, run_sweep.grid_options(arguments))
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        grid = run_grid.study_of(run_grid.parse_arguments()).cells()
        assert {cell.finetune.steps for cell in grid} == {full}


def typed_proposals(monkeypatch: pytest.MonkeyPatch, *typed: str) -> list[Parameters]:
    return proposals(100, run_sweep.sweep_of(sweep_arguments(monkeypatch, *typed)))


def test_the_space_is_all_that_trials_are_given() -> None:
    drawn = {name for parameters in proposals(200) for name in parameters}
    assert drawn - {"annotation_minutes", "pretrain.objective"} == SWEEP.searched
    assert "pretrain.negative_axes" not in replace(SWEEP, objectives=("avc",)).searched


def test_what_is_set_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    set_so = ("--set", "pretrain.temperature=0.2", "--set", "pretrain.directions.sampling=grid")
    sweep = run_sweep.sweep_of(sweep_arguments(monkeypatch, "--objectives", "doa_wise", *set_so))
    for parameters in proposals(50, sweep):
        assert not {"pretrain.temperature", "pretrain.directions.sampling"} & parameters.keys()
        # What only a grid has is asked for, as the grid is given.
        assert "pretrain.directions.grid.count" in parameters
        pretrain = sweep.cells(parameters)[-1].pretrain
        assert pretrain is not None
        assert (pretrain.temperature, pretrain.learn_temperature) == (0.2, False)
        assert pretrain.directions.sampling == "grid"


def test_only_what_is_named_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    one_loss = ("--objectives", "doa_wise", "--budgets", "6")
    for parameters in typed_proposals(
        monkeypatch, *one_loss, "--search", "pretrain.temperature,finetune.encoder_rate"
    ):
        assert parameters.keys() == {
            "pretrain.temperature", "finetune.encoder_rate", "pretrain.learn_temperature",
        }  # fmt: skip
    for parameters in typed_proposals(monkeypatch, *one_loss, "--search", "finetune.encoder_rate"):
        assert parameters.keys() == {"finetune.encoder_rate"}  # τ is learnt, as in the recipe
    grid = (
        "--set",
        "pretrain.directions.sampling=grid",
        "--search",
        "pretrain.directions.grid.count",
    )
    counts = [
        p["pretrain.directions.grid.count"] for p in typed_proposals(monkeypatch, *one_loss, *grid)
    ]
    assert min(counts) >= 4
    assert len(set(counts)) > 10
    negatives = typed_proposals(
        monkeypatch, "--search", "pretrain.rotated_negatives,pretrain.negative_axes"
    )
    assert {parameters.get("pretrain.rotated_negatives") for parameters in negatives} == {
        None, 0, 1, 2, 3, 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--search", "pretrain.temprature"], r"--search: setting .* expected some of finetune\."),
        (
            ["--search", "pretrain.temperature", "--set", "pretrain.temperature=0.1"],
            "one that --set does not set",
        ),
        (["--set", "pretrain.objective=avc"], "--objectives"),
        (["--objectives", "moco"], "--objectives: name is 'moco'"),
        (
            ["--objectives", "doa_wise", "--search", "pretrain.directions.grid.count"],
            "one that changes doa_wise as what is fixed has it",
        ),
        (
            ["--objectives", "avc", "--search", "pretrain.learn_temperature"],
            "something left to search",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused(
    typed: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=words):
        run_sweep.sweep_of(sweep_arguments(monkeypatch, *typed))


def test_a_seed_of_one_stage_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"pretrain\.seed .* expected --seeds"):
        run_sweep.sweep_of(sweep_arguments(monkeypatch, "--set", "pretrain.seed=1"))


def test_no_more_rungs_than_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep_of(rungs: str, *typed: str) -> Sweep:
        return run_sweep.sweep_of(sweep_arguments(monkeypatch, "--rungs", rungs, *typed))

    lengths = [cell.finetune.steps for cell in sweep_of("6").cells({})]  # of 400 steps
    assert lengths == sorted(set(lengths))
    for rungs, most in (("7", 6), ("1000", 6)):
        with pytest.raises(InputError, match=rf"--rungs is {rungs}, expected at most {most}"):
            sweep_of(rungs)
    with pytest.raises(InputError, match=r"--rungs is 3, expected at most 2: of 8 steps"):
        sweep_of("3", "--set", "pretrain.steps=8")
    assert sweep_of("3", "--set", "pretrain.steps=9").rungs == 3


def test_a_goal_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--minimise: goals is 'seld_error,seld_error'"):
        run_sweep.sweep_of(sweep_arguments(monkeypatch, "--minimise", "seld_error,seld_error"))


@pytest.mark.parametrize("rungs", ["0", "-1"])
def test_no_rungs_are_not_three(monkeypatch: pytest.MonkeyPatch, rungs: str) -> None:
    with pytest.raises(InputError, match="--rungs is"):
        run_sweep.sweep_of(sweep_arguments(monkeypatch, "--rungs", rungs))


def test_every_goal_of_a_sweep_can_be_reported() -> None:
    """The report drops a goal that it does not know."""
    assert GOALS.keys() == REPORTED_GOALS.keys()
