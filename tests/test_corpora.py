"""Corpus readers: each published layout becomes the same manifest rows."""

from __future__ import annotations

from pathlib import Path

import botocore.exceptions
import fsspec
import pytest

from seld import storage
from seld.corpora import CORPORA, Recording, read_classes
from seld.errors import InputError
from tests import corpus_writers as writers

STARSS_NAMES = (
    "dev-train-sony/fold3_room21_mix001",
    "dev-train-tau/fold3_room4_mix012",
    "dev-test-sony/fold4_room23_mix001",
    "dev-test-tau/fold4_room2_mix002",
)


def touch(root: Path, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


def test_starss22_rows(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path, STARSS_NAMES, duration_s=0.1)
    rows = CORPORA["starss22"](str(root))
    assert [(row.recording_id, row.split, row.room) for row in rows] == [
        ("fold3_room21_mix001", "train", "room21"),
        ("fold3_room4_mix012", "train", "room4"),
        ("fold4_room23_mix001", "test", "room23"),
        ("fold4_room2_mix002", "test", "room2"),
    ]
    assert rows[0] == Recording(
        recording_id="fold3_room21_mix001",
        corpus="starss22",
        split="train",
        room="room21",
        foa_path=f"{root}/foa_dev/dev-train-sony/fold3_room21_mix001.wav",
        annotation_path=f"{root}/metadata_dev/dev-train-sony/fold3_room21_mix001.csv",
    )


def test_real_starss22_names_are_understood(shared_data: Path, tmp_path: Path) -> None:
    root = writers.write_starss_annotated(tmp_path, shared_data / "starss22/metadata_dev")
    rows = CORPORA["starss22"](str(root))
    assert len(rows) == 67
    assert {row.split for row in rows} == {"train"}
    assert all(Path(str(row.annotation_path)).is_file() for row in rows)


def test_starss23_rows_have_video(tmp_path: Path) -> None:
    names = [f"{top}/{STARSS_NAMES[0]}" for top in ("foa_dev", "video_dev", "metadata_dev")]
    suffixes = (".wav", ".mp4", ".csv")
    files = [name + suffix for name, suffix in zip(names, suffixes, strict=True)]
    (row,) = CORPORA["starss23"](touch(tmp_path, *files))
    assert (row.video_path, row.corpus) == (f"{tmp_path}/{files[1]}", "starss23")


def test_embedded_rows_include_the_unannotated_part(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "foa_dev/dev-train/fold3_room1_mix001.wav",
        "metadata_dev/dev-train/fold3_room1_mix001.csv",
        "video_dev/dev-train/fold3_room1_mix001.mp4",
        "foa_dev/unannotated/fold1_room9_mix001.wav",
        "video_dev/unannotated/fold1_room9_mix001.mp4",
    )
    unannotated, train = CORPORA["embedded"](root)
    assert (unannotated.split, unannotated.annotation_path) == ("unannotated", None)
    assert (train.split, train.room) == ("train", "room1")


@pytest.mark.parametrize("kept", ["foa_dev/{}.wav", "metadata_dev/{}.csv", "video_dev/{}.mp4"])
def test_a_recording_with_lost_files_is_still_listed(tmp_path: Path, kept: str) -> None:
    whole = [form.format(STARSS_NAMES[1]) for form in ("foa_dev/{}.wav", "metadata_dev/{}.csv")]
    row, _ = CORPORA["starss23"](touch(tmp_path, kept.format(STARSS_NAMES[0]), *whole))
    assert row.foa_path == f"{tmp_path}/foa_dev/{STARSS_NAMES[0]}.wav"
    assert row.annotation_path == f"{tmp_path}/metadata_dev/{STARSS_NAMES[0]}.csv"


def test_synth1_rows(tmp_path: Path) -> None:
    root = writers.write_synth1(
        tmp_path, ("fold1_room10_mix001", "fold2_room2_mix300"), duration_s=0.1
    )
    rows = CORPORA["synth1"](str(root))
    assert [(row.recording_id, row.split, row.room) for row in rows] == [
        ("fold1_room10_mix001", "train", "synth1-room10"),
        ("fold2_room2_mix300", "train", "synth1-room2"),
    ]
    assert rows[1].annotation_path == f"{root}/metadata/fold2_room2_mix300.csv"
    assert rows[1].video_path is None


SYNTHETIC = "dev-train-synth/fold1_room1_mix001"


def test_synth1_may_be_a_part_beside_starss(tmp_path: Path) -> None:
    """As the DCASE 2022 baseline walks both."""
    names = (*STARSS_NAMES, SYNTHETIC, "dev-train-synth/fold2_room9_mix300")
    files = [f"foa_dev/{name}.wav" for name in names]
    files += [f"metadata_dev/{name}.csv" for name in names]
    root = touch(tmp_path, *files)
    for corpus in ("starss22", "starss23"):
        assert {row.recording_id[:5] for row in CORPORA[corpus](root)} == {"fold3", "fold4"}
    rows = CORPORA["synth1"](root)
    assert [(row.recording_id, row.room) for row in rows] == [
        ("fold1_room1_mix001", "synth1-room1"),
        ("fold2_room9_mix300", "synth1-room9"),
    ]
    assert rows[0].foa_path == f"{root}/foa_dev/{SYNTHETIC}.wav"
    assert rows[0].annotation_path == f"{root}/metadata_dev/{SYNTHETIC}.csv"


def test_other_folds_among_those_of_starss_are_refused(tmp_path: Path) -> None:
    stray = "foa_dev/dev-train-sony/fold1_room1_mix001.wav"
    root = touch(tmp_path, f"foa_dev/{STARSS_NAMES[0]}.wav", stray)
    with pytest.raises(InputError, match=f"{root}/{stray}: fold is 1"):
        CORPORA["starss22"](root)


def test_scenes_without_annotations_are_not_synth1(tmp_path: Path) -> None:
    name = "unannotated/fold1_room9_mix001"
    with pytest.raises(InputError, match="laid out as"):
        CORPORA["synth1"](touch(tmp_path, f"foa_dev/{name}.wav", f"video_dev/{name}.mp4"))


def test_yt360_ids_may_hold_and_start_with_hyphens(tmp_path: Path) -> None:
    stems = ("-a-b-c-d-e--120", "abcdefghij_-0", "--ZU8lpb3Y0-30")
    files = [f"video/{stem}.mp4" for stem in stems] + [f"audio/{stem}.m4a" for stem in stems]
    rows = CORPORA["yt360"](touch(tmp_path, *files))
    assert {row.recording_id: row.room for row in rows} == {
        "-a-b-c-d-e--120": "-a-b-c-d-e-",
        "abcdefghij_-0": "abcdefghij_",
        "--ZU8lpb3Y0-30": "--ZU8lpb3Y0",
    }
    assert all(row.origin == "web" and row.split == "unannotated" for row in rows)
    assert rows[0].foa_path.startswith(f"{tmp_path}/audio/")


def test_sphere360_ids_are_split_from_the_right(tmp_path: Path) -> None:
    files = ("a/_b_c_d_e_f__10.webm", "x0123456789_0.mp4", "audio/x0123456789_0.wav")
    rows = CORPORA["sphere360"](touch(tmp_path, *files))
    first, second = rows
    assert (first.recording_id, first.room) == ("_b_c_d_e_f__10", "_b_c_d_e_f_")
    assert first.foa_path == first.video_path == f"{tmp_path}/a/_b_c_d_e_f__10.webm"
    assert second.foa_path == f"{tmp_path}/audio/x0123456789_0.wav"
    assert second.video_path == f"{tmp_path}/x0123456789_0.mp4"


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("starss22", "foa_dev/dev-train-sony/room21_mix001.wav"),
        ("starss22", "foa_dev/dev-train-sony/fold1_room21_mix001.wav"),
        ("synth1", "foa/fold3_room1_mix001.wav"),
        ("yt360", "video/tooshort-10.mp4"),
        ("yt360", "audio/abcdefghijk_10.m4a"),
        ("sphere360", "abcdefghijk-10.webm"),
    ],
)
def test_a_foreign_file_name_is_named(tmp_path: Path, corpus: str, name: str) -> None:
    with pytest.raises(InputError, match=Path(name).stem):
        CORPORA[corpus](touch(tmp_path, name))


@pytest.mark.parametrize(
    ("corpus", "whole", "leftover"),
    [
        ("sphere360", "a/abcdefghijk_10.webm", "a/abcdefghijk_10.{}.webm"),
        ("yt360", "video/abcdefghijk-10.mp4", "video/abcdefghijk-10.{}.mp4"),
    ],
)
def test_leftovers_of_an_interrupted_download_are_passed_by(
    tmp_path: Path, corpus: str, whole: str, leftover: str
) -> None:
    leftovers = [leftover.format(middle) for middle in ("f338", "f251-1", "f251-drc", "temp")]
    unfinished = [f"{whole}.part", f"{whole}.part-Frag7", f"{whole}.ytdl"]
    (row,) = CORPORA[corpus](touch(tmp_path, whole, *leftovers, *unfinished))
    assert row.video_path == f"{tmp_path}/{whole}"


@pytest.mark.parametrize(
    ("corpus", "name"), [("sphere360", "title {}.webm"), ("yt360", "video/title {}.mp4")]
)
def test_foreign_file_names_are_counted(tmp_path: Path, corpus: str, name: str) -> None:
    names = [name.format(number) for number in range(5)]
    with pytest.raises(InputError) as caught:
        CORPORA[corpus](touch(tmp_path, *names))
    assert caught.value.field == "name of 5 files"
    assert caught.value.value == ", ".join(names[:3]) + " and 2 more"


def test_hidden_and_other_files_are_no_recordings(tmp_path: Path) -> None:
    name = "dev-train-sony/fold3_room21_mix001"
    files = (f"foa_dev/{name}.wav", f"metadata_dev/{name}.csv")
    root = touch(tmp_path, *files, "README.md", "foa_dev/dev-train-sony/._x.wav")
    assert len(CORPORA["starss22"](root)) == 1


def test_one_id_in_two_parts_is_refused(tmp_path: Path) -> None:
    files = [
        "foa_dev/dev-train-sony/fold3_room1_mix001.wav",
        "metadata_dev/dev-train-tau/fold3_room1_mix001.csv",
    ]
    with pytest.raises(
        InputError, match=f"recording fold3_room1_mix001 is '{' and '.join(files)}'"
    ):
        CORPORA["starss22"](touch(tmp_path, *files))


def test_a_file_that_is_refused_is_named_as_it_is(tmp_path: Path) -> None:
    name = "metadata_dev/dev-train-sony/fold1_room1_mix001.csv"
    with pytest.raises(InputError, match=f"{tmp_path}/{name}: fold is 1"):
        CORPORA["starss22"](touch(tmp_path, name))


@pytest.mark.parametrize(
    ("corpus", "files", "missing"),
    [
        ("starss22", ["foa_dev/{}.wav"], "metadata_dev"),
        ("starss23", ["metadata_dev/{}.csv", "video_dev/{}.mp4"], "foa_dev"),
        ("starss23", ["metadata_dev/{}.csv", "foa_dev/{}.csv"], "foa_dev"),
        ("synth1", ["foa/fold1_room1_mix001.wav"], "metadata"),
        ("synth1", ["metadata/fold1_room1_mix001.csv"], "foa"),
        ("synth1", [f"foa_dev/{SYNTHETIC}.wav"], "metadata_dev"),
    ],
)
def test_a_folder_that_was_forgotten_is_named(
    tmp_path: Path, corpus: str, files: list[str], missing: str
) -> None:
    root = touch(tmp_path, *(name.format(STARSS_NAMES[0]) for name in files))
    with pytest.raises(InputError, match=f"{root}/{missing}: files is 'none'"):
        CORPORA[corpus](root)


def test_scenes_without_annotations_need_no_folder_for_them(tmp_path: Path) -> None:
    name = "foa_dev/unannotated/fold1_room9_mix001.wav"
    assert len(CORPORA["embedded"](touch(tmp_path, name))) == 1


@pytest.mark.parametrize("corpus", sorted(CORPORA))
def test_a_missing_or_foreign_root_says_what_was_expected(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(InputError, match="exists"):
        CORPORA[corpus](str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="laid out as"):
        CORPORA[corpus](touch(tmp_path, "readme.txt"))


@pytest.mark.parametrize(
    "refusal",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.EndpointConnectionError(endpoint_url="https://s3"),
        PermissionError("Access Denied"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_line(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        """Knows nobody."""

        def exists(self, path: str) -> bool:
            raise refusal

        def get_file(self, path: str, local: str) -> None:
            raise refusal

    monkeypatch.setattr(storage, "file_system", lambda path: (Refusing(), path))
    said = f"is {str(refusal)!r}, expected"
    for corpus, reader in CORPORA.items():
        with pytest.raises(InputError, match=f"s3://b/YT: files {said} a folder or bucket that"):
            reader("s3://b/YT")
        with pytest.raises(InputError, match=f"s3://b/YT: list of classes {said}"):
            read_classes(corpus, "s3://b/YT")


def test_uris_give_the_same_rows(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path, STARSS_NAMES, duration_s=0.1)
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/starss", recursive=True)
    local = CORPORA["starss22"](str(root))
    remote = CORPORA["starss22"]("memory://starss")
    assert [row.foa_path.replace("memory://starss", str(root)) for row in remote] == [
        row.foa_path for row in local
    ]
