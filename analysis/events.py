"""Reference and predicted events matched frame by frame: confusions, azimuth errors, tracks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from analysis.load import Trial
from seld.annotations import read_annotations, read_predictions
from seld.errors import InputError
from seld.metrics import SPATIAL_THRESHOLD_DEG
from seld.records import PREDICTIONS_FOLDER, REFERENCE_FOLDER


@dataclass(frozen=True)
class Matches:
    """What one trial predicted for all test recordings.

    Attributes:
        confusion: (class + 1, class + 1) frames: reference by row, prediction by column; the last
            row is predicted where nothing is, the last column is missed.
        azimuth_error_deg: (match,) prediction minus reference of events of one class, in
            [-180, 180).
        recording: the one with most events, whose tracks are shown.
        reference: its reference table.
        prediction: its prediction table.
    """

    confusion: NDArray[np.int64]
    azimuth_error_deg: NDArray[np.float64]
    recording: str
    reference: pd.DataFrame
    prediction: pd.DataFrame


def match_events(trial: Trial) -> Matches:
    """Read a trial's predictions and the study's references, and match them.

    For confusions, events are matched by direction alone, within 20°; for azimuth errors by
    direction within each class, at any distance.

    Raises:
        InputError: a file is missing or malformed.
    """
    class_count = len(trial.record.class_names)
    confusion = np.zeros((class_count + 1, class_count + 1), dtype=np.int64)
    errors: list[NDArray[np.float64]] = []
    busiest: tuple[str, pd.DataFrame, pd.DataFrame] | None = None
    for name, reference, prediction in _tables(trial):
        if busiest is None or len(reference) > len(busiest[1]):
            busiest = (name, reference, prediction)
        true, guessed = _by_frame(reference), _by_frame(prediction)
        for frame in true.keys() | guessed.keys():
            ours = true.get(frame, _NOTHING)
            theirs = guessed.get(frame, _NOTHING)
            _count_confusions(confusion, ours, theirs)
            errors += _azimuth_errors(ours, theirs)
    if busiest is None:
        raise InputError(trial.study_folder / REFERENCE_FOLDER, "files", 0, "annotations as csv")
    return Matches(
        confusion,
        np.concatenate(errors) if errors else np.zeros(0),
        *busiest,
    )


#: One frame's events: class, azimuth in degrees, unit vector (3), by column.
_NOTHING = np.zeros((0, 5))


def _tables(trial: Trial) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    references = trial.study_folder / REFERENCE_FOLDER
    for path in sorted((trial.folder / PREDICTIONS_FOLDER).glob("*.csv")):
        yield path.stem, read_annotations(_there(references / path.name)), read_predictions(path)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InputError(path, "file", "missing", "the annotations of a predicted recording")
    return path


def _by_frame(table: pd.DataFrame) -> dict[int, NDArray[np.float64]]:
    """Frame → (event, 5): class, azimuth, unit vector."""
    if not len(table):
        return {}
    azimuth = np.radians(table["azimuth_deg"].to_numpy(np.float64))
    elevation = np.radians(table["elevation_deg"].to_numpy(np.float64))
    events = np.column_stack(
        [
            table["class_id"].to_numpy(np.float64),
            table["azimuth_deg"].to_numpy(np.float64),
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    frame = table["frame"].to_numpy()
    order = np.argsort(frame, kind="stable")
    frames, starts = np.unique(frame[order], return_index=True)
    return dict(zip(frames.tolist(), np.split(events[order], starts[1:]), strict=True))


def _distances_deg(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.degrees(np.arccos(np.clip(first[:, 2:] @ second[:, 2:].T, -1, 1)))


def _count_confusions(
    confusion: NDArray[np.int64], true: NDArray[np.float64], guessed: NDArray[np.float64]
) -> None:
    nothing = len(confusion) - 1
    distance = _distances_deg(true, guessed)
    # Of pairs equally near, one of the same class is right.
    cost = distance + (true[:, :1] != guessed[:, 0])
    cost[distance > SPATIAL_THRESHOLD_DEG] = 1e3
    rows, columns = linear_sum_assignment(cost)
    near = distance[rows, columns] <= SPATIAL_THRESHOLD_DEG
    rows, columns = rows[near], columns[near]
    np.add.at(confusion, (true[rows, 0].astype(int), guessed[columns, 0].astype(int)), 1)
    missed = np.delete(true[:, 0], rows).astype(int)
    invented = np.delete(guessed[:, 0], columns).astype(int)
    confusion[:, nothing] += np.bincount(missed, minlength=len(confusion))
    confusion[nothing] += np.bincount(invented, minlength=len(confusion))


def _azimuth_errors(
    true: NDArray[np.float64], guessed: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    errors = []
    for class_id in np.intersect1d(true[:, 0], guessed[:, 0]):
        ours, theirs = true[true[:, 0] == class_id], guessed[guessed[:, 0] == class_id]
        rows, columns = linear_sum_assignment(_distances_deg(ours, theirs))
        errors.append((theirs[columns, 1] - ours[rows, 1] + 180) % 360 - 180)
    return errors
