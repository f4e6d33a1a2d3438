"""Sound from the web that is not ambisonic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    ],
    ids=["mono", "mono four times", "stereo twice", "pairs", "a channel inverted"],
)
def test_mono_and_stereo_in_four_channels(
    tmp_path: Path, channels: tuple[np.ndarray, ...], detail: str, suffix: str, codec: str
) -> None:
    sound = np.stack(channels, axis=1).astype(np.float32)
    path = writers.write_media(tmp_path / f"a{suffix}", sound=sound, sound_codec=codec)
    assert fault_of(path) == ("not ambisonic", detail)
    for origin in ("microphone", "rendered"):
        assert fault_of(path, origin) is None


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
