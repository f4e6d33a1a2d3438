"""Jobs on small shards: an interrupted fine-tuning goes on from its last state, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from seld.classes import STARSS_CLASSES
from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.shards import ProcessExecutor, build_shards
from tests import corpus_writers as writers
from tests.test_finetune import SETTINGS
from trainables.clips import AnnotatedReader
from trainables.jobs import NETWORK_FILE, EvaluateJob, FinetuneJob, ShardFolder

NAMES = [f"dev-train-sony/fold3_room{room}_mix001" for room in (1, 2, 3)]
TRAINING = replace(SETTINGS, steps=6, report_every=1, state_every=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    root = writers.write_starss(tmp_path_factory.mktemp("corpus"), NAMES)
    out = tmp_path_factory.mktemp("shards")
    build_shards(
        CORPORA["starss22"](str(root)),
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
    summary = job(shards, unfinished).run(resumed, device="cpu", report=lambda progress: None)
    last_kept = killed_at // 2 * 2
    assert read == list(range(last_kept, TRAINING.steps))
    assert summary == expected
    for key, tensor in load_file(whole / NETWORK_FILE).items():
        assert tensor.equal(load_file(resumed / NETWORK_FILE)[key]), key
    pd.testing.assert_frame_equal(
        pd.read_csv(resumed / "history.csv"), pd.read_csv(whole / "history.csv")
    )


def test_validation_scores_only_the_rooms_kept_out(shards: ShardFolder, tmp_path: Path) -> None:
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
        rooms=("room1",),
    )
    result = evaluation.run(scores, device="cpu", report=lambda progress: None)
    assert {path.name for path in (scores / "predictions").iterdir()} == {"fold3_room1_mix001.csv"}
    assert [row["room"] for row in result["per_room"]] == [1]
