"""Pictures that are not one equirectangular panorama are known by what they show or declare."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest

from seld.corpora import Recording
from seld.corpora.recording import Origin
from seld.decoding import Rejected, ShardSettings, decode_recording
from seld.media import PictureReader
from seld.projection import common_layout, frame_layout
from seld.scenes.pictures import draw_background
from tests import corpus_writers as writers

SETTINGS = ShardSettings(clip_s=2.0, frame_height_px=64, frame_width_px=128)
FRAME_RATE_HZ = 5


def panorama(seed: int, height_px: int = 128) -> np.ndarray:
    """A room of the embedded benchmark (height, width, 3) uint8."""
    room, recording = np.random.default_rng(seed).spawn(2)
    return (draw_background(height_px, room, recording) * 255).astype(np.uint8)


def waves(seed: int, cycles: float) -> np.ndarray:
    """Coloured waves on a sphere, equirectangular: rows become constant at the poles."""
    generator = np.random.default_rng(seed)
    elevation = np.radians(90 - (np.arange(64) + 0.5) * 180 / 64)[:, None]
    azimuth = np.radians(180 - (np.arange(128) + 0.5) * 360 / 128)
    places = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation) + 0 * azimuth,
        ],
        axis=-1,
    )
    ways = generator.normal(size=(3, 12))
    phases = places @ (ways / np.linalg.norm(ways, axis=0)) * cycles * np.pi
    picture = np.cos(phases + generator.uniform(0, 6.3, 12)) @ generator.normal(size=(12, 3))
    return np.clip(128 + 50 * picture / picture.std(), 0, 255).astype(np.uint8)


def turning(picture: np.ndarray, seconds: float = 6.0) -> np.ndarray:
    """A video in which the camera turns: (time, height, width, 3)."""
    shifts = range(round(seconds * FRAME_RATE_HZ))
    return np.stack([np.roll(picture, 11 * shift, axis=1) for shift in shifts])


def as_cubemap(pictures: np.ndarray) -> np.ndarray:
    """As YouTube's equi-angular cubemap, by FFmpeg, which shares nothing with our edges."""
    graph = av.filter.Graph()
    height, width = pictures.shape[1:3]
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base="1/10")
    convert = graph.add("v360", f"e:eac:w={3 * height // 2}:h={height}")
    sink = graph.add("buffersink")
    source.link_to(convert)
    convert.link_to(sink)
    graph.configure()
    cubemaps = []
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts = number
        graph.push(frame)
        converted = graph.pull()
        assert isinstance(converted, av.VideoFrame)
        cubemaps.append(converted.to_ndarray(format="rgb24"))
    return np.stack(cubemaps)


def other_eye(pictures: np.ndarray) -> np.ndarray:
    """The same, a little to the side and a little darker."""
    return (np.roll(pictures, 1, axis=-2) * 0.95).astype(np.uint8)


def top_bottom(pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([pictures, other_eye(pictures)], axis=-3)


def side_by_side(pictures: np.ndarray) -> np.ndarray:
    return np.concatenate([pictures, other_eye(pictures)], axis=-2)


def decoded(
    tmp_path: Path, pictures: np.ndarray, origin: Origin = "web", video: Path | None = None
) -> tuple[int, Rejected | None]:
    """Number of clips, and what is wrong."""
    path = video or writers.write_media(
        tmp_path / "a.mp4", pictures=pictures, frame_rate_hz=FRAME_RATE_HZ
    )
    recording = Recording(
        recording_id="abcdefghijk_0",
        corpus="sphere360",
        split="unannotated",
        room="abcdefghijk",
        foa_path=str(writers.write_wav(tmp_path / "a.wav", writers.foa_noise(6.0))),
        video_path=str(path),
        origin=origin,
    )
    clips, fault = decode_recording(recording, SETTINGS)
    return len(clips), fault


def test_an_equirectangular_scene_gives_clips(tmp_path: Path) -> None:
    assert decoded(tmp_path, turning(panorama(0))) == (3, None)


@pytest.mark.parametrize(
    ("layout", "looks"),
    [(as_cubemap, "cubemap"), (top_bottom, "top-bottom"), (side_by_side, "side by side")],
)
def test_the_same_scene_in_another_layout_is_set_aside(
    tmp_path: Path, layout: Any, looks: str
) -> None:
    pictures = layout(turning(panorama(0)))
    count, fault = decoded(tmp_path, pictures)
    assert count == 0
    assert fault is not None
    assert (fault.reason, fault.detail) == (
        "not equirectangular",
        f"its frames look like {looks} video",
    )
    for origin in ("microphone", "rendered"):
        assert decoded(tmp_path, pictures, origin) == (3, None)


def full_box(kind: bytes, payload: bytes) -> bytes:
    return writers.box(kind, bytes(4) + payload)


def plant_in_picture_track(path: Path, planted: bytes) -> Path:
    """Put boxes into the picture track of an MP4 whose ``moov`` comes last."""
    data = bytearray(path.read_bytes())
    place = data.find(b"avc1", data.find(b"stsd", data.find(b"vmhd"))) + 4
    (entry_size,) = struct.unpack_from(">I", data, place - 8)
    at = place - 8 + entry_size
    for name in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        place = data.rfind(name, 0, place)
        (size,) = struct.unpack_from(">I", data, place - 4)
        struct.pack_into(">I", data, place - 4, size + len(planted))
    data[at:at] = planted
    path.write_bytes(data)
    return path


def spherical(projection: bytes, yaw_pitch_roll_deg: tuple[float, ...] = (0, 0, 0)) -> bytes:
    """Google's spherical video box of version 2, with projection ``equi`` or ``cbmp``."""
    bounds = full_box(projection, bytes({b"equi": 16, b"cbmp": 8}[projection]))
    pose = struct.pack(">3i", *(round(angle * 65536) for angle in yaw_pitch_roll_deg))
    projected = writers.box(b"proj", full_box(b"prhd", pose) + bounds)
    return writers.box(b"sv3d", full_box(b"svhd", b"x\0") + projected)


@pytest.mark.parametrize(
    ("boxes", "declared"),
    [
        (b"", None),
        (spherical(b"equi") + full_box(b"st3d", b"\0"), None),
        (spherical(b"cbmp"), "cubemap"),
        (full_box(b"st3d", b"\1") + spherical(b"equi"), "top-bottom"),
        (full_box(b"st3d", b"\2"), "side by side"),
    ],
    ids=["nothing", "mono", "cubemap", "top-bottom", "side by side"],
)
def test_what_the_file_declares_is_obeyed(
    tmp_path: Path, boxes: bytes, declared: str | None
) -> None:
    pictures = turning(panorama(0))
    path = writers.write_media(tmp_path / "b.mp4", pictures=pictures, frame_rate_hz=FRAME_RATE_HZ)
    plant_in_picture_track(path, boxes)
    reader = PictureReader(path, [0.0])
    assert len(list(reader)) == 1
    assert reader.declared_layout == declared
    count, fault = decoded(tmp_path, pictures, video=path)
    if declared is None:
        assert (count, fault) == (3, None)
    else:
        assert count == 0
        assert fault is not None
        assert fault.reason == "not equirectangular"
        assert fault.detail == f"the file declares {declared} video"
    assert decoded(tmp_path, pictures, "microphone", video=path) == (3, None)


@pytest.mark.parametrize("origin", ["web", "microphone", "rendered"])
@pytest.mark.parametrize(
    ("matrix", "pose_deg", "turn"),
    [
        ((1, 0, 0, 1), (0, 0, 0), None),
        ((1, 0, 0, 1), (0.5, 0, -0.5), None),
        ((2, 0, 0, 1), (0, 0, 0), None),
        ((-1, 0, 0, -1), (0, 0, 0), "rotated or mirrored"),
        ((0, 1, -1, 0), (0, 0, 0), "rotated or mirrored"),
        ((1, 0, 0, -1), (0, 0, 0), "rotated or mirrored"),
        ((1, 0, 0, 1), (90, 0, 0), "turned (yaw 90°, pitch 0°, roll 0°)"),
        ((1, 0, 0, 1), (0, -30, 0), "turned (yaw 0°, pitch -30°, roll 0°)"),
        ((1, 0, 0, 1), (0, 0, 180), "turned (yaw 0°, pitch 0°, roll 180°)"),
    ],
)
def test_pictures_that_are_to_be_turned_are_set_aside(
    tmp_path: Path,
    matrix: tuple[float, ...],
    pose_deg: tuple[float, ...],
    turn: str | None,
    origin: Any,
) -> None:
    pictures = turning(panorama(0))
    path = writers.write_media(tmp_path / "b.mp4", pictures=pictures, frame_rate_hz=FRAME_RATE_HZ)
    plant_in_picture_track(writers.plant_matrix(path, *matrix), spherical(b"equi", pose_deg))
    count, fault = decoded(tmp_path, pictures, origin, video=path)
    if turn is None:
        assert (count, fault) == (3, None)
    else:
        assert count == 0
        assert fault is not None
        assert fault.reason == "not equirectangular"
        assert fault.detail == f"to be shown {turn}, says the file"


@pytest.mark.parametrize("height_px", [100, 128, 256])
def test_frames_of_every_size(height_px: int) -> None:
    for seed in range(5):
        picture = panorama(seed, height_px)
        assert frame_layout(picture) == "equirectangular"
        assert frame_layout(as_cubemap(picture[None])[0]) == "cubemap"
        assert frame_layout(top_bottom(picture)) == "top-bottom"
        assert frame_layout(side_by_side(picture)) == "side by side"


@pytest.mark.parametrize("cycles", [1, 3, 8, 20])
def test_coarse_and_fine_panoramas_stay(cycles: float) -> None:
    for seed in range(20):
        assert frame_layout(waves(seed, cycles)) in ("equirectangular", None)


def test_damaged_panoramas_stay() -> None:
    for seed in range(5):
        disc, bars, caption, step = (panorama(seed, 64) for _ in range(4))
        disc[56:] = 255
        bars[:8] = bars[-8:] = 0
        caption[58:, 40:90] = 255
        caption[60:62, 44:86:3] = 0
        step = (step * np.linspace(0.75, 1, 128)[:, None]).astype(np.uint8)
        for picture in (disc, bars, caption, step):
            assert frame_layout(picture) == "equirectangular"


def test_noise_is_no_layout() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 128, 3))
    assert {frame_layout(frame) for frame in noise.astype(np.uint8)} == {"equirectangular"}


def test_dark_flat_and_small_pictures_tell_nothing() -> None:
    dark = (top_bottom(panorama(0)) * 0.03).astype(np.uint8)
    stripes = writers.moving_pictures(1, 1)[0]
    for picture in (dark, np.zeros_like(dark), np.full_like(dark, 200), stripes, dark[:1, :1]):
        assert frame_layout(picture) is None


def test_nearly_all_frames_must_agree() -> None:
    assert common_layout(["cubemap"] * 9 + ["equirectangular"]) == "cubemap"
    assert common_layout(["cubemap"] * 8 + ["equirectangular"] * 2) == "equirectangular"
    assert common_layout(["top-bottom"] * 5 + [None] * 5) == "top-bottom"
    assert common_layout(["top-bottom"] * 4 + [None] * 6) == "equirectangular"
    assert common_layout([None]) == common_layout([]) == "equirectangular"
