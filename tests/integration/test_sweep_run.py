"""A sweep as people run it: out of time, continued, finished, and asked again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.integration.tiny_study import Command, FinishedStudy

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]

PROGRAM = "ablations/run_sweep.py"


def test_a_sweep_out_of_time_goes_on_and_counts_its_trials_once(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    corpus = f"embedded={finished.corpus}"
    arguments = [
        *("--annotated", corpus, "--unannotated", corpus, "--data", str(finished.data)),
        *("--results", str(results), "--cpus", "2", "--trials", "3", "--rungs", "2"),
        *("--objectives", "doa_wise,avc", "--budgets", "0.2,0.3"),
        *("--set", "pretrain.steps=6", "--set", "pretrain.batch_size=4"),
        *("--set", "pretrain.windows_per_clip=2"),
        *("--set", "finetune.steps=6", "--set", "finetune.batch_size=4"),
    ]
    with Command([*arguments, "--budget-hours", "1e-5"], tmp_path / "first.log", PROGRAM) as first:
        first.process.wait()
    output = (tmp_path / "first.log").read_text()
    assert "time limit reached; run the same command to continue" in output
    assert "report:" in output

    with Command(arguments, tmp_path / "second.log", PROGRAM) as second:
        output = second.finish()
    assert "on the test: python ablations/run_grid.py --arms scratch," in output
    table = pd.read_csv(results / "sweep/trials.csv")
    # A trial is finished, or stopped where two thirds were better with few steps.
    assert sorted(set(table["status"]) | {"finished", "stopped"}) == ["finished", "stopped"]
    assert len(table) == 3
    assert table["trial_id"].is_unique
    assert table["seld_error"].notna().all()
    assert set(table["annotation_minutes"]) <= {0.2, 0.3}
    # Scored on rooms of the training part, never on the test.
    assert set(table["test_fingerprint"]).isdisjoint(
        pd.read_csv(finished.results / "variants/trials.csv")["test_fingerprint"]
    )
    scored = {path.stem for path in results.glob("sweep/trials/*/predictions/*.csv")}
    assert scored
    assert scored <= {f"fold3_room{room}_mix001" for room in (1, 2, 3)}

    with Command(arguments, tmp_path / "third.log", PROGRAM) as third:
        assert "all 3 trials done already" in third.finish()
