"""Windows of clips, read at random out of their shards.

A training step sees a few pictures and a fifth of the sound of each of its clips. Parquet reads a
column of a clip as a whole, so what may be taken straight from the file mapped into memory is.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seld.annotations import POLAR_COLUMNS
from seld.clips import (
    LABEL_FRAME_S,
    SAMPLE_RATE_HZ,
    SHARD_SUFFIX,
    FrameEncoding,
    ShardIndex,
    decode_frames,
    open_parquet,
)
from seld.errors import InputError
from seld.storage import file_system, is_local, join, written_whole

#: Of each kind: Parquet files, files mapped into memory.
_OPEN_FILES = 256
#: Share of a disk that copies of remote shards leave free.
_FREE_DISK_SHARE = 0.1
#: Bytes before each value of a column that is stored plainly: its length.
_LENGTH_BYTES = 4

Opened = TypeVar("Opened")


class _StoredClip(NamedTuple):
    """What the reader must know of a clip: columns of the index."""

    clip_id: str
    shard: str
    row_group: int
    duration_s: float
    frame_count: int
    frame_encoding: FrameEncoding
    frame_rate_hz: float
    frame_height_px: int
    frame_width_px: int


class _Ends(NamedTuple):
    """Where in its shard's file the values of a clip's columns end; None: not stored plainly."""

    foa: int | None
    frames: int | None


class ClipReader:
    """Reads windows of clips at random; keeps the shards it used last open.

    Local shards are memory-mapped, those of URIs copied to this machine when first asked for, as
    training reads each again and again; where the disk has no room they are read by ranges. An
    instance may be pickled to another process, where it opens its own files; it is not for sharing
    between threads.

    Args:
        clips: those to read, or the folder (path or URI) of all of them.
    """

    def __init__(self, clips: ShardIndex | str) -> None:
        self.index = ShardIndex.open(clips) if isinstance(clips, str) else clips
        table = self.index.clips
        self._position_of_row = {row: position for position, row in enumerate(table.index)}
        self._position_of_id = {name: position for position, name in enumerate(table["clip_id"])}
        # Lists, because looking one value up in a table takes longer than reading the clip.
        self._columns = {name: table[name].tolist() for name in _StoredClip._fields}
        self._shards: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._files: OrderedDict[str, NDArray[np.uint8] | None] = OrderedDict()
        self._ends: dict[tuple[str, int], _Ends] = {}
        self._latest: tuple[tuple[str, int, str], pa.Array] | None = None

    def __reduce__(self) -> tuple[type[ClipReader], tuple[ShardIndex]]:
        return ClipReader, (self.index,)

    def read(
        self,
        clips: Sequence[int | str],
        *,
        window_start_s: float | Sequence[float] | NDArray[np.float64] = 0.0,
        window_s: float,
        frame_count: int = 0,
    ) -> dict[str, NDArray[Any]]:
        """One window of each clip.

        Args:
            clips: row numbers of the index, or clip ids.
            window_start_s: from each clip's start; one number for all or one per clip.
            window_s: length; the window must end within the clip.
            frame_count: pictures per window, those nearest to the middles of as many equal
                parts of it.

        Returns:
            ``foa`` int16 (clip, 4, time) and, with ``frame_count``, ``frames`` uint8
            (clip, time, 3, height, width).

        Raises:
            InputError: a window that leaves its clip, or frames wanted where there are none.
        """
        starts_s = np.broadcast_to(np.asarray(window_start_s, np.float64), (len(clips),))
        sample_count = round(window_s * SAMPLE_RATE_HZ)
        foa = np.empty((len(clips), 4, sample_count), np.int16)
        for position, (clip, start_s) in enumerate(zip(clips, starts_s.tolist(), strict=True)):
            stored = self._stored_clip(clip)
            first = round(start_s * SAMPLE_RATE_HZ)
            whole = self._foa(stored)
            if not 0 <= first <= whole.shape[1] - sample_count:
                expected = f"a window within its {stored.duration_s:.2f} s"
                window = (start_s, start_s + window_s)
                raise InputError(f"clip {stored.clip_id}", "window (s)", window, expected)
            foa[position] = whole[:, first : first + sample_count]
        if not frame_count:
            return {"foa": foa}
        frames = self.read_frames(
            clips, window_start_s=starts_s, window_s=window_s, frame_count=frame_count
        )
        return {"foa": foa, "frames": frames}

    def read_frames(
        self,
        clips: Sequence[int | str],
        *,
        window_start_s: float | Sequence[float] | NDArray[np.float64] = 0.0,
        window_s: float,
        frame_count: int,
    ) -> NDArray[np.uint8]:
        """The ``frames`` of :meth:`read` alone, where the sound is read as spectra."""
        starts_s = np.broadcast_to(np.asarray(window_start_s, np.float64), (len(clips),))
        frames = []
        for clip, start_s in zip(clips, starts_s.tolist(), strict=True):
            stored = self._stored_clip(clip)
            if not stored.frame_count:
                raise InputError(f"clip {stored.clip_id}", "frames", 0, "a clip with video")
            middles_s = start_s + (np.arange(frame_count) + 0.5) * (window_s / frame_count)
            numbers = np.rint(middles_s * stored.frame_rate_hz).astype(int)
            frames.append(self._frames(stored, np.minimum(numbers, stored.frame_count - 1)))
        return np.stack(frames)

    def events(
        self, clip: int | str, *, window_start_s: float = 0.0, window_s: float | None = None
    ) -> pd.DataFrame:
        """Annotations of a window (None: all that follow), frames counted from its start.

        ``window_start_s`` must be a multiple of the 100 ms label frame.
        """
        column = self._column(self._stored_clip(clip), "events")
        events = pd.DataFrame(column[0].as_py(), columns=list(POLAR_COLUMNS))
        first = round(window_start_s / LABEL_FRAME_S)
        assert abs(first * LABEL_FRAME_S - window_start_s) < 1e-6, window_start_s
        events["frame"] -= first
        end = np.inf if window_s is None else round(window_s / LABEL_FRAME_S)
        inside = events["frame"].between(0, end, inclusive="left")
        return events.loc[inside].reset_index(drop=True)

    def _foa(self, stored: _StoredClip) -> NDArray[np.int16]:
        """The whole clip's sound, (4, time): a view, of which only what is used is read."""
        sample_count = round(stored.duration_s * SAMPLE_RATE_HZ)
        shape, only = (1, 4 * 2 * sample_count), np.zeros(1, np.int64)
        values = self._plain_values(stored, "foa", shape, only)
        sound = self._column(stored, "foa")[0].as_buffer() if values is None else values[0]
        return np.frombuffer(sound, "<i2").reshape(4, -1)

    def _frames(self, stored: _StoredClip, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """These of a clip's pictures, (time, 3, height, width)."""
        size = stored.frame_height_px, stored.frame_width_px, 3
        if stored.frame_encoding == "raw":
            shape = stored.frame_count, math.prod(size)
            values = self._plain_values(stored, "frames", shape, numbers)
            if values is not None:
                return values[numbers].reshape(-1, *size).transpose(0, 3, 1, 2)
        frames = self._column(stored, "frames").flatten()
        return decode_frames(
            [frames[number].as_buffer() for number in numbers.tolist()],
            stored.frame_encoding,
            height_px=stored.frame_height_px,
            width_px=stored.frame_width_px,
        )

    def _plain_values(
        self,
        stored: _StoredClip,
        column: str,
        shape: tuple[int, int],
        numbers: NDArray[np.int64],
    ) -> NDArray[np.uint8] | None:
        """All values of a clip's column, of ``shape`` (count, bytes), as a view of the mapped file.

        Uncompressed and plainly encoded, Parquet has the values of a page one after another, each
        after its length in four bytes, little-endian; a column of a row group ends with its last
        value. None where the values of these ``numbers`` are not found so: a column of several
        pages or another encoding, a remote file.
        """
        file = _kept(self._files, stored.shard, self._map)
        end = None if file is None else getattr(self._ends_of(stored), column)
        if file is None or end is None:
            return None
        count, value_bytes = shape
        start = end - count * (_LENGTH_BYTES + value_bytes)
        if start < 0:
            return None
        values = file[start:end].reshape(count, _LENGTH_BYTES + value_bytes)
        lengths = values[numbers, :_LENGTH_BYTES].view("<u4")
        return values[:, _LENGTH_BYTES:] if (lengths == value_bytes).all() else None

    def _ends_of(self, stored: _StoredClip) -> _Ends:
        row_group = (stored.shard, stored.row_group)
        if row_group not in self._ends:
            metadata = self._shard(stored.shard).metadata.row_group(stored.row_group)
            ends = (_end_of_values(metadata, column) for column in _Ends._fields)
            self._ends[row_group] = _Ends(*ends)
        return self._ends[row_group]

    def _map(self, name: str) -> NDArray[np.uint8] | None:
        path = _copy_here(join(self.index.folder, name))
        # As a plain array: slices of a memmap are memmaps, which take longer to make than to read.
        if not is_local(path):
            return None
        return np.asarray(np.memmap(path.removeprefix("file://"), np.uint8, "r"))

    def _stored_clip(self, clip: int | str) -> _StoredClip:
        positions = self._position_of_id if isinstance(clip, str) else self._position_of_row
        position = positions[clip]
        return _StoredClip(*(column[position] for column in self._columns.values()))

    def _column(self, stored: _StoredClip, column: str) -> pa.Array:
        # A batch's windows of one clip follow each other.
        asked = (stored.shard, stored.row_group, column)
        if self._latest is None or self._latest[0] != asked:
            shard = self._shard(stored.shard)
            group = shard.read_row_group(stored.row_group, columns=[column], use_threads=False)
            self._latest = (asked, group.column(column).chunk(0))
        return self._latest[1]

    def _shard(self, name: str) -> pq.ParquetFile:
        def opened(name: str) -> pq.ParquetFile:
            return open_parquet(_copy_here(join(self.index.folder, name)))

        return _kept(self._shards, name, opened, pq.ParquetFile.close)


def _kept(
    files: OrderedDict[str, Opened],
    name: str,
    opened: Callable[[str], Opened],
    close: Callable[[Opened], None] = lambda file: None,
) -> Opened:
    """The file of this name among the :data:`_OPEN_FILES` used last, opened if it is not there."""
    if name in files:
        files.move_to_end(name)
    else:
        files[name] = opened(name)
        if len(files) > _OPEN_FILES:
            close(files.popitem(last=False)[1])
    return files[name]


def _end_of_values(group: pq.RowGroupMetaData, column: str) -> int | None:
    """Byte of the file after a column's last value; None where it is not stored plainly."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.split(".")[0] == column:
            plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
            return chunk.data_page_offset + chunk.total_compressed_size if plain else None
    return None


def _copy_here(path: str) -> str:
    """Path of a copy of a remote shard on this machine's disk; ``path`` itself without room."""
    if is_local(path):
        return path
    files, inner = file_system(path)
    info = files.info(inner)
    version = info.get("ETag") or info.get("mtime") or info.get("created")
    digest = hashlib.sha256(f"{path} {info['size']} {version}".encode()).hexdigest()[:32]
    temporary_files = Path(tempfile.gettempdir())
    copy = temporary_files / f"seld-shards-{os.getuid()}" / f"{digest}{SHARD_SUFFIX}"
    if not copy.exists():
        disk = shutil.disk_usage(temporary_files)
        if disk.free - info["size"] < _FREE_DISK_SHARE * disk.total:
            return path
        with written_whole(str(copy)) as half_made:
            files.get_file(inner, str(half_made))
    return str(copy)
