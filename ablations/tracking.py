"""Curves and scores to TensorBoard, and to MLflow where asked, under the names of the tables.

A curve is ``<stage>/<name>`` as in ``history.csv``, a score its column in ``trials.csv``.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from torch.utils.tensorboard import SummaryWriter

from seld.errors import InputError
from trainables.cells import Cell

#: What a report says of itself rather than of the training.
_NOT_METRICS = frozenset({"stage", "step", "steps", "status", "message", "rung", "rungs"})
#: What Ray Tune adds to every report.
_TUNES_OWN = frozenset(
    (
        *("timestamp", "time_this_iter_s", "time_total_s", "time_since_restore"),
        *("training_iteration", "iterations_since_restore", "pid"),
    )
)


class TrackedTrial(Protocol):
    """One trial in a tracker."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve, or a score at step 0."""
        ...

    def end(self, finished: bool) -> None:
        """The trial is over."""
        ...


class Tracker(Protocol):
    """Where trials are tracked."""

    def start(self, cell: Cell) -> TrackedTrial:
        """A trial begins, perhaps not for the first time."""
        ...


class TensorBoard:
    """Event files, a folder per trial: ``tensorboard --logdir results/<study>/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, cell: Cell) -> TrackedTrial:
        """Event files of a trial; those of an earlier run stay beside them."""
        return _EventFile(SummaryWriter(str(self._folder / cell.trial_id)))


class _EventFile:
    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def end(self, finished: bool) -> None:
        self._writer.close()


class Mlflow:
    """An MLflow experiment per study, a run per trial.

    Args:
        study: the experiment's name.
        database: SQLite file to track in, where ``MLFLOW_TRACKING_URI`` names no other place.

    Raises:
        InputError: MLflow is not installed.
    """

    def __init__(self, study: str, database: Path) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise InputError("--track", "mlflow", "not installed", "pip install mlflow-skinny")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database.resolve()}"
        )
        experiment = self._client.get_experiment_by_name(study)
        self._experiment = (
            experiment.experiment_id if experiment else self._client.create_experiment(study)
        )

    def start(self, cell: Cell) -> TrackedTrial:
        """A run with the trial's settings as the tables name them."""
        run = self._client.create_run(self._experiment, run_name=cell.trial_id)
        identity = {
            "arm": cell.arm,
            "seed": cell.seed,
            "annotation_minutes": cell.annotation_minutes,
        }
        parameters = {f"parameter.{name}": value for name, value in cell.parameters.items()}
        for name, value in (identity | parameters).items():
            self._client.log_param(run.info.run_id, name, value)
        return _MlflowRun(self._client, run.info.run_id)


class _MlflowRun:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def scalar(self, name: str, value: float, step: int) -> None:
        milliseconds = int(time.time() * 1000)
        self._client.log_metric(self._run_id, name, value, timestamp=milliseconds, step=step)

    def end(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")


class Tracking(tune.Callback):
    """Passes on to a tracker what trials report to Ray Tune."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._trials: dict[str, TrackedTrial] = {}

    # Tune pickles and copies its callbacks to restore experiments; an open file is neither.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Tracking:
        return self

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial begins or begins again."""
        if trial.trial_id not in self._trials:
            self._trials[trial.trial_id] = self._tracker.start(trial.config["cell"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with every report of a trial."""
        tracked = self._trials[trial.trial_id]
        for name, value in scalars(result).items():
            tracked.scalar(name, value, int(result.get("step") or result.get("rung") or 0))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended or was stopped."""
        status = (trial.last_result or {}).get("status")
        self._trials.pop(trial.trial_id).end(finished=status != "failed")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial's process has died."""
        self._trials.pop(trial.trial_id).end(finished=False)


def scalars(result: Mapping[str, Any]) -> dict[str, float]:
    """The curves and scores in a report, under the names of ``history.csv`` and ``trials.csv``."""
    stage = result.get("stage")
    named = {}
    for name, value in result.items():
        if name in _NOT_METRICS or name in _TUNES_OWN or isinstance(value, bool):
            continue
        if not isinstance(value, Real):
            continue
        # Validations during a fine-tuning have the names of the trial's own scores.
        named[name if stage is None else f"{stage}/{name}"] = float(value)
    return named


def trackers(study: str, study_folder: Path, *, also: str | None) -> list[tune.Callback]:
    """TensorBoard, and MLflow where ``also`` says so, as callbacks of Ray Tune."""
    found: list[tune.Callback] = [Tracking(TensorBoard(study_folder / "tensorboard"))]
    if also == "mlflow":
        found.append(Tracking(Mlflow(study, study_folder.parent / "mlflow.db")))
    return found
