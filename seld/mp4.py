"""The few MP4 boxes we need that FFmpeg does not hand out: ``SA3D``, and a file's true length.

Box layout: ISO/IEC 14496-12; ``SA3D``: Google's Spatial Audio RFC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Bytes of an AudioSampleEntry before its child boxes, by QuickTime sound description version.
_AUDIO_SAMPLE_ENTRY_BYTES = {0: 28, 1: 44, 2: 64}
#: What a file may begin with, fragments and QuickTime included: a web page of that name does not.
_FIRST_KINDS = frozenset(
    b"ftyp styp moov mdat moof sidx free skip wide pnot uuid udta junk pict".split()
)


class Mp4Error(ValueError):
    """The boxes of a file contradict the standard, or describe sound we cannot use."""


class Mp4TruncatedError(Mp4Error):
    """A box reaches beyond the end of the file."""


@dataclass(frozen=True)
class Box:
    """One box: four-character ``kind`` and where its payload lies in the file, in bytes."""

    kind: str
    start: int
    end: int


def channel_maps(path: Path) -> list[tuple[int, ...] | None]:
    """The ``SA3D`` channel map of each sound track in order; None for a track without the box.

    ``channel_map[n]`` is the channel on disk that holds ACN component n: (0, 2, 3, 1) is a file
    in the order W, X, Y, Z. (The RFC's words allow the inverse too; its example allows only
    this.) So ``foa = on_disk[channel_map]``.

    Raises:
        Mp4TruncatedError: a box reaches beyond the file's end.
        Mp4Error: malformed boxes, or ambisonics that are not first order, ACN and SN3D.
    """
    with path.open("rb") as stream:
        return [
            _channel_map(stream, track)
            for movie in _children(stream, _whole(stream), "moov")
            for track in _children(stream, movie, "trak")
            if _is_sound(stream, track)
        ]


def check_complete(path: Path) -> None:
    """Raise :class:`Mp4TruncatedError` if the file ends inside a box or has no ``moov``.

    And :class:`Mp4Error` if it is another kind of file.
    """
    with path.open("rb") as stream:
        kinds = [box.kind for box in _boxes(stream, _whole(stream))]
    if "moov" not in kinds:
        raise Mp4TruncatedError(f"no moov box among {kinds}")


def _whole(stream: BinaryIO) -> Box:
    return Box("file", 0, stream.seek(0, 2))


def _boxes(stream: BinaryIO, parent: Box) -> Iterator[Box]:
    position = parent.start
    while position < parent.end:
        header = _read(stream, position, 8)
        size, name = struct.unpack(">I4s", header)
        if parent.kind == "file" and position == 0 and name not in _FIRST_KINDS:
            raise Mp4Error(f"not an MP4 (begins with {header.decode('latin-1')!r})")
        kind = name.decode("latin-1")
        header_bytes = 8
        if size == 1:
            (size,) = struct.unpack(">Q", _read(stream, position + 8, 8))
            header_bytes = 16
        elif size == 0:
            size = parent.end - position
        if size < header_bytes:
            raise Mp4Error(f"box {kind!r} at byte {position} claims {size} bytes")
        if position + size > parent.end:
            message = f"box {kind!r} at byte {position} ends at {position + size}"
            error = Mp4TruncatedError if parent.kind == "file" else Mp4Error
            raise error(f"{message}, its parent {parent.kind!r} at {parent.end}")
        yield Box(kind, position + header_bytes, position + size)
        position += size


def _children(stream: BinaryIO, parent: Box, *path: str) -> Iterator[Box]:
    kind, *rest = path
    for box in _boxes(stream, parent):
        if box.kind == kind:
            if rest:
                yield from _children(stream, box, *rest)
            else:
                yield box


def _is_sound(stream: BinaryIO, track: Box) -> bool:
    handlers = (_read(stream, box.start + 8, 4) for box in _children(stream, track, "mdia", "hdlr"))
    return b"soun" in handlers


def _channel_map(stream: BinaryIO, track: Box) -> tuple[int, ...] | None:
    for table in _children(stream, track, "mdia", "minf", "stbl", "stsd"):
        entries = Box("stsd", table.start + 8, table.end)
        for entry in _boxes(stream, entries):
            (version,) = struct.unpack(">H", _read(stream, entry.start + 8, 2))
            if version not in _AUDIO_SAMPLE_ENTRY_BYTES:
                raise Mp4Error(f"sound description version {version}, expected 0, 1 or 2")
            extensions = Box(
                entry.kind, entry.start + _AUDIO_SAMPLE_ENTRY_BYTES[version], entry.end
            )
            for box in _children(stream, extensions, "SA3D"):
                return _parse_sa3d(_read(stream, box.start, box.end - box.start))
    return None


def _parse_sa3d(payload: bytes) -> tuple[int, ...]:
    if len(payload) < 12:
        raise Mp4Error(f"SA3D has {len(payload)} bytes, expected at least 12")
    version, kind, order, ordering, normalisation, count = struct.unpack(">BBIBBI", payload[:12])
    expected = {"version": 0, "type": 0, "order": 1, "ordering": 0, "normalization": 0}
    found = dict(zip(expected, (version, kind, order, ordering, normalisation), strict=True))
    if found != expected:
        raise Mp4Error(f"SA3D says {found}, expected first-order periphonic ACN/SN3D: {expected}")
    if count != 4 or len(payload) != 12 + 4 * count:
        raise Mp4Error(f"SA3D lists {count} channels in {len(payload)} bytes, expected 4 in 28")
    channel_map = struct.unpack(">4I", payload[12:])
    if sorted(channel_map) != [0, 1, 2, 3]:
        raise Mp4Error(f"SA3D channel map is {channel_map}, expected an order of 0, 1, 2, 3")
    return channel_map


def _read(stream: BinaryIO, position: int, count: int) -> bytes:
    stream.seek(position)
    data = stream.read(count)
    if len(data) != count:
        raise Mp4TruncatedError(f"the file ends at byte {position + len(data)}, inside a box")
    return data
