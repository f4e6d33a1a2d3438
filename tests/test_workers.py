"""What every train worker runs, with Ray Train's part played by the test; silence has an end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import safetensors.torch
import torch

from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.records import HISTORY_FILE
from seld.shards import ProcessExecutor, build_shards
from tests import corpus_writers as writers
from tests.tiny_training import TINY
from trainables import workers
from trainables.clips import local_batches
from trainables.jobs import ENCODER_FILE, ShardFolder
from trainables.pretrain_job import PretrainJob
from trainables.provenance import current_provenance
from trainables.resources import plan_placement
from trainables.work_clock import SECONDS_FILE
from trainables.workers import reports_of

SETTINGS = replace(TINY, steps=6, batch_size=4, report_every=1, state_every=2)


def test_reports_come_in_order_and_then_the_end() -> None:
    def work(report: Callable[[int], None]) -> None:
        for number in range(50):
            report(number)

    assert list(reports_of(work)) == list(range(50))


def test_an_exception_comes_after_what_was_reported_before() -> None:
    def work(report: Callable[[int], None]) -> None:
        report(1)
        raise ValueError("planted")

    reports = reports_of(work)
    assert next(reports) == 1
    with pytest.raises(ValueError, match="planted"):
        next(reports)


def test_silence_ends_with_a_timeout() -> None:
    never = threading.Event()

    def hang(report: Callable[[int], None]) -> None:
        report(1)
        never.wait()

    reports = reports_of(hang, silent_for_s=0.2)
    assert next(reports) == 1
    with pytest.raises(TimeoutError, match=r"said nothing for 0.2 s"):
        next(reports)
    never.set()


class Killed(BaseException):
    pass


@dataclass
class Train:
    """Ray Train as one worker sees it: keeps the last checkpoint, kills after so many reports."""

    world_size: int = 1
    killed_after: int | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    checkpoint: dict[str, bytes] | None = None

    def report(
        self, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None
    ) -> None:
        self.reports.append(metrics)
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.checkpoint = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        if len(self.reports) == self.killed_after:
            raise Killed

    def restore(self, folder: Path) -> ray.train.Checkpoint | None:
        if self.checkpoint is None:
            return None
        folder.mkdir(exist_ok=True)
        for name, content in self.checkpoint.items():
            (folder / name).write_bytes(content)
        return ray.train.Checkpoint.from_directory(str(folder))

    def stream(self, read_step: Any, *, batch_size: int, cpus: float, **steps: int) -> Any:
        def read(step: int) -> dict[str, Any]:
            self.read.append(step)
            arrays = read_step(step)
            assert {len(values) for values in arrays.values()} == {batch_size}
            return arrays

        return local_batches(read, **steps)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PretrainJob:
    names = [f"dev-train-sony/fold3_room{room}_mix001" for room in (1, 2)]
    root = writers.write_starss(tmp_path_factory.mktemp("corpus"), names, with_video=True)
    shards = str(tmp_path_factory.mktemp("shards"))
    build_shards(
        CORPORA["starss23"](str(root)),
        ShardSettings(clip_s=2.0),
        shards,
        executor=ProcessExecutor(),
        workers=1,
    )
    return PretrainJob(settings=SETTINGS, shards=ShardFolder(path=shards))


def run_worker(
    train: Train, job: PretrainJob, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker's life within this process."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: train.world_size)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: train.restore(folder))
    monkeypatch.setattr(ray.train, "report", train.report)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(workers, "stream_batches", train.stream)
    workers.pretrain_worker(
        {
            "job": job,
            "placement": plan_placement({"CPU": 1}),
            "provenance": current_provenance(),
        }
    )


def test_a_worker_goes_on_from_the_last_checkpoint_to_the_same_encoder(
    job: PretrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Train()
    run_worker(whole, job, tmp_path, monkeypatch)
    assert [report["step"] for report in whole.reports] == [1, 2, 3, 4, 5, 6]
    resumed = Train(killed_after=5)
    with pytest.raises(Killed):
        run_worker(resumed, job, tmp_path, monkeypatch)
    resumed.reports.clear()
    resumed.read.clear()
    assert resumed.checkpoint is not None
    resumed.checkpoint[SECONDS_FILE] = b'{"worked_s": 1000.0}'  # it was a long one
    began_s = time.monotonic()
    run_worker(resumed, job, tmp_path, monkeypatch)
    worked_s = json.loads(resumed.checkpoint[SECONDS_FILE])["worked_s"]
    assert 1000.0 < worked_s < 1000.0 + time.monotonic() - began_s
    assert [report["step"] for report in resumed.reports] == [5, 6]
    assert resumed.read == [4, 5]
    assert whole.checkpoint is not None
    assert resumed.checkpoint[HISTORY_FILE] == whole.checkpoint[HISTORY_FILE]
    # Metadata of a safetensors file have no fixed order.
    expected = safetensors.torch.load(whole.checkpoint[ENCODER_FILE])
    found = safetensors.torch.load(resumed.checkpoint[ENCODER_FILE])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_checkpoint_holds_the_probes_and_no_training_metrics(
    job: PretrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probes_of(job: PretrainJob) -> dict[str, float]:
        train = Train()
        settings = replace(SETTINGS, steps=1)
        run_worker(train, replace(job, settings=settings), tmp_path, monkeypatch)
        assert train.checkpoint is not None
        assert "loss" in train.reports[-1]
        return json.loads(train.checkpoint[workers.PROBES_FILE])

    assert probes_of(job) == {}
    probes = probes_of(replace(job, probes=job.shards, validation_rooms=("room1",)))
    assert "participation_ratio" in probes
    assert not {"loss", "gradient_norm", "learning_rate", "temperature"} & set(probes)


def test_the_batch_is_shared_out_to_the_workers(job: PretrainJob) -> None:
    step = 3
    whole = job.reader()(step)
    parts = [job.reader(rank=rank, world_size=2)(step) for rank in (0, 1)]
    for name, values in whole.items():
        assert (torch.cat([torch.as_tensor(part[name]) for part in parts]).numpy() == values).all()
    with pytest.raises(InputError, match=r"batch_size is 4, expected a multiple of 3"):
        job.reader(rank=0, world_size=3)
