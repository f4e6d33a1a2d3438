"""What is checked of shards before anything trains on them."""

from __future__ import annotations

from pathlib import Path

import corpus_writers as writers
import pytest

from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.shards import ProcessExecutor, build_shards
from trainables.jobs import ShardFolder
from trainables.prepare import describe_data

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
