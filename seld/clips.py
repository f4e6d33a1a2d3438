"""Clip shards: the one form in which training reads sound, pictures and annotations.

A shard is an uncompressed Parquet file with one clip per row group, so that any clip is read at
random, straight from the memory-mapped file (:mod:`seld.clip_reader`). What a clip is, without its
payload, stands in the shard's footer; ``index.parquet`` beside the shards gathers the footers and
can be rebuilt.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from seld.annotations import POLAR_COLUMNS
from seld.errors import InputError
from seld.storage import file_system, is_local, join, list_files, written_whole

#: Of all sound that is stored or rendered, and the length of an annotated frame: those of DCASE.
SAMPLE_RATE_HZ = 24_000
LABEL_FRAME_S = 0.1
SHARD_SUFFIX = ".shard.parquet"
INDEX_NAME = "index.parquet"

FrameEncoding = Literal["raw", "jpeg"]

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),
        ("corpus", pa.string()),
        ("split", pa.string()),
        ("room", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("foa", pa.binary()),  # int16 little-endian (4, time), ACN/SN3D at 24 kHz
        ("frames", pa.list_(pa.binary())),  # RGB (height, width, 3) uint8, or a JPEG file, each
        ("frame_encoding", pa.string()),
        ("frame_rate_hz", pa.float64()),
        ("frame_height_px", pa.int32()),
        ("frame_width_px", pa.int32()),
        (
            "events",
            pa.list_(
                pa.struct(
                    [
                        ("frame", pa.int32()),  # 100 ms, from the clip's start
                        ("class_id", pa.int32()),
                        ("source_id", pa.int32()),
                        ("azimuth_deg", pa.float32()),
                        ("elevation_deg", pa.float32()),
                    ]
                )
            ),
        ),
    ]
)

_PAYLOAD_COLUMNS = ("foa", "frames", "events")
_FOOTER_KEY = b"seld.shard"
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of a recording as it is stored.

    ``foa`` is int16 (4, time); ``frames`` encoded pictures, empty for corpora without video;
    ``events`` is a table of :mod:`seld.annotations`, frames counted from the clip's start; a
    recording's last clip holds those annotated after its end too.
    """

    recording_id: str
    corpus: str
    split: str
    room: str
    start_s: float
    foa: NDArray[np.int16]
    frames: list[bytes]
    frame_encoding: FrameEncoding
    frame_rate_hz: float
    frame_height_px: int
    frame_width_px: int
    events: pd.DataFrame

    @property
    def clip_id(self) -> str:
        """Unique within the corpus: the recording and where in it the clip starts."""
        return f"{self.recording_id}@{self.start_s:.1f}"

    @property
    def duration_s(self) -> float:
        """Length of the sound."""
        return self.foa.shape[-1] / SAMPLE_RATE_HZ

    def _row(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in CLIP_SCHEMA.names}
        row["foa"] = self.foa.astype("<i2").tobytes()
        row["events"] = [
            dict(zip(POLAR_COLUMNS, event, strict=True))
            for event in zip(*(self.events[name].tolist() for name in POLAR_COLUMNS), strict=True)
        ]
        return row

    def _summary(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The clip without its payload, as the index lists it."""
        digest = hashlib.sha256(row["foa"])
        for frame in row["frames"]:
            digest.update(frame)
        digest.update(json.dumps(row["events"]).encode())
        labelled = set(zip(self.events["frame"], self.events["class_id"], strict=True))
        counts = Counter(str(class_id) for _, class_id in sorted(labelled))
        return {
            **{name: value for name, value in row.items() if name not in _PAYLOAD_COLUMNS},
            "frame_count": len(self.frames),
            "class_frames": dict(counts),
            "content": digest.hexdigest()[:32],
        }


def write_shard(path: str, clips: Iterable[Clip], footer: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard and return its footer: ``footer`` (JSON values) and the clips' summaries.

    The shard appears under ``path`` whole or not at all. It may hold no clips.
    """
    summaries = []
    with (
        written_whole(path) as temporary,
        pq.ParquetWriter(
            temporary, CLIP_SCHEMA, compression="none", use_dictionary=False, write_statistics=False
        ) as writer,
    ):
        for clip in clips:
            row = clip._row()
            writer.write_table(pa.Table.from_pylist([row], schema=CLIP_SCHEMA))
            summaries.append(clip._summary(row))
        written = {**footer, "clips": summaries}
        writer.add_key_value_metadata({_FOOTER_KEY.decode(): json.dumps(written)})
    return written


def read_footer(path: str) -> dict[str, Any]:
    """What :func:`write_shard` put into the footer.

    Raises:
        InputError: not a shard, or not a whole one.
    """
    with _damage_named(path, "a clip shard"):
        metadata = open_parquet(path).metadata.metadata or {}
        return json.loads(metadata[_FOOTER_KEY])


def read_footers(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Footers of many shards, in order; read in parallel, as a bucket is slow to answer."""
    with ThreadPoolExecutor(max_workers=_FOOTERS_AT_ONCE) as pool:
        yield from pool.map(read_footer, paths)


def encode_frame(
    frame: NDArray[np.uint8], encoding: FrameEncoding, jpeg_quality: int = 90
) -> bytes:
    """RGB (height, width, 3) uint8 → the bytes a shard keeps."""
    if encoding == "raw":
        return frame.tobytes()
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=jpeg_quality)
    return stream.getvalue()


def decode_frames(
    frames: Sequence[bytes | memoryview | pa.Buffer],
    encoding: FrameEncoding,
    *,
    height_px: int,
    width_px: int,
) -> NDArray[np.uint8]:
    """Stored frames → RGB (time, 3, height, width) uint8."""
    if encoding == "raw":
        stacked = np.stack([np.frombuffer(frame, np.uint8) for frame in frames])
        return stacked.reshape(-1, height_px, width_px, 3).transpose(0, 3, 1, 2)
    decoded = np.empty((len(frames), height_px, width_px, 3), np.uint8)
    for number, frame in enumerate(frames):
        with Image.open(io.BytesIO(frame)) as image:
            decoded[number] = np.asarray(image)
    return decoded.transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class ShardIndex:
    """All clips of a folder of shards, or some of them, without their payload.

    ``clips`` has one row per clip: the columns of :data:`CLIP_SCHEMA` but the payload, and
    ``shard``, ``row_group``, ``frame_count``, ``class_frames`` (class id → labelled 100 ms
    frames) and ``content`` (hash of the payload). Its row labels are the row numbers of the whole
    index, which :class:`ClipReader` takes; they outlive every selection.
    """

    folder: str
    clips: pd.DataFrame

    @classmethod
    def open(cls, folder: str) -> ShardIndex:
        """Index of ``folder`` (path or URI), from ``index.parquet`` or else from the footers.

        Raises:
            InputError: no shards, a damaged index, or one that does not belong to the shards.
        """
        folder = str(folder)
        sizes = {
            name: size
            for name, size in list_files(folder).items()
            if "/" not in name and (name.endswith(SHARD_SUFFIX) or name == INDEX_NAME)
        }
        if sizes.pop(INDEX_NAME, None) is None:
            return cls(folder, _clips_from_footers(folder, sizes))
        path, remedy = join(folder, INDEX_NAME), f"(delete {INDEX_NAME} to rebuild it)"
        with _damage_named(path, f"an index of clips {remedy}"):
            table = open_parquet(path).read()
            stored = json.loads((table.schema.metadata or {}).get(b"seld.shards", b"null"))
            clips = table.to_pandas()
            clips["class_frames"] = [
                {int(class_id): frames for class_id, frames in json.loads(text).items()}
                for text in clips["class_frames"]
            ]
        if stored != sizes:
            differing = sorted({*(stored or {})} ^ {*sizes}) or "shards of other sizes"
            raise InputError(path, "shards", differing, f"the shards it was written for {remedy}")
        return cls(folder, clips)

    @property
    def fingerprint(self) -> str:
        """Hash of the clips' ids, splits, rooms and contents: equal exactly when the data are."""
        columns = self.clips[["corpus", "clip_id", "split", "room", "content"]]
        rows = sorted("\t".join(row) for row in columns.itertuples(index=False))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]

    @property
    def minutes(self) -> float:
        """Summed length of the clips."""
        return float(self.clips["duration_s"].to_numpy().sum()) / 60

    def select(
        self,
        *,
        splits: Sequence[str] | None = None,
        rooms: Sequence[str] | None = None,
        corpora: Sequence[str] | None = None,
        minimum_s: float = 0.0,
    ) -> ShardIndex:
        """The clips of these splits, rooms and corpora (None: all) that last ``minimum_s``."""
        kept = self.clips["duration_s"].to_numpy() >= minimum_s
        for column, wanted in (("split", splits), ("room", rooms), ("corpus", corpora)):
            if wanted is not None:
                kept &= self.clips[column].isin(list(wanted)).to_numpy()
        return ShardIndex(self.folder, self.clips.loc[kept])


def write_index(folder: str, shards: Set[str] | None = None) -> ShardIndex:
    """Gather the footers of these shards of a folder (None: of all) into ``index.parquet``.

    Raises:
        InputError: one of ``shards`` is not there, or there are none.
    """
    sizes = {
        name: size
        for name, size in list_files(folder).items()
        if name.endswith(SHARD_SUFFIX) and "/" not in name and (shards is None or name in shards)
    }
    missing = sorted((shards or set()) - sizes.keys())
    if missing:
        found = f"{len(missing)} missing, the first {missing[0]}"
        expected = "those decoded; another run decodes into this folder: start again after it"
        raise InputError(folder, "shards", found, expected)
    clips = _clips_from_footers(folder, sizes)
    stored = clips.assign(class_frames=clips["class_frames"].map(json.dumps))
    table = pa.Table.from_pandas(stored, preserve_index=False)
    table = table.replace_schema_metadata({"seld.shards": json.dumps(sizes)})
    with written_whole(join(folder, INDEX_NAME)) as temporary:
        pq.write_table(table, temporary)
    return ShardIndex(folder, clips)


def select_budget(index: ShardIndex, minutes: float, seed: int) -> ShardIndex:
    """The first ``minutes`` of annotated training clips in a seeded order spread over rooms and
    classes.

    The order does not depend on ``minutes``, so that a smaller budget is a subset of a larger
    one. Each next clip comes from the room with the least time so far; of eight clips of that
    room drawn at random the one is taken that adds most of the classes still rare [ours].

    Raises:
        InputError: there is less annotated training time than ``minutes``.
    """
    training = index.select(splits=["train"])
    if not 0 < minutes <= training.minutes + 1e-6:
        expected = f"more than 0 and at most the {training.minutes:.2f} annotated minutes"
        raise InputError(index.folder, "annotation budget (minutes)", minutes, expected)
    clips = training.clips.sort_values(["corpus", "clip_id"])
    class_count = 1 + max((max(counts, default=0) for counts in clips["class_frames"]), default=0)
    class_frames = np.zeros((len(clips), class_count))
    for row, counts in enumerate(clips["class_frames"]):
        for class_id, frames in counts.items():
            class_frames[row, class_id] = frames
    durations_s: list[float] = clips["duration_s"].tolist()

    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(clips))
    waiting: dict[str, list[int]] = {}
    rooms: list[str] = clips["room"].tolist()
    for row in shuffled.tolist():
        waiting.setdefault(rooms[row], []).append(row)
    room_s = dict.fromkeys(waiting, 0.0)
    frames_so_far = np.zeros(class_count)
    taken: list[int] = []
    taken_s = 0.0
    while taken_s < minutes * 60 - 1e-6:
        room = min((room for room in waiting if waiting[room]), key=room_s.__getitem__)
        drawn = generator.choice(len(waiting[room]), min(8, len(waiting[room])), replace=False)
        candidates = [waiting[room][position] for position in drawn]
        rarity = 1 / (1 + frames_so_far)
        best = max(candidates, key=lambda row: float(class_frames[row] @ rarity))
        waiting[room].remove(best)
        taken.append(best)
        taken_s += durations_s[best]
        room_s[room] += durations_s[best]
        frames_so_far += class_frames[best]
    return ShardIndex(index.folder, clips.iloc[taken])


@contextmanager
def _damage_named(path: str, expected: str) -> Iterator[None]:
    """Whatever reading a damaged Parquet file raises, as an :class:`InputError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        # For damaged content Arrow raises a plain OSError without an errno. An errno, or a subclass
        # (a bucket's client), means that the disk or the store failed.
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise
        raise InputError(path, "content", str(error).strip(), expected) from error


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file, mapped into memory if it is local."""
    if is_local(path):
        # What is mapped needs no reading ahead, and threads that do so take a third of the time.
        return pq.ParquetFile(path.removeprefix("file://"), memory_map=True, pre_buffer=False)
    files, inner = file_system(path)
    return pq.ParquetFile(files.open(inner, "rb", cache_type="none"), pre_buffer=True)


def _clips_from_footers(folder: str, shards: Iterable[str]) -> pd.DataFrame:
    names = sorted(shards)
    footers = read_footers([join(folder, name) for name in names])
    rows = [
        {**summary, "shard": name, "row_group": row_group}
        for name, footer in zip(names, footers, strict=True)
        for row_group, summary in enumerate(footer["clips"])
    ]
    if not rows:
        raise InputError(folder, "clips", "none", f"*{SHARD_SUFFIX} files that hold clips")
    clips = pd.DataFrame(rows)
    clips["class_frames"] = [
        {int(class_id): frames for class_id, frames in counts.items()}
        for counts in clips["class_frames"]
    ]
    return clips.sort_values(["corpus", "recording_id", "start_s"], ignore_index=True)
