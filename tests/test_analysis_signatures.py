"""Each failure signature has a planted case that triggers it, and it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.compare import Comparison
from analysis.load import load_studies
from analysis.probes import probes_table
from analysis.signatures import (
    BLIND_ENCODER,
    COLLAPSE,
    DEAF_TO_ELEVATION,
    DIRECTION_IGNORED,
    EMPTY_DIRECTIONS,
    LOST_CLASS,
    MISPLACED,
    SIGNATURES,
    SMALL_BUDGETS,
    UNSEEN_CLASSES,
    Signature,
    find_signatures,
    signatures_table,
)
from seld.classes import STARSS_CLASSES
from seld.records import TrialRecord
from tests.simulated_study import HEALTHY_PROBES, ArmTruth, SimulatedStudy, write_simulated_study

HEALTHY = ArmTruth(found=0.65, near=0.8, probes=HEALTHY_PROBES)
UNSEEN = ("bell", "knock")


def with_probes(**probes: float) -> ArmTruth:
    return replace(HEALTHY, probes={**HEALTHY_PROBES, **probes})


PLANTED: dict[Signature, ArmTruth] = {
    MISPLACED: replace(HEALTHY, near=0.35),
    DEAF_TO_ELEVATION: replace(HEALTHY, elevation_correlation=(0.7, -0.1)),
    LOST_CLASS: replace(HEALTHY, class_shift={"laughter": -1.0}),
    BLIND_ENCODER: with_probes(linear_doa_error_deg=78.0),
    UNSEEN_CLASSES: replace(HEALTHY, class_shift=dict.fromkeys(UNSEEN, -0.3)),
    SMALL_BUDGETS: replace(HEALTHY, found=0.45, gain_per_doubling=0.14),
    COLLAPSE: with_probes(participation_ratio=1.6),
    DIRECTION_IGNORED: with_probes(retrieval_direction_shuffled_top1=0.39),
    EMPTY_DIRECTIONS: with_probes(loss_share_empty_directions=0.8),
}


def triggered(folder: Path, arm: ArmTruth) -> set[Signature]:
    study = SimulatedStudy(
        arms={"scratch": ArmTruth(found=0.6, near=0.75), "arm": arm},
        seeds=(0, 1, 2, 3, 4),
        unannotated_classes=[name for name in STARSS_CLASSES if name not in UNSEEN],
        predictions=False,
    )
    comparison = Comparison(load_studies([write_simulated_study(folder / "s", study)]))
    findings = find_signatures(comparison, "scratch")
    assert {finding.signature for finding in findings} == set(SIGNATURES)
    assert all(finding.evidence for finding in findings)
    table = signatures_table(findings)
    shown = {row[0].text for row in table.rows if row[1].bold}
    found = {finding.signature for finding in findings if finding.triggered}
    assert shown == {signature.title for signature in found}
    assert all(finding.arm == "arm" for finding in findings if finding.triggered)
    return found


def test_a_healthy_arm_triggers_none(tmp_path: Path) -> None:
    assert triggered(tmp_path, HEALTHY) == set()


def test_every_signature_has_a_planted_case() -> None:
    assert set(PLANTED) == set(SIGNATURES)
    assert all(signature.reason and signature.meaning for signature in SIGNATURES)


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.name)
def test_planted_case_triggers_it_alone(tmp_path: Path, signature: Signature) -> None:
    assert triggered(tmp_path, PLANTED[signature]) == {signature}


def test_probes_that_are_lacking_are_not_measured(tmp_path: Path) -> None:
    study = SimulatedStudy(
        arms={"scratch": ArmTruth(), "arm": ArmTruth()}, recordings=6, predictions=False
    )
    comparison = Comparison(load_studies([write_simulated_study(tmp_path / "s", study)]))
    measured = {finding.signature for finding in find_signatures(comparison, "scratch")}
    assert not measured & {BLIND_ENCODER, COLLAPSE, DIRECTION_IGNORED, EMPTY_DIRECTIONS}


def test_a_pretraining_counts_once_however_many_budgets_have_finished(tmp_path: Path) -> None:
    """One seed's latents have collapsed, and only its fine-tunings have all finished."""

    def change(record: TrialRecord) -> TrialRecord:
        if record.arm != "arm":
            return record
        ratio = 1.0 if record.seed == 0 else 8.0
        unfinished = record.seed == 1 and record.annotation_minutes > 10
        return replace(
            record,
            probes={**record.probes, "participation_ratio": ratio},
            status="stopped" if unfinished else "finished",
        )

    study = SimulatedStudy(
        arms={"scratch": ArmTruth(), "arm": HEALTHY},
        budgets_minutes=(5.0, 20.0, 60.0),
        seeds=(0, 1),
        recordings=3,
        predictions=False,
    )
    results = load_studies([write_simulated_study(tmp_path / "s", study, change)])
    (found,) = [
        finding
        for finding in find_signatures(Comparison(results), "scratch")
        if finding.signature is COLLAPSE
    ]
    (row,) = probes_table(results).values  # noqa: PD011 - a Table of ours
    assert found.value == pytest.approx(4.5)
    assert f"{found.value:.1f}" == row["participation_ratio"]
    assert found.evidence.endswith("mean of 2 seeds")


def test_one_deaf_seed_is_named_and_a_network_that_classifies_badly_is_not_asked(
    tmp_path: Path,
) -> None:
    study = SimulatedStudy(
        arms={
            "scratch": ArmTruth(found=0.2, elevation_correlation=(0.0, 0.0)),
            "arm": replace(HEALTHY, elevation_correlation=(0.7, -0.1)),
        },
        budgets_minutes=(20.0,),
        predictions=False,
    )
    results = load_studies([write_simulated_study(tmp_path / "s", study)])
    (found,) = [
        finding
        for finding in find_signatures(Comparison(results), "scratch")
        if finding.signature is DEAF_TO_ELEVATION
    ]
    assert (found.arm, found.value) == ("arm", -0.1)
    assert found.evidence == "at 20 min: 1 of 3 seeds; −0.10 (seed 0), 0.70 (seed 1), 0.70 (seed 2)"


def test_a_lost_class_is_named_with_its_seeds_and_rare_ones_are_not_asked(tmp_path: Path) -> None:
    """Two classes are lost, one of them with too few tracks to say so."""
    study = SimulatedStudy(
        arms={
            "scratch": HEALTHY,
            "arm": replace(HEALTHY, class_shift={"laughter": -1.0, "bell": -1.0}),
        },
        budgets_minutes=(20.0,),
        seeds=(0, 1),
        predictions=False,
    )
    folder = write_simulated_study(tmp_path / "s", study)
    bell = STARSS_CLASSES.index("bell")
    for path in folder.glob("trials/arm-*/counts.parquet"):
        counts = pd.read_parquet(path)
        few = counts["references"].where(counts["class_id"] != bell, 2.0)
        counts.assign(references=few).to_parquet(path)
    by_arm = {
        finding.arm: finding
        for finding in find_signatures(Comparison(load_studies([folder])), "scratch")
        if finding.signature is LOST_CLASS
    }
    assert (by_arm["scratch"].value, by_arm["arm"].value) == (0, 1)
    assert by_arm["scratch"].evidence == "at 20 min: 0 of 2 seeds"
    assert by_arm["arm"].evidence == "at 20 min: 2 of 2 seeds; laughter (seed 0); laughter (seed 1)"
