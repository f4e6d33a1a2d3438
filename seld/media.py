"""Decoding sound and picture files: any rate and frame rate in, fixed ones out, in bounded memory.

Sound is decoded, checked and resampled block by block; of the picture only the frames that are
wanted are converted. What is wrong with a file comes as a :class:`MediaError` with its reason.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.error
import av.stream
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from seld import mp4
from seld.truncation import TruncatedError, check_whole

#: Every way a recording can be unusable; `rejected.csv` holds one of these per row.
Reason = Literal[
    "missing file",
    "unreadable",
    "truncated",
    "no audio stream",
    "wrong channel count",
    "not finite",
    "overloaded",
    "silent",
    "not ambisonic",
    "no video stream",
    "static picture",
    "not equirectangular",
    "different length",
    "too short",
    "bad annotations",
]

_MP4_SUFFIXES = (".mp4", ".m4a", ".m4v", ".mov")
_SOUNDFILE_SUFFIXES = (".wav", ".flac", ".ogg", ".w64", ".rf64", ".aif", ".aiff")
_BLOCK_SAMPLES = 1 << 16
#: A container may declare this much more than it holds (codec padding, rounding) and be whole.
_DECLARED_TOLERANCE_S = 0.25
#: Of raw streams FFmpeg guesses a length from the bit rate; Ogg's last page is looked at instead.
_LENGTH_NOT_DECLARED = frozenset({"aac", "ac3", "eac3", "loas", "ogg"})
#: Later than this after the sound before it, a block follows a gap: containers round times to
#: milliseconds, and codecs that trim their lead-in move them by up to a frame (21 ms of AAC).
_JITTER_S = 0.03
#: Gaps are filled up to this, together: beyond, times are damaged, and silence takes memory.
_MOST_MISSING_S = 60.0
#: Times full scale: lossy codecs overshoot a little where the sound they were given was loud.
_OVERLOAD = 1.1
_OVERLOADED_SHARE = 0.001
#: What FFmpeg's side data of a frame (the int they start with: ``AVSphericalProjection``,
#: ``AVStereo3DType``) say of pictures that are not one equirectangular panorama.
_DECLARED_LAYOUTS: Mapping[str, Mapping[int, str]] = {
    "SPHERICAL": {
        1: "cubemap",
        2: "partly equirectangular",
        3: "half-equirectangular",
        4: "rectilinear",
        5: "fisheye",
    },
    "STEREO3D": {1: "side by side", 2: "top-bottom"},
}
#: A pose no further than this from upright is none.
_UPRIGHT_DEG = 1.0


class MediaError(Exception):
    """A file that cannot be used, and why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


def read_foa(
    path: Path,
    *,
    sample_rate_hz: int,
    channel_map: Sequence[int] | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> NDArray[np.int16]:
    """Sound of a four-channel file as ACN/SN3D int16 (4, time) at ``sample_rate_hz``.

    16-bit files at that rate come through bit for bit; others are resampled by soxr's HQ filter.
    What lies beyond full scale is clipped, and refused where that is often: clipping single
    channels turns directions.
    Without ``channel_map`` an MP4's ``SA3D`` box is obeyed.

    Raises:
        MediaError: with the reason.
    """
    start = round(start_s * sample_rate_hz)
    wanted = None if duration_s is None else round(duration_s * sample_rate_hz)
    kept: list[NDArray[np.int16]] = []
    decoded = 0
    load = _Load()
    order = list(_stored_channel_map(path) if channel_map is None else channel_map)
    for block in _foa_blocks(load.counted(_sound_blocks(path)), order, sample_rate_hz):
        kept.append(_as_int16(block[:, max(start - decoded, 0) :]))
        decoded += block.shape[1]
        if wanted is not None and decoded >= start + wanted:
            break
    load.check()
    return np.ascontiguousarray(np.concatenate(kept, axis=1)[:, :wanted])


def sound_length_s(path: Path) -> float:
    """How long a file's sound lasts, decoded to its end: what files declare may be a guess.

    Raises:
        MediaError: with the reason.
    """
    return sum(len(block) / rate_hz for rate_hz, block in _sound_blocks(path))


def foa_blocks(
    path: Path, *, sample_rate_hz: int, channel_map: Sequence[int] | None = None
) -> Iterator[NDArray[np.float32]]:
    """Sound of a four-channel file in consecutive blocks (4, time), ACN/SN3D, full scale 1.

    Resampled without seams. Without ``channel_map`` an MP4's ``SA3D`` box is obeyed.

    Raises:
        MediaError: with the reason.
    """
    order = list(_stored_channel_map(path) if channel_map is None else channel_map)
    yield from _foa_blocks(_sound_blocks(path), order, sample_rate_hz)


def _foa_blocks(
    blocks: Iterator[tuple[int, NDArray[np.float32]]], order: list[int], sample_rate_hz: int
) -> Iterator[NDArray[np.float32]]:
    samples = 0
    for block in _resampled(blocks, sample_rate_hz):
        samples += len(block)
        yield block[:, order].T
    if not samples:
        raise MediaError("unreadable", "no sound could be decoded")


def declared_length_s(path: Path) -> float | None:
    """How long a readable file says its sound is, if it does."""
    if path.suffix.lower() in _SOUNDFILE_SUFFIXES:
        return soundfile.info(path).duration
    with _opened(path) as container:
        return None if container.duration is None else container.duration / av.time_base


class Picture:
    """A decoded frame of a video, scaled to the sizes that are asked for."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self._frame = frame
        self._scaled: dict[tuple[int, int], NDArray[np.uint8]] = {}

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) in the file."""
        return self._frame.height, self._frame.width

    def rgb(self, height_px: int, width_px: int) -> NDArray[np.uint8]:
        """RGB (height, width, 3), averaged over area."""
        size = height_px, width_px
        if size not in self._scaled:
            scaled = self._frame.reformat(
                width=width_px, height=height_px, format="rgb24", interpolation="AREA"
            )
            self._scaled[size] = scaled.to_ndarray().astype(np.uint8, copy=False)
        return self._scaled[size]


class PictureReader:
    """Iterates over the pictures shown at ``times_s``.

    ``times_s`` ascend and count from the file's start. Each picture is the one nearest in time, so
    that any frame rate (variable too) becomes the wanted one; times after the last frame repeat
    it. Known once the iteration has ended: ``duration_s``, how long the video lasts;
    ``declared_layout``, what the file says its pictures are, if not equirectangular; and
    ``declared_turn``, how it says they are to be turned before they are shown, if at all.
    Iterating raises :class:`MediaError`.
    """

    def __init__(self, path: Path, times_s: Sequence[float]) -> None:
        self.path = path
        self.times_s = times_s
        self.duration_s: float | None = None
        self.declared_layout: str | None = None
        self.declared_turn: str | None = None

    def __iter__(self) -> Iterator[Picture]:
        times_s = iter(self.times_s)
        wanted_s = next(times_s, None)
        shown: Picture | None = None
        last: av.VideoFrame | None = None
        shown_s = end_s = 0.0
        for time_s, next_end_s, frame in _video_frames(self.path):
            if shown is not None:
                while wanted_s is not None and wanted_s < (shown_s + time_s) / 2:
                    yield shown
                    wanted_s = next(times_s, None)
            last, shown = frame, Picture(frame)
            shown_s, end_s = time_s, next_end_s
        if shown is None or last is None:
            raise MediaError("unreadable", "no picture could be decoded")
        self.duration_s = end_s
        self.declared_layout = _declared_layout(last)
        self.declared_turn = _declared_turn(last)
        while wanted_s is not None:
            yield shown
            wanted_s = next(times_s, None)


def _sound_blocks(path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(sample rate, block (time, channel) in [-1, 1]) from the file's start to its end."""
    if path.suffix.lower() in _SOUNDFILE_SUFFIXES:
        return _soundfile_blocks(path)
    return _av_sound_blocks(path)


class _Load:
    """Counts the moments at which sound is beyond full scale, as only floats can be."""

    def __init__(self) -> None:
        self._moments = 0
        self._overloaded = 0

    def counted(
        self, blocks: Iterator[tuple[int, NDArray[np.float32]]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """``blocks`` as they come."""
        for rate_hz, block in blocks:
            self._moments += len(block)
            self._overloaded += int((np.abs(block) > _OVERLOAD).any(axis=1).sum())
            yield rate_hz, block

    def check(self) -> None:
        share = self._overloaded / max(self._moments, 1)
        if share > _OVERLOADED_SHARE:
            raise MediaError("overloaded", f"beyond full scale for {share:.1%} of the time")


def _resampled(
    blocks: Iterator[tuple[int, NDArray[np.float32]]], sample_rate_hz: int
) -> Iterator[NDArray[np.float32]]:
    """Checked blocks (time, 4) at ``sample_rate_hz``."""
    resampler: soxr.ResampleStream | None = None
    for rate_hz, block in blocks:
        if block.shape[1] != 4:
            raise MediaError("wrong channel count", f"{block.shape[1]} channels, expected 4")
        if not np.isfinite(block).all():
            raise MediaError("not finite", "NaN or infinite samples")
        if rate_hz == sample_rate_hz:
            yield block
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(rate_hz, sample_rate_hz, 4, dtype="float32")
        yield resampler.resample_chunk(np.ascontiguousarray(block))
    if resampler is not None:
        yield resampler.resample_chunk(np.empty((0, 4), np.float32), last=True)


def _soundfile_blocks(path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    try:
        check_whole(path)
        with soundfile.SoundFile(path) as sound:
            remaining = sound.frames
            if remaining == 0:  # or its length was left open: FFmpeg reads on to the file's end
                yield from _av_sound_blocks(path)
            while remaining > 0:
                block = sound.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
                if not len(block):
                    raise MediaError("truncated", f"{remaining} of {sound.frames} samples missing")
                remaining -= len(block)
                yield sound.samplerate, block.astype(np.float32, copy=False)
    except TruncatedError as error:
        raise MediaError("truncated", str(error)) from error
    except soundfile.LibsndfileError as error:
        raise MediaError("unreadable", str(error)) from error
    except OSError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        check_whole(path)
        if path.suffix.lower() in _MP4_SUFFIXES:
            mp4.check_complete(path)
        # Files from the web have titles in any encoding, and none of them is read here.
        with av.open(str(path), metadata_errors="replace") as container:
            yield container
    except (TruncatedError, mp4.Mp4TruncatedError) as error:
        raise MediaError("truncated", str(error)) from error
    except (mp4.Mp4Error, av.error.FFmpegError) as error:
        raise MediaError("unreadable", str(error)) from error
    except OSError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error


def _av_sound_blocks(path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    with _opened(path) as container:
        if not container.streams.audio:
            raise MediaError("no audio stream", "the file holds no sound")
        stream = container.streams.audio[_sound_track(container)]
        _check_decodable(stream)
        rate_hz = stream.codec_context.sample_rate
        origin_s, decoded, missing = _origin_s(container), 0, 0
        for frame in _frames(container, stream):
            samples = _frame_samples(frame)
            due_s = decoded / rate_hz if frame.time is None else frame.time - origin_s
            lead = round(due_s * rate_hz) - decoded
            if decoded == 0 or lead > _JITTER_S * rate_hz:
                missing += max(lead, 0)
                if missing > _MOST_MISSING_S * rate_hz:
                    detail = f"{missing / rate_hz:.0f} s are missing in the sound"
                    raise MediaError("unreadable", detail)
                samples = _shifted(samples, lead)
            decoded += len(samples)
            yield rate_hz, samples
        _check_declared(container, stream, decoded / rate_hz)


def _sound_track(container: av.container.InputContainer) -> int:
    """The first four-channel track; without one the first, so that the error names its count."""
    # A track of a codec that FFmpeg does not know has no context, and may lie beside a good one.
    contexts = [stream.codec_context for stream in container.streams.audio]
    counts = [0 if context is None else context.channels for context in contexts]
    return counts.index(4) if 4 in counts else 0


def _frame_samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    channels = frame.layout.nb_channels
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    floats = samples.astype(np.float32)
    if samples.dtype.kind == "f":
        return floats
    middle = 128 if samples.dtype.kind == "u" else 0
    return (floats - middle) / np.float32(2 ** (8 * samples.dtype.itemsize - 1))


def _origin_s(container: av.container.InputContainer) -> float:
    """What counts as the file's beginning, in the time of its frames.

    Tracks of one file begin with the earlier of them. Where picture and sound have files of their
    own, a late one is late only by a clock that begins with the recording: MP4's does, at 0 (its
    edit lists delay tracks and cut codecs' lead-in off), while others may begin at any time.
    """
    pictures = [track for track in container.streams.video if not _is_cover(track)]
    is_alone = not (pictures and container.streams.audio)
    if is_alone and "mp4" in container.format.name.split(","):
        return 0.0
    return (container.start_time or 0) / av.time_base


def _is_cover(track: av.stream.Stream) -> bool:
    return bool(track.disposition & av.stream.Disposition.attached_pic)


def _shifted(samples: NDArray[np.float32], lead: int) -> NDArray[np.float32]:
    """Silence before sound that comes late; what comes before the file's beginning dropped."""
    if lead <= 0:
        return samples[-lead:]
    return np.pad(samples, ((lead, 0), (0, 0)))


def _video_frames(path: Path) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """(when it is shown, until when if it is the last, frame)."""
    with _opened(path) as container:
        if not container.streams.video:
            raise MediaError("no video stream", "the file holds no picture")
        stream = container.streams.video[0]
        _check_decodable(stream)
        stream.codec_context.thread_count = 1  # recordings are decoded in parallel, not frames
        end_s = 0.0
        interval_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        origin_s = _origin_s(container)
        for frame in _frames(container, stream):
            time_s = (frame.time or 0.0) - origin_s
            # Where the frame rate varies, the last picture may stay for long.
            own_s = float(frame.duration * frame.time_base) if frame.time_base else 0.0
            end_s = time_s + max(own_s, interval_s)
            yield time_s, end_s, frame
        _check_declared(container, stream, end_s)


def _declared_layout(frame: av.VideoFrame) -> str | None:
    for name, layouts in _DECLARED_LAYOUTS.items():
        data = frame.side_data.get(name)
        if data is not None:
            (value,) = struct.unpack_from("=i", bytes(data))
            if value in layouts:
                return layouts[value]
    return None


def _declared_turn(frame: av.VideoFrame) -> str | None:
    """How the file says its pictures are to be turned before they are shown.

    Such pictures are refused, not turned: FFmpeg gives the first view that spherical metadata of
    version 1 proposes to players as a pose too.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        # AVDisplayMatrix, rows (a, b, u), (c, d, v), …: x' = a·x + c·y, y' = b·x + d·y.
        a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
        if b or c or a < 0 or d < 0:
            return "rotated or mirrored"
    pose = frame.side_data.get("SPHERICAL")
    if pose is not None:
        # AVSphericalMapping: projection, then three angles with 16 bits after the point.
        _, *angles = struct.unpack_from("=4i", bytes(pose))
        yaw, pitch, roll = (angle / 65536 for angle in angles)
        if max(abs(yaw), abs(pitch), abs(roll)) > _UPRIGHT_DEG:
            return f"turned (yaw {yaw:.0f}°, pitch {pitch:.0f}°, roll {roll:.0f}°)"
    return None


def _check_decodable(stream: av.stream.Stream) -> None:
    if stream.codec_context is None:
        raise MediaError("unreadable", f"no decoder for the {stream.type} stream's codec")


class _Reach:
    """Until when a file's packets last, all tracks together.

    Not every packet says how long it is; the last one of a track is taken to last as long as the
    longest that came before it.
    """

    def __init__(self) -> None:
        self._reached_s = 0.0
        self._longest_packet_s = 0.0

    def see_packet(self, packet: av.Packet) -> None:
        if packet.pts is None or packet.time_base is None:
            return
        start_s = float(packet.pts * packet.time_base)
        self._longest_packet_s = max(self._longest_packet_s, start_s - self._reached_s)
        if packet.stream.type == "video" and packet.duration is not None:
            own_s = float(packet.duration * packet.time_base)
            self._longest_packet_s = max(self._longest_packet_s, own_s)
        self._reached_s = max(self._reached_s, start_s)

    def see_frame(self, frame: object) -> None:
        if isinstance(frame, av.AudioFrame) and frame.time is not None:
            end_s = frame.time + frame.samples / frame.sample_rate
            self._reached_s = max(self._reached_s, end_s)

    @property
    def end_s(self) -> float:
        return self._reached_s + self._longest_packet_s


def _frames(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator[Any]:
    """The stream's frames. Files that declare only how long they are, as WebM, must be so long."""
    reach = _Reach()
    for packet in container.demux():
        reach.see_packet(packet)
        if packet.stream.index != stream.index:
            continue
        for frame in packet.decode():
            reach.see_frame(frame)
            yield frame
    if stream.duration is None and container.duration is not None:
        _check_reached(reach.end_s, container.duration / av.time_base)


def _check_declared(
    container: av.container.InputContainer, stream: av.stream.Stream, decoded_s: float
) -> None:
    if container.format.name in _LENGTH_NOT_DECLARED:
        return
    if stream.duration is not None and stream.time_base is not None:
        _check_reached(decoded_s, float(stream.duration * stream.time_base))


def _check_reached(reached_s: float, declared_s: float) -> None:
    if reached_s < declared_s - _DECLARED_TOLERANCE_S:
        raise MediaError("truncated", f"{reached_s:.2f} s of {declared_s:.2f} s could be decoded")


def _stored_channel_map(path: Path) -> tuple[int, ...]:
    identity = (0, 1, 2, 3)
    if path.suffix.lower() not in _MP4_SUFFIXES:
        return identity
    with _opened(path) as container:
        if not container.streams.audio:
            return identity
        track = _sound_track(container)
        maps = mp4.channel_maps(path)
    return (maps[track] if track < len(maps) else None) or identity


def _as_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    # 32768, not 32767: the scale of 16-bit files, which so keep every bit.
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
