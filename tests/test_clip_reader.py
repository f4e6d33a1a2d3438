"""Windows straight from the mapped file are the clips'; where they cannot be, Arrow reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from seld import clip_reader
from seld.annotations import POLAR_COLUMNS
from seld.clip_reader import ClipReader
from seld.clips import CLIP_SCHEMA, Clip, write_index, write_shard

WINDOWS = {"window_start_s": [0.5, 0.0, 0.7, 0.2], "window_s": 1.2, "frame_count": 3}
ROWS = [5, 0, 3, 0]


def random_clips(recording: int) -> list[Clip]:
    """Three clips of one recording, the last of them shorter; noise to hear and to see."""
    generator = np.random.default_rng(recording)

    def clip(number: int, duration_s: float) -> Clip:
        samples, frames = round(duration_s * 24000), round(duration_s * 4)
        return Clip(
            recording_id=f"recording{recording}",
            corpus="noise",
            split="train",
            room="room1",
            start_s=2.0 * number,
            foa=generator.integers(-32768, 32768, (4, samples), dtype=np.int16),
            frames=[generator.bytes(3 * 8 * 16) for _ in range(frames)],
            frame_encoding="raw",
            frame_rate_hz=4.0,
            frame_height_px=8,
            frame_width_px=16,
            events=pd.DataFrame(columns=list(POLAR_COLUMNS)),
        )

    return [clip(0, 2.0), clip(1, 2.0), clip(2, 1.9)]


def written(folder: Path) -> str:
    """Two shards of :func:`random_clips`, with their index."""
    for recording in range(2):
        write_shard(f"{folder}/{recording}.shard.parquet", random_clips(recording), {})
    write_index(str(folder))
    return str(folder)


def rewritten(folder: Path, **settings: Any) -> str:
    """The same in Parquet files that another writer, or other settings of ours, might make."""
    for shard in Path(written(folder)).glob("*.shard.parquet"):
        groups = [pq.ParquetFile(shard).read_row_group(number) for number in range(3)]
        metadata = pq.read_metadata(shard).metadata or {}
        shard.unlink()
        with pq.ParquetWriter(shard, CLIP_SCHEMA, **settings) as writer:
            for group in groups:
                writer.write_table(group)
            writer.add_key_value_metadata({"seld.shard": metadata[b"seld.shard"].decode()})
    write_index(str(folder))
    return str(folder)


def expected() -> dict[str, np.ndarray]:
    """What :data:`ROWS` and :data:`WINDOWS` are of the clips themselves."""
    clips = [clip for recording in range(2) for clip in random_clips(recording)]
    foa, frames = [], []
    for row, start_s in zip(ROWS, WINDOWS["window_start_s"], strict=True):
        first = round(start_s * 24000)
        foa.append(clips[row].foa[:, first : first + 28800])
        numbers = [round((start_s + middle_s) * 4) for middle_s in (0.2, 0.6, 1.0)]
        pictures = [np.frombuffer(clips[row].frames[number], np.uint8) for number in numbers]
        frames.append(np.stack(pictures).reshape(3, 8, 16, 3).transpose(0, 3, 1, 2))
    return {"foa": np.stack(foa), "frames": np.stack(frames)}


def test_windows_come_straight_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ClipReader(written(tmp_path))

    def never(*_: Any) -> Any:
        raise AssertionError("a whole column was read")

    monkeypatch.setattr(reader, "_column", never)
    read = reader.read(ROWS, **WINDOWS)
    assert all(np.array_equal(read[name], wanted) for name, wanted in expected().items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True},
        {"compression": "none", "use_dictionary": True},
        {
            "compression": "none",
            "use_dictionary": False,
            "column_encoding": {"foa": "DELTA_BYTE_ARRAY", "frames.list.element": "PLAIN"},
        },
        {"compression": "zstd", "use_dictionary": False},
    ],
    ids=lambda settings: ", ".join(settings) or "defaults",
)
def test_clips_stored_otherwise_read_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    read = ClipReader(rewritten(tmp_path, **settings)).read(ROWS, **WINDOWS)
    assert all(np.array_equal(read[name], wanted) for name, wanted in expected().items())


def test_values_that_lie_elsewhere_are_not_taken_for_sound_or_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they would where a page's header lay between them."""
    found = clip_reader._end_of_values
    monkeypatch.setattr(clip_reader, "_end_of_values", lambda *of: (found(*of) or 0) - 17)
    read = ClipReader(written(tmp_path)).read(ROWS, **WINDOWS)
    assert all(np.array_equal(read[name], wanted) for name, wanted in expected().items())
