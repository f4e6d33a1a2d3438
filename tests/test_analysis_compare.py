"""Estimates against hand-worked values and independent formulas, comparability, coverage."""

from __future__ import annotations

import csv
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.compare import (
    Comparison,
    estimate,
    holm,
    permutation_p_value,
    recording_draws,
    resampled_counts,
)
from analysis.load import load_studies
from analysis.tables import differences_table
from seld.records import TrialRecord
from tests.simulated_study import ArmTruth, SimulatedStudy, failed, write_simulated_study

SMALL = SimulatedStudy(
    arms={"scratch": ArmTruth(), "better": ArmTruth(found=0.75, near=0.85)},
    budgets_minutes=(30.0,),
    seeds=(0, 1, 2, 3),
    predictions=False,
)


def compared(folder: Path, study: SimulatedStudy = SMALL, **changes: object) -> Comparison:
    return Comparison(load_studies([write_simulated_study(folder / "s", study, **changes)]))


def test_holm_hand_worked() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, math.nan, 0.8])[0] == 1.0
    assert math.isnan(holm([0.9, math.nan, 0.8])[1])


def test_permutation_counts_the_sign_patterns() -> None:
    """Where recordings add nothing, it is the exact test."""
    for scores in (np.array([1.0, 2.0, 3.0]), np.array([0.4, -0.1, 0.7, 0.2])):
        patterns = [np.dot(s, scores) for s in itertools.product((1, -1), repeat=len(scores))]
        reached = sum(abs(value) >= scores.sum() - 1e-12 for value in patterns)
        found = permutation_p_value(scores, np.tile(scores, (50, 1)), recordings=9)
        assert found == pytest.approx(reached / len(patterns))


def test_permutation_heeds_the_recordings() -> None:
    """Ten seeds that agree on a difference which these few recordings may have made by chance."""
    draws = np.random.default_rng(0).normal(0.01, 0.02, (500, 1)) * np.ones((1, 10))
    assert permutation_p_value(np.full(10, 0.01), draws, recordings=8) > 0.3


@pytest.mark.parametrize(("seeds", "least"), [(4, 2 / 2**4), (5, 2 / 2**5), (12, 1 / 2**10)])
def test_permutation_is_not_made_smaller_by_what_recordings_add(seeds: int, least: float) -> None:
    """Where seeds agree, two of the orders are as far out, or of those drawn the observed one."""
    scores = np.linspace(0.9, 1.1, seeds)
    draws = np.random.default_rng(1).normal(0, 1, (400, 1))
    for spread in (0.0, 1e-6, 1e-2):
        found = permutation_p_value(scores, scores + spread * draws, recordings=9)
        assert found >= least * (1 - 1e-9)


def test_without_recording_variance_the_interval_is_student_t() -> None:
    scores = np.array([0.30, 0.34, 0.35])
    same = np.tile(scores, (200, 1))
    found = estimate(scores, same, recordings=20)
    low, high = stats.t.interval(0.95, 2, scores.mean(), stats.sem(scores))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(stats.ttest_1samp(scores, 0).pvalue, rel=1e-6)
    assert found.seed_share == pytest.approx(1.0)


def test_without_seed_variance_the_interval_is_student_t_over_recordings() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.2, 12)
    draws = recording_draws(12)
    resampled = np.tile((draws[1:] @ values / 12)[:, None], (1, 4))
    found = estimate(np.full(4, values.mean()), resampled, recordings=12)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    # The variance is that of a thousand draws.
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)
    assert found.seed_share == pytest.approx(0.0, abs=1e-9)


def test_small_p_value_only_where_the_interval_excludes_zero() -> None:
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.5, 1.0, 2.0):
        scores = generator.normal(shift, 1, 4)
        resampled = scores + generator.normal(0, 0.5, (300, 1)) + generator.normal(0, 0.2, (300, 4))
        found = estimate(scores, resampled, recordings=15)
        assert found.excludes_zero or found.p_value >= 0.05
    clear = estimate(np.array([1.0, 1.1, 0.9, 1.0]), np.ones((300, 4)), recordings=15)
    assert clear.p_value < 0.01


@pytest.mark.parametrize("seeds", [0, 1])
def test_too_few_seeds_give_no_interval(seeds: int) -> None:
    found = estimate(np.full(seeds, 0.3), np.full((10, seeds), 0.3), recordings=5)
    assert math.isnan(found.low)
    assert math.isnan(found.p_value)
    assert not found.excludes_zero


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("seed_spread", "own_spread"), [(1.0, 0.5), (0.3, 3.0), (0.0, 2.0)])
def test_intervals_cover(seeds: int, seed_spread: float, own_spread: float) -> None:
    """Crossed seeds × recordings; see benchmarks/intervals.py for the metric's own counts."""
    generator = np.random.default_rng(seeds)
    recordings, studies = 25, 400
    draws = recording_draws(recordings)[1:] / recordings
    covered = 0
    for _ in range(studies):
        values = (
            generator.normal(0, seed_spread, (seeds, 1))
            + generator.normal(0, own_spread, (1, recordings))
            + generator.normal(0, 1.0, (seeds, recordings))
        )
        found = estimate(values.mean(axis=1), draws @ values.T, recordings)
        covered += found.low <= 0 <= found.high
    # 93 to 97 %, and two standard errors of 400 studies.
    assert 0.93 - 0.022 <= covered / studies <= 0.97 + 0.017


def test_resampling_starts_with_all_recordings() -> None:
    counts = np.random.default_rng(0).integers(0, 9, size=(7, 3, 8)).astype(float)
    resampled = resampled_counts(counts)
    np.testing.assert_allclose(resampled[0], counts.sum(axis=0))
    assert recording_draws(7)[1:].sum(axis=1) == pytest.approx(7)


def test_scores_are_those_of_the_records(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    for trial in comparison.results.finished:
        for name, values in comparison.scores(trial).items():
            assert values[0] == pytest.approx(trial.record.metrics[name])


def test_a_true_difference_is_resolved_and_bold(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    (difference,) = comparison.differences("scratch")
    assert difference.resolved
    assert difference.primary is not None
    assert difference.primary.high < 0
    pairs = comparison.pairs("better", "scratch", 30.0)
    by_hand = np.mean(
        [a.record.metrics["seld_error"] - b.record.metrics["seld_error"] for a, b in pairs]
    )
    assert difference.primary.mean == pytest.approx(by_hand)
    assert comparison.best_resolved[30.0, "seld_error"] == "better"


def test_alike_arms_are_not_bold(tmp_path: Path) -> None:
    study = replace(SMALL, arms={name: ArmTruth() for name in ("scratch", "b", "c")})
    assert not compared(tmp_path, study).best_resolved


def test_an_arm_that_loses_every_pair_is_not_bold(tmp_path: Path) -> None:
    """Its mean may be the best all the same, where the other has further seeds, and bad ones."""
    arms = {"scratch": ArmTruth(found=0.60), "better": ArmTruth(found=0.75)}
    common = replace(SMALL, arms=arms, seeds=(0, 1, 2))
    further = replace(SMALL, arms={"better": ArmTruth(found=0.20)}, seeds=(3, 4, 5))
    folders = [
        write_simulated_study(tmp_path / "common", common),
        write_simulated_study(tmp_path / "further", further),
    ]
    comparison = Comparison(load_studies(folders))
    errors = {arm: comparison.cells[arm, 30.0].estimates["seld_error"].mean for arm in arms}
    assert errors["scratch"] < errors["better"]
    primary = comparison.difference("scratch", "better", 30.0).primary
    assert primary is not None
    assert primary.low > 0
    assert primary.p_value < 0.05
    assert (30.0, "seld_error") not in comparison.best_resolved


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"metric_version": "other"}, "metric versions differ"),
        ({"test_fingerprint": "other"}, "test recordings differ"),
    ],
)
def test_incomparable_arms_are_refused(
    tmp_path: Path, changed: dict[str, str], reason: str
) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        return replace(record, **changed) if record.arm == "better" else record

    comparison = compared(tmp_path, change=change)
    (difference,) = comparison.differences("scratch")
    assert difference.refusals == (reason,)
    assert not difference.estimates
    assert not comparison.best_resolved


def test_mixed_trials_within_an_arm_get_no_mean(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        return replace(record, metric_version="other") if record.seed == 1 else record

    cell = compared(tmp_path, change=change).cells["better", 30.0]
    assert not cell.estimates
    assert cell.refusals == ("metric versions differ",)


def test_other_code_and_uncommitted_changes_are_flagged(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        if record.arm == "better":
            return replace(record, code_fingerprint="other", git_dirty=True)
        return record

    (difference,) = compared(tmp_path, change=change).differences("scratch")
    assert difference.estimates
    assert difference.caveats == ("code differs", "uncommitted code")


def test_other_settings_of_some_seeds_are_flagged(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        steps = 1000 if record.arm == "better" and record.seed > 1 else 500
        pretrain = {"steps": steps, "seed": record.seed, "arm": record.arm}
        return replace(record, config={**record.config, "pretrain": pretrain})

    comparison = compared(tmp_path, change=change)
    assert comparison.cells["better", 30.0].caveats == ("settings differ: pretrain.steps",)
    assert comparison.cells["scratch", 30.0].caveats == ()
    (difference,) = comparison.differences("scratch")
    assert difference.caveats == ("settings differ: pretrain.steps",)


def test_arms_that_were_fine_tuned_differently_are_flagged(tmp_path: Path) -> None:
    """As after ``--arms scratch,b --set finetune.learning_rate=…`` in another arm's folder."""
    study = replace(SMALL, arms={name: ArmTruth() for name in ("scratch", "better", "studied")})

    def change(record: TrialRecord) -> TrialRecord:
        rate = 0.001 if record.arm == "scratch" else 0.003
        # What the study itself varies is its question.
        parameters = {"finetune.learning_rate": rate} if record.arm == "studied" else {}
        finetune = {"learning_rate": rate, "seed": record.seed}
        config = {**record.config, "finetune": finetune}
        return replace(record, config=config, parameters=parameters)

    comparison = compared(tmp_path, study, change=change)
    differences = {found.arm: found.caveats for found in comparison.differences("scratch")}
    assert differences == {
        "better": ("fine-tuned differently: finetune.learning_rate",),
        "studied": (),
    }
    assert all(cell.caveats == () for cell in comparison.cells.values())


def test_no_arm_is_bold_that_was_fine_tuned_differently(tmp_path: Path) -> None:
    """Though the difference is as clear as in the test of what is bold."""

    def longer(record: TrialRecord) -> TrialRecord:
        steps = 6000 if record.arm == "better" else 1000
        return replace(record, config={**record.config, "finetune": {"steps": steps}})

    comparison = compared(tmp_path, change=longer)
    (difference,) = comparison.differences("scratch")
    assert difference.resolved
    assert not difference.by_the_arm
    assert not comparison.best_resolved
    (row,) = differences_table([difference], "scratch").rows
    assert not any(entry.bold for entry in row)


def test_batches_that_did_not_fit_are_flagged(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        halved = {"pretrain.batch_size": 16} if record.arm == "better" else {}
        return replace(record, smaller_batches=halved)

    comparison = compared(tmp_path, change=change)
    seeds = comparison.cells["better", 30.0].seeds
    said = f"for want of GPU memory trained with pretrain.batch_size=16 in {seeds}"
    assert comparison.cells["better", 30.0].caveats == (said,)
    assert comparison.cells["scratch", 30.0].caveats == ()
    (difference,) = comparison.differences("scratch")
    assert difference.caveats == (said,)


def test_holm_is_over_all_arms_and_budgets(tmp_path: Path) -> None:
    study = replace(
        SMALL, arms={name: ArmTruth() for name in ("scratch", "b", "c")}, budgets_minutes=(15, 60)
    )
    found = compared(tmp_path, study).differences("scratch")
    raw = [item.primary.p_value for item in found if item.primary]
    assert len(raw) == 4
    smallest = min(found, key=lambda item: item.p_holm)
    assert smallest.p_holm == pytest.approx(min(1.0, 4 * min(raw)))


def test_a_failed_seed_does_not_shift_the_pairs(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        return failed(record) if (record.arm, record.seed) == ("better", 1) else record

    pairs = compared(tmp_path, change=change).pairs("better", "scratch", 30.0)
    seeds = [(a.record.seed, b.record.seed) for a, b in pairs]
    assert seeds == [(0, 0), (2, 2), (3, 3)]
    assert {(a.arm, b.arm) for a, b in pairs} == {("better", "scratch")}


def test_a_budget_of_a_single_pair_is_not_the_largest_to_speak_of(tmp_path: Path) -> None:
    """As while its first trials run; where there is nothing else, what there is."""
    study = replace(SMALL, budgets_minutes=(6.0, 18.0))
    folder = write_simulated_study(tmp_path / "s", study)
    assert Comparison(load_studies([folder])).largest_budget == 18.0
    for path in folder.glob("trials/*-18min-seed[123]"):
        shutil.rmtree(path)
    assert Comparison(load_studies([folder])).largest_budget == 6.0
    for path in folder.glob("trials/*-6min-*"):
        shutil.rmtree(path)
    assert Comparison(load_studies([folder])).largest_budget == 18.0


def test_a_score_s_interval_ends_where_the_score_does(tmp_path: Path) -> None:
    """With two seeds that disagree Student's t reaches far; a difference may be that large."""
    study = replace(SMALL, seeds=(0, 1), effect=lambda seed: -0.4 * seed)
    comparison = compared(tmp_path, study)
    ends = {"er20": math.inf, "f20": 1.0, "le_cd_deg": 180.0, "lr_cd": 1.0, "seld_error": math.inf}
    for place, cell in comparison.cells.items():
        for found in (
            cell.estimates,
            *(c.estimates for c in comparison.class_estimates(*place).values()),
        ):
            for name, item in found.items():
                assert 0 <= item.low <= item.mean <= item.high <= ends[name] or math.isnan(item.low)
        f20 = cell.estimates["f20"]
        assert (f20.low, f20.high) == (0.0, 1.0)
    assert comparison.difference("better", "scratch", 30.0).estimates["f20"].high < 1.0


def test_what_is_cut_off_is_nothing_else() -> None:
    scores, resampled = np.array([0.1, 0.5]), np.tile([0.1, 0.5], (50, 1))
    whole = estimate(scores, resampled, 9)
    cut = estimate(scores, resampled, 9, (0.0, 1.0))
    assert (whole.low < 0, whole.high > 1) == (True, True)
    assert cut == replace(whole, low=0.0, high=1.0)
    assert estimate(scores, resampled, 9, (-5.0, 5.0)) == whole


def test_what_has_no_p_value_is_blank_in_a_spreadsheet(tmp_path: Path) -> None:
    comparison = compared(tmp_path, replace(SMALL, seeds=(0,)))
    table = differences_table(comparison.differences("scratch"), "scratch")
    (row,) = csv.DictReader(table.csv().splitlines())
    assert {row[name] for name in ("p", "p_holm", "p_permutation_holm", "seld_error_low")} == {""}
    assert row["pairs"] == "1"
    assert "nan" not in table.csv()
