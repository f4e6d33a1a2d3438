"""One recording → its clips, or the reason why it cannot be used."""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import av.error
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seld.annotations import POLAR_COLUMNS, read_annotations
from seld.clips import (
    LABEL_FRAME_S,
    SAMPLE_RATE_HZ,
    Clip,
    FrameEncoding,
    encode_frame,
    write_shard,
)
from seld.corpora.recording import Origin, Recording
from seld.errors import InputError
from seld.media import MediaError, Picture, PictureReader, Reason, read_foa, sound_length_s
from seld.projection import Layout, common_layout, frame_layout
from seld.settings import to_mapping
from seld.storage import local_copy

#: Raised when the same files come out as other clips, or are refused for other reasons. Shards have
#: it in their names, so all is decoded anew.
DECODER_VERSION = 3

_LABEL_SAMPLES = round(SAMPLE_RATE_HZ * LABEL_FRAME_S)
_MOMENT_SAMPLES = round(SAMPLE_RATE_HZ * 0.02)
#: Below this the sound of a studio recording was not recorded at all.
_DIGITAL_SILENCE_DBFS = -90.0
#: Below this mean squared difference of grey values, frames are one and the same.
_FROZEN_MSE = 0.01
#: Pictures are looked at twice a second as Sphere360 does, and in one size [ours] whatever is
#: stored: fine motion goes where pictures are averaged to fewer rows, and so does what a codec
#: makes of one frame throughout.
_SCREENED_EVERY_S = 0.5
_SCREENED_ROWS: Mapping[Origin, int] = {"web": 256, "microphone": 64}
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
#: Dipoles under this share of W's energy tell no directions; nor do they without a W.
_NO_DIPOLES = 1e-4
#: Shares of W's energy: of its difference from a dipole, where both are one signal but for a lossy
#: codec; and of the other dipoles. Of plane waves, a difference d leaves these at most 2·√d, 0.35.
#: The first is also the share of a dipole's energy that W does not explain, whatever their levels.
_SAME, _HEARD = 0.03, 0.5
#: What FFmpeg says only where a file is out of reach; EIO and ENOMEM it says of damaged ones too.
_OUT_OF_REACH = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ScreeningSettings:
    """What makes a readable recording unusable.

    The silence and static-picture rules with these numbers are Sphere360's (``toolset/clean`` of
    https://github.com/liuhuadai/OmniAudio) and apply to recordings
    from the web, whose pictures must be equirectangular too (:mod:`seld.projection`) and whose
    sound must not be mono or stereo in four channels. Others (``Recording.origin``) are set aside
    only where nothing was recorded: digital silence, or one frame throughout, which a rendered
    scene may be. Pictures that their file says are to be turned are at wrong directions in any.
    """

    silence_dbfs: float = -35.0  #: RMS of the loudest channel in 20 ms under which they are silent
    silent_share: float = 0.9  #: of the moments, above which a recording is silent
    static_mse: float = 5.0  #: MSE of grey frames half a second apart under which they are the same
    #: of the frames, the same as the one before, above which the picture is static; if all are, it
    #: is static anyway (the first of few is a large share)
    static_share: float = 0.85
    #: difference of sound, picture and annotations that is put up with [ours]
    length_tolerance_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("silent_share", "static_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise InputError("screening", name, value, "a share in (0, 1]")
        for name in ("static_mse", "length_tolerance_s"):
            value = getattr(self, name)
            if value < 0:
                raise InputError("screening", name, value, "zero or more")


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Form of the clips. Raw frames read fastest; JPEGs take a seventh of the disk."""

    clip_s: float = 5.0
    hop_s: float | None = None  #: between clip starts; None: clips do not overlap
    frame_rate_hz: float = 4.0
    frame_height_px: int = 64
    frame_width_px: int = 128
    frame_encoding: FrameEncoding = "raw"
    jpeg_quality: int = 90
    shard_s: float = 300.0  #: recordings of known length share a shard up to this length
    screening: ScreeningSettings = field(default_factory=ScreeningSettings)

    def __post_init__(self) -> None:
        for name in ("clip_s", "hop_s"):
            value = getattr(self, name)
            if value is None:
                continue
            if value <= 0 or abs(value / LABEL_FRAME_S - round(value / LABEL_FRAME_S)) > 1e-6:
                raise InputError("shards", name, value, "a positive multiple of 0.1 s")
        if self.hop_s is not None and self.hop_s > self.clip_s:
            raise InputError("shards", "hop_s", self.hop_s, f"at most clip_s = {self.clip_s}")
        for name in ("frame_rate_hz", "frame_height_px", "frame_width_px", "shard_s"):
            if getattr(self, name) <= 0:
                raise InputError("shards", name, getattr(self, name), "more than zero")
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError("shards", "jpeg_quality", self.jpeg_quality, "1 to 100")


@dataclass(frozen=True)
class Rejected:
    """A recording set aside, or its picture alone: its sound and annotations are used then."""

    recording_id: str
    reason: Reason
    detail: str
    path: str
    lost: Literal["recording", "picture"] = "recording"


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: its recordings, its path and what it must be made with.

    ``readable`` are those of its files that could be read where the shard was planned: where they
    cannot, it is no fault of the recording. ``class_count`` is how many classes may be annotated;
    None: any.
    """

    path: str
    recordings: tuple[Recording, ...]
    settings: ShardSettings
    readable: frozenset[str] = frozenset()
    class_count: int | None = None


@dataclass(frozen=True)
class ShardResult:
    """A finished shard: how many clips it holds and what was set aside."""

    path: str
    recording_count: int
    clip_count: int
    clip_s: float
    rejected: tuple[Rejected, ...]

    @property
    def bad_count(self) -> int:
        """Recordings of which nothing is used."""
        return sum(item.lost == "recording" for item in self.rejected)

    @classmethod
    def from_footer(cls, path: str, footer: dict[str, Any]) -> ShardResult:
        """As :func:`decode_shard` wrote it."""
        return cls(
            path=path,
            recording_count=footer["recording_count"],
            clip_count=len(footer["clips"]),
            clip_s=sum(clip["duration_s"] for clip in footer["clips"]),
            rejected=tuple(Rejected(**values) for values in footer["rejected"]),
        )


def decode_shard(job: ShardJob) -> ShardResult:
    """Decode a shard's recordings and write it; what was rejected is kept in its footer.

    Raises:
        InputError: as :func:`decode_recording`.
    """
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    for recording in job.recordings:
        usable, fault = decode_recording(recording, job.settings, job.readable, job.class_count)
        clips += usable
        rejected += [fault] if fault else []
    footer = {
        "corpus": job.recordings[0].corpus,
        "settings": to_mapping(job.settings),
        "recording_count": len(job.recordings),
        "rejected": [asdict(item) for item in rejected],
    }
    return ShardResult.from_footer(job.path, write_shard(job.path, clips, footer))


def decode_recording(
    recording: Recording,
    settings: ShardSettings,
    readable: Set[str] = frozenset(),
    class_count: int | None = None,
) -> tuple[list[Clip], Rejected | None]:
    """All clips of one recording, and what is wrong with it: none, or none with frames.

    What is annotated is fine-tuned and tested on by its sound, so that it does without a picture.
    Memory holds one recording's clips.

    Raises:
        InputError: one of the ``readable`` files cannot be read on this machine.
    """
    with _Copies(recording) as copies:
        return _decode(recording, settings, readable, class_count, copies)


def _decode(
    recording: Recording,
    settings: ShardSettings,
    readable: Set[str],
    class_count: int | None,
    copies: _Copies,
) -> tuple[list[Clip], Rejected | None]:
    path = recording.foa_path
    events = pd.DataFrame(columns=list(POLAR_COLUMNS))
    try:
        foa, sound_s = _read_file(path, partial(_read_sound, recording, copies), readable, copies)
        _check_length(foa, settings)
        _check_level(foa, recording, settings.screening)
        if recording.origin == "web":
            _check_ambisonic(foa)
        if recording.annotation_path is not None:
            path = recording.annotation_path
            events = _read_file(path, partial(_read_table, path, class_count), readable, copies)
            _check_within(events, foa, settings.screening)
    except MediaError as error:
        return [], Rejected(recording.recording_id, error.reason, error.detail, path)

    spans = clip_spans(foa.shape[1], settings)
    frames: dict[float, bytes] = {}
    fault: Rejected | None = None
    if recording.video_path is not None:
        path = recording.video_path
        read = partial(_read_frames, recording, path, spans, sound_s, settings, copies)
        try:
            frames = _read_file(path, read, readable, copies)
        except MediaError as error:
            lost = "recording" if recording.annotation_path is None else "picture"
            fault = Rejected(recording.recording_id, error.reason, error.detail, path, lost)
            if lost == "recording":
                return [], fault
    return [_clip(recording, foa, frames, events, span, settings) for span in spans], fault


class _Copies:
    """A recording's files on this machine: what holds both sound and picture is fetched once."""

    def __init__(self, recording: Recording) -> None:
        self._shared = recording.foa_path if recording.foa_path == recording.video_path else None
        self._held = ExitStack()
        self._copy: Path | None = None

    def __enter__(self) -> _Copies:
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """As :func:`seld.storage.local_copy`."""
        if path != self._shared:
            with local_copy(path) as copy:
                yield copy
            return
        if self._copy is None:
            self._copy = self._held.enter_context(local_copy(path))
        yield self._copy

    def let_go(self) -> None:
        """The next that is asked for is fetched anew."""
        self._held.close()
        self._copy = None


def _read_file(
    path: str, read: Callable[[], Result], readable: Set[str], copies: _Copies
) -> Result:
    """What ``read`` makes of the file at ``path``.

    Raises:
        MediaError: the file cannot be used, and why.
        InputError: it is ``readable``, but not on this machine.
    """
    try:
        with _within_reach(path, readable):
            return read()
    except MediaError as error:
        if path not in readable or error.reason not in ("unreadable", "truncated"):
            raise
    # FFmpeg and libsndfile take a read that failed for the file's end, or say of it what they say
    # of damage. So it is asked for whole, and once more: damage will be there the second time.
    copies.let_go()
    with _within_reach(path, readable):
        _read_through(path, copies)
        return read()


@contextmanager
def _within_reach(path: str, readable: Set[str]) -> Iterator[None]:
    """Raises as :func:`_read_file` where reading ``path`` fails."""
    try:
        yield
    except (MediaError, InputError, FileNotFoundError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if path in readable and isinstance(cause, OSError) and _is_of_the_machine(cause):
            where = f"file on {socket.gethostname()}"
            expected = "one that every machine can read (then the same command goes on)"
            raise InputError(path, where, cause.strerror or "missing", expected) from cause
        if isinstance(error, FileNotFoundError):
            raise MediaError("missing file", path) from error
        if isinstance(error, InputError):
            raise MediaError("bad annotations", str(error)) from error
        raise


def _is_of_the_machine(error: OSError) -> bool:
    return not isinstance(error, av.error.FFmpegError) or error.errno in _OUT_OF_REACH


def _read_through(path: str, copies: _Copies) -> None:
    with copies.local(path) as local:
        try:
            with local.open("rb") as stream:
                while stream.read(1 << 20):
                    pass
        except OSError as error:
            raise MediaError("unreadable", error.strerror or str(error)) from error


def _read_sound(recording: Recording, copies: _Copies) -> tuple[NDArray[np.int16], float]:
    """The recording's sound, and the length in s which that of its picture must equal."""
    with copies.local(recording.foa_path) as sound:
        foa = read_foa(
            sound,
            sample_rate_hz=SAMPLE_RATE_HZ,
            channel_map=recording.channel_map,
            start_s=recording.start_s or 0.0,
            duration_s=recording.duration_s,
        )
        is_part = recording.duration_s is not None and _has_files_of_equal_length(recording)
        return foa, sound_length_s(sound) if is_part else foa.shape[1] / SAMPLE_RATE_HZ


def _has_files_of_equal_length(recording: Recording) -> bool:
    """Whether sound and picture have a file each and all of them counts, not a part alone.

    Where one is longer they were not cut alike, and may well not begin alike: pictures that are cut
    without encoding them anew begin at the keyframe before.
    """
    apart = recording.video_path not in (None, recording.foa_path)
    return apart and recording.start_s is None


def _read_table(path: str, class_count: int | None) -> pd.DataFrame:
    with local_copy(path) as table:
        try:
            return read_annotations(table, class_count)
        except InputError as error:
            # Of a bucket's file, the copy is gone by the time that anyone looks.
            where = error.where.replace(str(table), path)
            found = InputError(where, error.field, error.value, error.expected)
            raise found from error.__cause__


def clip_spans(sample_count: int, settings: ShardSettings) -> list[tuple[int, int]]:
    """(first sample, sample after the last) of each clip; together they cover the recording.

    A remainder of at least half a clip is a clip of its own, a shorter one joins the last clip:
    no clip is shorter than half of ``clip_s``, and none as long as one and a half.
    """
    clip = round(settings.clip_s / LABEL_FRAME_S) * _LABEL_SAMPLES
    hop = round((settings.hop_s or settings.clip_s) / LABEL_FRAME_S) * _LABEL_SAMPLES
    spans = [(start, start + clip) for start in range(0, sample_count - clip + 1, hop)]
    covered = spans[-1][1] if spans else 0
    if sample_count - covered >= clip / 2:
        start = spans[-1][0] + hop if spans else 0
        spans.append((start, sample_count))
    elif spans:
        spans[-1] = (spans[-1][0], sample_count)
    return spans


def _clip(
    recording: Recording,
    foa: NDArray[np.int16],
    frames: dict[float, bytes],
    events: pd.DataFrame,
    span: tuple[int, int],
    settings: ShardSettings,
) -> Clip:
    first, last = span
    first_frame, end_frame = first // _LABEL_SAMPLES, -(-last // _LABEL_SAMPLES)
    if last == foa.shape[1]:
        # STARSS numbers frames up to N in a recording of N. No network answers frame N, but the
        # metric's blocks follow the last number: without its row another frame may go unscored.
        end_frame = math.inf
    inside = events[events["frame"].between(first_frame, end_frame, inclusive="left")]
    times_s = _frame_times_s(span, settings) if frames else []
    return Clip(
        recording_id=recording.recording_id,
        corpus=recording.corpus,
        split=recording.split,
        room=recording.room,
        start_s=round(first / SAMPLE_RATE_HZ, 3),
        foa=foa[:, first:last],
        frames=[frames[time_s] for time_s in times_s],
        frame_encoding=settings.frame_encoding,
        frame_rate_hz=settings.frame_rate_hz,
        frame_height_px=settings.frame_height_px,
        frame_width_px=settings.frame_width_px,
        events=inside.assign(frame=inside["frame"] - first_frame),
    )


def _frame_times_s(span: tuple[int, int], settings: ShardSettings) -> list[float]:
    """Times of a clip's frames in its recording; the same instant always gives the same float."""
    first, last = span
    count = max(1, int((last - first) / SAMPLE_RATE_HZ * settings.frame_rate_hz + 1e-6))
    start_s = first / SAMPLE_RATE_HZ
    return [round(start_s + number / settings.frame_rate_hz, 6) for number in range(count)]


def _read_frames(
    recording: Recording,
    path: str,
    spans: Sequence[tuple[int, int]],
    sound_s: float,
    settings: ShardSettings,
    copies: _Copies,
) -> dict[float, bytes]:
    """Encoded frames by their time in the recording, after screening picture and length."""
    start_s = recording.start_s or 0.0
    kept_s = {time_s for span in spans for time_s in _frame_times_s(span, settings)}
    frames: dict[float, bytes] = {}
    screening = _PictureScreening(recording.origin, settings.screening)
    screened_s = screening.times_s(spans[-1][1] / SAMPLE_RATE_HZ)
    times_s = sorted(kept_s | screened_s)
    with copies.local(path) as video:
        reader = PictureReader(video, [start_s + time_s for time_s in times_s])
        # The reader first: exhausted, it knows how long the video lasts.
        for picture, time_s in zip(reader, times_s, strict=True):
            if time_s in kept_s:
                frame = picture.rgb(settings.frame_height_px, settings.frame_width_px)
                frames[time_s] = encode_frame(frame, settings.frame_encoding, settings.jpeg_quality)
            if time_s in screened_s:
                screening.see(picture)
    assert reader.duration_s is not None
    picture_s = reader.duration_s - start_s
    if not _has_files_of_equal_length(recording):
        # Of a recording cut out of a longer file, the rest of the file's picture is unused.
        picture_s = min(picture_s, recording.duration_s or picture_s)
    _check_same_length(sound_s, picture_s, settings.screening)
    screening.check(reader.declared_layout, reader.declared_turn)
    return frames


class _PictureScreening:
    """Whether a recording's pictures move, are equirectangular and are upright.

    Of what is stored it knows nothing, so that every scale uses the same recordings.
    """

    def __init__(self, origin: Origin, settings: ScreeningSettings) -> None:
        self._origin: Origin = origin
        self._settings = settings
        self._size_px: tuple[int, int] | None = None
        self._seen: NDArray[np.float32] | None = None
        self._differences: list[float] = []
        self._layouts: list[Layout | None] = []

    def times_s(self, length_s: float) -> set[float]:
        """When to look at pictures of that length; never at rendered ones, which may stand still.

        Those of a web recording or of microphones are looked at twice a second.
        """
        count = math.ceil(length_s / _SCREENED_EVERY_S) if self._origin in _SCREENED_ROWS else 0
        return {number * _SCREENED_EVERY_S for number in range(count)}

    def see(self, picture: Picture) -> None:
        """The picture at the next of :meth:`times_s`."""
        if self._size_px is None:
            height_px, width_px = picture.size_px
            rows = _SCREENED_ROWS[self._origin]
            self._size_px = min(height_px, rows), min(width_px, 2 * rows)
        frame = picture.rgb(*self._size_px)
        if self._origin == "web":
            self._layouts.append(frame_layout(frame))
        grey = frame.astype(np.float32) @ _GREY
        if self._seen is not None:
            self._differences.append(float(np.square(grey - self._seen).mean()))
        self._seen = grey

    def check(self, declared_layout: str | None, declared_turn: str | None) -> None:
        """What the file declares of them counts too.

        Raises:
            MediaError: the pictures cannot be used.
        """
        self._check_moving()
        if declared_turn is not None:
            raise MediaError("not equirectangular", f"to be shown {declared_turn}, says the file")
        if self._origin == "web":
            self._check_equirectangular(declared_layout)

    def _check_moving(self) -> None:
        if self._origin == "rendered" or not self._differences:
            return
        if self._origin == "microphone":
            limit, share, frames = _FROZEN_MSE, 0.999, len(self._differences)
        else:
            limit, share = self._settings.static_mse, self._settings.static_share
            frames = len(self._differences) + 1
        still = sum(difference < limit for difference in self._differences)
        if still > share * frames or still == len(self._differences):
            apart = f"{still} of {frames} frames half a second apart"
            detail = f"{apart} differ from the one before by an MSE under {limit:g}"
            raise MediaError("static picture", detail)

    def _check_equirectangular(self, declared: str | None) -> None:
        if declared is not None:
            raise MediaError("not equirectangular", f"the file declares {declared} video")
        layout = common_layout(self._layouts)
        if layout != "equirectangular":
            raise MediaError("not equirectangular", f"its frames look like {layout} video")


def _check_same_length(sound_s: float, picture_s: float, screening: ScreeningSettings) -> None:
    if abs(sound_s - picture_s) > screening.length_tolerance_s:
        detail = f"sound {sound_s:.2f} s, picture {picture_s:.2f} s"
        raise MediaError("different length", detail)


def _check_length(foa: NDArray[np.int16], settings: ShardSettings) -> None:
    length_s = foa.shape[1] / SAMPLE_RATE_HZ
    if length_s < settings.clip_s / 2:
        detail = f"{length_s:.2f} s, expected at least half a clip of {settings.clip_s:g} s"
        raise MediaError("too short", detail)


def _check_within(
    events: pd.DataFrame, foa: NDArray[np.int16], screening: ScreeningSettings
) -> None:
    """Events long after the sound's end are those of another recording."""
    sound_s = foa.shape[1] / SAMPLE_RATE_HZ
    last = max(events["frame"].tolist(), default=0)
    if last * LABEL_FRAME_S > sound_s + screening.length_tolerance_s:
        raise MediaError("bad annotations", f"frame {last} in {sound_s:.2f} s of sound")


def _check_level(
    foa: NDArray[np.int16], recording: Recording, screening: ScreeningSettings
) -> None:
    # The loudest channel counts of the web's. Of a corpus's own microphones it is W, without which
    # nothing can be told of directions.
    channels, limit_dbfs = foa[:1], _DIGITAL_SILENCE_DBFS
    if recording.origin == "web":
        channels, limit_dbfs = foa, screening.silence_dbfs
    power = np.max([_moment_power(channel) for channel in channels], axis=0)
    levels_dbfs = 10 * np.log10(power + 1e-20)
    silent = float(np.mean(levels_dbfs < limit_dbfs))
    if silent > screening.silent_share:
        raise MediaError("silent", f"under {limit_dbfs:g} dBFS for {silent:.0%} of the time")


def _moment_power(channel: NDArray[np.int16]) -> NDArray[np.float32]:
    count = len(channel) // _MOMENT_SAMPLES
    moments = channel[: count * _MOMENT_SAMPLES].reshape(count, _MOMENT_SAMPLES)
    return np.square(moments.astype(np.float32) / 32768).mean(axis=1)


def _check_ambisonic(foa: NDArray[np.int16]) -> None:
    """Mono and stereo in four channels. A dipole may well be silent: sound can be horizontal."""
    products = np.zeros((4, 4))  # of channels with one another, summed over time
    for start in range(0, foa.shape[1], SAMPLE_RATE_HZ):
        second = foa[:, start : start + SAMPLE_RATE_HZ].astype(np.float64)
        products += second @ second.T
    w_energy, *dipole_energies = np.diag(products)
    if sum(dipole_energies) < _NO_DIPOLES * w_energy:
        raise MediaError("not ambisonic", "Y, Z and X are silent beside W")
    if w_energy < _NO_DIPOLES * sum(dipole_energies):
        raise MediaError("not ambisonic", "W is silent beside Y, Z and X")
    for dipole, energy in enumerate(dipole_energies, start=1):
        difference = w_energy + energy - 2 * abs(products[0, dipole])
        others = sum(dipole_energies) - energy
        # W is as loud as a dipole for sound from the dipole's own directions, where the others
        # hear nothing: a source straight ahead gives W = X, but Y = Z = 0.
        if difference < _SAME * w_energy and others > _HEARD * w_energy:
            raise MediaError("not ambisonic", f"W and {'WYZX'[dipole]} are the same")
        # Left and right before two silent channels. Sound that one dipole alone hears comes from
        # that dipole's directions, so that it is W's, if weaker or stronger; from both of them at
        # once, and from nowhere else, it comes in no room.
        unlike = w_energy * energy - products[0, dipole] ** 2
        if others < _NO_DIPOLES * w_energy and unlike > _SAME * w_energy * energy:
            detail = f"only {'WYZX'[dipole]} is heard beside W, and is another signal"
            raise MediaError("not ambisonic", detail)
