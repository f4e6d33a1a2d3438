"""Jobs on small shards: an interrupted fine-tuning goes on from its last state, to the last bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from seld import metrics
from seld.annotations import (
    POLAR_COLUMNS,
    accdoa_targets,
    multi_accdoa_targets,
    read_annotations,
    read_predictions,
)
from seld.checkpoints import load_checkpoint, save_audio_encoder, save_checkpoint
from seld.classes import STARSS_CLASSES
from seld.clip_reader import ClipReader
from seld.clips import select_budget
from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.models.heads import OutputFormat
from seld.models.resnet_conformer import AudioEncoder
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.predict import events_of
from seld.shards import ProcessExecutor, build_shards
from tests import corpus_writers as writers
from tests.tiny_training import TINY_FINETUNE
from trainables.clips import AnnotatedReader, WindowSchedule
from trainables.evaluate_job import EvaluateJob, RecordingClips, regression_loss, scored_clips
from trainables.finetune_job import FinetuneJob, Unfinished
from trainables.jobs import ENCODER_FILE, NETWORK_FILE, ShardFolder
from trainables.work_clock import WorkClock, seconds_worked

NAMES = [f"dev-train-sony/fold3_room{room}_mix001" for room in (1, 2, 3)]
TEST_NAME = "dev-test-sony/fold4_room4_mix001"
TRAINING = replace(TINY_FINETUNE, steps=6, report_every=1, state_every=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writers.write_starss(tmp_path_factory.mktemp("corpus"), [*NAMES, TEST_NAME])


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    out = tmp_path_factory.mktemp("shards")
    build_shards(
        CORPORA["starss22"](str(corpus)),
        ShardSettings(clip_s=2.0),
        str(out),
        executor=ProcessExecutor(),
        workers=1,
    )
    return ShardFolder(path=str(out))


def job(shards: ShardFolder, unfinished: Path | None) -> FinetuneJob:
    return FinetuneJob(
        settings=TRAINING,
        shards=shards,
        annotation_minutes=0.15,
        class_names=STARSS_CLASSES,
        encoder=None,
        validation_rooms=("room1",),
        unfinished_uri=str(unfinished) if unfinished else None,
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", [1, 2, 3, 5])
def test_an_interrupted_finetuning_ends_like_a_whole_one(
    killed_at: int, shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed, unfinished = tmp_path / "whole", tmp_path / "resumed", tmp_path / "unfinished"
    whole.mkdir()
    resumed.mkdir()
    expected = job(shards, None).run(whole, device="cpu", report=lambda progress: None)

    def kill(progress: dict[str, Any]) -> None:
        if progress["step"] == killed_at:
            raise Killed

    with pytest.raises(Killed):
        job(shards, unfinished).run(resumed, device="cpu", report=kill)
    read: list[int] = []
    read_step = AnnotatedReader.__call__
    monkeypatch.setattr(
        AnnotatedReader,
        "__call__",
        lambda reader, step: (read.append(step), read_step(reader, step))[1],
    )
    kept = Unfinished(str(unfinished))
    if (before := kept.read()) is not None:
        kept.write(before[0], before[1], WorkClock(1000.0))  # it was a long one
    began_s = time.monotonic()
    summary = job(shards, unfinished).run(resumed, device="cpu", report=lambda progress: None)
    last_kept = killed_at // 2 * 2
    assert read == list(range(last_kept, TRAINING.steps))
    assert summary == expected
    worked_s = seconds_worked(resumed)
    assert worked_s is not None
    assert 0.0 < worked_s - (1000.0 if last_kept else 0.0) < time.monotonic() - began_s
    for key, tensor in load_file(whole / NETWORK_FILE).items():
        assert tensor.equal(load_file(resumed / NETWORK_FILE)[key]), key
    pd.testing.assert_frame_equal(
        pd.read_csv(resumed / "history.csv"), pd.read_csv(whole / "history.csv")
    )


def test_finetuning_starts_from_the_encoder_that_it_is_given(
    shards: ShardFolder, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    encoder = AudioEncoder(TRAINING.audio)
    save_audio_encoder(tmp_path / ENCODER_FILE, encoder.state_dict(), TRAINING.audio)

    class Pretrained:
        folder = tmp_path

    still = replace(TRAINING, steps=1, encoder_rate=0.0, weight_decay=0.0)
    pretrained = replace(
        job(shards, None),
        settings=still,
        encoder=Pretrained(),  # type: ignore[arg-type]
    )
    pretrained.run(tmp_path, device="cpu", report=lambda progress: None)
    finetuned = dict(load_checkpoint(tmp_path / NETWORK_FILE).network.encoder.named_parameters())
    for name, parameter in encoder.named_parameters():
        assert torch.equal(finetuned[name], parameter), name


@pytest.mark.parametrize("output_format", ["accdoa", "multi_accdoa"])
def test_targets_are_those_of_the_windows_events(
    output_format: OutputFormat, shards: ShardFolder
) -> None:
    reader = ClipReader(shards.path)
    schedule = WindowSchedule(seed=0, batch_size=16, window_s=0.7)
    read = AnnotatedReader(
        reader=reader, schedule=schedule, class_count=13, output_format=output_format
    )
    encode = accdoa_targets if output_format == "accdoa" else multi_accdoa_targets
    for step in range(3):
        expected = [
            encode(
                reader.events(window.clip, window_start_s=window.start_s, window_s=0.7),
                frame_count=7,
                class_count=13,
            )
            for window in schedule.windows(schedule.clips(reader.index), step)
        ]
        assert np.array_equal(read(step)["target"], np.stack(expected))
        assert np.any(expected)


@pytest.mark.parametrize(("rooms", "name"), [(None, "fold4_room4"), (("room1",), "fold3_room1")])
def test_evaluation_scores_only_test_recordings_or_the_rooms_kept_out(
    rooms: tuple[str, ...] | None, name: str, shards: ShardFolder, tmp_path: Path
) -> None:
    network, scores = tmp_path / "network", tmp_path / "scores"
    network.mkdir()
    scores.mkdir()
    job(shards, None).run(network, device="cpu", report=lambda progress: None)

    class Trained:
        folder = network

    evaluation = EvaluateJob(
        shards=shards,
        network=Trained(),  # type: ignore[arg-type]
        class_names=STARSS_CLASSES,
        rooms=rooms,
    )
    result = evaluation.run(scores, device="cpu", report=lambda progress: None)
    for kind in ("predictions", "reference"):
        assert [path.name for path in (scores / kind).iterdir()] == [f"{name}_mix001.csv"]
    assert [f"room{row['room']}" for row in result["per_room"]] == [name.partition("_")[2]]


def test_evaluation_says_whether_elevation_is_heard(
    shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions upside down, in place of the network's."""
    network, scores = tmp_path / "network", tmp_path / "scores"
    network.mkdir()
    scores.mkdir()
    job(shards, None).run(network, device="cpu", report=lambda progress: None)

    class Trained:
        folder = network

    test = scored_clips(shards.index(), None)
    truth = RecordingClips(ClipReader(test)).annotations()
    truth["elevation_deg"] = 30 * (truth["frame"] % 3) - 30
    upside_down = truth.assign(elevation_deg=-truth["elevation_deg"])
    monkeypatch.setattr(RecordingClips, "annotations", lambda _: truth)
    monkeypatch.setattr("trainables.evaluate_job.events_of", lambda *_: upside_down)
    monkeypatch.setattr("seld.elevation.LEAST_FRAMES", 2)
    evaluation = EvaluateJob(
        shards=shards,
        network=Trained(),  # type: ignore[arg-type]
        class_names=STARSS_CLASSES,
    )
    metrics = evaluation.run(scores, device="cpu", report=lambda progress: None)["metrics"]
    assert metrics["elevation_correlation"] == pytest.approx(-1.0)


def test_scores_are_those_of_the_corpus_own_annotations(
    corpus: Path, shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions in place of the network's: of four seconds' rows every second one, 5° off."""
    truth = read_annotations(corpus / f"metadata_dev/{TEST_NAME}.csv")
    predicted = truth[truth["frame"] < 40].iloc[::2]
    predicted = predicted.assign(azimuth_deg=predicted["azimuth_deg"] + 5)
    monkeypatch.setattr("trainables.evaluate_job.events_of", lambda *_: predicted)
    network, scores = tmp_path / "network", tmp_path / "scores"
    network.mkdir()
    scores.mkdir()
    untrained = SeldNetwork(SeldNetworkSettings(encoder=TRAINING.audio, class_count=13))
    save_checkpoint(network / NETWORK_FILE, untrained, class_names=STARSS_CLASSES)

    class Untrained:
        folder = network

    evaluation = EvaluateJob(
        shards=shards,
        network=Untrained(),  # type: ignore[arg-type]
        class_names=STARSS_CLASSES,
    )
    result = evaluation.run(scores, device="cpu", report=lambda progress: None)
    name = Path(TEST_NAME).name
    expected = metrics.score({name: truth}, {name: predicted}, class_names=STARSS_CLASSES)
    for score in metrics.SCORE_NAMES:
        assert result["metrics"][score] == pytest.approx(getattr(expected, score)), score
    assert 0.0 < expected.lr_cd < expected.f20
    (room,) = result["per_room"]
    assert room["seld_error"] == pytest.approx(expected.seld_error)
    for written, table in (("reference", truth), ("predictions", predicted)):
        pd.testing.assert_frame_equal(
            read_annotations(scores / f"{written}/{name}.csv"),
            table.reset_index(drop=True),
            check_dtype=False,  # clips hold whole degrees as floats
        )


def test_annotations_after_the_sounds_end_are_scored_as_in_the_csv(tmp_path: Path) -> None:
    """Frame 61 of 61 (STARSS counts from 1) makes a seventh block, in which frame 60 is scored."""
    root = writers.write_starss(tmp_path / "corpus", (TEST_NAME,), duration_s=6.1)
    path = root / f"metadata_dev/{TEST_NAME}.csv"
    path.write_text(path.read_text() + "60,5,0,10,0\n61,5,0,10,0\n")
    index, _ = build_shards(
        CORPORA["starss22"](str(root)),
        ShardSettings(clip_s=2.0),
        str(tmp_path / "shards"),
        executor=ProcessExecutor(),
        workers=1,
    )
    truth, kept = read_annotations(path), RecordingClips(ClipReader(index)).annotations()
    pd.testing.assert_frame_equal(kept, truth, check_dtype=False)
    predicted = truth[truth["frame"] < 61]
    scores = [
        metrics.score({"r": reference}, {"r": predicted}, class_names=STARSS_CLASSES)
        for reference in (kept, truth)
    ]
    assert scores[0].f20 == pytest.approx(scores[1].f20)
    assert scores[0].per_class.loc["domestic_sounds", "references"] == 1


def test_recordings_whose_clips_overlap_are_not_scored(tmp_path: Path) -> None:
    """Sound and events in two clips would count twice."""
    root = writers.write_starss(tmp_path / "corpus", NAMES[:1])
    index, _ = build_shards(
        CORPORA["starss22"](str(root)),
        ShardSettings(clip_s=2.0, hop_s=1.0),
        str(tmp_path / "shards"),
        executor=ProcessExecutor(),
        workers=1,
    )
    with pytest.raises(InputError, match="room1_mix001: clips is 'overlapping'"):
        RecordingClips(ClipReader(index))


def test_finetuning_reads_neither_test_nor_validation_rooms(
    shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    read_clips = ClipReader.read

    def spy(reader: ClipReader, clips: Sequence[int], **window: Any) -> dict[str, Any]:
        read.update(reader.index.clips.loc[list(clips), "room"])
        return read_clips(reader, clips, **window)

    monkeypatch.setattr(ClipReader, "read", spy)
    job(shards, None).run(tmp_path, device="cpu", report=lambda progress: None)
    assert read == {"room2", "room3"}


def test_finetuning_reads_the_clips_of_its_budget_and_seed(
    shards: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clips of the six that are not kept for validation."""
    read: set[int] = set()
    read_clips = ClipReader.read

    def spy(reader: ClipReader, clips: Sequence[int], **window: Any) -> dict[str, Any]:
        read.update(clips)
        return read_clips(reader, clips, **window)

    monkeypatch.setattr(ClipReader, "read", spy)
    trainable = shards.index().select(rooms=["room2", "room3"])
    budgets = []
    for seed in range(3):
        read.clear()
        seeded = replace(
            job(shards, None),
            settings=replace(TRAINING, steps=3, seed=seed),
            annotation_minutes=0.06,
        )
        seeded.run(tmp_path, device="cpu", report=lambda progress: None)
        assert read == set(select_budget(trainable, 0.06, seed).clips.index)
        budgets.append(frozenset(read))
    assert {len(budget) for budget in budgets} == {2}
    assert len(set(budgets)) > 1


@pytest.mark.parametrize("output_format", ["accdoa", "multi_accdoa"])
def test_loss_tells_apart_what_the_threshold_does_not(output_format: OutputFormat) -> None:
    """Two frames, two classes, one source ahead in the second frame: at most a vector of 0.4."""
    source = pd.DataFrame([(1, 1, 0, 0, 0)], columns=list(POLAR_COLUMNS))
    losses = []
    for length in (0.0, 0.4):
        vectors = np.zeros((2, 2, 3), np.float32)
        vectors[1, 1, 0] = length
        if output_format == "multi_accdoa":  # each of the three tracks says the same
            vectors = np.repeat(vectors[:, None], 3, axis=1)
        assert events_of([vectors], output_format).empty
        losses.append(regression_loss(vectors, source, output_format))
    # One of 2 × 2 × 3 numbers is off, by 1 and by 0.6.
    assert losses == pytest.approx([1.0 / 12, 0.36 / 12])


def test_validation_on_the_way_equals_the_evaluation_of_the_same_rooms(tmp_path: Path) -> None:
    """Recordings of 4 s are one clip and one window of prediction: both score the same vectors."""
    network, scores, out = tmp_path / "network", tmp_path / "scores", tmp_path / "shards"
    network.mkdir()
    scores.mkdir()
    root = writers.write_starss(tmp_path / "corpus", NAMES, duration_s=4.0)
    build_shards(
        CORPORA["starss22"](str(root)),
        ShardSettings(clip_s=4.0),
        str(out),
        executor=ProcessExecutor(),
        workers=1,
    )
    whole = ShardFolder(path=str(out))
    finetuning = replace(
        job(whole, None), settings=replace(TRAINING, validate_every=3), annotation_minutes=0.1
    )
    finetuning.run(network, device="cpu", report=lambda progress: None)
    history = pd.read_csv(network / "history.csv")
    assert list(history.loc[history["name"] == "seld_error", "step"]) == [3, 6]

    trained = load_checkpoint(network / NETWORK_FILE).network
    # A network that hears something: an untrained one predicts nothing anywhere.
    torch.nn.init.normal_(trained.head.output.bias, generator=torch.Generator().manual_seed(0))
    save_checkpoint(network / NETWORK_FILE, trained, class_names=STARSS_CLASSES)
    validate = finetuning.validation("cpu")
    assert validate is not None
    validated = validate(trained.eval())

    class Trained:
        folder = network

    evaluation = EvaluateJob(
        shards=whole,
        network=Trained(),  # type: ignore[arg-type]
        class_names=STARSS_CLASSES,
        rooms=("room1",),
    )
    evaluated = evaluation.run(scores, device="cpu", report=lambda progress: None)["metrics"]
    assert len(read_predictions(scores / "predictions/fold3_room1_mix001.csv")) > 0
    for name in metrics.SCORE_NAMES:
        assert validated[name] == pytest.approx(evaluated[name], rel=1e-5), name


def test_validation_without_rooms_is_refused(shards: ShardFolder, tmp_path: Path) -> None:
    settings = replace(TRAINING, validate_every=3)
    without = replace(job(shards, None), settings=settings, validation_rooms=())
    with pytest.raises(InputError, match="validate_every is 3, expected 0 where no rooms"):
        without.run(tmp_path, device="cpu", report=lambda progress: None)
