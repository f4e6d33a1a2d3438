"""Trackers: the names and values of the tables, read back by their own readers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ablations import runs
from ablations.cluster import ClusterOptions
from ablations.data import DataOptions
from ablations.detached import forwarded_environment
from ablations.grid import run_study
from ablations.options import RunOptions
from ablations.sweep import Sweep, run_sweep
from ablations.tracking import Mlflow, TensorBoard, Tracker, Tracking, trackers
from search_spaces.scales import find_scale
from search_spaces.studies import variants
from seld.errors import InputError
from trainables.cells import Cell
from trainables.finetune import FinetuneSettings

CELL = Cell(
    study="s",
    arm="scratch",
    seed=3,
    annotation_minutes=1.5,
    pretrain=None,
    finetune=FinetuneSettings(),
    parameters={"finetune.learning_rate": 0.001},
)
REPORTS: list[dict[str, Any]] = [
    {"stage": "waits for pretrain by vm"},
    {"stage": "pretrain", "step": 20, "steps": 40, "loss": 3.5, "retrieval_top1": 0.1, "pid": 7},
    {"stage": "pretrain", "step": 40, "steps": 40, "loss": 2.5, "retrieval_top1": 0.2},
    {"stage": "finetune", "step": 10, "steps": 10, "loss": 0.05, "seld_error": 0.5},
    {"status": "finished", "message": "", "seld_error": 0.6, "le_cd_deg": 20.0, "done": True},
]


def run_trial(tracker: Tracker) -> None:
    """What Ray Tune tells its callbacks of one trial."""
    tracking = Tracking(tracker)
    trial = SimpleNamespace(trial_id="abc", config={"cell": CELL}, last_result=REPORTS[-1])
    tracking.on_trial_start(0, [], trial)
    for report in REPORTS:
        tracking.on_trial_result(0, [], trial, report)
    tracking.on_trial_complete(0, [], trial)


def test_tensorboard_has_the_curves_and_scores(tmp_path: Path) -> None:
    run_trial(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path / CELL.trial_id)).Reload()
    read = {
        tag: [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert read == {
        "pretrain/loss": [(20, 3.5), (40, 2.5)],
        "pretrain/retrieval_top1": [(20, 0.1), (40, 0.2)],
        "finetune/loss": [(10, 0.05)],
        "finetune/seld_error": [(10, 0.5)],
        "seld_error": [(0, 0.6)],
        "le_cd_deg": [(0, 20.0)],
    }


def test_mlflow_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_trial(Mlflow("study", tmp_path / "mlflow.db"))
    run_trial(Mlflow("study", tmp_path / "mlflow.db"))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == CELL.trial_id
    assert run.data.params["arm"] == "scratch"
    assert run.data.params["parameter.finetune.learning_rate"] == "0.001"
    assert run.data.metrics == {
        "pretrain/loss": 2.5,
        "pretrain/retrieval_top1": 0.2,
        "finetune/loss": 0.05,
        "finetune/seld_error": 0.5,
        "seld_error": 0.6,
        "le_cd_deg": 20.0,
    }
    curve = client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert [(point.step, point.value) for point in curve] == [(20, 3.5), (40, 2.5)]


def test_mlflow_is_one_flag(tmp_path: Path) -> None:
    assert len(trackers("s", tmp_path / "s", also=None)) == 1
    assert len(trackers("s", tmp_path / "s", also="mlflow")) == 2


def test_a_detached_run_knows_the_tracker_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert forwarded_environment() == {}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert forwarded_environment() == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


SCALE = find_scale("demo")
SWEEP = Sweep(name="s", scale=SCALE, objectives=("avc",), budgets_minutes=(1.5,), trials=1)


@pytest.mark.parametrize(("run", "what"), [(run_study, variants(SCALE)), (run_sweep, SWEEP)])
def test_a_tracker_that_is_not_installed_is_missed_before_any_work(
    run: Callable[..., int], what: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def work(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(runs, "ray_cluster", work)
    options = RunOptions(
        data=DataOptions(folder=tmp_path / "data"),
        results=tmp_path / "results",
        cluster=ClusterOptions(),
        track="mlflow",
    )
    with pytest.raises(InputError, match="pip install mlflow"):
        run(what, options)
