"""The metric against hand-worked blocks, a literal slow implementation and its own command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from seld.annotations import read_annotations, write_annotations
from seld.classes import STARSS_CLASSES
from seld.errors import InputError
from seld.metrics import (
    COUNT_COLUMNS,
    SCORE_NAMES,
    _assign,
    main,
    recording_counts,
    score,
    scores_from_counts,
)
from tests.reference_seld import ReferenceSeld, Row, jackknife_interval

CLASSES = ("a", "b", "c")
#: A class and frame that no prediction meets: with it the first ten frames are one scored block.
END: Row = (11, 2, 0, 0)


def table(rows: Sequence[Row]) -> pd.DataFrame:
    frame, class_id, azimuth_deg, elevation_deg = zip(*rows, strict=True) if rows else [[]] * 4
    return pd.DataFrame(
        {
            "frame": np.array(frame, dtype=int),
            "class_id": np.array(class_id, dtype=int),
            "source_id": 0,
            "azimuth_deg": np.array(azimuth_deg, dtype=float),
            "elevation_deg": np.array(elevation_deg, dtype=float),
        }
    )


def file_counts(
    reference: pd.DataFrame, prediction: pd.DataFrame, class_count: int
) -> NDArray[np.float64]:
    """Counts of one recording: (class, column)."""
    return recording_counts([reference], [prediction], class_count=class_count)[0]


def counted(reference: Sequence[Row], prediction: Sequence[Row], class_id: int = 0) -> dict:
    """Counts of one class in a first block (``END`` adds a miss of class 2 in the second)."""
    counts = file_counts(table([*reference, END]), table(prediction), len(CLASSES))
    named = dict(zip(COUNT_COLUMNS, counts[class_id], strict=True))
    named["recording_errors"] -= 1
    return {name: value for name, value in named.items() if name != "recording_references"}


def expected(**counts: float) -> dict:
    return {name: counts.get(name, 0.0) for name in COUNT_COLUMNS[:-1]}


# One block each, by hand.
BLOCKS = {
    "near": (
        [(0, 0, 0, 0)],
        [(0, 0, 15, 0)],
        {"references": 1, "true_positives": 1, "distance_sum_deg": 15},
    ),
    "far: a spatial false positive, counted as an insertion": (
        [(0, 0, 0, 0)],
        [(0, 0, 25, 0)],
        {
            "references": 1,
            "spatial_false_positives": 1,
            "distance_sum_deg": 25,
            "recording_errors": 1,
        },
    ),
    "average over frames decides": (
        [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)],
        [(0, 0, 30, 0), (1, 0, 0, 0)],
        {"references": 1, "true_positives": 1, "distance_sum_deg": 15},
    ),
    "reference only": (
        [(0, 0, 0, 0), (0, 0, 90, 0)],
        [],
        {"references": 2, "false_negatives": 2, "recording_errors": 2},
    ),
    "prediction only": ([], [(3, 0, 0, 0)], {"false_positives": 1, "recording_errors": 1}),
    "more predicted than there are": (
        [(0, 0, 0, 0)],
        [(0, 0, 90, 0), (0, 0, 10, 0), (0, 0, 180, 0)],
        {
            "references": 1,
            "true_positives": 1,
            "distance_sum_deg": 10,
            "false_positives": 2,
            "recording_errors": 2,
        },
    ),
    "fewer predicted than there are": (
        [(0, 0, 0, 0), (0, 0, 90, 0), (0, 0, 180, 0)],
        [(0, 0, 100, 0)],
        {
            "references": 3,
            "true_positives": 1,
            "distance_sum_deg": 10,
            "false_negatives": 2,
            "recording_errors": 2,
        },
    ),
    "never in one frame: n_pred misses, not n_ref": (
        [(0, 0, 0, 0)],
        [(1, 0, 0, 0), (1, 0, 50, 0), (1, 0, 90, 0)],
        {"references": 1, "false_negatives": 3, "recording_errors": 3},
    ),
    "largest number at once is of the block, matching is per frame": (
        [(0, 0, 0, 0), (0, 0, 90, 0), (1, 0, 0, 0)],
        [(1, 0, 5, 0), (1, 0, 90, 0)],
        {"references": 2, "true_positives": 1, "distance_sum_deg": 5},
    ),
    "two crossed tracks are assigned at least cost": (
        [(0, 0, 0, 0), (0, 0, 90, 0)],
        [(0, 0, 80, 0), (0, 0, 5, 0)],
        {"references": 2, "true_positives": 2, "distance_sum_deg": 15},
    ),
    "a row that stands twice is two tracks": (
        [(0, 0, 0, 0), (0, 0, 0, 0)],
        [(0, 0, 0, 0)],
        {"references": 2, "true_positives": 1, "false_negatives": 1, "recording_errors": 1},
    ),
    "a track is a place in the frame's rows, whatever its direction": (
        [(0, 0, 0, 0), (0, 0, 90, 0), (1, 0, 90, 0), (1, 0, 0, 0)],
        [(0, 0, 0, 0), (0, 0, 90, 0), (1, 0, 0, 0), (1, 0, 150, 0)],
        # frame 1 swaps places: track 0 is 0 then 60 away, track 1 is 0 then 0.
        {
            "references": 2,
            "true_positives": 1,
            "spatial_false_positives": 1,
            "distance_sum_deg": 30,
            "recording_errors": 1,
        },
    ),
    "rows of a frame need not stand together": (
        [(0, 0, 0, 0), (4, 0, 0, 0), (0, 0, 90, 0)],
        [(0, 0, 90, 0), (4, 0, 0, 0), (0, 0, 0, 0)],
        {"references": 2, "true_positives": 2},
    ),
    "over the seam of azimuth": (
        [(0, 0, 175, 0)],
        [(0, 0, -175, 0)],
        {"references": 1, "true_positives": 1, "distance_sum_deg": 10},
    ),
    "azimuth means nothing at the pole": (
        [(0, 0, 0, 90)],
        [(0, 0, 120, 80)],
        {"references": 1, "true_positives": 1, "distance_sum_deg": 10},
    ),
}


@pytest.mark.parametrize(("reference", "prediction", "counts"), BLOCKS.values(), ids=BLOCKS)
def test_hand_worked_block(reference: list[Row], prediction: list[Row], counts: dict) -> None:
    # arccos near 1 resolves 1e-6 degrees
    assert counted(reference, prediction) == pytest.approx(expected(**counts), abs=2e-6)


def test_exactly_20_degrees_is_near() -> None:
    rows = [(0, 0, 0.0, 0.0)]
    near, far = counted(rows, [(0, 0, 19.9999999, 0)]), counted(rows, [(0, 0, 20.0000001, 0)])
    assert (near["true_positives"], far["true_positives"]) == (1, 0)


def test_source_numbers_play_no_part() -> None:
    reference, prediction = table([(0, 0, 0, 0), (0, 0, 90, 0), END]), table([(0, 0, 1, 0)])
    numbered = reference.assign(source_id=[7, 3, 0])
    np.testing.assert_array_equal(
        file_counts(reference, prediction, 3), file_counts(numbered, prediction, 3)
    )


def test_a_substitution_pairs_a_miss_with_another_class() -> None:
    counts = file_counts(table([(0, 0, 0, 0), (11, 0, 0, 0)]), table([(0, 1, 0, 0)]), 3)
    # Block 0: miss of class 0, false alarm of class 1, one substitution. Block 1: one deletion.
    assert counts[0, COUNT_COLUMNS.index("recording_errors")] == 2
    assert scores_from_counts(counts, "macro")["er20"] == pytest.approx(1.0)
    assert scores_from_counts(counts, "micro")["er20"] == pytest.approx(1.0)


def test_blocks_do_not_pair_with_each_other() -> None:
    counts = file_counts(table([(0, 0, 0, 0), (11, 2, 0, 0)]), table([(12, 0, 0, 0)]), 3)
    # Block 0: a deletion. Block 1: miss of 2, false alarm of 0, one substitution.
    assert counts[0, COUNT_COLUMNS.index("recording_errors")] == 2


@pytest.mark.parametrize(
    ("last_frame", "references"),
    [(0, 0), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)],
)
def test_last_frame_that_is_a_multiple_of_10_is_not_scored(
    last_frame: int, references: int
) -> None:
    rows = [(frame, 0, 0.0, 0.0) for frame in range(last_frame + 1)]
    counts = file_counts(table(rows), table(rows), 1)
    assert counts[0, 0] == references == counts[0, 1]


def test_predictions_after_the_last_block_are_not_scored() -> None:
    reference = table([(3, 0, 0, 0)])
    inside = file_counts(reference, table([(9, 1, 0, 0)]), 2)
    after = file_counts(reference, table([(10, 1, 0, 0), (500, 1, 0, 0)]), 2)
    column = COUNT_COLUMNS.index("false_positives")
    assert (inside[1, column], after[1, column]) == (1, 0)


def test_blocks_start_at_frame_0_in_a_file_that_starts_at_1() -> None:
    rows = [(1, 0, 0.0, 0.0), (10, 0, 0.0, 0.0), (11, 0, 0.0, 0.0)]
    assert file_counts(table(rows), table(rows), 1)[0, 0] == 2


def test_an_absent_class_counts_in_the_macro_mean() -> None:
    rows = [(0, 0, 0.0, 0.0), (5, 0, 0.0, 0.0)]
    result = score({"r": table(rows)}, {"r": table(rows)}, class_names=("here", "absent"))
    assert (result.f20, result.le_cd_deg, result.lr_cd) == pytest.approx((0.5, 90, 0.5))
    absent = result.per_class.loc["absent"]
    assert absent[["er20", "f20", "le_cd_deg", "lr_cd", "seld_error"]].tolist() == pytest.approx(
        [0, 0, 180, 0, 0.75]
    )
    micro = score(
        {"r": table(rows)}, {"r": table(rows)}, class_names=("here", "absent"), average="micro"
    )
    assert (micro.f20, micro.le_cd_deg, micro.lr_cd) == pytest.approx((1, 0, 1))


def test_an_empty_prediction_misses_everything() -> None:
    result = score({"r": table([(0, 0, 0, 0), (5, 0, 0, 0)])}, {"r": table([])}, class_names="ab")
    scores = (result.er20, result.f20, result.le_cd_deg, result.lr_cd, result.seld_error)
    assert scores == pytest.approx((1, 0, 180, 0, 1))


def test_the_command_needs_no_torch() -> None:
    code = "import sys, seld.metrics, seld.annotations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Few angles and duplicates make ties; few frames make crowded blocks.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 34),
        st.integers(0, 2),
        st.sampled_from([-180.0, -90.0, -15.0, 0.0, 5.0, 20.0, 40.0, 180.0, 17.3]),
        st.sampled_from([-90.0, -20.0, 0.0, 20.0, 45.0, 90.0]),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(reference=ROWS, prediction=ROWS)
def test_any_rows_score_as_in_the_literal_implementation(
    reference: list[Row], prediction: list[Row]
) -> None:
    reference = [*reference, (31, 0, 0.0, 0.0)]
    counts = file_counts(table(reference), table(prediction), 3)
    oracle = ReferenceSeld(3).add(reference, prediction)
    for average in ("macro", "micro"):
        scores = scores_from_counts(counts, average)
        assert [scores[name] for name in SCORE_NAMES] == pytest.approx(
            oracle.scores(average), abs=1e-9
        )


def literal_rows(table: pd.DataFrame) -> list[Row]:
    columns = (table[name] for name in ("frame", "class_id", "azimuth_deg", "elevation_deg"))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def random_recordings(seed: int, count: int) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Tracks that move in whole degrees, and predictions that are late, blurred or wrong."""
    rng = np.random.default_rng(seed)
    references, predictions = {}, {}
    for recording in range(count):
        reference: list[Row] = []
        for _ in range(rng.integers(3, 25)):
            start, azimuth = int(rng.integers(0, 280)), float(rng.integers(-180, 181))
            elevation, class_id = float(rng.integers(-60, 61)), int(rng.integers(0, 4))
            reference += [
                (frame, class_id, azimuth, elevation)
                for frame in range(start, start + int(rng.integers(1, 60)))
            ]
        prediction = [
            (
                max(0, frame + int(rng.integers(-1, 2))),
                class_id if rng.random() > 0.05 else int(rng.integers(0, 4)),
                azimuth + float(rng.normal(0, 12)),
                float(np.clip(elevation + rng.normal(0, 12), -90, 90)),
            )
            for frame, class_id, azimuth, elevation in reference
            if rng.random() > 0.2
        ]
        name = f"fold4_room{1 + recording % 3 * 10}_mix{recording:03d}"
        references[name], predictions[name] = sorted(reference), prediction
    return references, predictions


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_recordings_rooms_and_jackknife_as_in_the_literal_implementation(average) -> None:
    references, predictions = random_recordings(seed=1, count=8)

    def literal(names: Sequence[str]) -> list[float]:
        oracle = ReferenceSeld(5)
        for name in names:
            oracle.add(references[name], predictions[name])
        return oracle.scores(average)

    result = score(
        {name: table(rows) for name, rows in references.items()},
        {name: table(rows) for name, rows in predictions.items()},
        class_names="abcde",
        average=average,
        jackknife=True,
    )
    names = list(references)
    whole = literal(names)
    assert [getattr(result, name) for name in SCORE_NAMES] == pytest.approx(whole, abs=1e-9)
    for room in (1, 11, 21):
        in_room = [name for name in names if f"room{room}_" in name]
        assert result.per_room.loc[room, list(SCORE_NAMES)].tolist() == pytest.approx(
            literal(in_room), abs=1e-9
        )
        assert result.per_room.loc[room, "recordings"] == len(in_room)
    partial = [literal([name for name in names if name != left_out]) for left_out in names]
    assert result.intervals is not None
    for index, name in enumerate(SCORE_NAMES):
        interval = jackknife_interval(whole[index], [scores[index] for scores in partial])
        assert result.intervals[name] == pytest.approx(interval, abs=1e-9)


def test_real_annotations_score_as_in_the_literal_implementation(shared_data: Path) -> None:
    rng = np.random.default_rng(3)
    oracle, references, predictions = ReferenceSeld(13), {}, {}
    for path in sorted((shared_data / "starss22/metadata_dev").rglob("*.csv"))[::9]:
        reference = read_annotations(path)
        prediction = reference.iloc[np.flatnonzero(rng.random(len(reference)) > 0.2)].copy()
        prediction["azimuth_deg"] += rng.integers(-30, 31, len(prediction))
        oracle.add(literal_rows(reference), literal_rows(prediction))
        references[path.stem], predictions[path.stem] = reference, prediction
    result = score(references, predictions, class_names=STARSS_CLASSES)
    assert [getattr(result, name) for name in SCORE_NAMES] == pytest.approx(
        oracle.scores("macro"), abs=1e-9
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_ties_are_resolved_as_scipy_does(rows: int, columns: int, data: st.DataObject) -> None:
    values = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1.1, 90.0])
    cost = np.array(data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)))
    cost = cost.reshape(1, rows, columns)
    matched = np.stack(_assign(cost))[:, 0]
    np.testing.assert_array_equal(matched, linear_sum_assignment(cost[0]))


def test_counts_add_up_and_score_over_leading_axes() -> None:
    references, predictions = random_recordings(seed=2, count=4)
    counts = np.stack(
        [file_counts(table(references[name]), table(predictions[name]), 5) for name in references]
    )
    stacked = scores_from_counts(counts[:, None] + counts[None, :], "macro")
    pair = scores_from_counts(counts[1] + counts[3], "macro")
    for name in SCORE_NAMES:
        assert stacked[name].shape == (4, 4)
        assert stacked[name][1, 3] == pytest.approx(pair[name], rel=1e-12)


def test_score_names_what_is_missing_or_unknown() -> None:
    rows = table([(0, 0, 0, 0), (5, 0, 0, 0)])
    with pytest.raises(InputError, match="prediction: x is 'missing'"):
        score({"x": rows}, {}, class_names=CLASSES)
    with pytest.raises(InputError, match="recordings is 0"):
        score({}, {}, class_names=CLASSES)
    with pytest.raises(InputError, match="class_id is 5"):
        score({"x": rows}, {"x": rows.assign(class_id=5)}, class_names=CLASSES)
    with pytest.raises(InputError, match="at least 2"):
        score({"x": rows}, {"x": rows}, class_names=CLASSES, jackknife=True)
    with pytest.raises(InputError, match="'macro' or 'micro'"):
        scores_from_counts(np.zeros((3, len(COUNT_COLUMNS))), "mean")  # pyright: ignore


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    reference_dir, prediction_dir = tmp_path / "reference", tmp_path / "prediction"
    for name in ("fold4_room2_mix001", "fold4_room21_mix001"):
        rows = table([(1, 0, 0, 0), (1, 3, 90, 0), (12, 3, 90, 0)]).astype(int)
        write_annotations(rows, reference_dir / "dev-test-sony" / f"{name}.csv")
        write_annotations(rows, prediction_dir / f"{name}.csv")
    return reference_dir, prediction_dir


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_command_prints_scores(folders: tuple[Path, Path], capsys) -> None:
    code, text, _ = run(capsys, *folders, "--jackknife", "--average", "micro")
    assert code == 0
    assert "2 recordings, micro average" in text
    assert "f20           1.0000   [1.0000, 1.0000]" in text
    code, text, _ = run(capsys, *folders, "--json", "--strict")
    result = json.loads(text)
    assert result["f20"] == pytest.approx(2 / 13)
    assert list(result["per_room"]) == ["2", "21"]
    assert result["problems"] == []


def test_command_names_problems_and_leaves_them_out(folders: tuple[Path, Path], capsys) -> None:
    reference_dir, prediction_dir = folders
    (prediction_dir / "fold4_room21_mix001.csv").rename(prediction_dir / "alien.csv")
    with (prediction_dir / "fold4_room2_mix001.csv").open("a") as file:
        file.write("13,3,0,ninety,0\n14,13,0,0,0\n")
    code, text, errors = run(capsys, *folders, "--json")
    assert code == 0
    assert json.loads(text)["recordings"] == 1
    assert json.loads(text)["f20"] == pytest.approx(2 / 13)
    assert f"{reference_dir}: alien.csv is 'missing'" in errors
    assert f"{prediction_dir}: fold4_room21_mix001.csv is 'missing'" in errors
    assert "line 4: column 4 is 'ninety', expected a number" in errors
    assert "line 5: column 2 is '13', expected a class of 0 to 12" in errors
    assert run(capsys, *folders, "--strict")[0] == 2


def test_predictions_of_2023_score_as_those_of_2022(folders: tuple[Path, Path], capsys) -> None:
    name = "fold4_room2_mix001.csv"
    results = []
    for distance in ("", ",0"):
        rows = [f"1,0,0,1.0,0.0,0.0{distance}", f"1,3,0,0.5,0.9,0.0{distance}"]
        (folders[1] / name).write_text("\n".join(rows))
        code, text, _ = run(capsys, *folders, "--json", "--strict")
        assert code == 0
        results.append(json.loads(text))
    assert results[0] == results[1]
    assert results[0]["er20"] < 1


@pytest.mark.parametrize("row", ["1,0,0,10.5,5.25,120", "1;0;0;10;5", "1,13,0,0,0"])
def test_a_file_of_which_nothing_can_be_read_is_not_scored(
    folders: tuple[Path, Path], row: str
) -> None:
    path = folders[1] / "fold4_room2_mix001.csv"
    path.write_text(f"{row}\n{row}\n")
    with pytest.raises(InputError, match=r"room2_mix001.csv: well-formed rows is 0.*, line 1: "):
        main([str(folder) for folder in folders])


def test_an_empty_file_predicts_nothing(folders: tuple[Path, Path], capsys) -> None:
    (folders[1] / "fold4_room2_mix001.csv").write_text("")
    code, text, _ = run(capsys, *folders, "--json", "--strict")
    assert code == 0
    assert json.loads(text)["per_room"]["2"]["lr_cd"] == 0


def test_a_room_without_events_has_no_score(folders: tuple[Path, Path], capsys) -> None:
    (folders[0] / "dev-test-sony/fold4_room21_mix001.csv").write_text("")
    code, text, _ = run(capsys, *folders)
    assert code == 0
    one, other = (line.split() for line in text.splitlines()[-2:])
    assert (one[0], other[0], "–" in one) == ("2", "21", False)
    assert other[1:] == ["–"] * 5 + ["1"]


def test_command_scores_other_classes(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\ufeffdrone\nrain\nwind\nsiren\n", encoding="utf-8")  # as Notepad writes
    _, text, _ = run(capsys, *folders, "--json", "--strict", "--classes", names)
    result = json.loads(text)
    assert list(result["per_class"]) == ["drone", "rain", "wind", "siren"]
    assert result["f20"] == pytest.approx(2 / 4)
    names.write_text("drone\nrain\n")
    _, _, errors = run(capsys, *folders, "--json", "--classes", names)
    assert "column 2 is '3', expected a class of 0 to 1" in errors
    with pytest.raises(InputError, match="a text file with a class per line"):
        main([*map(str, folders), "--classes", str(tmp_path / "nowhere")])


def test_recordings_in_linked_folders_are_scored(folders: tuple[Path, Path], capsys) -> None:
    reference_dir = folders[0]
    elsewhere = reference_dir.rename(reference_dir.with_name("disk"))
    reference_dir.mkdir()
    (reference_dir / "linked").symlink_to(elsewhere)
    _, text, _ = run(capsys, *folders, "--json", "--strict")
    assert json.loads(text)["recordings"] == 2


def test_command_refuses_folders_without_common_recordings(folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="recordings is 0"):
        main([str(folders[0]), str(tmp_path / "empty")])
    with pytest.raises(InputError, match="folder is 'missing'"):
        main([str(folders[0]), str(tmp_path / "nowhere")])
