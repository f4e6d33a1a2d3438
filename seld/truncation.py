"""Whether a sound file is whole, for formats whose readers shorten a cut one silently.

WAV (RIFF, RF64 and BW64: EBU Tech 3306), W64, AIFF and CAF say how many bytes their samples take;
an Ogg stream's last page is marked (RFC 3533).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_OGG_PAGE_HEADER = struct.Struct("<4sBB20xB")
_OGG_LONGEST_PAGE_BYTES = 27 + 255 + 255 * 255
_OGG_END_OF_STREAM = 4


class TruncatedError(ValueError):
    """The file ends before its sound."""


@dataclass(frozen=True)
class _Layout:
    """Where a format's chunks begin, their header (name, bytes) and the name of the samples'."""

    start: int
    header: struct.Struct
    samples: bytes
    pads_to_even: bool = True


_WAV = _Layout(12, struct.Struct("<4sI"), b"data")
_LAYOUTS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"BW64": _WAV,
    b"FORM": _Layout(12, struct.Struct(">4sI"), b"SSND"),
    b"caff": _Layout(8, struct.Struct(">4sq"), b"data", pads_to_even=False),
}


def check_whole(path: Path) -> None:
    """Raise :class:`TruncatedError` if a file of one of the formats is cut; pass by all others."""
    size = path.stat().st_size
    if size == 0:
        raise TruncatedError("the file is empty")
    with path.open("rb") as stream:
        beginning = stream.read(24)
        magic = beginning[:4]
        if magic == b"OggS":
            _check_ogg(stream, size)
        elif magic == b"riff" and len(beginning) == 24:
            (whole_bytes,) = struct.unpack_from("<q", beginning, 16)
            _check_within(whole_bytes, whole_bytes, size)
        elif magic in _LAYOUTS and not (magic == b"RIFF" and _is_other_riff(beginning)):
            _check_chunks(stream, size, _LAYOUTS[magic])


def _is_other_riff(beginning: bytes) -> bool:
    """AVI is RIFF too."""
    return not b"WAVE".startswith(beginning[8:12])


def _check_chunks(stream: BinaryIO, size: int, layout: _Layout) -> None:
    position, long_bytes = layout.start, None
    while position + layout.header.size <= size:
        stream.seek(position)
        kind, chunk_bytes = layout.header.unpack(stream.read(layout.header.size))
        position += layout.header.size
        if kind == b"ds64":  # RF64's true lengths: of the file, then of its samples
            long_bytes = struct.unpack("<QQ", stream.read(16).ljust(16, b"\0"))[1]
        if kind == layout.samples:
            if chunk_bytes == 0xFFFFFFFF and long_bytes is not None:
                chunk_bytes = long_bytes
            if not _is_open(chunk_bytes):
                _check_within(position + chunk_bytes, chunk_bytes, size)
            return
        position += max(chunk_bytes, 0) + (chunk_bytes % 2 if layout.pads_to_even else 0)
    raise TruncatedError("the file ends before its samples")


def _is_open(chunk_bytes: int) -> bool:
    """Writers that stream leave zero, or about the most that 31, 32 or 64 bits hold."""
    return (
        chunk_bytes <= 0
        or 0x7FFFF000 <= chunk_bytes <= 0x80000000
        or 0xFFFFF000 <= chunk_bytes <= 0xFFFFFFFF
        or chunk_bytes >= 1 << 62
    )


def _check_within(end: int, expected_bytes: int, size: int) -> None:
    if end > size:
        raise TruncatedError(f"{end - size} of {expected_bytes} bytes are missing")


def _check_ogg(stream: BinaryIO, size: int) -> None:
    start = max(size - _OGG_LONGEST_PAGE_BYTES, 0)
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(b"OggS")
    if at >= 0 and len(tail) - at >= _OGG_PAGE_HEADER.size:
        _, _, flags, segment_count = _OGG_PAGE_HEADER.unpack_from(tail, at)
        lengths = tail[at + _OGG_PAGE_HEADER.size :][:segment_count]
        page_bytes = _OGG_PAGE_HEADER.size + segment_count + sum(lengths)
        _check_within(start + at + page_bytes, page_bytes, size)
        if flags & _OGG_END_OF_STREAM:
            return
    raise TruncatedError("the last page does not end the stream")
