"""DCASE files go in and out unchanged, mistakes are named, and ACCDOA keeps what it can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seld.annotations import (
    accdoa_targets,
    decode_accdoa,
    decode_multi_accdoa,
    multi_accdoa_targets,
    parse,
    read_annotations,
    read_predictions,
    write_annotations,
)
from seld.errors import InputError
from seld.metrics import score

POLAR = "1,0,0,-180,-90\n1,0,1,180,90\n12,12,3,0,0\n"
DISTANCE = "1,0,0,-97,-20,150\n2,0,0,1,0,1\n2,1,1,3,4,0\n"
CARTESIAN_DISTANCE = "0,3,0,0.5,-0.25,0.125,0\n7,3,0,-1.0,1e-05,0.9,0\n7,4,0,0.0,0.0,-1.0,-2\n"
CARTESIAN = "0,3,0,0.5,-0.25,0.125\n7,3,0,-1.0,1e-05,0.9\n7,4,0,0.0,0.0,-1.0\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fold4_room1_mix001.csv"
    path.write_bytes(text.encode())
    return path


def rows(*values: tuple[int, int, float, float]) -> pd.DataFrame:
    frame, class_id, azimuth_deg, elevation_deg = zip(*values, strict=True)
    return pd.DataFrame(
        {
            "frame": frame,
            "class_id": class_id,
            "source_id": range(len(values)),
            "azimuth_deg": azimuth_deg,
            "elevation_deg": elevation_deg,
        }
    )


def test_all_real_references_round_trip(shared_data: Path, tmp_path: Path) -> None:
    paths = sorted((shared_data / "starss22/metadata_dev").rglob("*.csv"))
    assert len(paths) == 67
    for path in paths:
        write_annotations(read_annotations(path), tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "text", [POLAR, DISTANCE, CARTESIAN, CARTESIAN_DISTANCE, "", "3,1,0,12.5,-3.25\n"]
)
def test_files_round_trip(tmp_path: Path, text: str) -> None:
    table = read_predictions(written(tmp_path, text))
    write_annotations(table, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == text.encode()


def test_line_ends_and_spaces_of_other_systems_are_read(tmp_path: Path) -> None:
    table = read_annotations(written(tmp_path, "1, 0, 0, -97, -20\r\n2,0,0,-97,-20"))
    assert table["frame"].tolist() == [1, 2]
    assert table["azimuth_deg"].tolist() == [-97, -97]


def test_a_byte_order_mark_and_blank_last_lines_are_no_rows(tmp_path: Path) -> None:
    table = read_annotations(written(tmp_path, "\ufeff1,0,0,-97,-20\r\n2,0,0,-97,-20\r\n \r\n\n"))
    assert table["frame"].tolist() == [1, 2]
    assert not len(read_annotations(written(tmp_path, "\ufeff\n")))


def test_seven_columns_are_vectors_and_a_distance(tmp_path: Path) -> None:
    """The DCASE 2023 baseline's predictions; its evaluator reads the vectors alone."""
    table = read_predictions(written(tmp_path, CARTESIAN_DISTANCE))
    assert table["distance_cm"].tolist() == [0, 0, -2]
    pd.testing.assert_frame_equal(
        table.drop(columns="distance_cm"), read_predictions(written(tmp_path, CARTESIAN))
    )
    with pytest.raises(InputError, match="line 2: columns 4 to 6 is '0,0,3'"):
        read_predictions(written(tmp_path, "1,0,0,0,0,1,0\n2,0,0,0,0,3,0\n"))
    with pytest.raises(InputError, match="columns 4 to 6 is 'Cartesian vectors'"):
        read_annotations(written(tmp_path, CARTESIAN_DISTANCE))


def test_six_columns_are_told_apart_by_content(tmp_path: Path) -> None:
    with_distance = read_annotations(written(tmp_path, DISTANCE))
    assert with_distance["distance_cm"].tolist() == [150, 1, 0]
    cartesian = read_predictions(written(tmp_path, CARTESIAN))
    assert cartesian["azimuth_deg"].to_numpy()[0] == pytest.approx(-26.565051177)
    assert cartesian["elevation_deg"].tolist() == pytest.approx([12.604382648, 41.987212495, -90.0])
    whole_numbers = read_predictions(written(tmp_path, "1,0,0,0,1,0\n2,0,0,0,0,-1\n"))
    assert whole_numbers[["azimuth_deg", "elevation_deg"]].to_numpy().tolist() == [
        [90, 0],
        [0, -90],
    ]
    with pytest.raises(InputError, match="columns 4 to 6 is 'Cartesian vectors'"):
        read_annotations(written(tmp_path, CARTESIAN))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.0,0,0,0,0", "line 2: column 1 is '1.0', expected a whole number"),
        ("-1,0,0,0,0", "line 2: column 1 is '-1', expected a whole number"),
        ("1,door,0,0,0", "line 2: column 2 is 'door', expected a whole number"),
        ("1,0,0.5,0,0", "line 2: column 3 is '0.5', expected a whole number"),
        ("1,0,0,nan,0", "line 2: column 4 is 'nan', expected a number"),
        ("1,0,0,0,", "line 2: column 5 is '', expected a number"),
        ("1,0,0,181,0", "line 2: column 4 is '181', expected an azimuth of -180 to 180 degrees"),
        ("1,0,0,0,-91", "line 2: column 5 is '-91', expected an elevation"),
        (f"1,0,0,{10**23},0", f"line 2: column 4 is '{10**23}', expected an azimuth"),
        ("1,0,0,0", "line 2: number of columns is 4, expected 5 to 7"),
        ("1,0,0,0,0,0,0", "line 2: number of columns is 7, expected 5, as in most lines"),
        ("1,0,0,0,0,0,0,0", "line 2: number of columns is 8, expected 5 to 7"),
        ("1,0,0,0,0,100", "line 2: number of columns is 6, expected 5, as in most lines"),
        ("", "line 2: column 1 is '', expected a whole number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, f"1,0,0,0,0\n{line}\n3,0,0,0,0\n")
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}, {message}")
    parsed = parse(path)
    assert len(parsed.problems) == 1
    assert parsed.table["frame"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1,0,0,12.5,3,40\n",
            "line 1: column 4 is '12.5', expected an azimuth of -180 to 180 whole degrees beside a "
            "distance (or x, y, z and the distance)",
        ),
        ("1,0,0,12,3,-40\n", "line 1: column 6 is '-40', expected a distance"),
        ("1,0,0,0,0,0\n1,0,0,.6,0,.8\n2,0,0,0,.1,0\n", "line 1: columns 4 to 6 is '0,0,0'"),
        ("1,0,0,1.5,0,2\n1,0,0,.6,0,.8\n2,0,0,0,.1,0\n", "line 1: columns 4 to 6 is '1.5,0,2'"),
        (DISTANCE + "1,0,0,0.6,0,0.8\n", "line 4: column 4 is '0.6', expected an azimuth"),
    ],
)
def test_six_columns_that_fit_neither_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_annotations(tmp_path / "none.csv")


def test_writing_refuses_vectors_that_contradict_the_angles(tmp_path: Path) -> None:
    table = read_predictions(written(tmp_path, CARTESIAN))
    with pytest.raises(InputError, match="row 0 of the table"):
        write_annotations(table.assign(azimuth_deg=0.0), tmp_path / "out.csv")


def test_accdoa_target_is_a_unit_vector_and_the_last_of_a_class_stays() -> None:
    table = rows((0, 1, 90, 0), (2, 0, 0, 0), (2, 0, 0, 90), (3, 0, 0, 0))
    target = accdoa_targets(table, frame_count=3, class_count=2)
    expected = np.zeros((3, 2, 3))
    expected[0, 1] = 0, 1, 0
    expected[2, 0] = 0, 0, 1
    np.testing.assert_allclose(target, expected, atol=1e-7)
    assert target.dtype == np.float32


def test_multi_accdoa_target_has_the_baseline_layout() -> None:
    front, left, up, back = (0, 0), (90, 0), (0, 90), (-180, 0)
    table = rows(
        (0, 1, *front),
        (1, 0, *left),
        (1, 1, *up),
        (1, 0, *front),
        *((2, 0, *direction) for direction in (up, left, back, front)),
    )
    target = multi_accdoa_targets(table, frame_count=4, class_count=2)
    expected = np.zeros((4, 6, 4, 2))
    expected[0, 0, :, 1] = 1, 1, 0, 0  # A0
    expected[1, 1, :, 0] = 1, 0, 1, 0  # B0, in the order of the rows
    expected[1, 2, :, 0] = 1, 1, 0, 0  # B1
    expected[1, 0, :, 1] = 1, 0, 0, 1
    expected[2, 3:, :, 0] = (1, 0, 0, 1), (1, 0, 1, 0), (1, -1, 0, 0)  # C0 C1 C2, the fourth left
    np.testing.assert_allclose(target, expected, atol=1e-7)


def test_targets_refuse_an_unknown_class() -> None:
    with pytest.raises(InputError, match="class_id is 5, expected 0 to 1"):
        accdoa_targets(rows((0, 5, 0, 0)), frame_count=1, class_count=2)


def as_network_output(target: np.ndarray) -> np.ndarray:
    """(frame, 6, 4, class) ADPIT target → what a perfect network gives, (frame, 3, class, 3).

    ADPIT teaches three tracks the one source A0, or B0 B1 B1, or C0 C1 C2.
    """
    active, vectors = target[:, :, 0], target[:, :, 1:].transpose(0, 1, 3, 2)
    output = vectors[:, [0, 0, 0]] * active[:, [0, 0, 0], :, None]
    output += vectors[:, [1, 2, 2]] * active[:, [1, 2, 2], :, None]
    output += vectors[:, [3, 4, 5]] * active[:, [3, 4, 5], :, None]
    return output


def spread_scene(sources_per_class: int) -> pd.DataFrame:
    """Sources of one class 40° apart or more, whole degrees."""
    return rows(
        *(
            (frame, class_id, -170 + 50 * class_id + 70 * source, 10 * class_id - 5 * source)
            for frame in range(25)
            for class_id in range(3)
            for source in range(sources_per_class)
        )
    )


def test_single_accdoa_keeps_one_of_two_same_class_sources() -> None:
    for sources, recall in ((1, 1.0), (2, 0.5)):
        table = spread_scene(sources)
        decoded = decode_accdoa(accdoa_targets(table, frame_count=25, class_count=3))
        result = score({"r": table}, {"r": decoded}, class_names=("a", "b", "c"))
        assert result.lr_cd == pytest.approx(recall)
        assert result.le_cd_deg < 1e-4
        assert result.er20 == pytest.approx(1 - recall)


def test_multi_accdoa_keeps_three_same_class_sources() -> None:
    for sources, recall in ((1, 1.0), (2, 1.0), (3, 1.0), (4, 0.75)):
        table = spread_scene(sources)
        target = multi_accdoa_targets(table, frame_count=25, class_count=3)
        decoded = decode_multi_accdoa(as_network_output(target))
        assert len(decoded) == 25 * 3 * min(sources, 3)
        result = score({"r": table}, {"r": decoded}, class_names=("a", "b", "c"))
        assert result.lr_cd == pytest.approx(recall)
        assert result.le_cd_deg < 1e-4
        assert result.er20 == pytest.approx(1 - recall)


def tracks(*azimuths_deg: float, length: float = 0.9) -> np.ndarray:
    """(1, track, 1, 3): one frame and class."""
    azimuth = np.radians(azimuths_deg)
    vectors = length * np.column_stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth])
    return vectors[None, :, None]


@pytest.mark.parametrize(
    ("azimuths_deg", "decoded_deg"),
    [
        ((0, 14, 90), (7, 90)),
        ((0, 16, 90), (0, 16, 90)),
        ((90, 0, 10), (90, 5)),
        ((0, 90, 10), (5, 90)),
        ((0, 10, 20), (10,)),  # 0 and 20 are unified through 10
        ((175, -175, 90), (-180, 90)),
    ],
)
def test_close_tracks_are_unified(azimuths_deg: tuple, decoded_deg: tuple) -> None:
    decoded = decode_multi_accdoa(tracks(*azimuths_deg))["azimuth_deg"].to_numpy()
    difference = (decoded - np.array(decoded_deg) + 180) % 360 - 180
    np.testing.assert_allclose(difference, 0, atol=1e-9)


def test_idle_tracks_take_no_part() -> None:
    prediction = np.concatenate([tracks(0, length=0.9), tracks(10, length=0.4)], axis=1)
    assert decode_multi_accdoa(prediction)["azimuth_deg"].tolist() == [0]
    assert len(decode_multi_accdoa(tracks(0, 50, 100, length=0.5))) == 0


def test_a_written_prediction_is_cartesian_and_reads_the_same(tmp_path: Path) -> None:
    decoded = decode_multi_accdoa(tracks(0, 50, 170))
    write_annotations(decoded, tmp_path / "p.csv")
    assert {line.count(",") for line in (tmp_path / "p.csv").read_text().splitlines()} == {5}
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.csv"), decoded)
