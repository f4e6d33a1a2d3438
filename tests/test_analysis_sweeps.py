"""What sweeps have found: best points, fronts, responses and importances."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import Analysis
from analysis.load import load_studies
from analysis.sweeps import Points, importances, points, responses
from seld.records import TrialRecord, read_study
from tests.simulated_study import VARIANTS, SimulatedStudy, write_simulated_study

TEMPERATURE = "pretrain.temperature"
SAMPLING = "pretrain.directions.sampling"
COUNT = "pretrain.directions.grid.count"
STUDY = SimulatedStudy(
    name="sweep",
    arms={"doa_wise": VARIANTS["doa_wise"]},
    baseline="doa_wise",
    budgets_minutes=(30.0,),
    recordings=6,
    predictions=False,
    planned=False,
)


def write_sweep(
    folder: Path,
    parameters: Sequence[Mapping[str, Any]],
    change: Callable[[TrialRecord], TrialRecord] = lambda record: record,
    **options: Any,
) -> Path:
    """A sweep that has tried these settings, each with each arm and budget."""

    def tried(record: TrialRecord) -> TrialRecord:
        return replace(change(record), parameters=parameters[record.seed], seed=0)

    study = replace(STUDY, seeds=range(len(parameters)), **options)
    return write_simulated_study(folder, study, tried)


def points_of(folder: Path) -> Points:
    return points(load_studies([folder]))


def test_the_best_trial_is_named_and_what_made_it_weighs_most(tmp_path: Path) -> None:
    """Of twenty the eighth, in the middle of a slope along the temperature."""
    parameters = [
        {TEMPERATURE: 0.01 * 1.3**number, "finetune.encoder_rate": (0.1, 0.3, 0.9)[number % 3]}
        for number in range(20)
    ]
    folder = write_sweep(
        tmp_path / "s", parameters, effect=lambda n: 0.2 * (n == 7) - 0.05 * abs(n - 7)
    )
    analysis = Analysis.of([folder])
    assert analysis.answer.startswith("At 30 min of annotation: of 20 settings, the low")
    assert " points at pretrain.temperature 0.0627, finetune.encoder_rate 0.3; " in analysis.answer
    assert [entry.text for entry in analysis.sweep.rows[0][1:]] == ["0.0627", "0.3"]
    assert len(analysis.sweep.rows) == 10
    assert next(iter(importances(points_of(folder).complete))) == TEMPERATURE


def test_settings_without_effect_are_no_response(tmp_path: Path) -> None:
    """A grid's size where directions are energy peaks; the start of a learnt temperature."""
    parameters = [
        {
            SAMPLING: "grid" if number % 2 else "energy_peaks",
            COUNT: 4 + number if number % 2 else 16,
            "pretrain.learn_temperature": number < 4,
            TEMPERATURE: 0.01 * (1 + number),
        }
        for number in range(12)
    ]
    folder = write_sweep(tmp_path / "s", parameters, effect=lambda n: 0.3 * (n == 6))
    shown = responses(load_studies([folder]))
    assert set(shown[COUNT][COUNT]) == {5, 7, 9, 11, 13, 15}
    assert len(shown[TEMPERATURE]) == 8
    assert SAMPLING not in shown

    # Nor are they told of the best trial; and what has two values is.
    analysis = Analysis.of([folder])
    assert f"{TEMPERATURE} 0.07, {SAMPLING} energy_peaks, pretrain.learn_temp" in analysis.answer
    assert COUNT not in analysis.answer
    place = analysis.sweep.columns.index(COUNT)
    assert analysis.sweep.rows[0][place].text == "–"
    assert "nan" not in analysis.sweep.markdown() + analysis.sweep.csv()


def test_only_settings_that_all_trials_use_are_weighed(tmp_path: Path) -> None:
    """Not only the trials that use all settings: of three objectives, those of one."""
    parameters = [
        {TEMPERATURE: 0.01 * (1 + n), COUNT: 4 + n} if n % 2 else {TEMPERATURE: 0.01 * (1 + n)}
        for n in range(16)
    ]
    complete = points_of(write_sweep(tmp_path / "s", parameters)).complete
    assert list(complete.columns) == [TEMPERATURE, "seld_error"]
    assert len(complete) == 16


def test_settings_that_are_lists_are_told_apart(tmp_path: Path) -> None:
    name = "pretrain.audio.stage_channels"
    lists = [[8, 16], [16, 32], [32, 64]]
    table = points_of(write_sweep(tmp_path / "s", [{name: value} for value in lists])).table
    assert set(table[name]) == {"[8, 16]", "[16, 32]", "[32, 64]"}


def test_what_was_stopped_early_is_told(tmp_path: Path) -> None:
    def stopped(record: TrialRecord) -> TrialRecord:
        return record if record.seed % 4 == 0 else replace(record, status="stopped")

    parameters = [{TEMPERATURE: 0.01 * (1 + number)} for number in range(16)]
    folder = write_sweep(tmp_path / "s", parameters, stopped)
    said = Analysis.of([folder]).answer
    assert said.startswith(
        "At 30 min of annotation: of 16 settings tried, 4 trained in full; the lowest SELD error "
    )


def test_the_largest_budget_speaks_and_the_others_are_counted(tmp_path: Path) -> None:
    parameters = [{TEMPERATURE: 0.01 * (1 + number)} for number in range(5)]
    folder = write_sweep(tmp_path / "s", parameters, budgets_minutes=(1.5, 6.0, 24.0))
    analysis = Analysis.of([folder])
    assert analysis.answer.startswith(
        "At 24 min of annotation: of 5 settings tried there (15 at all budgets), the lowest SELD "
    )
    assert analysis.sweep.title == "Best settings of the sweep at 24 min"
    assert "Single trials at 24 min" in analysis.sweep.note


def test_objectives_without_a_setting_of_their_own_are_told_apart(tmp_path: Path) -> None:
    folders = [
        write_sweep(
            tmp_path / name,
            [{TEMPERATURE: 0.1}, {TEMPERATURE: 0.2}],
            arms={name: VARIANTS["doa_wise"]},
        )
        for name in ("doa_wise", "avc")
    ]
    found = points(load_studies(folders))
    assert found.settings == ("arm", TEMPERATURE)
    assert set(found.table["arm"]) == {"doa_wise", "avc"}


def test_with_several_goals_the_front_of_all_budgets_is_shown(tmp_path: Path) -> None:
    parameters = [{TEMPERATURE: 0.01 * (1 + number)} for number in range(5)]
    folder = write_sweep(
        tmp_path / "s",
        parameters,
        budgets_minutes=(1.5, 6.0, 24.0),
        goals=("seld_error", "annotation_minutes"),
        effect=lambda n: 0.2 * (n == 3),
    )
    analysis = Analysis.of([folder])
    # The fourth is the best at every budget, and better with more of it.
    assert "Of 15 settings, 3 are on the front, where no other is as low in" in analysis.answer
    assert "annotation 24.0 min at pretrain.temperature 0.04; " in analysis.answer
    assert "annotation 1.5 min at pretrain.temperature 0.04. " in analysis.answer
    assert analysis.sweep.columns == ("SELD error (points)", "annotation (min)", TEMPERATURE)
    assert [[e.text for e in row[1:]] for row in analysis.sweep.rows] == [
        ["24.0", "0.04"], ["6.0", "0.04"], ["1.5", "0.04"],
    ]  # fmt: skip


def test_of_a_grid_only_arms_that_differ_in_one_setting_are_a_response(tmp_path: Path) -> None:
    parameters = {
        "a": {TEMPERATURE: 0.03, COUNT: 8},
        "b": {TEMPERATURE: 0.07, COUNT: 8},
        "c": {TEMPERATURE: 0.15, COUNT: 8},
        "d": {TEMPERATURE: 0.30, COUNT: 16},
        "e": {TEMPERATURE: 0.07, COUNT: 4},
    }

    def of_arm(record: TrialRecord) -> TrialRecord:
        return replace(record, parameters=parameters[record.arm])

    arms = dict.fromkeys(parameters, VARIANTS["doa_wise"])
    study = replace(STUDY, arms=arms, baseline="a", planned=True)
    folder = write_simulated_study(tmp_path / "s", study, of_arm)
    shown = responses(load_studies([folder]))
    assert set(shown) == {TEMPERATURE}
    assert set(shown[TEMPERATURE][TEMPERATURE]) == {0.03, 0.07, 0.15}
    assert not Analysis.of([folder]).sweep.rows


@pytest.mark.parametrize(
    ("planned", "said"),
    [(True, "no arm can be compared with doa_wise."), (False, "to compare settings.")],
)
def test_before_the_first_record_the_plan_says_what_is_asked(
    tmp_path: Path, planned: bool, said: str
) -> None:
    folder = write_simulated_study(tmp_path / "s", replace(STUDY, planned=planned))
    shutil.rmtree(folder / "trials")
    assert Analysis.of([folder]).answer.endswith(said)


def test_a_sweep_writes_its_goals(tmp_path: Path) -> None:
    from ablations.sweep import Sweep, write_sweep_record
    from search_spaces.scales import find_scale

    sweep = Sweep(
        name="s",
        scale=find_scale("demo"),
        objectives=("doa_wise",),
        budgets_minutes=(6.0,),
        trials=2,
        goals=("seld_error", "compute_s"),
        rungs=1,
    )
    write_sweep_record(sweep, tmp_path)
    assert read_study(tmp_path).goals == ["seld_error", "compute_s"]
