"""Whatever ended a run, the same command finishes it, and the table is what it would have been."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.integration.tiny_study import (
    Command,
    FinishedStudy,
    committed,
    files_of,
    networks_of,
    table_of,
)

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]


def test_killed_runs_end_like_an_uninterrupted_one(finished: FinishedStudy, tmp_path: Path) -> None:
    results = tmp_path / "results"
    stages = results / "stages"
    arguments = finished.arguments(results)

    def exists(pattern: str) -> bool:
        return any(stages.glob(pattern))

    # Workers die; the run goes on by itself until the driver dies too.
    with Command(arguments, tmp_path / "first.log") as first:
        first.reach(lambda: exists("finetune/*/partial/state.pt"), "a state of the fine-tuning")
        first.kill_worker("ray::_run_job")
        first.reach(lambda: exists("pretrain/*/partial/train/*.json"), "a checkpoint of Train")
        first.kill_worker("ray::RayTrainWorker")
        first.reach(lambda: exists("pretrain/*/lease-00001.json"), "a second try")
        first.kill_worker("ray::RayTrainWorker")
        first.kill_driver()

    with Command(arguments, tmp_path / "second.log") as second:
        second.kill_worker("ray::TrainController")
        second.reach(lambda: exists("pretrain/*/attempt-*"), "the pretraining's commit")
        second.kill_driver()

    with Command(arguments, tmp_path / "third.log") as third:
        third.reach(lambda: len(committed(results, "pretrain")) == 1, "the pretraining")
        third.kill_worker("ray::ImplicitFunc")
        third.reach(lambda: exists("evaluate/*/lease-00000.json"), "an evaluation")
        third.kill_driver()

    with Command(arguments, tmp_path / "last.log") as last:
        last.finish()

    pd.testing.assert_frame_equal(table_of(results), table_of(finished.results))
    assert files_of(results, "*/history.csv") == files_of(finished.results, "*/history.csv")
    assert networks_of(results) == networks_of(finished.results)
    assert len(networks_of(results)) == 2
    for stage in ("pretrain", "finetune", "evaluate"):
        assert committed(results, stage) == committed(finished.results, stage)
    assert not exists("*/*/partial")
