"""A grid around its trials: what it says of them, and its folder after several commands."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ablations import grid
from ablations.console import StudyProgress
from ablations.data import DataOptions, make_writable
from ablations.deadline import Deadline
from ablations.grid import (
    plan_of,
    plan_what_is_missing,
    refuse_results_of_other_data,
    report_on,
    run_missing_trials,
)
from ablations.run_grid import with_assignments
from analysis.load import load_studies
from search_spaces.studies import Study, find_study
from seld.classes import STARSS_CLASSES
from seld.decoding import Rejected
from seld.errors import InputError
from seld.metrics import METRIC_VERSION
from seld.records import (
    StageUse,
    StudyRecord,
    TrialRecord,
    read_study,
    trial_folder,
    write_record,
    write_study,
)
from seld.shards import rejected_table
from tests.simulated_study import failed, simulated_counts, write_trial
from trainables.cells import DEFAULT_DATA, Cell, stages_of
from trainables.jobs import ShardFolder
from trainables.prepare import PreparedData

VARIANTS = replace(find_study("variants", "demo"), seeds=(0, 1), budgets_minutes=(1.5,))
RECORDINGS = [f"fold4_room{n}_mix001" for n in range(3)]


def only(study: Study, *arms: str) -> Study:
    """As ``--arms`` makes it."""
    return study.of_arms(arms)


def longer(study: Study) -> Study:
    """As ``--set finetune.steps=7`` makes it."""
    arms = (replace(arm, finetune=replace(arm.finetune, steps=7)) for arm in study.arms)
    return replace(study, arms=tuple(arms))


def run(
    study: Study, folder: Path, fails: Sequence[str] = (), test: str = "rendered"
) -> tuple[int, str]:
    """A command without its training; exit code and what it printed."""
    generator = np.random.default_rng(0)
    write_study(plan_of(study, study.cells(), folder), folder)
    for cell in study.cells():
        if trial_folder(folder, cell.trial_id).exists():
            continue
        record = TrialRecord(
            study=study.name,
            trial_id=cell.trial_id,
            arm=cell.arm,
            seed=cell.seed,
            annotation_minutes=cell.annotation_minutes,
            status="finished",
            config=cell.config(),
            parameters=cell.parameters,
            class_names=list(STARSS_CLASSES),
            metric_version=METRIC_VERSION,
            test_fingerprint=test,
        )
        load = generator.integers(2, 30, size=(3, len(STARSS_CLASSES)))
        counts = simulated_counts(generator, load, np.full(load.shape, 0.6), 0.7)
        write_trial(folder, failed(record) if cell.arm in fails else record, RECORDINGS, counts)
    console = Console(file=io.StringIO(), width=200)
    code = report_on(folder, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_further_arm_seed_and_budget_add_to_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    assert run(only(VARIANTS, "scratch", "doa_wise"), folder)[0] == 0
    code, printed = run(only(VARIANTS, "avc"), folder)
    assert code == 0
    assert "Differences to scratch" in printed
    run(replace(only(VARIANTS, "avc"), seeds=(2,), budgets_minutes=(3.0,)), folder)
    plan = read_study(folder)
    assert (plan.baseline, plan.arms) == ("scratch", ["scratch", "doa_wise", "avc"])
    assert (plan.seeds, plan.budgets_minutes) == ([0, 1, 2], [1.5, 3.0])
    table = pd.read_csv(folder / "trials.csv")
    assert list(table["trial_id"]) == [cell["trial_id"] for cell in plan.cells]
    assert dict(table["arm"].value_counts()) == {"avc": 3, "doa_wise": 2, "scratch": 2}
    assert not load_studies([folder]).missing


def test_other_settings_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    study = only(VARIANTS, "scratch", "avc")
    run(study, folder)
    code, printed = run(replace(longer(study), seeds=(0, 1, 2)), folder)
    assert "Differences to scratch" in printed
    results = load_studies([folder])
    assert {trial.record.config["finetune"]["steps"] for trial in results.trials} == {7}
    assert len(results.trials) == 6
    assert len(results.other_settings) == 4
    # And back: the third seed stays, with its settings named.
    code, printed = run(study, folder)
    assert (code, len(load_studies([folder]).other_settings)) == (0, 4)
    assert "settings differ: finetune.steps" in printed


def test_a_broken_record_is_listed_and_the_others_reported(tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    study = only(VARIANTS, "scratch", "avc")
    run(study, folder)
    broken = study.cells()[0].trial_id
    (trial_folder(folder, broken) / "record.json").write_text('{"schema_version": 2}')
    code, printed = run(study, folder)
    assert (code, "schema_version is 2" in printed) == (0, True)
    assert len(pd.read_csv(folder / "trials.csv")) == 3


def test_of_another_scale_a_plan_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    write_study(plan_of(VARIANTS, VARIANTS.cells(), folder), folder)
    scaled = replace(find_study("variants", "small"), seeds=(0,), budgets_minutes=(5.0,))
    assert len(plan_of(scaled, scaled.cells(), folder).cells) == len(scaled.arms)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_failed_trial_is_told_of_until_another_takes_its_place(
    tmp_path: Path, replaced: bool
) -> None:
    folder = tmp_path / "variants"
    assert run(only(VARIANTS, "scratch", "avc"), folder, fails=["avc"])[0] == 1
    following = longer(only(VARIANTS, "avc")) if replaced else only(VARIANTS, "scratch")
    assert run(following, folder)[0] == (0 if replaced else 1)


@pytest.mark.parametrize("terminal", [False, True])
def test_messages_are_printed_as_they_are(terminal: bool) -> None:
    """Rich would take square brackets for markup, swallow some and fail at others."""
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
    message = "[/pytorch/gloo/pair.cc:534] Connection closed by peer [take two]"
    trial = SimpleNamespace(
        trial_id="t",
        config={"cell": SimpleNamespace(trial_id="x[doa]-1")},
        last_result={"status": "failed", "message": message},
    )
    with StudyProgress(console, planned=1) as progress:
        progress.on_trial_start(0, [], trial)
        progress.on_trial_result(0, [], trial, {"stage": "waits for [/x]"})
        progress.on_trial_complete(0, [], trial)
    rejected = Rejected(
        recording_id="clip [take two].mp4", reason="unreadable", detail="[/x]", path="p"
    )
    console.print(rejected_table([rejected], "data/[/x]"))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    for words in (message, "x[doa]-1", "clip [take two].mp4", "data/[/x]/rejected.csv"):
        assert words in printed
    assert terminal or "waits for [/x]" in printed


@pytest.mark.parametrize(("status", "said"), [("finished", True), (None, False)])
def test_a_validation_is_not_printed_as_the_score(status: str | None, said: bool) -> None:
    """What a trial stopped in time reported last may be one."""
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    outcome = {"stage": "finetune"} if status is None else {"status": status}
    trial = SimpleNamespace(
        trial_id="t",
        config={"cell": SimpleNamespace(trial_id="x")},
        last_result=outcome | {"seld_error": 0.52},
    )
    with StudyProgress(console, planned=1) as progress:
        progress.on_trial_start(0, [], trial)
        progress.on_trial_complete(0, [], trial)
    assert isinstance(console.file, io.StringIO)
    assert ("SELD error 52.0" in console.file.getvalue()) == said


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_seed_of_one_stage_alone_is_refused(stage: str) -> None:
    """Trials have one seed, and would overwrite it without a word."""
    with pytest.raises(InputError, match=rf"--set: {stage}\.seed .* expected --seeds"):
        with_assignments(VARIANTS, [f"{stage}.seed=3"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("shards.clip_s=5", "stage is 'shards', expected pretrain or finetune; scenes and shards"),
        ("steps=5", "assignment is 'steps=5', expected STAGE.KEY=VALUE"),
        ("pretrain", "assignment is 'pretrain', expected STAGE.KEY=VALUE"),
        ("pretrain.steps", "assignment is 'pretrain.steps', expected STAGE.KEY=VALUE"),
        ("finetune.window_s=11", "scratch finetune.window_s is 11.0, expected at most the 10 s"),
        ("pretrain.window_s=11", "avc pretrain.window_s is 11.0, expected at most the 10 s"),
    ],
)
def test_what_cannot_be_set_is_said_before_any_work(assignment: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        with_assignments(VARIANTS, [assignment])


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    replace(VARIANTS, seeds=(2**63 - 1,))
    with pytest.raises(InputError, match=rf"seeds is {2**63}, expected at most"):
        replace(VARIANTS, seeds=(0, 2**63))


@pytest.mark.parametrize(
    ("study", "assignment", "arms"),
    [
        ("temperature", "pretrain.temperature=0.1", "tau_0.03 and tau_0.07"),
        ("doa_resolution", "pretrain.directions.grid.count=12", "fibonacci_4 and fibonacci_8"),
        ("variants", "pretrain.rotated_negatives=2", "recording_wise and recording_wise_unrotated"),
    ],
)
def test_a_setting_that_erases_what_is_compared_is_refused(
    study: str, assignment: str, arms: str
) -> None:
    with pytest.raises(
        InputError, match=rf"--set: settings is '{assignment}'.* in which {arms} do"
    ):
        with_assignments(find_study(study), [assignment])
    # Arms that are alike from the start, as those of other data, stay so.
    with_assignments(find_study("domain"), ["pretrain.steps=5", "finetune.steps=5"])


def test_a_setting_of_pretraining_is_refused_where_no_arm_pretrains() -> None:
    scratch = replace(VARIANTS, arms=VARIANTS.arms[:1])
    with pytest.raises(InputError, match=r"pretrain is 'steps=5', expected nothing where no arm"):
        with_assignments(scratch, ["pretrain.steps=5"])


def test_results_on_other_recordings_are_not_replaced(tmp_path: Path) -> None:
    """As those of the rendered sounds by ``--sound-bank``: trials are named by their settings."""
    folder = tmp_path / "results/variants"
    study = only(VARIANTS, "scratch")
    run(study, folder)

    def of(test_fingerprint: str) -> Any:
        data = SimpleNamespace(test_fingerprint=test_fingerprint, fingerprint="f")
        return SimpleNamespace(study_folder=folder, data={DEFAULT_DATA: data})

    shutil.rmtree(trial_folder(folder, study.cells()[0].trial_id))
    # Further arms and budgets of other data would stand beside them in one table.
    for following in (study, replace(only(VARIANTS, "avc"), budgets_minutes=(3.0,))):
        plan = plan_of(following, following.cells(), folder)
        refuse_results_of_other_data(plan, of("rendered"))
        with pytest.raises(InputError, match=f"--results is '{folder.parent}', expected another"):
            refuse_results_of_other_data(plan, of("recorded"))


def test_data_that_no_arm_uses_are_neither_made_nor_asked_for(tmp_path: Path) -> None:
    """All arms of ``misalignment`` have scenes of their own: the scale's would be hours of work."""
    study = only(find_study("misalignment", "demo"), "doa_wise_0", "doa_wise_40")
    names = {"doa_wise_0", "doa_wise_40"}
    assert DataOptions(folder=tmp_path).scenes(study).keys() == names
    data = SimpleNamespace(test_fingerprint="t")
    run: Any = SimpleNamespace(study_folder=tmp_path, data=dict.fromkeys(names, data))
    refuse_results_of_other_data(plan_of(study, study.cells(), tmp_path), run)


def test_commands_that_begin_at_once_do_not_refuse_each_others_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make_writable, [tmp_path / "data"] * 200, ["--data"] * 200))
    assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--data is .*can be written \(Not a directory\)"):
        make_writable(tmp_path / "file" / "below", "--data")


def test_commands_that_begin_at_once_both_stay_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the failed trials of one of them are in no plan, and its exit code is 0."""
    data = SimpleNamespace(test_fingerprint="t", fingerprint="f", validation_rooms=(), notes=())
    run: Any = SimpleNamespace(
        study_folder=tmp_path / "variants", data={DEFAULT_DATA: data}, kept_in=None
    )
    both_have_read = threading.Barrier(2)

    def slowly_planned(*arguments: Any) -> StudyRecord:
        plan = plan_of(*arguments)
        with suppress(threading.BrokenBarrierError):
            both_have_read.wait(0.5)
        return plan

    def command(seed: int) -> list[Cell]:
        study = replace(only(VARIANTS, "scratch"), seeds=(seed,))
        return plan_what_is_missing(study, study.cells(), run, Console(file=io.StringIO()))

    monkeypatch.setattr(grid, "plan_of", slowly_planned)
    with ThreadPoolExecutor(2) as threads:
        ((first,), (second,)) = threads.map(command, [0, 1])
    planned = {cell["trial_id"] for cell in read_study(run.study_folder).cells}
    assert planned == {first.trial_id, second.trial_id}


def test_results_of_other_pretraining_recordings_are_not_replaced(tmp_path: Path) -> None:
    """As those of ``--unannotated yt360:5000=DIR`` by all of them: the test is the same."""
    few = PreparedData(
        unannotated=ShardFolder(path="few"),
        annotated=ShardFolder(path="annotated"),
        class_names=STARSS_CLASSES,
        validation_rooms=(),
        unannotated_fingerprint="few",
        annotated_fingerprint="annotated",
        test_fingerprint="test",
        trainable_minutes=9.0,
    )
    many = replace(few, unannotated_fingerprint="many")

    def go_on(study: Study, data: PreparedData) -> str:
        """A command that finds every trial finished, or is refused."""
        console = Console(file=io.StringIO(), width=200)
        run: Any = SimpleNamespace(
            study_folder=tmp_path / "variants", data={DEFAULT_DATA: data}, kept_in=None
        )
        run_missing_trials(study, run, console, deadline=Deadline(), callbacks=[])
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    for cell in only(VARIANTS, "scratch", "doa_wise").cells():
        evaluate = stages_of(cell, few).evaluate
        record = TrialRecord(
            study="variants",
            trial_id=cell.trial_id,
            arm=cell.arm,
            seed=cell.seed,
            annotation_minutes=cell.annotation_minutes,
            status="finished",
            config=cell.config(),
            stages=[StageUse(name="evaluate", key=evaluate.digest, computed=True, duration_s=1.0)],
            data_fingerprint=few.fingerprint,
            test_fingerprint="test",
        )
        write_record(record, tmp_path / "variants")
    # What is not pretrained is the same.
    assert "all 2 trials finished" in go_on(only(VARIANTS, "scratch"), many)
    assert "all 4 trials finished" in go_on(only(VARIANTS, "scratch", "doa_wise"), few)
    for arms in (["scratch", "doa_wise"], ["avc"]):
        with pytest.raises(InputError, match=r"other recordings to train on \((doa|scratch)"):
            go_on(only(VARIANTS, *arms), many)
    noted = replace(few, notes=("5 of 6 test recordings could be used",))
    go_on(only(VARIANTS, "scratch", "doa_wise"), noted)
    assert read_study(tmp_path / "variants").notes == list(noted.notes)


def test_at_another_scale_results_on_other_recordings_do_not_count(tmp_path: Path) -> None:
    """The README's commands: the demo of ``make grid``, then data of one's own."""
    folder = tmp_path / "variants"
    run(only(VARIANTS, "scratch", "avc"), folder)
    scaled = replace(find_study("variants", "small"), seeds=(0, 1), budgets_minutes=(5.0,))
    code, printed = run(only(scaled, "scratch", "avc"), folder, test="recorded")
    assert code == 0
    results = load_studies([folder])
    assert results.budgets_minutes == [5.0]
    assert len(results.trials) == 4
    assert {trial.budget_minutes for trial in results.other_tests} == {1.5}
    assert "Trials on other test recordings, not counted" in printed
    page = (folder / "report/index.html").read_text()
    assert "4 on other test recordings, not counted" in page
    # The same recordings at another scale are another budget of the same study, as before.
    again = replace(find_study("variants", "paper"), seeds=(0, 1), budgets_minutes=(30.0,))
    run(only(again, "scratch", "avc"), folder, test="recorded")
    assert load_studies([folder]).budgets_minutes == [5.0, 30.0]
    # Nothing of the plan has run yet: what is there is not its result.
    shutil.rmtree(folder / "trials")
    run(only(VARIANTS, "scratch", "avc"), folder)
    write_study(plan_of(scaled, scaled.cells(), folder), folder)
    assert not load_studies([folder]).trials
