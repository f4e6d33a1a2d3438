"""DCASE annotation and prediction files ↔ tables ↔ ACCDOA vectors.

A table has the columns ``frame, class_id, source_id, azimuth_deg, elevation_deg``, one row per
active source and 100 ms frame, in the order of the file. ``frame`` is the number in the file,
taken as 0-based as the DCASE baseline does (no published STARSS file has a frame 0). Where the
file has them, ``x, y, z`` and ``distance_cm`` follow. After frame, class and source come

- five columns: azimuth and elevation (STARSS22 references),
- six: these and a distance (STARSS23 references), or x, y, z (DCASE 2022 predictions),
- seven: x, y, z and a distance (DCASE 2023 predictions; the baseline writes 0 for it). Nothing here
  scores the distance, so any number will do.

A file has as many columns as most of its rows, and one layout; other rows are errors. Of six
columns the evaluators know by their year what they mean: that of 2022 takes them for a vector,
that of 2023 for angles and a distance. Here the content tells. A row can be Cartesian if its vector
is longer than 0 and at most 2 (an ACCDOA network's tanh reaches √3), and polar if azimuth and
elevation are whole degrees in range and the distance is not negative. A file takes the layout that
more of its rows fit. If all rows fit both (whole-number vectors such as 0,0,1), or as many fit
either, it is Cartesian: read as polar, every such source would be within 2 cm of the microphone.
Six columns with fractional degrees fit neither and are refused; write them without the distance, or
as x, y, z and distance, which is unambiguous.

Only numpy and pandas are imported, so that the scorer starts quickly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from seld.errors import InputError

POLAR_COLUMNS: tuple[str, ...] = ("frame", "class_id", "source_id", "azimuth_deg", "elevation_deg")
CARTESIAN_COLUMNS: tuple[str, ...] = ("x", "y", "z")
DISTANCE_COLUMN = "distance_cm"

#: How a file says directions.
Layout = Literal["polar", "cartesian"]

#: Longest Cartesian vector taken for a direction, see the module's docstring.
LONGEST_VECTOR = 2.0

#: Tracks of multi-ACCDOA: how many sources of one class a frame can hold.
MULTI_ACCDOA_TRACKS = 3

#: Dummy track of the DCASE baseline's ADPIT target (A0 B0 B1 C0 C1 C2), by how many sources the
#: class has in the frame and the source's place among them.
_DUMMY_TRACK = np.array([[0, -1, -1], [1, 2, -1], [3, 4, 5]])
_DUMMY_TRACK_COUNT = 6

_COUNT = r"\s*([0-9]{1,9})\s*"
_NUMBER = r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"
_WIDTHS = (5, 6, 7)
_ROW = re.compile(",".join([_COUNT] * 3 + [_NUMBER] * 2) + f"(?:,{_NUMBER}(?:,{_NUMBER})?)?")
_COUNT_FIELD = (re.compile(_COUNT), "a whole number, 0 or more")
_FIELD = (re.compile(_NUMBER), "a number")


@dataclass(frozen=True)
class ParsedFile:
    """What a file holds: its well-formed rows, and what is wrong with the others."""

    table: pd.DataFrame
    problems: tuple[InputError, ...]


def read_annotations(path: str | Path, class_count: int | None = None) -> pd.DataFrame:
    """Read a reference file: five columns (STARSS22) or six with a distance (STARSS23).

    Raises:
        InputError: names file, line and column of the first thing that is wrong, as a class
            outside of ``class_count``, where given, is.
    """
    table = _all_well_formed(parse(path, class_count))
    if "x" in table:
        raise InputError(
            path, "columns 4 to 6", "Cartesian vectors", "whole degrees and a distance in cm"
        )
    return table


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read a prediction file: polar or Cartesian, with or without a distance.

    Cartesian rows get their angles as the DCASE evaluator computes them and keep ``x, y, z``.

    Raises:
        InputError: names file, line and column of the first thing that is wrong.
    """
    return _all_well_formed(parse(path))


def write_annotations(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as DCASE csv: ``x, y, z`` where it has them, else angles; then the distance.

    A file read and written again is the same to the byte if its numbers were written in the
    shortest form, as the published references and the baseline's predictions are.
    """
    columns = list(POLAR_COLUMNS)
    if all(name in table for name in CARTESIAN_COLUMNS):
        _check_same_direction(table, path)
        columns = [*POLAR_COLUMNS[:3], *CARTESIAN_COLUMNS]
    if DISTANCE_COLUMN in table:
        columns.append(DISTANCE_COLUMN)
    values = [table[name].tolist() for name in columns]
    text = "".join(",".join(map(repr, row)) + "\n" for row in zip(*values, strict=True))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="ascii", newline="\n")


def parse(path: str | Path, class_count: int | None = None) -> ParsedFile:
    """Read what can be read; every malformed row becomes a problem that names line and column.

    A class outside of ``class_count``, where given, makes a row malformed.

    Raises:
        InputError: the file cannot be read.
    """
    rows, problems = _rows_of_one_width(path, _lines(path))
    layout, fits = _layout(rows)
    for row in np.flatnonzero(~fits):
        number, tokens = rows.numbers[row], rows.tokens[row]
        problems[number] = _range_problem(path, number, tokens, layout)
    if class_count is not None:
        known = rows.columns[1] < class_count
        for row in np.flatnonzero(fits & ~known):
            number, token = rows.numbers[row], rows.tokens[row][1]
            expected = f"a class of 0 to {class_count - 1}"
            problems[number] = InputError(f"{path}, line {number}", "column 2", token, expected)
        fits &= known
    table = _table(layout, [column[fits] for column in rows.columns])
    return ParsedFile(table, tuple(problems[number] for number in sorted(problems)))


def accdoa_targets(
    table: pd.DataFrame, *, frame_count: int, class_count: int
) -> NDArray[np.float32]:
    """Single-ACCDOA target: (frame, class, 3), the unit vector of the class's source, or zero.

    Of several sources of one class in a frame the last row stays, as in the DCASE baseline. Rows
    after ``frame_count`` are left out.
    """
    rows = _rows_within(table, frame_count, class_count)
    target = np.zeros((frame_count, class_count, 3), dtype=np.float32)
    target[rows.frame, rows.class_id] = rows.vector
    return target


def multi_accdoa_targets(
    table: pd.DataFrame, *, frame_count: int, class_count: int
) -> NDArray[np.float32]:
    """ADPIT target of the DCASE 2022 baseline: (frame, 6, 4, class).

    Axis 1 holds the dummy tracks A0 (a class with one source), B0 B1 (two) and C0 C1 C2 (three);
    axis 2 activity, x, y, z. Sources are taken in the order of the rows; of more than three the
    first three stay. (The baseline writes the second source into C2 too, a slip not followed.)

    Source: K. Shimada et al., "Multi-ACCDOA", ICASSP 2022.
    """
    rows = _rows_within(table, frame_count, class_count)
    cell = rows.frame * class_count + rows.class_id
    order = np.argsort(cell, kind="stable")
    _, first, source_count = np.unique(cell[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, source_count)
    count = np.repeat(np.minimum(source_count, MULTI_ACCDOA_TRACKS), source_count)
    held = place < MULTI_ACCDOA_TRACKS
    kept = order[held]
    dummy_track = _DUMMY_TRACK[count[held] - 1, place[held]]

    target = np.zeros((frame_count, _DUMMY_TRACK_COUNT, 4, class_count), dtype=np.float32)
    frame, class_id = rows.frame[kept], rows.class_id[kept]
    target[frame, dummy_track, 0, class_id] = 1.0
    target[frame, dummy_track, 1:, class_id] = rows.vector[kept]
    return target


def decode_accdoa(prediction: NDArray[np.floating], threshold: float = 0.5) -> pd.DataFrame:
    """(frame, class, 3) → table; a class is active where its vector is longer than ``threshold``.

    The table also holds the unit vectors as ``x, y, z``, so that :func:`write_annotations` writes
    the Cartesian form that the official evaluator reads.
    """
    return decode_multi_accdoa(prediction[:, None], threshold)


def decode_multi_accdoa(
    prediction: NDArray[np.floating], threshold: float = 0.5, unify_deg: float = 15.0
) -> pd.DataFrame:
    """(frame, track, class, 3) → table, as :func:`decode_accdoa`.

    ADPIT trains idle tracks to repeat an active one. So active tracks of one class that are closer
    than ``unify_deg`` are one source in the mean of their vectors; closeness is passed on (A near
    B and B near C unify all three), as in the DCASE baseline.
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    length = np.linalg.norm(prediction, axis=-1)
    active = length > threshold  # (frame, track, class)
    frame, class_id = np.nonzero(active.any(axis=1))
    vectors = prediction[frame, :, class_id]  # (cell, track, 3)
    active = active[frame, :, class_id]  # (cell, track)

    unit = vectors / np.maximum(length[frame, :, class_id, None], np.finfo(np.float64).tiny)
    close = np.arccos(np.clip(unit @ unit.swapaxes(1, 2), -1.0, 1.0)) < np.radians(unify_deg)
    track_count = prediction.shape[1]
    joined = (close | np.eye(track_count, dtype=bool)) & active[:, :, None] & active[:, None, :]
    for _ in range(track_count - 1):
        joined = joined @ joined
    # A source is spoken for by the first track that belongs to it.
    cell, track = np.nonzero(active & (joined.argmax(axis=2) == np.arange(track_count)))
    members = joined[cell, track].astype(np.float64)  # (source, track)
    mean = np.einsum("st,sti->si", members, vectors[cell]) / members.sum(axis=1, keepdims=True)
    x, y, z = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
    azimuth_deg, elevation_deg = _angles_deg(x, y, z)
    return pd.DataFrame(
        {
            "frame": frame[cell],
            "class_id": class_id[cell],
            "source_id": np.zeros(len(cell), dtype=np.int64),
            "azimuth_deg": azimuth_deg,
            "elevation_deg": elevation_deg,
            "x": x,
            "y": y,
            "z": z,
        }
    )


@dataclass(frozen=True)
class _Rows:
    frame: NDArray[np.int64]
    class_id: NDArray[np.int64]
    vector: NDArray[np.float64]


def _rows_within(table: pd.DataFrame, frame_count: int, class_count: int) -> _Rows:
    """Rows of the first ``frame_count`` frames, with unit vectors (row, 3)."""
    frame = table["frame"].to_numpy(np.int64)
    within = np.flatnonzero((frame >= 0) & (frame < frame_count))
    table = table.iloc[within]
    class_id = table["class_id"].to_numpy(np.int64)
    unknown = class_id[(class_id < 0) | (class_id >= class_count)]
    if len(unknown):
        raise InputError("annotations", "class_id", int(unknown[0]), f"0 to {class_count - 1}")
    azimuth = np.radians(table["azimuth_deg"].to_numpy(np.float64))
    elevation = np.radians(table["elevation_deg"].to_numpy(np.float64))
    # seld.geometry does the same, but would bring torch into the scorer's imports.
    vector = np.column_stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    return _Rows(frame[within], class_id, vector)


def _all_well_formed(parsed: ParsedFile) -> pd.DataFrame:
    if parsed.problems:
        raise parsed.problems[0]
    return parsed.table


def _angles_deg(
    x: ArrayLike, y: ArrayLike, z: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # The evaluator's own operations in its order: scores are compared to 1e-9.
    x, y, z = (np.asarray(axis, dtype=np.float64) for axis in (x, y, z))
    azimuth_deg = np.arctan2(y, x) * 180 / np.pi
    elevation_deg = np.arctan2(z, np.sqrt(x**2 + y**2)) * 180 / np.pi
    return azimuth_deg, elevation_deg


@dataclass(frozen=True)
class _TextRows:
    """Rows of one file with the same number of columns: line number, text and numbers of each."""

    numbers: list[int]
    tokens: list[tuple[str, ...]]
    columns: list[NDArray[Any]]


def _lines(path: str | Path) -> list[str]:
    """Without the byte order mark and the blank last lines that some programs write."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a readable DCASE csv file") from error
    return text.rstrip().splitlines()


def _rows_of_one_width(
    path: str | Path, lines: Sequence[str]
) -> tuple[_TextRows, dict[int, InputError]]:
    """The rows with as many columns as most, and by line number what is wrong with the others."""
    matches = [_ROW.fullmatch(line) for line in lines]
    width = _usual_width(matches)
    numbers: list[int] = []
    tokens: list[tuple[str, ...]] = []
    problems: dict[int, InputError] = {}
    for number, (line, match) in enumerate(zip(lines, matches, strict=True), 1):
        if match is None or _width(match) != width:
            problems[number] = _format_problem(path, number, line, width)
        else:
            numbers.append(number)
            tokens.append(match.groups()[:width])
    columns = [_numbers(column) for column in zip(*tokens, strict=True)]
    columns = columns or [np.zeros(0, dtype=np.int64)] * width
    return _TextRows(numbers, tokens, columns), problems


def _numbers(tokens: tuple[str, ...]) -> NDArray[np.int64] | NDArray[np.float64]:
    """Whole numbers stay whole, so that they are written back as they were."""
    digits = [token.lstrip("+-") for token in tokens]
    # Longer ones are out of every range, and may be out of an int64's.
    if any(not text.isdigit() or len(text) > 15 for text in digits):
        return np.array([float(token) for token in tokens])
    return np.array([int(token) for token in tokens], dtype=np.int64)


def _layout(rows: _TextRows) -> tuple[Layout, NDArray[np.bool_]]:
    """The file's layout, and which rows are so, see the module's docstring."""
    values = np.column_stack([column.astype(np.float64) for column in rows.columns[3:]])
    if values.shape[1] == 2:
        return "polar", _is_polar(values)
    cartesian = _is_cartesian(values)
    if values.shape[1] == 4:
        return "cartesian", cartesian
    polar = _is_polar(values)
    if cartesian.any() and np.count_nonzero(cartesian) >= np.count_nonzero(polar):
        return "cartesian", cartesian
    return "polar", polar


def _is_cartesian(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(row, 3 or 4) → (row,), see the module's docstring."""
    length = np.linalg.norm(values[:, :3], axis=1)
    return (length > 0) & (length <= LONGEST_VECTOR)


def _is_polar(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(row, 2 or 3) → (row,), see the module's docstring."""
    angles, distance = values[:, :2], values[:, 2:]
    in_range = (np.abs(angles[:, 0]) <= 180) & (np.abs(angles[:, 1]) <= 90)
    if not distance.shape[1]:
        return in_range
    whole = np.all(angles == np.floor(angles), axis=1)
    return in_range & whole & (distance[:, 0] >= 0)


def _table(layout: Layout, columns: Sequence[NDArray[Any]]) -> pd.DataFrame:
    angles = CARTESIAN_COLUMNS if layout == "cartesian" else POLAR_COLUMNS[3:]
    names = (*POLAR_COLUMNS[:3], *angles, DISTANCE_COLUMN)
    table = pd.DataFrame(dict(zip(names, columns, strict=False)))  # not all have a distance
    if layout == "cartesian":
        vectors = table[list(CARTESIAN_COLUMNS)].to_numpy(np.float64)
        azimuth_deg, elevation_deg = _angles_deg(*vectors.T)
        table.insert(3, "azimuth_deg", azimuth_deg)
        table.insert(4, "elevation_deg", elevation_deg)
    return table


def _width(match: re.Match[str]) -> int:
    return 5 + sum(match[column] is not None for column in (6, 7))


def _usual_width(matches: Sequence[re.Match[str] | None]) -> int:
    widths = [_width(match) for match in matches if match]
    return max(_WIDTHS, key=widths.count)  # the narrowest of those that are as frequent


def _format_problem(path: str | Path, number: int, line: str, width: int) -> InputError:
    where = f"{path}, line {number}"
    tokens = line.split(",")
    for column, token in enumerate(tokens[: max(_WIDTHS)], 1):
        pattern, expected = _FIELD if column > 3 else _COUNT_FIELD
        if not pattern.fullmatch(token):
            return InputError(where, f"column {column}", token, expected)
    expected = f"{width}, as in most lines of the file" if len(tokens) in _WIDTHS else "5 to 7"
    return InputError(where, "number of columns", len(tokens), expected)


def _range_problem(
    path: str | Path, number: int, tokens: tuple[str, ...], layout: Layout
) -> InputError:
    where = f"{path}, line {number}"
    if layout == "cartesian":
        vector = ",".join(tokens[3:6])
        return InputError(
            where,
            "columns 4 to 6",
            vector,
            f"a direction vector (x, y, z) as in most lines, at most {LONGEST_VECTOR:g} long",
        )
    whole = len(tokens) == 6
    degrees = (
        "whole degrees beside a distance (or x, y, z and the distance)" if whole else "degrees"
    )
    limits = (
        (180.0, f"an azimuth of -180 to 180 {degrees}"),
        (90.0, f"an elevation of -90 to 90 {degrees}"),
    )
    for column, (token, (limit, expected)) in enumerate(zip(tokens[3:], limits, strict=False), 4):
        if abs(float(token)) > limit or (whole and not float(token).is_integer()):
            return InputError(where, f"column {column}", token, expected)
    return InputError(where, "column 6", tokens[5], "a distance in cm, 0 or more")


def _check_same_direction(table: pd.DataFrame, path: str | Path) -> None:
    azimuth_deg, elevation_deg = _angles_deg(*table[list(CARTESIAN_COLUMNS)].to_numpy(np.float64).T)
    turn = np.abs(azimuth_deg - table["azimuth_deg"]) % 360
    tilt = np.abs(elevation_deg - table["elevation_deg"])
    differs = np.flatnonzero((np.minimum(turn, 360 - turn) > 1e-6) | (tilt > 1e-6))
    if len(differs):
        raise InputError(
            path,
            f"row {differs[0]} of the table",
            table.iloc[differs[0]].to_dict(),
            "x, y, z that point to azimuth_deg and elevation_deg (drop them after changing angles)",
        )
