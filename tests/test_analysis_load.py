"""Studies are read whole: broken records are listed, planned trials missed, arms told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.load import load_studies
from seld.errors import InputError
from seld.records import TrialRecord
from tests.simulated_study import ArmTruth, SimulatedStudy, failed, write_simulated_study

STUDY = SimulatedStudy(
    arms={"scratch": ArmTruth(), "avc": ArmTruth()},
    budgets_minutes=(30.0,),
    seeds=(0, 1),
    recordings=4,
    predictions=False,
)


def trial(folder: Path, arm: str, seed: int) -> Path:
    return folder / "trials" / f"{arm}-30min-seed{seed}"


def test_broken_records_are_listed_and_the_others_read(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    (trial(folder, "scratch", 0) / "record.json").write_text('{"schema_version": 1, "stu')
    (trial(folder, "scratch", 1) / "counts.parquet").write_bytes(b"PAR1 half")
    (trial(folder, "avc", 0) / "record.json").unlink()
    results = load_studies([folder])
    assert [one.record.trial_id for one in results.trials] == ["avc-30min-seed1"]
    listed = {item.path.name: item.reason for item in results.unreadable}
    assert set(listed) == {"scratch-30min-seed0", "scratch-30min-seed1", "avc-30min-seed0"}
    assert all(listed.values())
    assert not results.missing


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '{"schema_version": 99}', '{"schema_version": 1, "nonsense": 0}', "\x00\xff"],
)
def test_no_record_is_fatal(tmp_path: Path, content: str) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    (trial(folder, "avc", 0) / "record.json").write_text(content)
    assert len(load_studies([folder]).unreadable) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("metrics", {}), ("metrics", None), ("metrics", {"seld_error": "high"}), ("seed", "one"),
     ("stages", None), ("failure", []), ("probes", 3), ("class_names", None),
     ("status", "skipped"), ("smaller_batches", None), ("code_fingerprint", None),
     ("per_room", [{"room": 1}]), ("per_room", [3])],
)  # fmt: skip
def test_records_of_the_wrong_shape_are_listed(tmp_path: Path, field: str, value: object) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    path = trial(folder, "avc", 0) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    results = load_studies([folder])
    assert [item.path.name for item in results.unreadable] == ["avc-30min-seed0"]


@pytest.mark.parametrize(
    "changes",
    [{"cells": None}, {"cells": [{"arm": "avc"}]}, {"cells": [3]}, {"arms": None}, {"arms": [[]]},
     {"notes": None}, {"goals": "seld_error"}, {"goals": [3]}, {"seeds": ["one"]}, {"name": None}],
)  # fmt: skip
def test_a_plan_of_the_wrong_shape_is_listed(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    results = load_studies([folder])
    assert len(results.trials) == 4
    assert [item.path.name for item in results.unreadable] == ["study.json"]


def test_a_plan_written_before_sweeps_told_their_goals_is_read(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    plan = json.loads((folder / "study.json").read_text())
    del plan["goals"]
    (folder / "study.json").write_text(json.dumps(plan))
    results = load_studies([folder])
    assert not results.unreadable
    assert results.studies[0].record is not None
    assert results.studies[0].record.goals == ["seld_error"]


def test_study_without_its_question_is_still_read(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    (folder / "study.json").write_text("{")
    results = load_studies([folder])
    assert len(results.trials) == 4
    assert [item.path.name for item in results.unreadable] == ["study.json"]


def test_planned_trials_without_a_record_are_missing(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    place = trial(folder, "avc", 1)
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    (missing,) = load_studies([folder]).missing
    assert (missing.arm, missing.seed) == ("avc", 1)

    # Nor has a trial that is under way ended: it is no broken record.
    place.mkdir()
    (place / "log.txt").write_text("pretrain/0: computes, try 1")
    results = load_studies([folder])
    assert results.missing == (missing,)
    assert not results.unreadable


def test_failed_trials_count_but_have_no_scores(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        return failed(record) if record.seed == 1 else record

    results = load_studies([write_simulated_study(tmp_path / "s", STUDY, change)])
    assert len(results.trials) == 4
    assert len(results.finished) == 2


def test_one_arm_in_two_studies_is_pooled_only_if_it_is_the_same(tmp_path: Path) -> None:
    first = write_simulated_study(tmp_path / "one", replace(STUDY, name="one"))
    more = write_simulated_study(tmp_path / "two", replace(STUDY, name="two", seeds=(5, 6)))
    assert load_studies([first, more]).arms == ["scratch", "avc"]
    again = write_simulated_study(tmp_path / "three", replace(STUDY, name="three"))
    assert load_studies([first, again]).arms == [
        "one: scratch", "one: avc", "three: scratch", "three: avc",
    ]  # fmt: skip

    def on_another_test(record: TrialRecord) -> TrialRecord:
        return replace(record, test_fingerprint="other")

    other = replace(STUDY, name="other", budgets_minutes=(60.0,))
    elsewhere = write_simulated_study(tmp_path / "other", other, on_another_test)
    assert load_studies([first, elsewhere]).arms == [
        "one: scratch", "one: avc", "other: scratch", "other: avc",
    ]  # fmt: skip


def with_steps(
    by_budget: Mapping[float, int], pretrain_steps: int = 100
) -> Callable[[TrialRecord], TrialRecord]:
    """Gives each record the fine-tuning steps of its budget."""

    def change(record: TrialRecord) -> TrialRecord:
        stages = {
            "pretrain": {"steps": pretrain_steps},
            "finetune": {"steps": by_budget[record.annotation_minutes]},
        }
        return replace(record, config={**record.config, **stages})

    return change


@pytest.mark.parametrize(
    ("budgets", "steps", "pretrain_steps", "pooled"),
    [
        pytest.param((2.0, 6.0), {2.0: 3000, 6.0: 6000}, 100, True, id="more seeds"),
        pytest.param((2.0, 6.0), {2.0: 3000, 6.0: 9000}, 100, False, id="other steps with 6"),
        pytest.param((2.0, 6.0), {2.0: 6000, 6.0: 3000}, 100, False, id="steps exchanged"),
        pytest.param((6.0, 18.0), {6.0: 6000, 18.0: 9000}, 100, True, id="a budget more"),
        pytest.param((18.0,), {18.0: 6000}, 100, True, id="another budget"),
        pytest.param((18.0,), {18.0: 6000}, 200, False, id="another budget and recipe"),
    ],
)
def test_settings_of_two_studies_are_compared_by_budget(
    tmp_path: Path,
    budgets: tuple[float, ...],
    steps: dict[float, int],
    pretrain_steps: int,
    pooled: bool,
) -> None:
    study = replace(STUDY, name="evidence", budgets_minutes=(2.0, 6.0), seeds=(0, 1, 2))
    first = write_simulated_study(
        tmp_path / "a" / "evidence", study, with_steps({2.0: 3000, 6.0: 6000})
    )
    more = replace(study, budgets_minutes=budgets, seeds=(3, 4))
    second = write_simulated_study(
        tmp_path / "b" / "evidence", more, with_steps(steps, pretrain_steps)
    )
    results = load_studies([first, second])
    if not pooled:
        assert len(results.arms) == 4
        return
    assert results.arms == ["scratch", "avc"]
    seeds = {
        budget: [trial.record.seed for trial in results.cells["avc", budget]]
        for budget in results.budgets_minutes
    }
    assert seeds == {
        budget: [0, 1, 2] * (budget in (2.0, 6.0)) + [3, 4] * (budget in budgets)
        for budget in {2.0, 6.0, *budgets}
    }


def test_a_setting_that_no_study_varies_by_budget_tells_arms_apart(tmp_path: Path) -> None:
    """Of one budget each, nobody knows whether the budget made the difference, or --set."""
    folders = [
        write_simulated_study(
            tmp_path / name / "evidence",
            replace(STUDY, name="evidence", budgets_minutes=(budget,)),
            with_steps({budget: steps}),
        )
        for name, budget, steps in (("a", 2.0, 3000), ("b", 18.0, 6000))
    ]
    assert len(load_studies(folders).arms) == 4

    # Nor does it depend on the budget where it differs between seeds: that is a --set.
    def mixed(record: TrialRecord) -> TrialRecord:
        return with_steps({2.0: 3000 + 3000 * record.seed, 6.0: 6000})(record)

    study = replace(STUDY, name="evidence", budgets_minutes=(2.0, 6.0))
    folders[0] = write_simulated_study(tmp_path / "c" / "evidence", study, mixed)
    assert len(load_studies(folders).arms) == 4


def test_a_folder_of_studies_is_read_whole(tmp_path: Path) -> None:
    write_simulated_study(tmp_path / "all" / "one", replace(STUDY, name="one"))
    assert len(load_studies([tmp_path / "all"]).trials) == 4


def test_points_of_a_sweep_are_no_repetitions(tmp_path: Path) -> None:
    def same_seed(record: TrialRecord) -> TrialRecord:
        return replace(record, seed=0)

    sweep = replace(STUDY, planned=False)
    results = load_studies([write_simulated_study(tmp_path / "s", sweep, same_seed)])
    assert results.swept_arms == {"scratch", "avc"}
    assert not results.other_settings


def add_trial(folder: Path, name: str, trial_id: str, **changes: object) -> None:
    """A copy of a trial under another name, with changes to its record."""
    shutil.copytree(folder / "trials" / name, folder / "trials" / trial_id)
    path = folder / "trials" / trial_id / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trial_id": trial_id} | changes))


def test_of_a_place_in_a_grid_the_planned_trial_counts(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    add_trial(folder, "avc-30min-seed0", "avc-30min-seed0-later", finished_at="2027")
    # In a place that nobody planned, the one that finished last does.
    add_trial(folder, "avc-30min-seed0", "avc-30min-seed7-a", seed=7, finished_at="2027-01-02")
    add_trial(folder, "avc-30min-seed0", "avc-30min-seed7-b", seed=7, finished_at="2027-01-01")
    results = load_studies([folder])
    assert not results.swept_arms
    assert [trial.record.trial_id for trial in results.cells["avc", 30.0]] == [
        "avc-30min-seed0", "avc-30min-seed1", "avc-30min-seed7-a",
    ]  # fmt: skip
    assert {trial.record.trial_id for trial in results.other_settings} == {
        "avc-30min-seed0-later", "avc-30min-seed7-b",
    }  # fmt: skip

    # A planned trial that has not run yet is missing: no other takes its place.
    shutil.rmtree(trial(folder, "avc", 0))
    results = load_studies([folder])
    assert [item.trial_id for item in results.missing] == ["avc-30min-seed0"]
    assert len(results.cells["avc", 30.0]) == 2


def test_studies_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [write_simulated_study(tmp_path / name / "variants", STUDY) for name in "ab"]
    shutil.rmtree(trial(folders[1], "avc", 1))
    results = load_studies(folders)
    assert not results.swept_arms
    assert results.arms == [
        "a/variants: scratch", "a/variants: avc", "b/variants: scratch", "b/variants: avc",
    ]  # fmt: skip
    assert [item.arm for item in results.missing] == ["b/variants: avc"]


def test_a_trial_of_a_sweep_that_is_under_way_is_no_broken_record(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", replace(STUDY, planned=False))
    for name in ("doa_wise-1.5min-seed0-93a1f0", "notes"):
        (folder / "trials" / name).mkdir()
    results = load_studies([folder])
    assert [item.path.name for item in results.unreadable] == ["notes"]
    (missing,) = results.missing
    assert (missing.arm, missing.seed, missing.annotation_minutes) == ("doa_wise", 0, 1.5)


def test_a_sweep_of_few_points_compares_no_arms(tmp_path: Path) -> None:
    folder = write_simulated_study(tmp_path / "s", STUDY)
    description = folder / "study.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"cells": []}))
    results = load_studies([folder])
    assert results.swept_arms == {"scratch", "avc"}
    assert results.arms == []
    assert results.drawn_arms == ["avc", "scratch"]


def test_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json"):
        load_studies([tmp_path])
    with pytest.raises(InputError, match="RESULTS_DIR"):
        load_studies([tmp_path / "nowhere"])
