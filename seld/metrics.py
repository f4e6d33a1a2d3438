"""The DCASE 2022 Task 3 metric: location-dependent detection, class-dependent localisation.

    python -m seld.metrics REFERENCE_DIR PREDICTION_DIR [--average macro|micro] [--jackknife]

Sources: A. Mesaros et al., "Joint measurement of localization and detection of sound events",
WASPAA 2019; A. Politis et al., "Overview and evaluation of SELD in DCASE 2019", TASLP 2020; and
the evaluator of the DCASE 2022 baseline, which this follows to the last digit. What only the
evaluator tells:

- Blocks of 10 frames count from frame 0 up to the last reference frame's number, exclusive: where
  that is a multiple of 10, the last frame is not scored. Predictions after the last block are not
  looked at.
- Tracks are places in a frame's rows of one class; ``source_id`` is not used. A row that stands
  twice is two tracks.
- A class that a block has in reference and prediction, but never in one frame, counts ``n_pred``
  misses (not ``n_ref``) and no false positive.
- ER is one number over all classes, since substitutions pair a miss with another class's false
  positive. A class's own row, and the macro mean, hold the same ER.
- Macro means run over all classes: an absent one has F 0, LE 180°, LR 0.
- Denominators have machine epsilon added: without any reference track, one error makes an ER of
  4.5e15.

Two things are not followed: rooms are told apart by their whole number (the evaluator takes its
first digit, so rooms 2 and 21 are one), and with the jackknife ER is that of all files (the
evaluator returns that of its last leave-one-out round; the intervals are the same).

Everything is a ratio of counts that add up over recordings (:func:`recording_counts`), so a
jackknife or a bootstrap is a sum of counts and one call of :func:`scores_from_counts`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seld.annotations import ParsedFile, parse
from seld.classes import STARSS_CLASSES, read_class_names
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.storage import files_within

#: Changes whenever a score could: records that differ in it are not compared.
METRIC_VERSION = "dcase2022-1"

Average = Literal["macro", "micro"]

FRAMES_PER_BLOCK = 10
SPATIAL_THRESHOLD_DEG = 20.0
WORST_ERROR_DEG = 180.0

SCORE_NAMES: tuple[str, ...] = ("er20", "f20", "le_cd_deg", "lr_cd", "seld_error")

#: What is counted per recording and class; all of it adds up over recordings. The last two
#: are of the whole recording and stand in every class's row, see ER in the module's docstring.
COUNT_COLUMNS: tuple[str, ...] = (
    "references",
    "true_positives",
    "spatial_false_positives",
    "false_positives",
    "false_negatives",
    "distance_sum_deg",
    "recording_errors",
    "recording_references",
)

_REFERENCES = COUNT_COLUMNS.index("references")
_RECORDING_ERRORS = COUNT_COLUMNS.index("recording_errors")
_RECORDING_REFERENCES = COUNT_COLUMNS.index("recording_references")
_OF_RECORDING = [_RECORDING_ERRORS, _RECORDING_REFERENCES]

# The evaluator adds it to every denominator.
_EPSILON = np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True)
class SeldScore:
    """Scores of a set of recordings.

    Attributes:
        er20: error rate at 20°, 0 or more, lower is better.
        f20: F-score at 20°, 0 to 1.
        le_cd_deg: class-dependent localisation error, 0° to 180°.
        lr_cd: class-dependent localisation recall, 0 to 1.
        seld_error: mean of er20, 1 - f20, le_cd_deg / 180 and 1 - lr_cd.
        per_class: the same columns and ``references`` (reference tracks summed over blocks), one
            row per class; after a jackknife also ``<score>_low`` and ``<score>_high``.
        per_room: the same columns and ``recordings``, one row per room number in the names.
        intervals: 95 % jackknife interval (low, high) per score, or None.
    """

    er20: float
    f20: float
    le_cd_deg: float
    lr_cd: float
    seld_error: float
    per_class: pd.DataFrame
    per_room: pd.DataFrame
    intervals: Mapping[str, tuple[float, float]] | None = None


def score(
    references: Mapping[str, pd.DataFrame],
    predictions: Mapping[str, pd.DataFrame],
    *,
    class_names: Sequence[str],
    average: Average = "macro",
    jackknife: bool = False,
) -> SeldScore:
    """Score tables (see :mod:`seld.annotations`) by recording name.

    Raises:
        InputError: there is no recording, the names differ, a class is unknown, or fewer than two
            recordings are to be left out one at a time.
    """
    if not references:
        raise InputError("references", "recordings", 0, "at least 1")
    for name in sorted(references.keys() ^ predictions.keys()):
        lacking = "prediction" if name in references else "reference"
        raise InputError(lacking, name, "missing", "a reference and a prediction per recording")
    names = sorted(references)
    counts = recording_counts(
        [references[name] for name in names],
        [predictions[name] for name in names],
        class_count=len(class_names),
    )
    return score_from_recordings(
        names, counts, class_names=class_names, average=average, jackknife=jackknife
    )


def score_from_recordings(
    names: Sequence[str],
    counts: NDArray[np.float64],
    *,
    class_names: Sequence[str],
    average: Average = "macro",
    jackknife: bool = False,
) -> SeldScore:
    """As :func:`score`, from counts (recording, class, column) by recording name."""
    total = counts.sum(axis=0)
    overall = scores_from_counts(total, average=average)
    per_class = pd.DataFrame(_class_scores(total), index=pd.Index(list(class_names), name="class"))
    per_class["references"] = total[:, _REFERENCES].astype(int)
    intervals = None
    if jackknife:
        if len(names) < 2:
            raise InputError("jackknife", "recordings", len(names), "at least 2")
        others = total - counts
        intervals = {
            name: (float(low), float(high))
            for name, (low, high) in _jackknife(
                overall, scores_from_counts(others, average=average)
            ).items()
        }
        for name, (low, high) in _jackknife(_class_scores(total), _class_scores(others)).items():
            per_class[f"{name}_low"], per_class[f"{name}_high"] = low, high
    return SeldScore(
        **{name: float(overall[name]) for name in SCORE_NAMES},
        per_class=per_class,
        per_room=_room_scores(names, counts, average),
        intervals=intervals,
    )


def scores_from_counts(
    counts: NDArray[np.float64], average: Average = "macro"
) -> dict[str, NDArray[np.float64]]:
    """Scores of summed counts (..., class, column), each (...,), by the names in ``SCORE_NAMES``.

    A selection of classes gives the macro mean over these classes; its ER stays that of all.
    """
    if average == "macro":
        return {name: values.mean(axis=-1) for name, values in _class_scores(counts).items()}
    if average == "micro":
        total = counts.sum(axis=-2, keepdims=True)
        # The recording's own counts are repeated per class and must not be summed over classes.
        total[..., 0, _OF_RECORDING] = counts[..., 0, _OF_RECORDING]
        return {name: values[..., 0] for name, values in _class_scores(total).items()}
    raise InputError("score", "average", average, "'macro' or 'micro'")


def recording_counts(
    references: Sequence[pd.DataFrame], predictions: Sequence[pd.DataFrame], *, class_count: int
) -> NDArray[np.float64]:
    """Additive counts of many recordings: (recording, class, column), see :data:`COUNT_COLUMNS`.

    Raises:
        InputError: a class is not within ``class_count``.
    """
    counts = np.zeros((len(references), class_count, len(COUNT_COLUMNS)))
    block_counts = [_block_count(reference) for reference in references]
    first_block = np.concatenate([[0], np.cumsum(block_counts)]).astype(np.int64)
    reference = _Cells.of(references, first_block, class_count, "reference")
    prediction = _Cells.of(predictions, first_block, class_count, "prediction")
    if not len(reference.cell) and not len(prediction.cell):
        return counts

    # A group is a class within a block; most groups are empty and are not looked at.
    groups = np.union1d(reference.group(class_count), prediction.group(class_count))
    block, class_id = np.divmod(groups, class_count)
    reference_tracks = _most_at_once(reference, groups, class_count)
    predicted_tracks = _most_at_once(prediction, groups, class_count)
    matched = _matched_tracks(reference, prediction, groups, class_count)

    never_together = (reference_tracks > 0) & (predicted_tracks > 0) & (matched.tracks == 0)
    surplus = np.maximum(predicted_tracks - reference_tracks, 0)
    false_positives = np.where(never_together, 0, surplus)
    missing = np.maximum(reference_tracks - predicted_tracks, 0)
    false_negatives = np.where(never_together, predicted_tracks, missing)

    recording = np.searchsorted(first_block, block, side="right") - 1
    cell = recording * class_count + class_id
    columns = {
        "references": reference_tracks,
        "true_positives": matched.near,
        "spatial_false_positives": matched.tracks - matched.near,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "distance_sum_deg": matched.distance_sum_deg,
    }
    for name, values in columns.items():
        summed = np.bincount(cell, values, minlength=len(references) * class_count)
        counts[..., COUNT_COLUMNS.index(name)] = summed.reshape(len(references), class_count)

    # Substitutions + deletions + insertions of a block are max(FP, FN) over all its classes.
    blocks, position = np.unique(block, return_inverse=True)
    wrong = np.bincount(position, false_positives + matched.tracks - matched.near)
    missed = np.bincount(position, false_negatives)
    recording = np.searchsorted(first_block, blocks, side="right") - 1
    errors = np.bincount(recording, np.maximum(wrong, missed), minlength=len(references))
    counts[..., _RECORDING_ERRORS] = errors[:, None]
    counts[..., _RECORDING_REFERENCES] = counts[..., _REFERENCES].sum(axis=1, keepdims=True)
    return counts


def _class_scores(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """(..., class, column) → each score (..., class)."""
    (_, true, spatial, false_positives, false_negatives, distance, errors, recording_references) = (
        np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    )
    localised = true + spatial
    f20 = true / (_EPSILON + localised + 0.5 * (false_positives + false_negatives))
    le_cd_deg = np.where(localised > 0, distance / (localised + _EPSILON), WORST_ERROR_DEG)
    lr_cd = localised / (_EPSILON + localised + false_negatives)
    er20 = errors / (recording_references + _EPSILON)
    seld_error = (er20 + (1 - f20) + le_cd_deg / 180 + (1 - lr_cd)) / 4
    return dict(zip(SCORE_NAMES, (er20, f20, le_cd_deg, lr_cd, seld_error), strict=True))


def _room_scores(
    names: Sequence[str], counts: NDArray[np.float64], average: Average
) -> pd.DataFrame:
    rooms = np.array([_room(name) for name in names])
    rows = {}
    for room in sorted({room for room in rooms.tolist() if room >= 0}):
        scores = scores_from_counts(counts[rooms == room].sum(axis=0), average=average)
        rows[room] = {name: float(value) for name, value in scores.items()}
        rows[room]["recordings"] = int(np.count_nonzero(rooms == room))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*SCORE_NAMES, "recordings"])
    return table.rename_axis("room")


def _room(name: str) -> int:
    """Room number of ``fold4_room23_mix001``; -1 where the name has none."""
    found = re.search(r"room([0-9]+)", name)
    return int(found[1]) if found else -1


def _jackknife(
    whole: Mapping[str, NDArray[np.float64]], others: Mapping[str, NDArray[np.float64]]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """95 % intervals from scores (...) and those with each recording left out (recording, ...)."""
    # Half a second of every worker's start, and most of them compute no intervals.
    from scipy.special import stdtrit

    intervals = {}
    for name, partial in others.items():
        count = len(partial)
        bias = (count - 1) * (partial.mean(axis=0) - whole[name])
        deviation = partial - partial.mean(axis=0)
        standard_error = np.sqrt((count - 1) * (deviation**2).mean(axis=0))
        half_width = stdtrit(count - 1, 0.975) * standard_error
        estimate = whole[name] - bias
        intervals[name] = (estimate - half_width, estimate + half_width)
    return intervals


def _block_count(reference: pd.DataFrame) -> int:
    if not len(reference):
        return 0
    return -(-int(reference["frame"].to_numpy().max()) // FRAMES_PER_BLOCK)


@dataclass(frozen=True)
class _Cells:
    """Rows sorted by cell (a class within a frame of a recording), in file order within one.

    Frames and blocks are numbered through all recordings.
    """

    cell: NDArray[np.int64]  # ascending, (cell,)
    first_row: NDArray[np.int64]
    row_count: NDArray[np.int64]
    azimuth: NDArray[np.float64]  # radians, (row,)
    elevation: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        tables: Sequence[pd.DataFrame],
        first_block: NDArray[np.int64],
        class_count: int,
        kind: str,
    ) -> _Cells:
        recording = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        frame = _stacked(tables, "frame", np.int64)
        class_id = _stacked(tables, "class_id", np.int64)
        if len(unknown := class_id[(class_id < 0) | (class_id >= class_count)]):
            raise InputError(kind, "class_id", int(unknown[0]), f"0 to {class_count - 1}")
        frame_count = np.diff(first_block)[recording] * FRAMES_PER_BLOCK
        scored = np.flatnonzero((frame >= 0) & (frame < frame_count))
        frame = frame + first_block[recording] * FRAMES_PER_BLOCK
        cell = (frame * class_count + class_id)[scored]
        order = np.argsort(cell, kind="stable")
        cells, first_row, row_count = np.unique(cell[order], return_index=True, return_counts=True)
        rows = scored[order]
        # The evaluator's own way to radians: its threshold may hang on the last bit.
        azimuth = _stacked(tables, "azimuth_deg", np.float64)[rows] * np.pi / 180.0
        elevation = _stacked(tables, "elevation_deg", np.float64)[rows] * np.pi / 180.0
        return cls(cells, first_row, row_count, azimuth, elevation)

    def group(self, class_count: int) -> NDArray[np.int64]:
        """Number of each cell's class within its block: block × class_count + class."""
        frame, class_id = np.divmod(self.cell, class_count)
        return frame // FRAMES_PER_BLOCK * class_count + class_id


@dataclass(frozen=True)
class _Matched:
    """Per group: reference tracks that were matched, how many within 20°, their distances."""

    tracks: NDArray[np.int64]
    near: NDArray[np.int64]
    distance_sum_deg: NDArray[np.float64]


def _stacked(tables: Sequence[pd.DataFrame], column: str, dtype: type) -> NDArray:
    return np.concatenate(
        [np.zeros(0, dtype), *(table[column].to_numpy(dtype) for table in tables)]
    )


def _most_at_once(cells: _Cells, groups: NDArray[np.int64], class_count: int) -> NDArray[np.int64]:
    most = np.zeros(len(groups), dtype=np.int64)
    np.maximum.at(most, np.searchsorted(groups, cells.group(class_count)), cells.row_count)
    return most


def _matched_tracks(
    reference: _Cells, prediction: _Cells, groups: NDArray[np.int64], class_count: int
) -> _Matched:
    """Match reference and predicted rows in every cell both have, then average per track."""
    shared, in_reference, in_prediction = np.intersect1d(
        reference.cell, prediction.cell, assume_unique=True, return_indices=True
    )
    frame, class_id = np.divmod(shared, class_count)
    group = np.searchsorted(groups, frame // FRAMES_PER_BLOCK * class_count + class_id)
    shapes = np.column_stack(
        [reference.row_count[in_reference], prediction.row_count[in_prediction]]
    )
    most_tracks = int(shapes[:, 0].max(initial=1))

    cells, tracks, distances = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)]
    for rows, columns in np.unique(shapes, axis=0):
        (same_shape,) = np.nonzero((shapes == (rows, columns)).all(axis=1))
        row = reference.first_row[in_reference[same_shape], None] + np.arange(rows)
        column = prediction.first_row[in_prediction[same_shape], None] + np.arange(columns)
        cost = _distance_deg(
            reference.azimuth[row][:, :, None],
            reference.elevation[row][:, :, None],
            prediction.azimuth[column][:, None, :],
            prediction.elevation[column][:, None, :],
        )
        matched_row, matched_column = _assign(cost)
        cells.append(np.repeat(same_shape, matched_row.shape[1]))
        tracks.append(matched_row.ravel())
        item = np.arange(len(cost))[:, None]
        distances.append(cost[item, matched_row, matched_column].ravel())

    cell = np.concatenate(cells)
    in_time = np.argsort(cell, kind="stable")  # sums run over frames in order, as the evaluator's
    track = (group[cell] * most_tracks + np.concatenate(tracks))[in_time]
    size = len(groups) * most_tracks
    frames = np.bincount(track, minlength=size)
    total = np.bincount(track, np.concatenate(distances)[in_time], minlength=size)
    mean = (total / np.maximum(frames, 1)).reshape(len(groups), most_tracks)
    matched = (frames > 0).reshape(len(groups), most_tracks)
    return _Matched(
        tracks=matched.sum(axis=1),
        near=(matched & (mean <= SPATIAL_THRESHOLD_DEG)).sum(axis=1),
        distance_sum_deg=mean.sum(axis=1),
    )


def _distance_deg(
    azimuth: NDArray[np.float64],
    elevation: NDArray[np.float64],
    other_azimuth: NDArray[np.float64],
    other_elevation: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Great-circle distance of radians, by the evaluator's formula, rounding included."""
    cosine = np.sin(elevation) * np.sin(other_elevation) + np.cos(elevation) * np.cos(
        other_elevation
    ) * np.cos(np.abs(azimuth - other_azimuth))
    return np.arccos(np.clip(cosine, -1, 1)) * 180 / np.pi


def _assign(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Least-cost assignment of each matrix (item, row, column), ties resolved as scipy does.

    Returns:
        Matched rows and columns, both (item, min(row, column)).
    """
    items, rows, columns = cost.shape
    if rows == 1:
        return np.zeros((items, 1), dtype=np.int64), cost.argmin(axis=2)
    if columns == 1:
        return cost.argmin(axis=1), np.zeros((items, 1), dtype=np.int64)
    if rows == columns == 2:
        swapped = _is_swapped(cost).astype(np.int64)
        both = np.broadcast_to(np.arange(2), (items, 2))
        return both, np.column_stack([swapped, 1 - swapped])
    # Half a second of every worker's start, and most of them match nothing.
    from scipy.optimize import linear_sum_assignment

    pairs = np.array([linear_sum_assignment(matrix) for matrix in cost])
    return pairs[:, 0], pairs[:, 1]


def _is_swapped(cost: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the best assignment of 2 x 2 matrices is the anti-diagonal.

    The steps of scipy's shortest augmenting paths, with its order of additions: where both
    assignments cost the same (a row that stands twice), rounding decides, and it must be scipy's.
    """
    (first_left, first_right), (second_left, second_right) = np.moveaxis(cost, 0, -1)
    second_takes_left = second_left < second_right
    left_detour = second_left + first_right - first_left
    swap_from_left = second_takes_left & (left_detour < second_right)
    right_detour = second_right + first_left - first_right
    keep_from_right = (second_right < second_left) & (right_detour < second_left)
    return np.where(first_left <= first_right, swap_from_left, ~keep_from_right)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score two folders; what is wrong with them goes to stderr."""
    parser = CommandLine(
        prog="python -m seld.metrics",
        description="Score DCASE csv files as DCASE 2022 Task 3 does.",
    )
    parser.add_argument("reference_dir", type=Path, metavar="REFERENCE_DIR")
    parser.add_argument("prediction_dir", type=Path, metavar="PREDICTION_DIR")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes in label order, one per line (the thirteen of STARSS)",
    )
    parser.add_argument("--average", choices=("macro", "micro"), default="macro")
    parser.add_argument("--jackknife", action="store_true", help="95 %% intervals over recordings")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="fail where a file is missing or a row malformed (else named and left out)",
    )
    options = parser.parse_args(arguments)

    class_names = read_class_names(options.classes) if options.classes else STARSS_CLASSES
    references, predictions, problems = read_folders(
        options.reference_dir, options.prediction_dir, class_count=len(class_names)
    )
    for problem in problems:
        print(f"{'error' if options.strict else 'warning'}: {problem}", file=sys.stderr)
    if options.strict and problems:
        return 2
    if not references:
        raise InputError(
            options.prediction_dir, "recordings", 0, "csv files named as those of the reference"
        )
    result = score(
        references,
        predictions,
        class_names=class_names,
        average=options.average,
        jackknife=options.jackknife,
    )
    if options.json:
        print(json.dumps(_as_json(result, options.average, len(references), problems), indent=2))
    else:
        print(_as_text(result, options.average, references))
    return 0


def read_folders(
    reference_dir: Path, prediction_dir: Path, *, class_count: int
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame], list[InputError]]:
    """Tables of all recordings that both folders hold, and what is wrong with the files.

    Subfolders are searched too. As with the official evaluator, a recording without a prediction
    file is not scored (its events are not counted as missed), nor is a class that is unknown.

    Raises:
        InputError: a folder cannot be read, or nothing in one of the files can be: scored as empty
            it would pass for a recording without predictions.
    """
    reference_paths, prediction_paths = _csv_files(reference_dir), _csv_files(prediction_dir)
    problems = [
        InputError(folder, f"{name}.csv", "missing", "one file per recording in both folders")
        for name in sorted(reference_paths.keys() ^ prediction_paths.keys())
        for folder in [prediction_dir if name in reference_paths else reference_dir]
    ]
    names = sorted(reference_paths.keys() & prediction_paths.keys())
    references = {name: _some_rows(reference_paths[name], class_count) for name in names}
    predictions = {name: _some_rows(prediction_paths[name], class_count) for name in names}
    for parsed in (*references.values(), *predictions.values()):
        problems += parsed.problems
    problems += [
        InputError(reference_paths[name], "rows", 0, "at least one event")
        for name in names
        if not len(references[name].table)
    ]
    return _tables(references), _tables(predictions), problems


def _some_rows(path: Path, class_count: int) -> ParsedFile:
    parsed = parse(path, class_count)
    if parsed.problems and not len(parsed.table):
        expected = f"at least one, as the file is not empty ({parsed.problems[0]})"
        raise InputError(path, "well-formed rows", 0, expected)
    return parsed


def _csv_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(folder, "folder", "missing", "a folder of DCASE csv files")
    paths: dict[str, Path] = {}
    for path in files_within(folder):
        if path.suffix != ".csv":
            continue
        if path.stem in paths:
            raise InputError(
                folder, "name", path.name, f"one file of that name ({paths[path.stem]})"
            )
        paths[path.stem] = path
    return paths


def _tables(parsed: Mapping[str, ParsedFile]) -> dict[str, pd.DataFrame]:
    return {name: file.table for name, file in parsed.items()}


def _as_json(
    result: SeldScore, average: Average, recordings: int, problems: Sequence[InputError]
) -> dict[str, object]:
    return {
        "metric_version": METRIC_VERSION,
        "average": average,
        "recordings": recordings,
        **{name: getattr(result, name) for name in SCORE_NAMES},
        "intervals": result.intervals,
        "per_class": result.per_class.to_dict(orient="index"),
        "per_room": {str(room): row for room, row in result.per_room.to_dict("index").items()},
        "problems": [str(problem) for problem in problems],
    }


def _as_text(result: SeldScore, average: Average, references: Mapping[str, pd.DataFrame]) -> str:
    lines = [f"{len(references)} recordings, {average} average, metric {METRIC_VERSION}", ""]
    for name in SCORE_NAMES:
        line = f"{name:<11}{getattr(result, name):9.4f}"
        if result.intervals:
            low, high = result.intervals[name]
            line += f"   [{low:.4f}, {high:.4f}]"
        lines.append(line)
    # Where nothing is to be found, the numbers are the worst there are, whatever was predicted.
    with_events = {_room(name) for name, table in references.items() if len(table)}
    per_room = result.per_room.copy()
    per_room.loc[~per_room.index.isin(with_events), list(SCORE_NAMES)] = np.nan
    for table in (result.per_class, per_room):
        lines += ["", table.to_string(float_format=lambda value: f"{value:.4f}", na_rep="–")]
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_input_error(main)
