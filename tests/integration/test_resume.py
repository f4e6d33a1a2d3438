"""Whatever ended a run, the same command finishes it, and the table is what it would have been."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from tests.integration.tiny_study import (
    Command,
    FinishedStudy,
    committed,
    files_of,
    networks_of,
    table_of,
)

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(3600)]


def test_killed_runs_end_like_an_uninterrupted_one(finished: FinishedStudy, tmp_path: Path) -> None:
    """Every kind of process is killed, on 16 CPUs and on one; the uninterrupted run had two."""
    results = tmp_path / "results"
    stages = results / "stages"
    arguments = finished.arguments(results)

    def exists(pattern: str) -> bool:
        return any(stages.glob(pattern))

    # Workers die in the middle of training; the run goes on by itself until the driver dies too.
    with Command([*arguments, "--cpus", "16"], tmp_path / "first.log") as first:
        first.reach(lambda: exists("finetune/*/partial/state.pt"), "a state of the fine-tuning")
        first.kill_worker("ray::_run_job")
        first.reach(lambda: exists("pretrain/*/partial/train/checkpoint*"), "Train's checkpoint")
        first.kill_worker("ray::RayTrainWorker")
        first.reach(lambda: exists("pretrain/*/lease-00001.json"), "a second try")
        first.kill_driver()
    assert not committed(results, "pretrain")

    # The process of the trial dies, and with it Train's controller; its workers hold half of the
    # only CPU, without which the next try would wait for ever.
    with Command([*arguments, "--cpus", "1"], tmp_path / "second.log") as second:
        second.reach(lambda: second.processes("ray::RayTrainWorker"), "a worker of the third try")
        second.kill_worker("ray::ImplicitFunc")
        second.finish()

    pd.testing.assert_frame_equal(table_of(results), table_of(finished.results))
    assert files_of(results, "*/history.csv") == files_of(finished.results, "*/history.csv")
    assert networks_of(results) == networks_of(finished.results)
    assert len(networks_of(results)) == 2
    for stage in ("pretrain", "finetune", "evaluate"):
        assert committed(results, stage) == committed(finished.results, stage)
    assert not exists("*/*/partial")


def test_a_group_that_loses_a_worker_starts_again_from_its_checkpoint(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    two = ["--arms", "doa_wise", "--train-workers", "2", "--cpus", "2"]
    with Command([*finished.arguments(results), *two], tmp_path / "output.log") as command:
        found: list[Path] = []

        def trained() -> bool:
            found.extend((results / "stages/pretrain").glob("*/partial/train/checkpoint*"))
            return bool(found)

        command.reach(trained, "a checkpoint of both")
        command.kill_worker("ray::RayTrainWorker")
        output = command.finish()
    assert "1 trial at once, each with 2 workers" in output
    assert len(list((results / "stages/pretrain").glob("*/lease-*.json"))) == 2
    (table,) = files_of(results, "*/history.csv").values()
    curve = pd.read_csv(io.BytesIO(table)).query("stage == 'pretrain' and name == 'loss'")
    # Every step once: those before the checkpoint by the first group, the others by the second.
    assert curve["step"].tolist() == list(range(4, 49, 4))
    assert set(table_of(results)["status"]) == {"finished"}


def test_a_pretraining_shrinks_to_the_machines_that_are_left(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    """Three workers on two machines; the larger is lost, and two go on with all that is left."""
    results = tmp_path / "results"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False},
    )
    larger = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.3")
    arguments = [
        *finished.arguments(results, where=["--address", cluster.address]),
        *("--arms", "doa_wise", "--train-workers", "1-3", "--set", "pretrain.batch_size=12"),
    ]
    try:
        with Command(arguments, tmp_path / "output.log") as command:
            command.reach(
                lambda: any(results.glob("stages/pretrain/*/partial/train/checkpoint*")),
                "a checkpoint of all three",
            )
            cluster.remove_node(larger, allow_graceful=False)
            output = command.finish()
    finally:
        cluster.shutdown()
    assert "1 trial at once, each with 1 to 3 workers" in output
    assert len(list(results.glob("stages/pretrain/*/lease-*.json"))) >= 2
    (table,) = files_of(results, "*/history.csv").values()
    curve = pd.read_csv(io.BytesIO(table)).query("stage == 'pretrain' and name == 'loss'")
    assert curve["step"].tolist() == list(range(4, 49, 4))
    assert set(table_of(results)["status"]) == {"finished"}
