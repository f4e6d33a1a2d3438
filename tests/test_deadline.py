"""Hours given to a run that are over while its data are made ready."""

from __future__ import annotations

import io
import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablations import grid, runs
from ablations.cluster import ClusterOptions
from ablations.data import DataOptions, prepare_data
from ablations.deadline import Deadline, OutOfTimeError
from ablations.options import RunOptions
from search_spaces.scales import find_scale
from search_spaces.studies import Study, variants
from seld.clips import SHARD_SUFFIX
from seld.scenes.settings import PartSettings
from seld.shards import ProcessExecutor
from tests import corpus_writers as writers
from trainables.cells import DEFAULT_DATA
from trainables.prepare import CorpusSource, PreparedData
from trainables.resources import plan_placement


def tiny_study() -> Study:
    """Seven recordings of 4 s, to train on in 2 rooms."""
    scale = find_scale("demo")
    scenes = replace(
        scale.scenes,
        recording_s=4.0,
        unannotated=PartSettings(minutes=8 / 60, rooms=1),
        train=PartSettings(minutes=16 / 60, rooms=2),
        test=PartSettings(minutes=4 / 60, rooms=1),
    )
    shards = replace(scale.shards, clip_s=4.0, shard_s=4.0)
    study = variants(replace(scale, scenes=scenes, shards=shards))
    return replace(study, budgets_minutes=(4 / 60,), seeds=(0,))


def test_what_is_ready_when_the_hours_are_over_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.RayDataExecutor", ProcessExecutor)

    def prepare(pieces: int) -> PreparedData:
        """A command whose hours are over after so many pieces of work."""
        pieces_done = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: next(pieces_done))
        monkeypatch.setattr("ablations.deadline.time", clock)
        options = DataOptions(folder=tmp_path)
        placement = plan_placement({"CPU": 1.0}, train_workers=1)
        console = Console(file=io.StringIO())
        deadline = Deadline(at=pieces)
        return prepare_data(options, tiny_study(), placement, console, deadline)[DEFAULT_DATA]

    def ready(pattern: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob(pattern)}

    counts = []
    before: dict[Path, int] = {}
    for _ in range(20):
        try:
            data = prepare(pieces=2)
            break
        except OutOfTimeError:
            now = ready("*.wav") | ready(f"*{SHARD_SUFFIX}")
            assert now.items() >= before.items()  # nothing is made again
            before = now
            counts.append((len(ready("*.wav")), len(ready(f"*{SHARD_SUFFIX}"))))
    else:
        pytest.fail("it never ends")
    assert data.trainable_minutes == pytest.approx(8 / 60)
    assert counts == [(2, 0), (4, 0), (6, 0), (7, 1), (7, 3), (7, 5), (7, 7)]
    # Begun in time, spectra are finished; but they are not begun.
    (spectra,) = ready("*.f16")
    spectra.unlink()
    with pytest.raises(OutOfTimeError):
        prepare(pieces=0)
    assert ready("*.f16") == {}
    prepare(pieces=1)
    # Where nothing is left to do, it is for the trials to stop.
    prepare(pieces=0)


def test_a_run_out_of_time_before_its_data_are_ready_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def prepared(*_: object) -> Any:
        raise OutOfTimeError

    monkeypatch.setattr(runs, "prepare_data", prepared)
    monkeypatch.setattr(runs, "trackers", lambda *_, **__: [])
    monkeypatch.setattr(runs, "ray_cluster", lambda _: nullcontext())
    monkeypatch.setattr(runs, "connected_machines", lambda _: [{"CPU": 2.0}])
    code = grid.run_study(
        tiny_study(),
        RunOptions(
            data=DataOptions(folder=tmp_path / "data"),
            cluster=ClusterOptions(),
            results=tmp_path / "results",
            budget_hours=1.0,
        ),
    )
    said = " ".join(capfd.readouterr().out.split())
    assert code == 0
    assert "before the data were ready; rendered and decoded data are kept" in said


def test_corpora_are_not_decoded_after_the_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.RayDataExecutor", ProcessExecutor)
    names = ("dev-train-sony/fold3_room1_mix001", "dev-test-sony/fold4_room3_mix001")
    root = writers.write_starss(tmp_path / "starss23", names, with_video=True)
    corpora = (CorpusSource(name="starss23", root=str(root)),)
    options = DataOptions(folder=tmp_path, annotated=corpora, unannotated=corpora)
    placement = plan_placement({"CPU": 1.0}, train_workers=1)
    with pytest.raises(OutOfTimeError):
        prepare_data(options, tiny_study(), placement, Console(quiet=True), Deadline(at=0.0))
    assert not list(tmp_path.rglob(f"*{SHARD_SUFFIX}"))
