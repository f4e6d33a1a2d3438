"""Prediction streams: no seam, no window edge, no bad file may show in the result."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from seld.annotations import read_predictions
from seld.checkpoints import save_checkpoint
from seld.errors import InputError
from seld.models.resnet_conformer import RESNET_CONFORMER_PRESETS, AudioEncoderSettings
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.predict import (
    PredictionSettings,
    main,
    predict_vectors,
    predict_waveform,
    sound_blocks,
)
from tests import corpus_writers as writers

LABEL_SAMPLES = 2400
NAMES = ("bell", "knock")


class LevelReader(SeldNetwork):
    """Answers every label frame from its own samples alone: class 0 at the mean of X, Y, Z.

    Its multi-ACCDOA tracks hold the vector, its opposite and nothing, in an order that changes
    from window to window, as a real network's may.
    """

    windows_seen = 0

    def __init__(self, output_format="accdoa") -> None:
        encoder = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["demo"])
        super().__init__(
            SeldNetworkSettings(encoder=encoder, class_count=2, output_format=output_format)
        )

    def forward(self, waveform: Tensor) -> Tensor:
        means = waveform.unflatten(-1, (-1, LABEL_SAMPLES)).mean(-1)  # (batch, 4, frame)
        vectors = means[:, [3, 1, 2]].transpose(1, 2)
        accdoa = torch.stack([vectors, torch.zeros_like(vectors)], dim=2)
        if self.settings.output_format == "accdoa":
            return accdoa
        tracks = torch.stack([accdoa, -accdoa, torch.zeros_like(accdoa)], dim=2)
        turned = []
        for window in tracks:
            turned.append(window.roll(self.windows_seen, dims=1))
            self.windows_seen += 1
        return torch.stack(turned)


def staircase(frames: int, extra_samples: int = 0) -> tuple[Tensor, Tensor]:
    """Sound (4, time) whose X, Y, Z are constant in each label frame, and those (frame, 3)."""
    vectors = torch.randn(frames, 3, generator=torch.Generator().manual_seed(0))
    vectors = vectors / vectors.norm(dim=1, keepdim=True) * 0.9
    x, y, z = vectors.repeat_interleave(LABEL_SAMPLES, dim=0).T
    sound = torch.stack([torch.ones_like(x), y, z, x])
    return torch.nn.functional.pad(sound, (0, extra_samples)), vectors


def joined(network: SeldNetwork, sound, **settings) -> np.ndarray:
    return np.concatenate(list(predict_vectors(network, sound, PredictionSettings(**settings))))


@pytest.mark.parametrize("frames", [1, 7, 19, 20, 21, 25, 29, 30, 31, 77])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_frame_of_any_length_is_answered_once(frames: int, batch_size: int) -> None:
    sound, vectors = staircase(frames)
    result = joined(LevelReader(), sound, window_s=2.0, hop_s=0.9, batch_size=batch_size)
    np.testing.assert_allclose(result[:, 0], vectors, atol=1e-5)
    np.testing.assert_array_equal(result[:, 1], 0)


def test_a_window_counts_most_in_its_middle() -> None:
    """Two windows of 20 frames share 10: weights 10 … 1 of the first, 1 … 10 of the next."""

    class SecondWindow(LevelReader):
        def forward(self, waveform: Tensor) -> Tensor:
            answers = torch.zeros(len(waveform), 20, 2, 3)
            for answer in answers:
                answer += self.windows_seen
                self.windows_seen += 1
            return answers

    sound, _ = staircase(30)
    result = joined(SecondWindow(), sound, window_s=2.0, hop_s=1.0)[:, 0, 0]
    expected = np.concatenate([np.zeros(10), np.arange(1, 11) / 11, np.ones(10)])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_blocks_of_any_size_and_int16_are_the_whole() -> None:
    sound, _ = staircase(64, extra_samples=1000)
    whole = joined(LevelReader(), sound, window_s=2.0, hop_s=1.0)
    assert len(whole) == 65  # the last frame is partly there
    for size in (999, 7000, 60_000):
        blocks = iter(sound.split(size, dim=1))
        np.testing.assert_array_equal(joined(LevelReader(), blocks, window_s=2.0, hop_s=1.0), whole)
    integers = (sound * 32767).round().to(torch.int16).numpy()
    np.testing.assert_allclose(
        joined(LevelReader(), integers, window_s=2.0, hop_s=1.0), whole, atol=1e-4
    )


def test_tracks_that_change_places_between_windows_are_not_blended() -> None:
    sound, vectors = staircase(50)
    result = joined(LevelReader("multi_accdoa"), sound, window_s=2.0, hop_s=1.0)[:, :, 0]
    lengths = np.sort(np.linalg.norm(result, axis=-1), axis=1)
    np.testing.assert_allclose(lengths, np.tile([0, 0.9, 0.9], (50, 1)), atol=1e-5)
    nearest = np.abs(result - vectors[:, None].numpy()).max(-1).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-5)


@pytest.mark.parametrize("output_format", ["accdoa", "multi_accdoa"])
def test_events_have_the_frames_and_angles_of_the_sound(output_format: str) -> None:
    sound, vectors = staircase(50)
    sound[:, 10 * LABEL_SAMPLES : 20 * LABEL_SAMPLES] = 0
    table = predict_waveform(LevelReader(output_format), sound)
    sources = 1 if output_format == "accdoa" else 2
    expected = np.repeat([*range(10), *range(20, 50)], sources)
    np.testing.assert_array_equal(np.sort(table["frame"]), expected)
    assert set(table["class_id"]) == {0}
    x, y, _ = vectors.numpy().T
    azimuth = np.degrees(np.arctan2(y, x))
    for frame in (0, 30, 49):
        found = table.loc[table["frame"] == frame, "azimuth_deg"].to_numpy()
        assert np.abs((found - azimuth[frame] + 180) % 360 - 180).min() < 0.51


def test_a_real_network_runs_and_windows_hardly_show() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["demo"])
    network = SeldNetwork(SeldNetworkSettings(encoder=encoder, class_count=2))
    sound = 0.1 * torch.randn(4, 24_000 * 12)
    windowed = joined(network, sound, window_s=6.0, hop_s=3.0)
    whole = joined(network, sound, window_s=12.0, hop_s=6.0)
    assert windowed.shape == whole.shape == (120, 2, 3)
    assert np.abs(windowed - whole).mean() < 0.2 * whole.std(0).mean()


def test_sound_must_be_four_channels_and_not_empty() -> None:
    with pytest.raises(InputError, match="shape"):
        predict_waveform(LevelReader(), torch.zeros(2, 24_000))
    with pytest.raises(InputError, match="no samples"):
        predict_waveform(LevelReader(), iter([]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("window_s", 0.01), ("hop_s", 6.0), ("batch_size", 0), ("threshold", 0.0), ("unify_deg", -1)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        PredictionSettings(**{name: value})  # pyright: ignore


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100, 48_000, 96_000])
def test_resampling_leaves_no_seams(tmp_path: Path, rate_hz: int) -> None:
    time_s = np.arange(int(6.3 * rate_hz)) / rate_hz
    tones = np.stack([np.sin(2 * np.pi * hertz * time_s) for hertz in (200, 700, 3000, 7000)])
    soundfile.write(tmp_path / "tones.wav", 0.5 * tones.T, rate_hz, subtype="FLOAT")
    resampled = np.concatenate(list(sound_blocks(tmp_path / "tones.wav", 24_000)), axis=1)
    assert resampled.shape == (4, round(len(time_s) * 24_000 / rate_hz))
    time_s = np.arange(resampled.shape[1]) / 24_000
    for channel, hertz in enumerate((200, 700, 3000, 7000)):
        error = resampled[channel] - 0.5 * np.sin(2 * np.pi * hertz * time_s)
        assert np.abs(error[500:-500]).max() < 2e-3


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["demo"])
    network = SeldNetwork(SeldNetworkSettings(encoder=encoder, class_count=2))
    torch.nn.init.constant_(network.head.output.bias, 1.0)
    save_checkpoint(tmp_path / "network.safetensors", network, class_names=NAMES)
    return tmp_path / "network.safetensors"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    return main()


def noise(path: Path, seconds: float, rate_hz: int, channels: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(size=(int(seconds * rate_hz), channels))
    soundfile.write(path, 0.1 * samples, rate_hz)


def test_bad_files_are_set_aside_with_reasons(checkpoint, tmp_path, monkeypatch, capsys) -> None:
    sounds, out = tmp_path / "sounds", tmp_path / "out"
    noise(sounds / "a.wav", 7.3, 48_000)
    noise(sounds / "deep/b.WAV", 0.05, 44_100)
    noise(sounds / "mono.wav", 1, 24_000, channels=1)
    (sounds / "junk.wav").write_bytes(b"RIFF?")
    soundfile.write(sounds / "nan.wav", np.full((24_000, 4), np.nan), 24_000, subtype="FLOAT")
    soundfile.write(sounds / "empty.wav", np.zeros((0, 4)), 24_000)
    noise(sounds / "cut.wav", 2, 24_000)
    (sounds / "cut.wav").write_bytes((sounds / "cut.wav").read_bytes()[:100_000])
    (sounds / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (sounds / "loop.wav").symlink_to(sounds / "loop.wav")
    assert run_main(monkeypatch, checkpoint, sounds, "--out", out, "--plot") == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert written == ["a.csv", "a.png", "deep/b.csv", "deep/b.png"]
    assert set(read_predictions(out / "a.csv")["frame"]) == set(range(73))
    message = capsys.readouterr().err
    assert "2 of 9 files predicted" in message
    for reason in (
        "mono.wav: sound is 'wrong channel count (1 channels, expected 4)'",
        "junk.wav: sound is 'truncated",
        "nan.wav: sound is 'not finite",
        "empty.wav: sound is 'unreadable",
        "cut.wav: sound is 'truncated",
        "gone.wav: sound is 'unreadable (No such file or directory)'",
        "loop.wav: sound is 'unreadable (Too many levels of symbolic links)'",
    ):
        assert reason in message
    assert run_main(monkeypatch, checkpoint, sounds, "--out", out, "--strict") == 2


def test_containers_and_linked_folders_are_predicted(checkpoint, tmp_path, monkeypatch) -> None:
    w_x_y_z = writers.tones(2.0, 48_000, (300, 1200, 2400, 600))
    video = writers.write_media(tmp_path / "a.mp4", sound=w_x_y_z, sound_codec="aac")
    writers.plant_sa3d(video, (0, 2, 3, 1))
    blocks = np.concatenate(list(sound_blocks(video, 24_000)), axis=1)
    loudest_hz = np.abs(np.fft.rfft(blocks[:, :24_000])).argmax(axis=1)
    assert loudest_hz.tolist() == [300, 2400, 600, 1200]
    noise(tmp_path / "disk/deep/b.wav", 1, 24_000)
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/linked").symlink_to(tmp_path / "disk")
    for sound in (video, tmp_path / "sounds"):
        assert run_main(monkeypatch, checkpoint, sound, "--out", tmp_path / "out") == 0
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("*.csv"))
    assert written == ["a.csv", "linked/deep/b.csv"]


def test_files_whose_predictions_would_be_one_file_are_refused(
    checkpoint, tmp_path, monkeypatch
) -> None:
    for name in ("deep/a.wav", "a.wav", "a.WAV"):
        noise(tmp_path / "sounds" / name, 1, 24_000)
    with pytest.raises(InputError, match=r"a.WAV and a.wav.* \(both would be .*out/a.csv\)"):
        run_main(monkeypatch, checkpoint, tmp_path / "sounds", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.csv"))


def test_exit_code_when_nothing_could_be_predicted(checkpoint, tmp_path, monkeypatch) -> None:
    noise(tmp_path / "mono.wav", 1, 24_000, channels=1)
    assert run_main(monkeypatch, checkpoint, tmp_path / "mono.wav", "--out", tmp_path / "out") == 2
    with pytest.raises(InputError, match="missing"):
        run_main(monkeypatch, checkpoint, tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="device"):
        run_main(
            monkeypatch, checkpoint, tmp_path / "mono.wav", "--out", tmp_path, "--device", "tpu9"
        )
    with pytest.raises(InputError, match="can be written"):
        run_main(monkeypatch, checkpoint, tmp_path / "mono.wav", "--out", checkpoint)
