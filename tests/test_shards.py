"""Clip shards: decoding a corpus, restarting, setting bad files aside, reading at random."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import av.error
import botocore.exceptions
import fsspec
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from seld import clip_reader
from seld import clips as clips_module
from seld import shards as shards_module
from seld.clip_reader import ClipReader
from seld.clips import (
    SAMPLE_RATE_HZ,
    Clip,
    FrameEncoding,
    ShardIndex,
    decode_frames,
    encode_frame,
    select_budget,
    write_index,
    write_shard,
)
from seld.corpora import CORPORA, Recording
from seld.decoding import (
    Rejected,
    ScreeningSettings,
    ShardResult,
    ShardSettings,
    clip_spans,
    decode_recording,
)
from seld.errors import InputError, exit_on_input_error
from seld.shards import (
    ProcessExecutor,
    build_shards,
    bytes_per_s,
    check_disk,
    main,
    plan,
    rejected_table,
)
from tests import corpus_writers as writers
from trainables.pretrain_job import unannotated_clips

SMALL = ShardSettings(clip_s=2.0, frame_rate_hz=4.0, frame_height_px=16, frame_width_px=32)
NAMES = tuple(
    f"dev-{part}-sony/fold{fold}_room{room}_mix{number:03d}"
    for part, fold, room in (("train", 3, 1), ("train", 3, 2), ("test", 4, 9))
    for number in (1, 2)
)


class CountingExecutor:
    """Does the work here and now, and remembers what it was asked for."""

    def __init__(self, stop_after: int | None = None, backwards: bool = False) -> None:
        self.paths: list[str] = []
        self.closed = False
        self.stop_after = stop_after
        self.backwards = backwards

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, workers: int
    ) -> Iterator[Any]:
        try:
            for item in reversed(items) if self.backwards else items:
                if len(self.paths) == self.stop_after:
                    raise KeyboardInterrupt
                self.paths.append(item.path)
                yield function(item)
        finally:
            self.closed = True


def build(
    corpus: str, root: Path | str, out: Path | str, settings: ShardSettings = SMALL, **options: Any
) -> tuple[ShardIndex, list[Rejected]]:
    options = {"executor": ProcessExecutor(), "workers": 1} | options
    return build_shards(CORPORA[corpus](str(root)), settings, str(out), **options)


@pytest.fixture(scope="module")
def starss23(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writers.write_starss(tmp_path_factory.mktemp("starss23"), NAMES, with_video=True)


@pytest.fixture(scope="module")
def shards(starss23: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    _, rejected = build("starss23", starss23, out)
    assert rejected == []
    return out


# What the clips hold


def test_windows_are_the_recording(starss23: Path, shards: Path) -> None:
    reader = ClipReader(str(shards))
    sound, _ = soundfile.read(
        starss23 / "foa_dev/dev-train-sony/fold3_room2_mix001.wav", dtype="int16"
    )
    read = reader.read(["fold3_room2_mix001@2.0"], window_start_s=0.7, window_s=1.1)
    assert np.array_equal(read["foa"][0].T, sound[round(2.7 * 24000) : round(3.8 * 24000)])
    assert list(read) == ["foa"]


def test_rows_and_ids_name_the_same_clips(shards: Path) -> None:
    reader = ClipReader(str(shards))
    rows = [7, 0, 11, 7]
    ids = [reader.index.clips["clip_id"][row] for row in rows]
    starts_s = [0.0, 0.5, 1.0, 0.3]
    by_row = reader.read(rows, window_start_s=starts_s, window_s=1.0, frame_count=3)
    by_id = reader.read(ids, window_start_s=np.array(starts_s), window_s=1.0, frame_count=3)
    assert by_row["foa"].shape == (4, 4, 24000)
    assert by_row["frames"].shape == (4, 3, 3, 16, 32)
    assert by_row["frames"].dtype == np.uint8
    for name in by_row:
        assert np.array_equal(by_row[name], by_id[name])


def test_frames_are_those_of_their_time(tmp_path: Path) -> None:
    """A 10 Hz video whose frames show their number; a clip's window shows the right ones."""
    root = tmp_path / "corpus"
    name = "dev-train-sony/fold3_room1_mix001"
    writers.write_starss(root, [name])
    writers.write_media(root / f"video_dev/{name}.mp4", pictures=writers.numbered_pictures(60))
    settings = dataclasses.replace(
        SMALL, frame_rate_hz=10.0, frame_height_px=64, frame_width_px=128
    )
    build("starss23", root, tmp_path / "out", settings)
    reader = ClipReader(str(tmp_path / "out"))
    read = reader.read(["fold3_room1_mix001@2.0"], window_start_s=0.5, window_s=1.2, frame_count=3)
    shown = writers.shown_numbers(read["frames"][0].transpose(0, 2, 3, 1))
    assert shown == [27, 31, 35]  # middles of 2.5-2.9, 2.9-3.3 and 3.3-3.7 s


def test_a_reader_may_ask_for_clips_in_any_order(shards: Path) -> None:
    """It keeps what it read last: the next window may be another clip's, or another column."""
    asked = [(0, 0.0), (0, 1.0), (1, 0.0), (0, 0.5), (1, 0.5), (1, 0.0)]
    reader = ClipReader(str(shards))
    rows, starts_s = [row for row, _ in asked], [start_s for _, start_s in asked]
    together = reader.read(rows, window_start_s=starts_s, window_s=1.0, frame_count=2)
    for position, (row, start_s) in enumerate(asked):
        reader.events(row)
        frames = reader.read_frames([row], window_start_s=start_s, window_s=1.0, frame_count=2)
        fresh = ClipReader(str(shards)).read(
            [row], window_start_s=start_s, window_s=1.0, frame_count=2
        )
        np.testing.assert_array_equal(together["foa"][position], fresh["foa"][0])
        np.testing.assert_array_equal(together["frames"][position], fresh["frames"][0])
        np.testing.assert_array_equal(frames, fresh["frames"])
    assert len({values.tobytes() for values in together["foa"]}) == len(set(asked))


def test_events_count_from_the_window(shards: Path) -> None:
    reader = ClipReader(str(shards))
    events = reader.events("fold3_room2_mix001@2.0", window_start_s=0.5, window_s=0.3)
    assert events.to_dict("list") == {
        "frame": [0, 1, 2],
        "class_id": [2, 2, 2],
        "source_id": [0, 0, 0],
        "azimuth_deg": [25.0, 26.0, 27.0],
        "elevation_deg": [10.0, 10.0, 10.0],
    }
    whole = reader.events("fold3_room2_mix001@0.0")
    assert whole["frame"].tolist() == list(range(10, 20))  # the first second has no event


def test_corpora_without_video_have_no_frames(tmp_path: Path) -> None:
    root = writers.write_synth1(tmp_path / "synth1", ["fold1_room1_mix001"])
    index, rejected = build("synth1", root, tmp_path / "out")
    assert rejected == []
    assert index.clips["frame_count"].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="a clip with video"):
        ClipReader(str(tmp_path / "out")).read([0], window_s=1.0, frame_count=1)


def test_yt360_comes_in_acn_order_at_24_khz(tmp_path: Path) -> None:
    names = ["-abc_DEF-12-30", "-abc_DEF-12-40", "zyxwvutsrqp-0"]
    root = writers.write_yt360(tmp_path / "yt360", names)
    index, rejected = build("yt360", root, tmp_path / "out")
    assert rejected == []
    assert sorted(index.clips["recording_id"].unique()) == sorted(names)
    assert set(index.clips["room"]) == {"-abc_DEF-12", "zyxwvutsrqp"}
    assert len(set(index.clips["shard"])) == 1  # short recordings share a shard
    foa = ClipReader(str(tmp_path / "out")).read([0], window_s=1.0)["foa"][0]
    loudest_hz = np.abs(np.fft.rfft(foa.astype(float))).argmax(axis=1)
    assert loudest_hz.tolist() == [300, 1200, 2400, 600]  # written W, X, Y, Z


def test_sphere360_webm_is_read(tmp_path: Path) -> None:
    root = writers.write_sphere360(tmp_path / "sphere360", ["_b_c_d_e_f__10"])
    index, rejected = build("sphere360", root, tmp_path / "out")
    assert rejected == []
    assert index.minutes * 60 == pytest.approx(6.0, abs=0.1)
    read = ClipReader(str(tmp_path / "out")).read([1], window_s=1.0, frame_count=2)
    loudest_hz = np.abs(np.fft.rfft(read["foa"][0].astype(float))).argmax(axis=1)
    assert loudest_hz.tolist() == [300, 600, 1200, 2400]
    assert read["frames"].max() > 180


@pytest.mark.parametrize("quality", [90, 60])
def test_jpeg_frames_look_like_raw_ones(starss23: Path, tmp_path: Path, quality: int) -> None:
    sizes = {}
    read = {}
    for encoding in ("raw", "jpeg"):
        settings = dataclasses.replace(
            SMALL,
            frame_encoding=encoding,
            jpeg_quality=quality,
            frame_height_px=64,
            frame_width_px=128,
        )
        index, _ = build("starss23", starss23, tmp_path / encoding, settings)
        sizes[encoding] = sum(
            path.stat().st_size for path in (tmp_path / encoding).glob("*.shard.parquet")
        )
        reader = ClipReader(index.folder)
        read[encoding] = reader.read([0, 5], window_s=2.0, frame_count=4)["frames"].astype(float)
    assert sizes["jpeg"] < 0.8 * sizes["raw"]
    assert np.sqrt(np.square(read["jpeg"] - read["raw"]).mean()) < 12


def test_jpegs_are_decoded_as_pillow_decodes_them() -> None:
    frame = writers.moving_pictures(0.1, 10)[0]
    encoded = encode_frame(frame, "jpeg", 80)
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    decoded = decode_frames([encoded, encoded], "jpeg", height_px=64, width_px=128)
    assert np.array_equal(decoded[1].transpose(1, 2, 0), expected)


# Clip windows


@given(
    sample_count=st.integers(1, 40 * SAMPLE_RATE_HZ),
    clip_frames=st.integers(5, 100),
    overlap=st.integers(0, 4),
)
def test_clips_cover_the_recording(sample_count: int, clip_frames: int, overlap: int) -> None:
    settings = ShardSettings(clip_s=clip_frames / 10, hop_s=(clip_frames - overlap) / 10)
    spans = clip_spans(sample_count, settings)
    clip = clip_frames * 2400
    if sample_count < clip / 2:
        assert spans == []
        return
    assert spans[0][0] == 0
    assert spans[-1][1] == sample_count
    for first, last in spans:
        assert first % 2400 == 0
        assert clip / 2 <= last - first < 1.5 * clip
    hop = (clip_frames - overlap) * 2400
    assert all(later[0] - earlier[0] == hop for earlier, later in pairwise(spans))
    assert all(later[0] <= earlier[1] for earlier, later in pairwise(spans))


def test_a_remainder_joins_or_is_a_clip_of_its_own() -> None:
    second = SAMPLE_RATE_HZ
    settings = ShardSettings(clip_s=4.0)
    assert clip_spans(9 * second, settings) == [(0, 4 * second), (4 * second, 9 * second)]
    assert clip_spans(10 * second, settings)[-1] == (8 * second, 10 * second)


# Bad files


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """STARSS23 with two good recordings and one for each way of being broken."""
    root = tmp_path_factory.mktemp("broken")
    names = [f"dev-train-tau/fold3_room7_mix{number:03d}" for number in range(22)]
    writers.write_starss(root, names, duration_s=3.0, with_video=True)
    breakages = dict(zip(names, writers.BREAKAGES, strict=False))
    for name, breakage in breakages.items():
        writers.break_starss(root, name, breakage)
    reasons = {Path(name).name: writers.BREAKAGES[kind] for name, kind in breakages.items()}
    return root, reasons


def test_every_breakage_is_set_aside_with_its_reason(
    broken: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    root, reasons = broken
    index, rejected = build("starss23", root, tmp_path / "out", max_bad_share=0.95)
    assert {item.recording_id: item.reason for item in rejected} == reasons
    without_picture = {item.recording_id for item in rejected if item.path.endswith(".mp4")}
    assert len(without_picture) == 7
    assert without_picture == {item.recording_id for item in rejected if item.lost == "picture"}
    with_frames = set(index.clips.loc[index.clips["frame_count"] > 0, "recording_id"])
    assert with_frames == {"fold3_room7_mix020", "fold3_room7_mix021"}
    assert set(index.clips["recording_id"]) == with_frames | without_picture
    table = pd.read_csv(tmp_path / "out/rejected.csv")
    assert list(table.columns) == ["recording_id", "reason", "detail", "path", "lost"]
    assert dict(zip(table["recording_id"], table["reason"], strict=True)) == reasons
    assert table["detail"].notna().all()


def reasons_of(rejected: Sequence[Rejected]) -> dict[str, str]:
    return {item.recording_id[-1]: item.reason for item in rejected}


def test_broken_yt360_segments_are_set_aside(tmp_path: Path) -> None:
    names = [f"abc-efg_ijk-{number}" for number in range(9)]
    root = writers.write_yt360(tmp_path / "yt360", names)
    sounds, videos = (
        [root / f"{top}/{name}{end}" for name in names]
        for top, end in (("audio", ".m4a"), ("video", ".mp4"))
    )
    four = writers.tones(6, 48_000, (300, 600, 1200, 2400))
    writers.write_media(sounds[0], sound=four[:, :2])
    sounds[1].write_bytes(sounds[1].read_bytes()[:20_000])
    writers.write_media(sounds[2], sound=four[:, :] * np.float32(0.001))
    writers.write_media(sounds[3], sound=four[: 3 * 48_000])
    sounds[4].unlink()
    videos[5].unlink()
    writers.write_media(videos[6], sound=four)
    writers.plant_sa3d(writers.write_media(sounds[7], sound=four), (0, 2, 3, 1), normalisation=1)
    _, rejected = build("yt360", root, tmp_path / "out", max_bad_share=0.95)
    assert reasons_of(rejected) == {
        "0": "wrong channel count",
        "1": "truncated",
        "2": "silent",
        "3": "different length",
        "4": "missing file",
        "5": "missing file",
        "6": "no video stream",
        "7": "unreadable",
    }


def test_broken_sphere360_segments_are_set_aside(tmp_path: Path) -> None:
    names = [f"abc-efg_ijk_{number}" for number in range(6)]
    root = writers.write_sphere360(tmp_path / "sphere360", names)
    moving = writers.moving_pictures(6, 10)
    four = writers.tones(6, 48_000, (300, 600, 1200, 2400))
    webm = {"sound_codec": "libopus", "video_codec": "libvpx-vp9"}
    files = [root / f"{name}.webm" for name in names]
    writers.write_media(files[0], pictures=moving, **webm)
    writers.write_media(files[1], pictures=moving, sound=four[:, :2], **webm)
    writers.write_media(files[2], pictures=np.repeat(moving[:1], 60, axis=0), sound=four, **webm)
    writers.write_media(files[3], sound=four, **webm)
    files[4].write_bytes(b"an error page, not a video")
    _, rejected = build("sphere360", root, tmp_path / "out", max_bad_share=0.95)
    assert reasons_of(rejected) == {
        "0": "no audio stream",
        "1": "wrong channel count",
        "2": "static picture",
        "3": "no video stream",
        "4": "unreadable",
    }


@pytest.mark.parametrize(
    ("corpus", "names"),
    [
        ("starss22", [f"dev-train-sony/fold3_room1_mix00{number}" for number in range(4)]),
        ("synth1", [f"fold1_room1_mix00{number}" for number in range(4)]),
    ],
)
def test_broken_sound_corpora_are_set_aside(tmp_path: Path, corpus: str, names: list[str]) -> None:
    root = tmp_path / corpus
    write = writers.write_starss if corpus == "starss22" else writers.write_synth1
    write(root, names)
    sounds, tables = (sorted(root.rglob(pattern)) for pattern in ("*.wav", "*.csv"))
    sounds[0].write_bytes(sounds[0].read_bytes()[:-1000])
    writers.write_wav(sounds[1], writers.foa_noise(6)[:, :3])
    tables[2].write_text("12,0,0,10\n")
    _, rejected = build(corpus, root, tmp_path / "out", max_bad_share=0.95)
    assert reasons_of(rejected) == {
        "0": "truncated",
        "1": "wrong channel count",
        "2": "bad annotations",
    }


def test_files_that_may_not_be_read_are_set_aside_until_they_may(
    starss23: Path, tmp_path: Path
) -> None:
    refused = [
        starss23 / f"foa_dev/{NAMES[0]}.wav",
        starss23 / f"video_dev/{NAMES[1]}.mp4",
        starss23 / f"metadata_dev/{NAMES[2]}.csv",
    ]
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:  # permissions do not bind root
        patched.setattr(Path, "open", refuse)
        patched.setattr(os, "access", lambda path, mode: path not in refused)
        _, rejected = build("starss23", starss23, tmp_path / "out")
    assert [(item.path, item.reason) for item in rejected] == [
        (str(refused[0]), "unreadable"),
        (str(refused[1]), "unreadable"),
        (str(refused[2]), "bad annotations"),
    ]
    assert all("Permission denied" in item.detail for item in rejected)
    assert build("starss23", starss23, tmp_path / "out")[1] == []


def test_a_full_disk_is_no_fault_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = writers.foa_noise(10.0)
    recording = web_recording(tmp_path, sound, writers.moving_pictures(10, WEB_FRAME_RATE_HZ))

    def fill_disk(path: str) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("seld.decoding.local_copy", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        decode_recording(recording, SMALL)


class TwoMachines:
    """Decodes every other shard where the corpus is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, workers: int
    ) -> Iterator[Any]:
        away = self.root.with_name("away")
        for number, item in enumerate(items):
            if number % 2:
                self.root.rename(away)
            try:
                yield function(item)
            finally:
                if number % 2:
                    away.rename(self.root)


def test_a_machine_without_the_corpus_makes_no_bad_recordings(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "corpus", NAMES)
    (root / f"foa_dev/{NAMES[0]}.wav").unlink()
    options: dict[str, Any] = {"max_bad_share": 0.2}
    with pytest.raises(InputError, match=r"fold3_room1_mix002\.wav: file on .*missing") as caught:
        build("starss22", root, tmp_path / "out", executor=TwoMachines(root), **options)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    index, rejected = build("starss22", root, tmp_path / "out", **options)
    assert [item.reason for item in rejected] == ["missing file"]  # it was when this was planned
    assert index.clips["recording_id"].nunique() == 5


BAD_READS = {
    "sound": ("foa_dev", ".wav"),
    "picture": ("video_dev", ".mp4"),
    "annotations": ("metadata_dev", ".csv"),
}


@pytest.mark.parametrize("part", BAD_READS)
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_read_that_fails_makes_no_bad_recording(
    starss23: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, number: int
) -> None:
    folder, suffix = BAD_READS[part]
    path = starss23 / folder / f"{NAMES[3]}{suffix}"
    opened = Path.open
    failures = [OSError(number, os.strerror(number), str(path))]

    def fail_once(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path and failures:
            raise failures.pop()
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail_once)
    with pytest.raises(InputError, match=f"{path}: file on .*{os.strerror(number)}") as caught:
        build("starss23", starss23, tmp_path / "out")
    assert isinstance(caught.value.__cause__, OSError)  # by which it is known what to do
    index, rejected = build("starss23", starss23, tmp_path / "out")
    assert rejected == []
    assert index.clips["recording_id"].nunique() == 6


def test_what_ffmpeg_or_libsndfile_says_of_a_bad_read_is_not_believed_at_once(
    starss23: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [
        av.error.OSError(errno.EIO, "Input/output error"),
        soundfile.LibsndfileError(2),  # "System error."
        av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
        av.error.OSError(errno.ESTALE, "Stale file handle"),
    ]

    def failing(function: Callable[..., Any], kind: type[Exception]) -> Callable[..., Any]:
        def fail_once(*arguments: Any, **options: Any) -> Any:
            if failures and isinstance(failures[0], kind):
                raise failures.pop(0)
            return function(*arguments, **options)

        return fail_once

    opened = failing(av.open, av.error.FFmpegError)
    monkeypatch.setattr(av, "open", opened)
    sound_file = failing(soundfile.SoundFile, soundfile.LibsndfileError)
    monkeypatch.setattr(soundfile, "SoundFile", sound_file)
    with pytest.raises(InputError, match="Stale file handle"):
        build("starss23", starss23, tmp_path / "out")
    assert failures == []
    assert build("starss23", starss23, tmp_path / "out")[1] == []


# Bad pictures


def test_annotated_recordings_do_without_a_picture(starss23: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(starss23, root)
    (root / f"video_dev/{NAMES[0]}.mp4").unlink()  # as of fold3_room21 in STARSS23
    writers.break_starss(root, NAMES[4], "cut mp4")
    index, rejected = build("starss23", root, tmp_path / "out", max_bad_share=0.0)
    assert [(item.recording_id, item.reason, item.lost) for item in rejected] == [
        ("fold3_room1_mix001", "missing file", "picture"),
        ("fold4_room9_mix001", "truncated", "picture"),
    ]
    whole = ShardIndex.open(str(tmp_path / "out")).select(splits=["train", "test"])
    assert whole.clips["recording_id"].nunique() == 6
    seen = unannotated_clips(index, ["room2"]).clips
    assert set(seen["recording_id"]) == {"fold3_room1_mix002"}
    reader = ClipReader(str(tmp_path / "out"))
    assert len(reader.events("fold4_room9_mix001@2.0")) == 20
    console = Console(file=io.StringIO(), width=160)
    console.print(rejected_table(rejected, "out"))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "2 used without their picture" in printed
    assert "set aside" not in printed
    assert "truncated (picture only: sound and annotations are used)" in printed
    # The picture that has come is used.
    shutil.copy(starss23 / f"video_dev/{NAMES[0]}.mp4", root / f"video_dev/{NAMES[0]}.mp4")
    index, rejected = build("starss23", root, tmp_path / "out")
    assert [item.recording_id for item in rejected] == ["fold4_room9_mix001"]


def test_footers_that_do_not_tell_what_is_lost_are_read() -> None:
    item = {"recording_id": "r", "reason": "silent", "detail": "d", "path": "p"}
    footer = {"recording_count": 1, "clips": [], "rejected": [item]}
    assert ShardResult.from_footer("x", footer).bad_count == 1


@pytest.mark.parametrize(("encoding", "needed_gb"), [("raw", "0.7"), ("jpeg", "0.3")])
def test_a_disk_without_room_is_named_before_anything_is_decoded(
    encoding: FrameEncoding, needed_gb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of decoding would end in ENOSPC."""
    free = 100_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    recordings = [
        Recording(
            recording_id=f"r{number:03d}",
            corpus="yt360",
            split="unannotated",
            room="r",
            foa_path=f"/nowhere/{number}.m4a",
            video_path=f"/nowhere/{number}.mp4",
            duration_s=10.0,
        )
        for number in range(100)
    ]
    settings = replace(
        SMALL, frame_rate_hz=5.0, frame_height_px=128, frame_width_px=256, frame_encoding=encoding
    )
    out, executor = str(tmp_path / "out"), CountingExecutor()
    expected = rf"out: free disk space \(GB\) is 0\.1, expected about {needed_gb} "
    with pytest.raises(InputError, match=expected):
        build_shards(recordings, settings, out, executor=executor, workers=1)
    assert executor.paths == []
    with pytest.raises(InputError, match=expected):
        check_disk(recordings, settings, out)
    # Of these nobody knows the length before they are read, and buckets have no end.
    check_disk([replace(item, duration_s=None) for item in recordings], settings, out)
    check_disk(recordings, settings, f"memory://{tmp_path.name}")
    check_disk(recordings[:10], settings, out)
    with pytest.raises(InputError, match=r"expected about 0\.[89] "):
        check_disk(recordings[:10], settings, out, further_bytes_per_s=8e6)


def test_what_is_decoded_already_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writers.write_sphere360(tmp_path / "corpus", [f"abcdefghij{n}_0" for n in range(2)])
    build("sphere360", root, tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    check_disk(CORPORA["sphere360"](str(root)), SMALL, str(tmp_path / "out"))
    build("sphere360", root, tmp_path / "out")


@pytest.mark.parametrize("hop_s", [None, 1.0])
def test_a_shard_is_as_large_as_was_estimated(hop_s: float | None, tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "corpus", NAMES[:1], duration_s=20.0, with_video=True)
    settings = replace(SMALL, hop_s=hop_s)
    build("starss23", root, tmp_path / "out", settings)
    (shard,) = (tmp_path / "out").glob("*.shard.parquet")
    assert shard.stat().st_size == pytest.approx(20 * bytes_per_s(settings, True), rel=0.1)


def test_too_many_bad_files_stop_early(broken: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    executor = CountingExecutor()
    with pytest.raises(InputError, match="max-bad-share") as caught:
        build("starss23", broken[0], tmp_path / "out", executor=executor, max_bad_share=0.25)
    assert caught.value.value == "6 of 22"
    assert len(executor.paths) == 6
    assert executor.closed
    assert len(pd.read_csv(tmp_path / "out/rejected.csv")) == 6


WEB_FRAME_RATE_HZ = 5


def web_recording(tmp_path: Path, sound: np.ndarray, pictures: np.ndarray) -> Recording:
    return Recording(
        recording_id="abcdefghijk_0",
        corpus="sphere360",
        split="unannotated",
        room="abcdefghijk",
        foa_path=str(writers.write_wav(tmp_path / "a.wav", sound)),
        video_path=str(
            writers.write_media(
                tmp_path / "a.mp4", pictures=pictures, frame_rate_hz=WEB_FRAME_RATE_HZ
            )
        ),
        duration_s=10.0,
        origin="web",
    )


@pytest.mark.parametrize(("loud_share", "reason"), [(0.05, "silent"), (0.2, None)])
def test_web_sound_is_silent_under_35_dbfs_for_nine_tenths(
    tmp_path: Path, loud_share: float, reason: str | None
) -> None:
    quiet = np.float32(10 ** (-36 / 20) * np.sqrt(2))
    phases = np.arange(10 * 24000)[:, None] * 0.3 + np.arange(4) * 0.7
    sound = (np.sin(phases) * quiet).astype(np.float32)
    sound[: int(loud_share * len(sound))] *= 4
    recording = web_recording(tmp_path, sound, writers.moving_pictures(10, WEB_FRAME_RATE_HZ))
    clips, fault = decode_recording(recording, SMALL)
    assert (fault.reason if fault else None) == reason
    assert bool(clips) == (reason is None)
    studio = dataclasses.replace(recording, origin="microphone")
    assert decode_recording(studio, SMALL)[1] is None


@pytest.mark.parametrize(("moving_share", "reason"), [(0.0, "static picture"), (0.3, None)])
def test_web_pictures_may_not_stand_still(
    tmp_path: Path, moving_share: float, reason: str | None
) -> None:
    generator = np.random.default_rng(0)
    pictures = np.full((50, 64, 128, 3), 90) + generator.integers(-2, 3, (50, 64, 128, 3))
    moving = writers.moving_pictures(10, WEB_FRAME_RATE_HZ)
    count = int(moving_share * 50)
    pictures[:count] = moving[:count]
    recording = web_recording(tmp_path, writers.foa_noise(10), pictures.astype(np.uint8))
    clips, fault = decode_recording(recording, SMALL)
    assert (fault.reason if fault else None) == reason
    assert bool(clips) == (reason is None)
    studio = dataclasses.replace(recording, origin="microphone")
    assert decode_recording(studio, SMALL)[1] is None


def test_small_differences_of_length_are_put_up_with(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, screening=ScreeningSettings(length_tolerance_s=0.5))
    for picture_s, accepted in ((5.6, True), (5.4, False), (6.4, True), (6.6, False)):
        recording = web_recording(
            tmp_path, writers.foa_noise(6), writers.moving_pictures(picture_s, WEB_FRAME_RATE_HZ)
        )
        assert (decode_recording(recording, settings)[1] is None) == accepted


# Restarting


def test_finished_shards_are_not_made_again(starss23: Path, tmp_path: Path) -> None:
    interrupted = CountingExecutor(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        build("starss23", starss23, tmp_path / "out", executor=interrupted)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert sorted(kept) == sorted(Path(path).name for path in interrupted.paths)

    second = CountingExecutor()
    index, _ = build("starss23", starss23, tmp_path / "out", executor=second)
    assert len(second.paths) == 4
    assert not set(second.paths) & set(interrupted.paths)
    for name, time_ns in kept.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == time_ns

    third = CountingExecutor()
    again, _ = build("starss23", starss23, tmp_path / "out", executor=third)
    assert third.paths == []
    assert again.fingerprint == index.fingerprint


def test_another_decoder_decodes_anew(
    starss23: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("starss23", starss23, tmp_path)
    monkeypatch.setattr(shards_module, "DECODER_VERSION", -1)
    again = CountingExecutor()
    build("starss23", starss23, tmp_path, executor=again)
    assert again.paths


def test_another_list_of_classes_decodes_what_is_annotated_anew(
    starss23: Path, tmp_path: Path
) -> None:
    def decoded(root: Path, corpus: str, class_count: int) -> int:
        again = CountingExecutor()
        build(corpus, root, tmp_path / corpus, class_count=class_count, executor=again)
        return len(again.paths)

    wild = writers.write_sphere360(tmp_path / "wild", ["abcdefghijk_0"])
    assert [decoded(starss23, "starss23", count) for count in (13, 13, 14)] == [6, 0, 6]
    assert [decoded(wild, "sphere360", count) for count in (13, 14)] == [1, 0]


def test_a_folder_named_like_a_pattern_is_decoded_into_once(starss23: Path, tmp_path: Path) -> None:
    out = tmp_path / "sh[1]*"
    build("starss23", starss23, out)
    again = CountingExecutor()
    build("starss23", starss23, out, executor=again)
    assert again.paths == []


def test_what_a_killed_process_left_of_a_shard_is_removed(starss23: Path, tmp_path: Path) -> None:
    index, _ = build("starss23", starss23, tmp_path)
    name = index.clips["shard"].iloc[0]
    dead, alive = (tmp_path / f".{name}.{letter * 32}" for letter in "de")
    stranger = tmp_path / f".notes.shard.parquet.{'f' * 32}"
    for path in (dead, alive, stranger):
        path.write_bytes(b"half of it")
    for path in (dead, stranger):
        os.utime(path, (0.0, 0.0))
    build("starss23", starss23, tmp_path)
    assert [path.exists() for path in (dead, alive, stranger)] == [False, True, True]


def test_rejections_are_remembered_on_restart(
    broken: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    _, first = build("starss23", broken[0], tmp_path / "out", max_bad_share=0.95)
    executor = CountingExecutor()
    _, second = build(
        "starss23", broken[0], tmp_path / "out", max_bad_share=0.95, executor=executor
    )
    assert executor.paths == []
    assert second == first


def test_a_changed_file_is_decoded_again(starss23: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(starss23, root)
    before, _ = build("starss23", root, tmp_path / "out")
    writers.write_wav(root / f"foa_dev/{NAMES[0]}.wav", writers.foa_noise(6.0, seed=99))
    executor = CountingExecutor()
    after, _ = build("starss23", root, tmp_path / "out", executor=executor)
    assert len(executor.paths) == 1
    assert after.fingerprint != before.fingerprint
    assert len(after.clips) == len(before.clips)
    assert len(list((tmp_path / "out").glob("*.shard.parquet"))) == 6  # the old one is gone


def test_a_run_whose_shards_another_has_removed_does_not_go_on_with_the_rest(
    starss23: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    recordings = CORPORA["starss23"](str(starss23))

    def begun_before_two_were_added(result: ShardResult) -> None:
        if "fold3_room2_mix001" in result.path:  # the fourth of six
            build_shards(recordings[:4], SMALL, out, executor=ProcessExecutor(), workers=1)

    backwards = {"executor": CountingExecutor(backwards=True)}
    with pytest.raises(InputError, match=r"2 missing.*another run decodes into this folder"):
        build("starss23", starss23, out, on_result=begun_before_two_were_added, **backwards)
    assert ShardIndex.open(out).clips["recording_id"].nunique() == 4
    again, _ = build("starss23", starss23, out)
    assert again.clips["recording_id"].nunique() == 6


def test_an_index_holds_the_shards_it_is_asked_for(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(shards, out)
    wanted = {path.name for path in sorted(out.glob("*.shard.parquet"))[:4]}
    assert set(write_index(str(out), wanted).clips["shard"]) == wanted


def test_folders_and_files_may_be_links(starss23: Path, tmp_path: Path) -> None:
    """As corpora spread over disks are, and those kept by git-annex."""
    root = tmp_path / "corpus"
    for kind in ("foa_dev", "metadata_dev", "video_dev"):
        (root / kind).mkdir(parents=True)
        for part in (starss23 / kind).iterdir():
            (root / kind / part.name).symlink_to(part)
    (root / "foa_dev/back").symlink_to(root)  # must not be followed for ever
    own, lost = (
        root / f"metadata_dev/dev-train-sony/fold3_room{room}_mix001.csv" for room in (1, 2)
    )
    originals = (starss23 / "metadata_dev/dev-train-sony").glob("*.csv")
    own.parent.unlink()
    own.parent.mkdir()
    for original in originals:
        (own.parent / original.name).symlink_to(original)
    own.unlink()
    target = tmp_path / "annotations.csv"
    target.write_text("1,0,0,10,10\n")
    own.symlink_to(target)
    lost.unlink()
    lost.symlink_to(tmp_path / "not fetched")
    circular = root / "metadata_dev/dev-train-sony/fold3_room2_mix002.csv"
    circular.unlink()
    circular.symlink_to(circular)
    before, rejected = build("starss23", root, tmp_path / "out")
    assert before.clips["recording_id"].nunique() == 4
    assert [(item.recording_id, item.reason) for item in rejected] == [
        ("fold3_room2_mix001", "missing file"),
        ("fold3_room2_mix002", "missing file"),
    ]
    target.write_text("1,0,0,20,10\n")  # as long as before, and the link is as old
    executor = CountingExecutor()
    after, _ = build("starss23", root, tmp_path / "out", executor=executor)
    assert len(executor.paths) == 1
    assert after.fingerprint != before.fingerprint


def test_a_corpus_that_moved_is_not_decoded_again(starss23: Path, tmp_path: Path) -> None:
    shutil.copytree(starss23, tmp_path / "here")
    build("starss23", tmp_path / "here", tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    executor = CountingExecutor()
    build("starss23", tmp_path / "there", tmp_path / "out", executor=executor)
    assert executor.paths == []


def test_paths_need_not_be_absolute(
    starss23: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(starss23.parent)
    recordings = CORPORA["starss23"](starss23.name)
    assert Path(recordings[0].foa_path).is_absolute()
    assert recordings == CORPORA["starss23"](str(starss23))
    reader = ClipReader(os.path.relpath(shards))
    assert reader.read([0], window_s=1.0)["foa"].any()


def test_other_settings_make_other_shards(starss23: Path, tmp_path: Path) -> None:
    recordings = CORPORA["starss23"](str(starss23))
    other = dataclasses.replace(SMALL, frame_rate_hz=5.0)
    paths = [{job.path for job in plan(recordings, settings, "out")} for settings in (SMALL, other)]
    assert not paths[0] & paths[1]


def test_shards_of_other_settings_or_corpora_are_left_alone(starss23: Path, tmp_path: Path) -> None:
    build("starss23", starss23, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    other = dataclasses.replace(SMALL, frame_rate_hz=5.0)
    with pytest.raises(InputError, match="another folder"):
        build("starss23", starss23, tmp_path / "out", other)
    with pytest.raises(InputError, match="another folder"):
        build("starss22", starss23, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_no_half_written_shard_is_ever_seen(tmp_path: Path) -> None:
    def clips() -> Iterator[Clip]:
        yield silent_clip("a", 0)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_shard(str(tmp_path / "a.shard.parquet"), clips(), {})
    assert list(tmp_path.iterdir()) == []


def test_of_very_many_rejected_recordings_a_few_are_listed() -> None:
    rejected = [
        Rejected(
            recording_id=f"r{n:04d}", reason="static" if n % 3 else "silent", detail="d", path="p"
        )
        for n in range(900)
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(rejected_table(rejected, "out"))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert len(printed.splitlines()) < 30
    for words in ("900 recordings set aside", "r0019", "880 more", "static: 600, silent: 300"):
        assert words in printed
    assert "r0020" not in printed


def test_files_of_rejected_recordings_are_named_whole_as_their_corpus_calls_them() -> None:
    path = "/a/very/long/way/to/the/corpus/metadata_dev/dev-train-sony/fold3_room21_mix001.csv"
    expected = "'zero', expected a whole number, 0 or more"
    words = f"{path}, line 1: column 3 is {expected}"
    rejected = [
        Rejected("fold3_room21_mix001", "bad annotations", words, path),
        Rejected("fold3_room21_mix002", "too short", "0.1 s", path),
        Rejected("fold3_room21_mix003", "missing file", path, path),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(rejected_table(rejected, "out", ["/a/very/long/way/to/the/corpus/"]))
    assert isinstance(console.file, io.StringIO)
    rows = [line.split("│")[3] for line in console.file.getvalue().splitlines() if "│" in line]
    printed = "".join(row.strip() for row in rows)
    name = "metadata_dev/dev-train-sony/fold3_room21_mix001.csv"
    assert printed.replace(" ", "") == "".join(
        f"{name},line1:column3is{expected}{name}:0.1s{name}".split()
    )


# Determinism


def test_order_and_workers_change_nothing(starss23: Path, shards: Path, tmp_path: Path) -> None:
    reference = ShardIndex.open(str(shards))
    backwards, _ = build(
        "starss23", starss23, tmp_path / "a", executor=CountingExecutor(backwards=True)
    )
    pd.testing.assert_frame_equal(backwards.clips, reference.clips)
    assert backwards.fingerprint == reference.fingerprint
    for path in shards.glob("*.shard.parquet"):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


@pytest.mark.slow
def test_processes_give_the_same_shards(starss23: Path, shards: Path, tmp_path: Path) -> None:
    parallel, _ = build("starss23", starss23, tmp_path / "out", workers=2)
    assert parallel.fingerprint == ShardIndex.open(str(shards)).fingerprint


def segments(numbers: Iterable[int]) -> list[Recording]:
    return [
        Recording(
            recording_id=f"{number:011d}-0",
            corpus="yt360",
            split="unannotated",
            room=f"{number:011d}",
            foa_path=f"/nowhere/{number}.m4a",
            duration_s=10.0,
        )
        for number in numbers
    ]


def test_short_recordings_share_shards_of_bounded_length() -> None:
    recordings = segments(range(3000))
    whole = dataclasses.replace(recordings[0], recording_id="whole", duration_s=None)
    jobs = plan([*recordings, whole], ShardSettings(shard_s=300.0), "out")
    assert jobs == plan([whole, *recordings[::-1]], ShardSettings(shard_s=300.0), "out")
    planned = [item.recording_id for job in jobs for item in job.recordings]
    assert sorted(planned) == sorted(item.recording_id for item in (*recordings, whole))
    assert (whole,) in {job.recordings for job in jobs}
    sizes = [len(job.recordings) for job in jobs]
    assert max(sizes) <= 30
    assert len(sizes) < 200  # a hundred full ones; halves are filled to two thirds on average
    long = [dataclasses.replace(item, duration_s=400.0) for item in recordings[:9]]
    assert len(plan(long, ShardSettings(shard_s=300.0), "out")) == 9
    assert len(plan(recordings[:30], ShardSettings(shard_s=300.0), "out")) == 1


@pytest.mark.parametrize("changed", [-1, 0, 1234, 2999, 3000])
def test_one_recording_more_or_less_leaves_the_other_shards(changed: int) -> None:
    numbers = {*range(3000)} - {changed}
    without, with_it = (
        {job.path for job in plan(segments(chosen), ShardSettings(shard_s=300.0), "out")}
        for chosen in (numbers, numbers | {changed})
    )
    assert 1 <= len(with_it - without) <= 2
    assert 1 <= len(without - with_it) <= 2


# Index


def test_the_index_is_rebuilt_from_the_shards(shards: Path, tmp_path: Path) -> None:
    stored = ShardIndex.open(str(shards))
    for path in shards.glob("*.shard.parquet"):
        shutil.copy(path, tmp_path)
    rebuilt = ShardIndex.open(str(tmp_path))
    pd.testing.assert_frame_equal(rebuilt.clips, stored.clips)
    assert rebuilt.fingerprint == stored.fingerprint


@pytest.mark.parametrize("damage", ["remove", "add", "cut"])
def test_an_index_of_other_shards_is_refused(shards: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    first = min(folder.glob("*.shard.parquet"))
    if damage == "remove":
        first.unlink()
    elif damage == "add":
        shutil.copy(first, folder / "other.shard.parquet")
    else:
        first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"delete index\.parquet to rebuild"):
        ShardIndex.open(str(folder))


def without_footer_start(data: bytes) -> bytes:
    """Of this Arrow says OSError, of the other damages ArrowInvalid."""
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start] + bytes(50) + data[start + 50 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-100],
    "footer": without_footer_start,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(shards: Path, tmp_path: Path, damage: str) -> None:
    first = min(shards.glob("*.shard.parquet"))
    (tmp_path / first.name).write_bytes(DAMAGES[damage](first.read_bytes()))
    with pytest.raises(InputError, match=first.name):
        ShardIndex.open(str(tmp_path))


@pytest.mark.parametrize("damage", [*DAMAGES, "pages"])
def test_a_damaged_index_is_named_and_can_be_rebuilt(
    shards: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    path = folder / "index.parquet"
    data = path.read_bytes()
    if damage == "pages":
        path.write_bytes(bytes(len(data) // 2) + data[len(data) // 2 :])
    else:
        path.write_bytes(DAMAGES[damage](data))
    with pytest.raises(InputError, match=r"index\.parquet: content is .* \(delete index"):
        ShardIndex.open(str(folder))
    path.unlink()
    assert ShardIndex.open(str(folder)).fingerprint == ShardIndex.open(str(shards)).fingerprint


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="https://s3"),
    ],
    ids=repr,
)
def test_a_disk_or_bucket_that_fails_is_no_damage(
    shards: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(path: str) -> Any:
        raise error

    monkeypatch.setattr(clips_module, "open_parquet", fail)
    with pytest.raises(type(error), match=r"Input/output error|Read timeout"):
        ShardIndex.open(str(shards))


def test_selections_keep_row_numbers_and_have_fingerprints(shards: Path) -> None:
    index = ShardIndex.open(str(shards))
    test = index.select(splits=["test"])
    assert set(test.clips["room"]) == {"room9"}
    assert len(test.clips) == 6
    assert test.clips.index.tolist() == [
        row for row, split in index.clips["split"].items() if split == "test"
    ]
    train = index.select(splits=["train"], rooms=["room2"], minimum_s=1.5)
    assert set(train.clips["room"]) == {"room2"}
    assert index.select(minimum_s=99).clips.empty
    assert index.select(corpora=["starss22"]).clips.empty
    assert len({index.fingerprint, test.fingerprint, train.fingerprint}) == 3
    assert index.select().fingerprint == index.fingerprint


def test_the_fingerprint_follows_contents_not_shards(tmp_path: Path) -> None:
    clips = [silent_clip("a", 0), silent_clip("b", 1)]
    write_shard(str(tmp_path / "one/x.shard.parquet"), clips, {})
    for clip in clips:
        write_shard(str(tmp_path / f"two/{clip.recording_id}.shard.parquet"), [clip], {})
    changed = dataclasses.replace(clips[1], foa=clips[1].foa + np.int16(1))
    write_shard(str(tmp_path / "three/x.shard.parquet"), [clips[0], changed], {})
    one, two, three = (write_index(str(tmp_path / name)) for name in ("one", "two", "three"))
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != three.fingerprint


# Annotation budgets


def silent_clip(
    recording_id: str, class_id: int, *, room: str = "room1", split: str = "train", seconds: int = 5
) -> Clip:
    events = pd.DataFrame(
        {
            "frame": range(seconds * 10),
            "class_id": class_id,
            "source_id": 0,
            "azimuth_deg": 0.0,
            "elevation_deg": 0.0,
        }
    )
    return Clip(
        recording_id=recording_id,
        corpus="starss22",
        split=split,
        room=room,
        start_s=0.0,
        foa=np.zeros((4, seconds * SAMPLE_RATE_HZ), np.int16),
        frames=[],
        frame_encoding="raw",
        frame_rate_hz=4.0,
        frame_height_px=64,
        frame_width_px=128,
        events=events,
    )


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """20 minutes: 12 rooms of very different size; one class has nine tenths of the clips."""
    folder = tmp_path_factory.mktemp("annotated")
    clips = [
        silent_clip(
            f"r{number:03d}",
            class_id=0 if number % 10 else 1 + number // 10 % 12,
            room=f"room{min(number // 4, 11)}",
            seconds=5,
        )
        for number in range(240)
    ]
    clips += [silent_clip(f"t{number:03d}", 3, room="room99", split="test") for number in range(9)]
    write_shard(str(folder / "a.shard.parquet"), clips, {})
    return ShardIndex.open(str(folder))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smaller_budgets_are_subsets(annotated: ShardIndex, seed: int) -> None:
    budgets = [select_budget(annotated, minutes, seed) for minutes in (0.5, 1, 3.3, 10, 20)]
    for smaller, larger in pairwise(budgets):
        assert smaller.clips.index.tolist() == larger.clips.index.tolist()[: len(smaller.clips)]
    assert [round(budget.minutes, 2) for budget in budgets] == [0.5, 1.0, 3.33, 10.0, 20.0]
    assert set(budgets[-1].clips["split"]) == {"train"}
    assert budgets[-1].clips.index.is_unique


def test_budgets_spread_over_rooms_and_classes(annotated: ShardIndex) -> None:
    small = select_budget(annotated, 4.0, seed=0).clips  # 48 of 240 clips
    assert small["room"].value_counts().to_dict() == {f"room{number}": 4 for number in range(12)}


def rare_clips(clips: pd.DataFrame) -> int:
    return sum(0 not in counts for counts in clips["class_frames"])


def test_budgets_prefer_what_is_still_rare(annotated: ShardIndex) -> None:
    """Of the one large room, against plain draws of as many clips."""
    room = annotated.select(splits=["train"], rooms=["room11"])
    chosen = [rare_clips(select_budget(room, 2.0, seed).clips) for seed in range(8)]
    drawn = [rare_clips(room.clips.sample(24, random_state=seed)) for seed in range(8)]
    assert min(chosen) > 2 * np.mean(drawn)


def test_budgets_depend_on_the_seed_alone(annotated: ShardIndex) -> None:
    first, again, other = (select_budget(annotated, 2.0, seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    shuffled = ShardIndex(annotated.folder, annotated.clips.sample(frac=1.0, random_state=3))
    assert select_budget(shuffled, 2.0, 0).fingerprint == first.fingerprint


@pytest.mark.parametrize("minutes", [0, -1, 20.1])
def test_impossible_budgets_say_what_there_is(annotated: ShardIndex, minutes: float) -> None:
    with pytest.raises(InputError, match=r"20\.00 annotated minutes"):
        select_budget(annotated, minutes, 0)


# Reading


@pytest.mark.parametrize("start_s", [-0.1, 1.1])
def test_windows_must_lie_in_their_clip(shards: Path, start_s: float) -> None:
    with pytest.raises(InputError, match=r"a window within its 2\.00 s"):
        ClipReader(str(shards)).read([0], window_start_s=start_s, window_s=1.0)


def test_a_reader_travels_to_other_processes(shards: Path) -> None:
    reader = ClipReader(str(shards))
    before = reader.read([3], window_s=2.0, frame_count=2)
    after = pickle.loads(pickle.dumps(reader)).read([3], window_s=2.0, frame_count=2)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_few_shards_stay_open(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_reader, "_OPEN_FILES", 2)
    reader = ClipReader(str(shards))
    whole = ClipReader(str(shards)).read(range(18), window_s=1.0)
    one_by_one = [reader.read([row], window_s=1.0)["foa"][0] for row in range(18)]
    assert np.array_equal(whole["foa"], np.stack(one_by_one))
    assert len(reader._shards) == len(reader._files) == 2


# URIs


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of remote shards are kept, on a disk with room, whatever this machine's has."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    empty = SimpleNamespace(total=1 << 40, used=0, free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: empty)
    return folder


def test_remote_shards_are_copied_once(
    shards: Path, temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/copied", recursive=True)
    fetched: list[str] = []
    get_file = type(memory).get_file
    monkeypatch.setattr(
        type(memory),
        "get_file",
        lambda self, path, *a, **k: (fetched.append(path), get_file(self, path, *a, **k)),
    )
    expected = ClipReader(str(shards)).read([4, 9], window_s=1.5)["foa"]
    for _ in range(2):  # processes of one machine
        read = ClipReader("memory://copied").read([4, 9], window_s=1.5)["foa"]
        assert np.array_equal(read, expected)
    copies = list((temporary_files / f"seld-shards-{os.getuid()}").iterdir())
    assert len(fetched) == len(copies) == 2
    # Another file under the same name is another shard.
    index = ClipReader("memory://copied").index
    name = str(index.clips["shard"].loc[4])
    content = memory.cat_file(f"/copied/{name}")
    memory.rm_file(f"/copied/{name}")
    memory.pipe_file(f"/copied/{name}", content)
    ClipReader("memory://copied").read([4], window_s=1.5)
    assert len(fetched) == 3


def test_without_room_for_copies_remote_shards_are_read_where_they_are(
    shards: Path, temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").put(str(shards), "/large", recursive=True)
    full = SimpleNamespace(total=1 << 40, used=0, free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    expected = ClipReader(str(shards)).read([4, 9], window_s=1.5)["foa"]
    assert np.array_equal(ClipReader("memory://large").read([4, 9], window_s=1.5)["foa"], expected)
    assert not (temporary_files / f"seld-shards-{os.getuid()}").exists()


@pytest.mark.usefixtures("temporary_files")
def test_memory_uris_work_throughout(starss23: Path, shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(starss23), "/corpus", recursive=True)
    index, rejected = build("starss23", "memory://corpus", "memory://out/shards")
    assert rejected == []
    assert index.fingerprint == ShardIndex.open(str(shards)).fingerprint
    executor = CountingExecutor()
    build("starss23", "memory://corpus", "memory://out/shards", executor=executor)
    assert executor.paths == []
    remote = ClipReader("memory://out/shards").read([4, 9], window_s=1.5, frame_count=2)
    local = ClipReader(str(shards)).read([4, 9], window_s=1.5, frame_count=2)
    assert all(np.array_equal(remote[name], local[name]) for name in local)


@pytest.mark.usefixtures("temporary_files")
def test_bad_annotations_in_a_bucket_are_called_by_its_address(tmp_path: Path) -> None:
    """And not by that of the copy which was looked at, and is gone."""
    names = [f"dev-train-sony/fold3_room1_mix00{number}" for number in (1, 2)]
    root = writers.write_starss(tmp_path, names, duration_s=3.0)
    writers.break_starss(root, names[0], "words in csv")
    fsspec.filesystem("memory").put(str(root), "/mistyped", recursive=True)
    _, (rejected,) = build("starss22", "memory://mistyped", tmp_path / "out", max_bad_share=0.9)
    table = f"memory://mistyped/metadata_dev/{names[0]}.csv"
    assert rejected.path == table
    assert rejected.detail.startswith(f"{table}, line ")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an S3 bucket that lives in this process."""
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("seld-test")
    yield "s3://seld-test"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.usefixtures("temporary_files")
def test_s3_uris_work_throughout(bucket: str, starss23: Path, shards: Path) -> None:
    fsspec.filesystem("s3").put(f"{starss23}/", f"{bucket}/corpus/", recursive=True)
    index, rejected = build("starss23", f"{bucket}/corpus", f"{bucket}/shards")
    assert rejected == []
    assert index.fingerprint == ShardIndex.open(str(shards)).fingerprint
    executor = CountingExecutor()
    build("starss23", f"{bucket}/corpus", f"{bucket}/shards", executor=executor)
    assert executor.paths == []
    reader = ClipReader(f"{bucket}/shards")
    remote = reader.read([4, 9], window_s=1.5, frame_count=2)
    local = ClipReader(str(shards)).read([4, 9], window_s=1.5, frame_count=2)
    assert all(np.array_equal(remote[name], local[name]) for name in local)


# Settings and the command


@pytest.mark.parametrize(
    "values",
    [
        {"clip_s": 0.0},
        {"clip_s": 1.23},
        {"hop_s": 6.0},
        {"frame_rate_hz": 0.0},
        {"jpeg_quality": 101},
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(values)))):
        ShardSettings(**values)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["seld.shards", *arguments])
    with pytest.raises(SystemExit) as caught:
        exit_on_input_error(main)
    return int(caught.value.code or 0)


def test_the_command_prints_and_writes(
    broken: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    arguments = ["--corpus", "starss23", "--root", str(broken[0]), "--out", str(tmp_path / "out")]
    options = ["--executor", "processes", "--workers", "1", "--set", "clip_s=1.5"]
    code = run_command(monkeypatch, *arguments, *options, "--max-bad-share", "0.9")
    printed = capsys.readouterr().out
    assert code == 0
    for reason in set(broken[1].values()):
        assert reason in printed
    index = ShardIndex.open(str(tmp_path / "out"))
    assert index.clips["duration_s"].tolist() == [1.5] * 18
    assert index.fingerprint in printed


@pytest.mark.parametrize("classes", [None, "dog\ncat\n", "\n".join("abcdefghijklmnopq")])
def test_the_command_finds_classes_that_the_corpus_does_not_have(
    classes: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writers.write_starss(tmp_path / "corpus", NAMES[:2])
    writers.write_csv(root / f"metadata_dev/{NAMES[1]}.csv", [(1, 1, 0, 9, 9), (2, 13, 0, 9, 9)])
    if classes:
        (root / "classes.txt").write_text(classes)
    usual = ["--corpus", "starss22", "--root", str(root), "--out", str(tmp_path / "out")]
    assert run_command(monkeypatch, *usual, "--executor", "processes", "--workers", "1") == 0
    found = pd.read_csv(tmp_path / "out/rejected.csv")[["recording_id", "reason", "detail"]]
    last = {None: 12, "dog\ncat\n": 1}.get(classes)
    where = root / f"metadata_dev/{NAMES[1]}.csv, line 2"
    detail = f"{where}: column 2 is '13', expected a class of 0 to {last}"
    expected = [["fold3_room1_mix002", "bad annotations", detail]] if last else []
    assert found.to_numpy().tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "starss24"], "starss22"),
        (["--set", "clip=3"], "did you mean 'clip_s'"),
        (["--set", "screening.static_share=2"], "static_share"),
        (["--root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--root", "gopher://x"], "gopher"),
        (["--executor", "slurm"], "processes"),
        (["--workers", "0"], "at least 1"),
        (["--out", "/proc/shards"], "can be written"),
        (["--max-bad-share", "3"], "0 to 1"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    starss23: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    usual = ["--corpus", "starss23", "--root", str(starss23), "--out", str(tmp_path / "out")]
    options = ["--executor", "processes", "--workers", "1"]
    assert run_command(monkeypatch, *usual, *options, *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not any(tmp_path.glob("out/*"))
