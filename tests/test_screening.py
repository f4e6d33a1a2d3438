"""What makes a readable recording from the web unusable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from scipy.signal import lfilter

from seld.corpora import Recording
from seld.decoding import ShardSettings, decode_recording
from tests import corpus_writers as writers

RATE_HZ = 48_000
#: Not white: of noise without any pitch, AAC keeps the level alone.
LEFT, RIGHT = lfilter([0.05], [1, -0.95], np.random.default_rng(0).normal(size=(2, 4 * RATE_HZ)))
NOTHING = np.zeros_like(LEFT)


SETTINGS = ShardSettings(clip_s=2.0, frame_rate_hz=4.0, frame_height_px=16, frame_width_px=32)


def segment(
    folder: Path, sound: np.ndarray, pictures: np.ndarray, frame_rate_hz: int = 5
) -> Recording:
    """Ten seconds from the web; sound (time, 4) at 24 kHz and pictures, apart."""
    video = writers.write_media(folder / "a.mp4", pictures=pictures, frame_rate_hz=frame_rate_hz)
    return Recording(
        recording_id="a",
        corpus="yt360",
        split="unannotated",
        room="a",
        foa_path=str(writers.write_wav(folder / "a.wav", sound)),
        video_path=str(video),
        duration_s=10.0,
        origin="web",
    )


@pytest.mark.parametrize(
    ("sound_s", "picture_s", "detail"),
    [
        (10.0, 14.0, "sound 10.00 s, picture 14.00 s"),
        (10.0, 13.2, "sound 10.00 s, picture 13.20 s"),
        (15.0, 10.0, "sound 15.00 s, picture 10.00 s"),
        (14.0, 14.4, None),
    ],
)
def test_files_of_one_segment_are_equally_long(
    tmp_path: Path, sound_s: float, picture_s: float, detail: str | None
) -> None:
    """Cut at the keyframe before, pictures are as much too early as their file is too long."""
    sound, pictures = writers.foa_noise(sound_s), writers.moving_pictures(picture_s, 5)
    recording = segment(tmp_path, sound, pictures)
    clips, fault = decode_recording(recording, SETTINGS)
    assert (fault and (fault.reason, fault.detail)) == (detail and ("different length", detail))
    assert sum(clip.foa.shape[1] for clip in clips) == (0 if detail else 240_000)
    # What is cut out of longer files leaves the rest of them unused.
    assert decode_recording(replace(recording, start_s=0.0), SETTINGS)[1] is None


def webm(folder: Path, duration_s: float) -> Recording:
    """Of Sphere360: sound and picture in one file."""
    path = writers.write_media(
        folder / "a.webm",
        pictures=writers.moving_pictures(duration_s, 5),
        frame_rate_hz=5,
        video_codec="libvpx-vp9",
        sound=writers.foa_noise(duration_s, 48_000) / np.float32(32768),
        sound_codec="libopus",
    )
    recording = segment(folder, writers.foa_noise(0.1), writers.moving_pictures(1.0, 5))
    return replace(recording, foa_path=str(path), video_path=str(path))


def test_of_one_file_the_rest_is_unused(tmp_path: Path) -> None:
    clips, fault = decode_recording(webm(tmp_path, 14.0), SETTINGS)
    assert fault is None
    assert sum(clip.foa.shape[1] for clip in clips) == 240_000


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_of_both_sound_and_picture_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """But once more where its first copy cannot be read."""
    recording = webm(tmp_path, 4.0)
    memory = fsspec.filesystem("memory")
    memory.put_file(recording.foa_path, "/fetched/a.webm")
    get_file = type(memory).get_file
    fetched: list[Path] = []

    def fetch(self: object, path: str, local: str, **options: object) -> None:
        get_file(self, path, local, **options)
        if damaged and not fetched:
            copy = Path(local)
            copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
        fetched.append(Path(local))

    monkeypatch.setattr(type(memory), "get_file", fetch)
    uri = "memory://fetched/a.webm"
    remote = replace(recording, foa_path=uri, video_path=uri)
    clips, fault = decode_recording(remote, SETTINGS, readable={uri})
    assert fault is None
    assert all(clip.frames for clip in clips)
    assert len(fetched) == 1 + damaged
    assert not any(copy.exists() for copy in fetched)


def textures(count: int, contrast: int) -> np.ndarray:
    """(time, 256, 512, 3): other fine grey textures in each picture."""
    levels = np.random.default_rng(3).integers(-contrast, contrast + 1, (count, 128, 256, 1))
    pictures = (90 + levels).repeat(2, axis=1).repeat(2, axis=2).repeat(3, axis=3)
    return pictures.astype(np.uint8)


@pytest.mark.parametrize(("contrast", "reason"), [(8, None), (1, "static picture")])
def test_what_stands_still_does_so_at_every_scale(
    tmp_path: Path, contrast: int, reason: str | None
) -> None:
    """Averaged to the 16 rows that are stored, all the textures are alike."""
    recording = segment(tmp_path, writers.foa_noise(10.0), textures(20, contrast), 2)
    for rows, rate_hz in ((16, 4.0), (64, 5.0), (256, 8.0), (16, 1.0)):
        size = {"frame_height_px": rows, "frame_width_px": 2 * rows, "frame_rate_hz": rate_hz}
        fault = decode_recording(recording, replace(SETTINGS, **size))[1]
        assert (fault and fault.reason) == reason


@pytest.mark.parametrize(
    ("duration_s", "changes", "detail"),
    [
        (10, 1, "18 of 20 frames half a second apart"),
        (10, 2, None),
        (2, 0, "3 of 4 frames half a second apart"),
        (2, 1, None),
    ],
)
def test_the_share_is_of_frames(
    tmp_path: Path, duration_s: int, changes: int, detail: str | None
) -> None:
    """Sphere360's: of 20 frames 17 are 85 %, not more, though they are 89 % of 19 pairs."""
    pictures = np.repeat(textures(1, 40), 2 * duration_s, axis=0)
    for change in range(1, changes + 1):
        pictures[change] = textures(1 + changes, 40)[change]
    for number in range(changes + 1, len(pictures)):
        pictures[number] = pictures[changes]
    recording = segment(tmp_path, writers.foa_noise(duration_s), pictures, 2)
    fault = decode_recording(recording, SETTINGS)[1]
    assert (fault and fault.reason) == (detail and "static picture")
    assert fault is None or fault.detail.startswith(f"{detail} differ")


def fault_of(path: Path, origin: Any = "web") -> tuple[str, str] | None:
    recording = Recording(
        recording_id="a",
        corpus="sphere360",
        split="unannotated",
        room="a",
        foa_path=str(path),
        origin=origin,
    )
    clips, fault = decode_recording(recording, ShardSettings(clip_s=2.0))
    assert bool(clips) == (fault is None)
    return None if fault is None else (fault.reason, fault.detail)


def plane_waves(*directions: tuple[float, float], ambience: float = 0.0) -> np.ndarray:
    """(4, time): noises from (azimuth, elevation) in degrees; ambience is a share of amplitude."""
    generator = np.random.default_rng(1)
    foa = ambience * 0.1 * generator.normal(size=(4, len(LEFT)))
    for azimuth_deg, elevation_deg in directions:
        azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
        x, y = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth)
        gains = np.array([1, y, np.sin(elevation), x])
        foa += gains[:, None] * generator.normal(scale=0.1, size=len(LEFT))
    return foa


def noise_dbfs(*levels_dbfs: float) -> np.ndarray:
    """(time, channel) int16: 4 s of noises at 24 kHz, of these levels."""
    noises = np.random.default_rng(2).normal(size=(96_000, len(levels_dbfs)))
    return np.rint(32768 * 10 ** (np.array(levels_dbfs) / 20) * noises).astype(np.int16)


@pytest.mark.parametrize(
    ("levels_dbfs", "reason"),
    [
        ((-36.5, -33, -33, -33), None),
        ((-36.5, -36.5, -33, -36.5), None),
        ((-33, -36.5, -36.5, -36.5), None),
        ((-36.5, -36.5, -36.5, -36.5), "silent"),
    ],
)
def test_the_loudest_channel_is_what_is_heard(
    tmp_path: Path, levels_dbfs: tuple[float, ...], reason: str | None
) -> None:
    fault = fault_of(writers.write_wav(tmp_path / "a.wav", noise_dbfs(*levels_dbfs)))
    assert (fault and fault[0]) == reason


@pytest.mark.parametrize(("loud", "detail"), [(1, "under -35 dBFS for 95% of the time"), (3, None)])
def test_silence_is_counted_in_moments_of_20_ms(
    tmp_path: Path, loud: int, detail: str | None
) -> None:
    """One or three loud ones in each 400 ms: of moments of 100 ms a quarter would be loud."""
    sound = noise_dbfs(*[-60] * 4)
    for start in range(0, len(sound), 9600):
        sound[start : start + loud * 480] *= 100
    fault = fault_of(writers.write_wav(tmp_path / "a.wav", sound))
    assert (fault and fault[1]) == detail


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "pcm_s16le"), (".m4a", "aac"), (".webm", "libopus")]
)
@pytest.mark.parametrize(
    ("channels", "detail"),
    [
        ((LEFT, NOTHING, NOTHING, NOTHING), "Y, Z and X are silent beside W"),
        ((LEFT, LEFT, LEFT, LEFT), "W and Y are the same"),
        ((LEFT, RIGHT, LEFT, RIGHT), "W and Z are the same"),
        ((LEFT, LEFT, RIGHT, RIGHT), "W and Y are the same"),
        ((LEFT, RIGHT, RIGHT, -LEFT), "W and X are the same"),
        ((LEFT, RIGHT, NOTHING, NOTHING), "only Y is heard beside W, and is another signal"),
        (
            (LEFT + 0.7 * RIGHT, RIGHT + 0.7 * LEFT, NOTHING, NOTHING),
            "only Y is heard beside W, and is another signal",
        ),
        ((LEFT, NOTHING, NOTHING, RIGHT), "only X is heard beside W, and is another signal"),
        ((NOTHING, NOTHING, LEFT, RIGHT), "W is silent beside Y, Z and X"),
    ],
    ids=[
        "mono",
        "mono four times",
        "stereo twice",
        "pairs",
        "a channel inverted",
        "stereo",
        "stereo, much alike",
        "stereo outside",
        "stereo at the end",
    ],
)
def test_mono_and_stereo_in_four_channels(
    tmp_path: Path, channels: tuple[np.ndarray, ...], detail: str, suffix: str, codec: str
) -> None:
    sound = np.stack(channels, axis=1).astype(np.float32)
    path = writers.write_media(tmp_path / f"a{suffix}", sound=sound, sound_codec=codec)
    assert fault_of(path) == ("not ambisonic", detail)
    for origin in ("microphone", "rendered"):
        fault = fault_of(path, origin)
        assert fault is None or (fault[0] == "silent" and not channels[0].any())


@pytest.mark.parametrize(
    "foa",
    [
        plane_waves((0, 0)),
        plane_waves((45, 0)),
        plane_waves((8, 3)),
        plane_waves((180, 0)),
        plane_waves((0, 90)),
        plane_waves((30, 0), (-100, 0)),
        plane_waves((35.26, 35.26)),
        plane_waves((10, 0), (-10, 5), ambience=0.1),
        plane_waves(ambience=0.5),
        plane_waves((90, 0)) * [[2], [1], [1], [1]],
        plane_waves((90, 0)) * [[1], [1.73], [1.73], [1.73]],
    ],
    ids=[
        "ahead",
        "between two dipoles",
        "nearly ahead",
        "behind",
        "above",
        "horizontal",
        "between three dipoles",
        "two and ambience",
        "diffuse",
        "weak dipoles",
        "strong dipoles",
    ],
)
def test_ambisonic_sound_stays(tmp_path: Path, foa: np.ndarray) -> None:
    """One dry source makes channels alike, and a horizontal scene leaves Z silent."""
    samples = np.rint(foa.T * 32767).astype(np.int16)
    assert fault_of(writers.write_wav(tmp_path / "a.wav", samples, RATE_HZ)) is None
