"""What is checked of shards before anything trains on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import corpus_writers as writers
import fsspec
import pytest

from seld.classes import STARSS_CLASSES
from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.shards import ProcessExecutor, build_shards
from tests.test_pretrain import TINY
from trainables.cells import Cell, stages_of
from trainables.finetune import FinetuneSettings
from trainables.jobs import ShardFolder
from trainables.prepare import CorpusSource, PreparedData, class_names_of, describe_data
from trainables.pretrain_job import PretrainJob, probe_windows

NAMES = (
    "dev-train-sony/fold3_room1_mix001",
    "dev-train-sony/fold3_room2_mix001",
    "dev-test-sony/fold4_room3_mix001",
)


def test_a_class_the_corpus_does_not_have_is_found_before_training(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    rows = writers.annotation_rows(6.0, class_id=5)
    writers.write_csv(root / f"metadata_dev/{NAMES[1]}.csv", rows)
    folder = str(tmp_path / "shards")
    recordings = CORPORA["starss23"](str(root))
    build_shards(
        recordings, ShardSettings(clip_s=2.0), folder, executor=ProcessExecutor(), workers=1
    )
    shards = ShardFolder(path=folder)
    assert describe_data(shards, shards, tuple("abcdef")).class_names == tuple("abcdef")
    expected = r"fold3_room2_mix001: class_id is 5, expected 0 to 4"
    with pytest.raises(InputError, match=expected):
        describe_data(shards, shards, tuple("abcde"))


def test_classes_of_scenes_in_a_bucket_are_read_there(tmp_path: Path) -> None:
    """Thirteen others would count as never found, in every mean over classes."""
    root = f"memory://{tmp_path.name}"
    with fsspec.open(f"{root}/corpus.json", "w") as listing:
        listing.write('{"class_names": ["dog", "rain"]}')
    assert class_names_of(CorpusSource(name="embedded", root=root)) == ("dog", "rain")
    elsewhere = CorpusSource(name="embedded", root=f"{root}/nothing")
    assert class_names_of(elsewhere) == STARSS_CLASSES


def test_rooms_of_validation_are_not_pretrained_on(tmp_path: Path) -> None:
    """Of a corpus without an unannotated part; scratch has not seen them either."""
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    folder = str(tmp_path / "shards")
    recordings = CORPORA["starss23"](str(root))
    build_shards(
        recordings, ShardSettings(clip_s=2.0), folder, executor=ProcessExecutor(), workers=1
    )
    shards = ShardFolder(path=folder)
    data = describe_data(shards, shards, STARSS_CLASSES)
    assert data.validation_rooms == ("room1",)
    job = PretrainJob(
        settings=TINY, shards=shards, probes=shards, validation_rooms=data.validation_rooms
    )
    seen = job.reader().reader.index
    assert set(seen.clips["room"]) == {"room2"}
    assert seen.fingerprint == data.unannotated_fingerprint
    windows = probe_windows(shards, TINY, rooms=data.validation_rooms)
    assert windows is not None
    assert len(windows.spectra) == 3  # clips of room1


def test_stages_follow_the_rooms_and_classes_that_they_are_trained_with() -> None:
    finetune = FinetuneSettings()
    cell = Cell(
        study="s", arm="a", seed=0, annotation_minutes=1.0, pretrain=TINY, finetune=finetune
    )
    data = PreparedData(
        unannotated=ShardFolder(path="u"),
        annotated=ShardFolder(path="a"),
        class_names=("bell", "door"),
        validation_rooms=("room1",),
        unannotated_fingerprint="1",
        annotated_fingerprint="2",
        test_fingerprint="3",
        trainable_minutes=5.0,
    )
    own = stages_of(cell, data)
    for changed in ({"class_names": ("bell", "drawer")}, {"validation_rooms": ("room2",)}):
        other = stages_of(cell, replace(data, **changed))
        assert other.pretrain == own.pretrain
        assert other.finetune != own.finetune
        assert other.evaluate != own.evaluate
