"""What pretraining had learnt, as the report tells it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis import Analysis, probes
from analysis.figures import Picture, draw
from analysis.load import Results, load_studies
from analysis.probes import pretrainings, probe_figures, probes_table
from seld.records import TrialRecord
from tests.simulated_study import HEALTHY_PROBES, ArmTruth, SimulatedStudy, write_simulated_study

STUDY = SimulatedStudy(
    arms={"scratch": ArmTruth(), "doa_wise": ArmTruth(probes=HEALTHY_PROBES)},
    seeds=(0, 1),
    recordings=3,
    predictions=False,
)


def with_retrieval_by_seed(record: TrialRecord) -> TrialRecord:
    if not record.probes:
        return record
    probes = {**record.probes, "retrieval_top1": 0.3 + 0.2 * record.seed}
    return replace(record, probes=probes, pretraining_learnt=record.seed == 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_simulated_study(tmp_path / "variants", STUDY, with_retrieval_by_seed)


def loaded(folder: Path) -> Results:
    return load_studies([folder])


def test_a_pretraining_shared_by_budgets_counts_once(folder: Path) -> None:
    results = loaded(folder)
    assert len([trial for trial in results.trials if trial.arm == "doa_wise"]) == 4
    assert [trial.record.seed for trial in pretrainings(results)["doa_wise"]] == [0, 1]
    (row,) = probes_table(results).values  # noqa: PD011 - a Table of ours
    assert row["arm"] == "doa_wise"
    assert row["retrieval_top1"] == "40"
    assert row["retrieval_top1_chance"] == "6"
    assert row["linear_doa_error_deg"] == "35"
    assert (row["learnt"], row["pretrainings"]) == (1, 2)


def test_scores_say_whose_pretraining_was_no_better_than_luck(folder: Path) -> None:
    rows = Analysis.of([folder]).scores.values  # noqa: PD011 - a Table of ours
    remarks = {row["arm"]: row["remarks"] for row in rows}
    assert "learnt no classes (retrieval at chance) in 1" in str(remarks["doa_wise"])
    assert "learnt" not in str(remarks["scratch"])


def test_curves_are_means_over_pretrainings_and_do_without_what_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[Figure] = []

    def draw_and_keep(
        name: str, title: str, caption: str, size_in: tuple[float, float],
        paint: Callable[[Figure], None],
    ) -> Picture:  # fmt: skip
        painted.append(Figure())
        paint(painted[-1])
        return draw(name, title, caption, size_in, paint)

    monkeypatch.setattr(probes, "draw", draw_and_keep)
    results = loaded(folder)
    assert probe_figures(results) == []
    first, second = pretrainings(results)["doa_wise"]
    for trial, value in ((first, 0.2), (second, 0.4)):
        pd.DataFrame(
            [("pretrain", 100, "retrieval_top1", value), ("finetune", 100, "loss", 9.0)],
            columns=["stage", "step", "name", "value"],
        ).to_csv(trial.folder / "history.csv", index=False)
    (picture,) = probe_figures(results)
    assert picture.svg.startswith(b"<?xml")
    ((step, percent),) = (line.get_data() for line in painted[0].axes[0].lines)
    assert (list(step), list(percent)) == ([100], pytest.approx([30.0]))
    (first.folder / "history.csv").write_bytes(b"")
    assert len(probe_figures(results)) == 1
    assert list(painted[1].axes[0].lines[0].get_ydata()) == pytest.approx([40.0])
    assert len(probe_figures(replace(results, swept_arms=frozenset({"doa_wise"})))) == 1


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ((), "mean over seeds"),
        (("doa_wise",), "mean over seeds (of swept arms: over trials of all settings and"),
        (("avc", "doa_wise"), "mean over trials of all settings and lengths"),
    ],
)
def test_of_swept_arms_the_means_are_over_trials(
    tmp_path: Path, swept: tuple[str, ...], said: str
) -> None:
    study = replace(STUDY, arms=dict.fromkeys(("avc", "doa_wise"), STUDY.arms["doa_wise"]))
    results = loaded(write_simulated_study(tmp_path / "variants", study))
    for trial in results.trials:
        pd.DataFrame(
            [("pretrain", 100, "retrieval_top1", 0.2)],
            columns=["stage", "step", "name", "value"],
        ).to_csv(trial.folder / "history.csv", index=False)
    results = replace(results, swept_arms=frozenset(swept))
    (picture,) = probe_figures(results)
    for text in (probes_table(results).note, picture.caption.replace("Mean", "mean")):
        assert said in text
        assert "{" not in text


def test_a_study_without_pretraining_has_no_probes(tmp_path: Path) -> None:
    study = replace(STUDY, arms={"scratch": ArmTruth()})
    results = loaded(write_simulated_study(tmp_path / "variants", study))
    assert probes_table(results).rows == ()
    assert probe_figures(results) == []


def test_what_was_never_probed_has_no_row(tmp_path: Path) -> None:
    """Older records keep the training's loss among the probes."""
    arms = {"scratch": ArmTruth(), "arm": ArmTruth(probes={"loss": 3.2, "learning_rate": 1e-9})}
    study = SimulatedStudy(arms=arms, recordings=3, predictions=False)
    assert not probes_table(load_studies([write_simulated_study(tmp_path / "s", study)])).rows


def test_probes_are_rounded_as_printed_and_blank_where_not_a_number(tmp_path: Path) -> None:
    def change(record: TrialRecord) -> TrialRecord:
        numbers = {"participation_ratio": math.nan if record.seed else 24.0}
        return replace(record, probes={**record.probes, **numbers}) if record.probes else record

    table = probes_table(loaded(write_simulated_study(tmp_path / "s", STUDY, change)))
    (row,) = csv.DictReader(table.csv().splitlines())
    assert row["linear_class_accuracy"] == "55"
    assert row["participation_ratio"] == ""
    assert table.rows[0][table.columns.index("Dimensions")].text == "–"
    assert "nan" not in table.csv() + table.markdown()


def test_arms_stand_in_the_order_of_their_plan(tmp_path: Path) -> None:
    arms = dict.fromkeys(("z", "scratch", "m", "a"), ArmTruth(probes=HEALTHY_PROBES))
    results = loaded(write_simulated_study(tmp_path / "s", replace(STUDY, arms=arms)))
    assert list(pretrainings(results)) == list(arms)
    assert [row[0].text for row in probes_table(results).rows] == list(arms)
