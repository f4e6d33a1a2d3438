"""Spectra that turn: equal to the features of the turned waveform; windows equal to the clip's."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
import torch

from seld.ambisonics import FeatureSettings, FoaFeatures
from seld.clip_reader import ClipReader
from seld.clips import Clip, write_index, write_shard
from seld.geometry import channel_swaps, random_rotations
from seld.spatial_spectra import SpectraStore, bytes_per_s, spatial_spectra, turned_features
from tests.sound_fields import rotate
from trainables.clips import AnnotatedReader, PairReader, WindowSchedule

FEATURES = FoaFeatures(FeatureSettings())


def coloured_sound(count: int, samples: int, seed: int = 0) -> torch.Tensor:
    """FOA noise with correlated channels, of levels from near silence to loud."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(count, 4, 4, generator=generator) * 0.2
    levels = torch.logspace(-4, 0, count)[:, None, None]
    return levels * (mixing @ torch.randn(count, 4, samples, generator=generator) * 0.1)


@pytest.mark.parametrize("kind", ["identity", "swaps", "rotations"])
def test_turned_features_equal_features_of_the_turned_waveform(kind: str) -> None:
    waveform = coloured_sound(8, 12_000)
    matrices = {
        "identity": torch.eye(3).expand(8, 3, 3),
        "swaps": channel_swaps().float(),
        "rotations": random_rotations(8, axes="any", generator=torch.Generator().manual_seed(1)),
    }[kind]
    turned = turned_features(spatial_spectra(waveform, FEATURES), matrices)
    expected = FEATURES(rotate(waveform, matrices))
    assert torch.allclose(turned, expected, atol=2e-3)


def test_features_of_stored_spectra_are_near_the_exact_ones() -> None:
    """float16 keeps log-mel to a hundredth of a neper, intensity to a thousandth."""
    waveform = coloured_sound(8, 12_000)
    matrices = channel_swaps().float()
    stored = spatial_spectra(waveform, FEATURES).half().float()
    error = (turned_features(stored, matrices) - FEATURES(rotate(waveform, matrices))).abs()
    assert error[:, :4].max() < 0.02
    assert error[:, 4:].max() < 1e-3


def test_silence_gives_the_features_of_silence() -> None:
    waveform = torch.zeros(1, 4, 4800)
    turned = turned_features(spatial_spectra(waveform, FEATURES), torch.eye(3)[None])
    assert torch.allclose(turned, FEATURES(waveform), atol=1e-5)


@pytest.fixture
def reader(tmp_path: Path) -> ClipReader:
    """Three clips of 2 to 4 s with pictures; in each, class 1 sounds at a known azimuth."""
    clips = []
    for number, seconds in enumerate((2, 3, 4)):
        sound = coloured_sound(1, 24_000 * seconds, seed=number)[0] * 8000
        frames = [np.full((4, 8, 3), 10 * number + second, np.uint8) for second in range(seconds)]
        events = pd.DataFrame(
            {
                "frame": np.arange(10 * seconds),
                "class_id": 1,
                "source_id": 0,
                "azimuth_deg": 30.0 * number,
                "elevation_deg": 0.0,
            }
        )
        clips.append(
            Clip(
                recording_id=f"recording{number}",
                corpus="planted",
                split="train",
                room=f"room{number}",
                start_s=0.0,
                foa=sound.numpy().astype(np.int16),
                frames=[frame.tobytes() for frame in frames],
                frame_encoding="raw",
                frame_rate_hz=1.0,
                frame_height_px=4,
                frame_width_px=8,
                events=events,
            )
        )
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(str(shards / "a.shard.parquet"), clips, {})
    write_index(str(shards))
    return ClipReader(str(shards))


def test_store_gives_the_windows_of_the_clips_spectra(reader: ClipReader, tmp_path: Path) -> None:
    store = SpectraStore.open_or_build(tmp_path / "spectra", reader, FEATURES.settings)
    sounds_s = float(reader.index.clips["duration_s"].sum())
    assert store.path.stat().st_size == sounds_s * bytes_per_s(FEATURES.settings)
    rows = list(reader.index.clips.index)
    windows = store.read(rows, [0.5, 1.0, 2.0], 1.5)
    assert windows.shape == (3, 11, 75, 64)
    whole = reader.read([rows[1]], window_s=3.0)["foa"]
    spectra = spatial_spectra(torch.from_numpy(whole).float() / 32768.0, FEATURES)
    assert np.array_equal(windows[1], spectra[0, :, 50:125].half().numpy())


def test_store_is_built_once_and_survives_pickling(reader: ClipReader, tmp_path: Path) -> None:
    folder = tmp_path / "spectra"
    first = SpectraStore.open_or_build(folder, reader, FEATURES.settings)
    written = first.path.stat().st_mtime_ns
    again = SpectraStore.open_or_build(folder, reader, FEATURES.settings)
    assert again.path.stat().st_mtime_ns == written
    other = SpectraStore.open_or_build(folder, reader, FeatureSettings(mel_bands=32))
    assert other.path != first.path
    rows = list(reader.index.clips.index)[:1]
    before = first.read(rows, [0.0], 1.0)
    sent = pickle.dumps(first)
    assert np.array_equal(pickle.loads(sent).read(rows, [0.0], 1.0), before)
    # On another machine, whose disk does not hold the file.
    first.path.unlink()
    assert np.array_equal(pickle.loads(sent).read(rows, [0.0], 1.0), before)


def test_of_processes_that_ask_at_once_one_builds(
    reader: ClipReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads, which a file's lock tells apart as it does processes."""
    computed = []
    all_ask = Barrier(4)

    def count(waveform: torch.Tensor, features: FoaFeatures) -> torch.Tensor:
        computed.append(waveform)
        return spatial_spectra(waveform, features)

    def ask(_: int) -> SpectraStore:
        all_ask.wait()
        return SpectraStore.open_or_build(tmp_path / "spectra", reader, FEATURES.settings)

    monkeypatch.setattr("seld.spatial_spectra.spatial_spectra", count)
    with ThreadPoolExecutor(4) as pool:
        (path,) = {store.path for store in pool.map(ask, range(4))}
    assert len(computed) == len(reader.index.clips)
    assert path.is_file()


def test_what_a_killed_build_left_is_removed(reader: ClipReader, tmp_path: Path) -> None:
    folder = tmp_path / "spectra"
    path = SpectraStore.open_or_build(folder, reader, FEATURES.settings).path
    whole = {item.name for item in folder.iterdir()}
    path.unlink()
    (folder / f".{path.name}.0123abcd").write_bytes(b"half of it")
    SpectraStore.open_or_build(folder, reader, FEATURES.settings)
    assert {item.name for item in folder.iterdir()} == whole


def test_batches_from_store_and_from_sound_show_the_same_windows(
    reader: ClipReader, tmp_path: Path
) -> None:
    store = SpectraStore.open_or_build(tmp_path / "spectra", reader, FEATURES.settings)
    schedule = WindowSchedule(seed=1, batch_size=2, window_s=1.0)
    by_sound = PairReader(reader=reader, schedule=schedule, frame_count=1)(3)
    by_store = PairReader(reader=reader, schedule=schedule, frame_count=1, store=store)(3)
    assert np.array_equal(by_sound["frames"], by_store["frames"])
    spectra = spatial_spectra(torch.from_numpy(by_sound["foa"]).float() / 32768.0, FEATURES)
    # The window's own transform hears silence beyond its ends; the clip's does not.
    inner = slice(2, -2)
    difference = np.abs(spectra.numpy() - by_store["spectra"])[:, :, inner]
    assert difference.max() < 0.02


def test_targets_are_those_of_the_window(reader: ClipReader) -> None:
    schedule = WindowSchedule(seed=0, batch_size=3, window_s=1.0)
    read = AnnotatedReader(reader=reader, schedule=schedule, class_count=2)
    windows = schedule.windows(schedule.clips(reader.index), 5)
    target = read(5)["target"]
    assert target.shape == (3, 10, 2, 3)
    assert not target[:, :, 0].any()
    for window, expected in zip(windows, target, strict=True):
        number = list(reader.index.clips.index).index(window.clip)
        azimuth = np.deg2rad(30.0 * number)
        assert np.allclose(expected[:, 1], [np.cos(azimuth), np.sin(azimuth), 0.0], atol=1e-6)


def test_clips_shorter_than_the_window_are_left_out(reader: ClipReader) -> None:
    schedule = WindowSchedule(seed=0, batch_size=8, window_s=3.5)
    longest = reader.index.clips["duration_s"].idxmax()
    windows = schedule.windows(schedule.clips(reader.index), 0)
    assert {window.clip for window in windows} == {longest}
