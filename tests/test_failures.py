"""Every kind of failure, planted: it is named, tried again as its policy says, and recorded."""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
import ray.exceptions
import torch
from fsspec.exceptions import FSTimeoutError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal import exceptions as train_exceptions
from s3fs.errors import translate_boto_error

from seld.errors import InputError
from seld.records import FAILURE_KINDS, read_record, trials_table
from seld.settings import to_mapping
from tests.tiny_training import TINY, TINY_FINETUNE, finetune_batches
from trainables import trial as trial_module
from trainables.cells import Cell
from trainables.clips import Batch
from trainables.failures import (
    BACKOFF_S,
    RETRIES,
    describe_failure,
    failure_kind,
    with_retries,
)
from trainables.finetune import FinetuneSettings, finetune
from trainables.jobs import ShardFolder
from trainables.prepare import PreparedData
from trainables.provenance import Provenance
from trainables.resources import plan_placement
from trainables.stage_keys import StageKey
from trainables.stages import STATE_FILE, StageStore
from trainables.trial import StudyRun


def run_out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run_out_of_host_memory() -> None:
    bytearray(2**62)


def diverge() -> None:
    def poisoned() -> Any:
        for step, batch in enumerate(finetune_batches(TINY_FINETUNE)):
            yield batch if step < 1 else poison(batch)

    def poison(batch: Batch) -> Batch:
        return batch | {"target": torch.full_like(batch["target"], math.inf)}

    finetune(
        TINY_FINETUNE,
        poisoned(),
        class_count=5,
        encoder_state=None,
        report=lambda step, metrics, state: None,
    )


def read_bad_data() -> None:
    raise InputError("clip.parquet", "foa", "3 channels", "4 channels")


def fill_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"state")


def fill_disk_with_a_state() -> None:
    torch.save({"weights": torch.zeros(100_000)}, "/dev/full")


def lose_the_bucket() -> None:
    raise botocore.exceptions.EndpointConnectionError(endpoint_url="https://s3.amazonaws.com")


def lose_a_worker() -> None:
    raise ray.exceptions.WorkerCrashedError()


def wait_too_long() -> None:
    raise TimeoutError("no progress from finetune for 1800 s")


def have_a_bug() -> None:
    {}["missing"]


PLANTED: dict[Callable[[], None], str] = {
    run_out_of_gpu_memory: "gpu_memory",
    run_out_of_host_memory: "host_memory",
    diverge: "non_finite_loss",
    read_bad_data: "bad_data",
    fill_disk: "disk_full",
    fill_disk_with_a_state: "disk_full",
    lose_the_bucket: "storage_unreachable",
    lose_a_worker: "lost_node",
    wait_too_long: "timeout",
    have_a_bug: "code_error",
}


def caught(plant: Callable[[], None]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        plant()
    return raised.value


def test_every_kind_is_planted_and_has_a_policy() -> None:
    assert set(PLANTED.values()) == set(FAILURE_KINDS) == set(RETRIES)


@pytest.mark.parametrize("plant", PLANTED)
def test_the_kind_is_known_of_an_error_from_another_process(plant: Callable[[], None]) -> None:
    """As Ray brings it: pickled, and a nameless error where that cannot be undone."""
    error = ray.exceptions.RayTaskError("run_job", "traceback", caught(plant))
    brought = ray.exceptions.RayError.from_bytes(error.to_bytes())
    assert failure_kind(brought) == PLANTED[plant]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_failure_is_known_however_ray_wraps_it(plant: Callable[[], None]) -> None:
    error, kind = caught(plant), PLANTED[plant]
    as_task = ray.exceptions.RayTaskError("run_job", "traceback", error)
    in_train = train_exceptions.UserExceptionWithTraceback(error, "traceback")
    wrapped = [
        error,
        as_task,
        as_task.as_instanceof_cause(),
        WorkerGroupError("rank 0", {0: error}),
        WorkerGroupError("rank 0", {0: in_train}),
        WorkerGroupError("Ray Data's task", {0: as_task}),
        ControllerError(error),
    ]
    assert [failure_kind(each) for each in wrapped] == [kind] * len(wrapped)


def test_what_ray_itself_reports_is_known() -> None:
    died = ray.exceptions.ActorDiedError()
    unhealthy = train_exceptions.WorkerHealthCheckFailedError("worker 0", died)
    assert failure_kind(WorkerGroupError("rank 0", {0: unhealthy})) == "lost_node"
    never_started = train_exceptions.WorkerGroupStartupTimeoutError(2)
    assert failure_kind(ControllerError(never_started)) == "timeout"
    assert failure_kind(ray.exceptions.OutOfMemoryError("killed")) == "host_memory"
    assert failure_kind(ray.exceptions.OutOfDiskError("/tmp/ray is over 95% full")) == "disk_full"
    killed = ray.exceptions.RayActorError(
        "a" * 32, "The worker was killed due to the node running low on memory.", False
    )
    assert failure_kind(WorkerGroupError("rank 0", {0: killed})) == "host_memory"
    assert failure_kind(OSError(errno.EACCES, "not allowed")) == "code_error"


def test_a_group_that_nccl_cannot_join_is_not_a_lost_machine() -> None:
    lost = torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0")
    assert failure_kind(WorkerGroupError("rank 0", {0: lost})) == "lost_node"
    shared = torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp, invalid usage (run with NCCL_DEBUG=WARN for details)"
    )
    assert failure_kind(WorkerGroupError("rank 0", {0: shared})) == "code_error"


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_gpu_that_others_have_filled_is_short_of_memory(message: str) -> None:
    assert failure_kind(RuntimeError(message)) == "gpu_memory"


def test_nccl_without_gpu_memory_is_no_lost_peer() -> None:
    words = "NCCL error in: NCCLUtils.cpp, unhandled cuda error: Cuda failure 2 'out of memory'"
    assert failure_kind(torch.distributed.DistBackendError(words)) == "gpu_memory"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: uncorrectable ECC error encountered", "lost_node"),
        ("CUDA error: unspecified launch failure", "lost_node"),
        ("CUDA error: device-side assert triggered", "code_error"),
        ("CUDA error: an illegal memory access was encountered", "code_error"),
    ],
)
def test_a_broken_gpu_is_not_the_codes_fault(message: str, kind: str) -> None:
    assert failure_kind(torch.AcceleratorError(message)) == kind


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.ConnectTimeoutError(endpoint_url="https://s3"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="https://s3"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="https://s3"),
        aiohttp.ServerDisconnectedError(),
        FSTimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        OSError(errno.ESTALE, "Stale file handle"),
        translate_boto_error(
            botocore.exceptions.ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")
        ),
        OSError(
            "When initiating multiple part upload for key 'k' in bucket 'b': AWS Error "
            "NETWORK_CONNECTION during CreateMultipartUpload operation: curlCode: 7"
        ),
    ],
    ids=repr,
)
def test_a_store_out_of_reach_is_known_by_whoever_tells_it(error: Exception) -> None:
    assert failure_kind(ControllerError(error)) == "storage_unreachable"


def test_workers_whose_peer_went_away_do_not_hide_what_it_died_of() -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error")
    nccl = torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1.")
    for peer in (gloo, nccl):
        assert failure_kind(WorkerGroupError("training failed", {0: peer})) == "lost_node"
        assert failure_kind(WorkerGroupError("", {0: peer, 1: KeyError("x")})) == "code_error"
        assert failure_kind(WorkerGroupError("", {0: peer, 1: MemoryError()})) == "host_memory"
    assert failure_kind(RuntimeError("shapes do not match")) == "code_error"


def test_the_record_tells_the_cause_and_not_its_wrapping() -> None:
    error = ray.exceptions.RayTaskError("run_job", "traceback", caught(read_bad_data))
    failure = describe_failure(WorkerGroupError("rank 0", {0: error}), stage="pretrain", attempts=1)
    assert failure.message == "clip.parquet: foa is '3 channels', expected 4 channels"
    assert (failure.kind, failure.stage, failure.policy) == (
        "bad_data",
        "pretrain",
        "not tried again",
    )


@pytest.mark.parametrize(
    ("attempts", "policy"),
    [(1, "not tried again"), (2, "tried once more"), (4, "tried 3 more times")],
)
def test_the_record_tells_the_tries_that_were_made(attempts: int, policy: str) -> None:
    """Whatever is allowed: what failed outside of a stage was not tried again."""
    error = caught(lose_the_bucket)
    assert describe_failure(error, stage="begin", attempts=attempts).policy == policy


# Work that is tried again where it is done


def test_storage_out_of_reach_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    planted: dict[int, list[Exception]] = {
        2: [ConnectionError("reset"), ConnectionError("reset")],
        5: [OSError(errno.ESTALE, "Stale file handle")],
    }

    def decode(item: int) -> int:
        if planted.get(item):
            error = planted[item].pop()
            # As where a recording's file is named.
            raise InputError("/data/a.wav", "file", str(error), "readable") from error
        return 10 * item

    assert [with_retries(decode, item) for item in range(6)] == [0, 10, 20, 30, 40, 50]
    assert pauses_s == [BACKOFF_S, 2 * BACKOFF_S, BACKOFF_S]


def test_storage_that_stays_away_is_named_and_other_failures_are_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ValueError, match="a bug"):
        with_retries(fail, ValueError("a bug"))
    with pytest.raises(InputError, match=r"a\.wav"):
        with_retries(fail, InputError("a.wav", "file", "missing", "one"))
    assert pauses_s == []
    with pytest.raises(InputError, match=r"ConnectionError: reset.*the same command goes on"):
        with_retries(fail, ConnectionError("reset"))
    assert len(pauses_s) == RETRIES["storage_unreachable"]


# The trial boundary


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyRun:
    monkeypatch.setattr(trial_module, "BACKOFF_S", 0.0)
    shards = ShardFolder(path=str(tmp_path / "shards"))
    data = PreparedData(
        unannotated=shards,
        annotated=shards,
        class_names=("a", "b"),
        validation_rooms=(),
        unannotated_fingerprint="u",
        annotated_fingerprint="a",
        test_fingerprint="t",
        trainable_minutes=10.0,
    )
    return StudyRun(
        study_folder=tmp_path / "study",
        store=StageStore(tmp_path / "stages"),
        placement=plan_placement({"CPU": 1}),
        data={"default": data},
        provenance=Provenance(git_commit="", git_dirty=False, versions={}),
    )


CELL = Cell(
    study="s", arm="scratch", seed=0, annotation_minutes=1, pretrain=None, finetune=TINY_FINETUNE
)


@pytest.mark.parametrize("plant", PLANTED)
def test_a_failing_trial_is_tried_by_policy_and_recorded(
    plant: Callable[[], None], run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    reports: list[dict[str, Any]] = []

    def failing_task(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        calls.append(job)
        plant()
        return {}

    monkeypatch.setattr(trial_module, "run_as_task", failing_task)
    monkeypatch.setattr(trial_module.tune, "report", reports.append)
    trial_module.run_trial({"cell": CELL, "run": run})
    record = read_record(run.study_folder / "trials" / CELL.trial_id)
    kind = PLANTED[plant]
    batches = [3, 1] if kind == "gpu_memory" else [3]
    assert [job.settings.batch_size for job in calls] == [
        batch for batch in batches for _ in range(1 + RETRIES[kind])
    ]
    assert record.status == "failed"
    assert record.failure is not None
    assert (record.failure.kind, record.failure.stage) == (kind, "finetune")
    assert record.failure.attempts == 1 + RETRIES[kind]
    assert plant.__name__ in record.failure.traceback
    assert record.config["finetune"] == to_mapping(calls[-1].settings)
    assert record.trial_id == CELL.trial_id
    # The last report is what the console and the trackers see.
    assert reports[-1]["status"] == "failed"
    assert reports[-1]["message"] == record.failure.message
    assert reports[-1]["failure_kind"] == kind
    # Nothing half-made is left for others to find, nor a lease for them to wait on.
    for batch in batches:
        with run.store._lease(finetune_key(run, batch)) as held:
            assert held


def failing_folder(path: Path, errors: list[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Creating the folder at ``path`` raises these, one after the other."""
    mkdir = Path.mkdir

    def fails_at_first(folder: Path, *args: Any, **kwargs: Any) -> None:
        if folder == path and errors:
            raise errors.pop(0)
        mkdir(folder, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", fails_at_first)


def finishing_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial whose stages are done; what it copies out of them is left out."""
    scores = {"metrics": {"seld_error": 0.5}, "per_class": [], "per_room": []}
    evaluation = SimpleNamespace(summary=scores)
    monkeypatch.setattr(trial_module._Trial, "finetuned", lambda trial, encoder: None)
    monkeypatch.setattr(trial_module._Trial, "evaluated", lambda trial, network: evaluation)
    monkeypatch.setattr(trial_module._Trial, "collect", lambda trial, *stages: None)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)


def test_a_trial_that_gets_no_folder_leaves_a_record(
    run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishing_trial(monkeypatch)
    folder = run.study_folder / "trials" / CELL.trial_id
    failing_folder(folder, [OSError(errno.ENOSPC, "No space left")], monkeypatch)
    trial_module.run_trial({"cell": CELL, "run": run})
    record = read_record(folder)
    assert record.failure is not None
    assert (record.failure.kind, record.failure.stage) == ("disk_full", "begin")
    assert (record.failure.attempts, record.failure.policy) == (1, "not tried again")


def test_a_disk_may_be_away_when_a_trial_begins(
    run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishing_trial(monkeypatch)
    stale = [OSError(errno.ESTALE, "Stale file handle") for _ in range(2)]
    failing_folder(run.study_folder / "trials" / CELL.trial_id, stale, monkeypatch)
    assert trial_module.run_cell(CELL, run).status == "finished"


@pytest.mark.parametrize("times", [2, 1 + RETRIES["storage_unreachable"]])
def test_copying_the_tables_is_tried_again_like_a_stage(
    times: int, run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    finishing_trial(monkeypatch)
    errors = [OSError(errno.ESTALE, "Stale file handle") for _ in range(times)]

    def collect(trial: Any, *stages: Any) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(trial_module._Trial, "collect", collect)
    record = trial_module.run_cell(CELL, run)
    if times == 2:
        assert record.status == "finished"
        return
    assert record.failure is not None
    assert (record.failure.kind, record.failure.stage) == ("storage_unreachable", "collect")
    assert (record.failure.attempts, record.failure.policy) == (times, "tried 6 more times")


def test_tries_count_from_the_last_progress(run: StudyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of many hours may lose its machine more often than it may fail on the spot."""
    progress = [True] * 8 + [False] * 10
    tries = 0

    def losing_its_machine(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        nonlocal tries
        state = Path(run.store.partial_uri(finetune_key(run, 3))) / STATE_FILE
        if progress[tries]:
            state.parent.mkdir(parents=True, exist_ok=True)
            state.write_text("x" * (tries + 1))
        tries += 1
        raise ray.exceptions.NodeDiedError("planted")

    monkeypatch.setattr(trial_module, "run_as_task", losing_its_machine)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    trial_module.run_trial({"cell": CELL, "run": run})
    record = read_record(run.study_folder / "trials" / CELL.trial_id)
    assert record.failure is not None
    assert record.failure.kind == "lost_node"
    assert tries == 8 + RETRIES["lost_node"]


def test_a_bucket_may_be_away_for_a_while(run: StudyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the store is asked fails then, how far the stage has come as well."""
    pauses: list[float] = []
    find, seen = StageStore.find, []

    def away_at_first(store: StageStore, key: StageKey) -> Any:
        seen.append(key)
        if len(seen) <= 3:
            lose_the_bucket()
        return find(store, key)

    monkeypatch.setattr(StageStore, "find", away_at_first)
    monkeypatch.setattr(StageStore, "progress_of", lambda store, key: have_a_bug())
    monkeypatch.setattr(trial_module, "BACKOFF_S", 5.0)
    monkeypatch.setattr(trial_module, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(trial_module, "run_as_task", lambda *args, **kwargs: {"loss": 0.5})
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    assert trial_module._Trial(CELL, run, CELL.trial_id).finetuned(None).computed
    assert pauses == [5.0, 10.0, 20.0]


def finetune_key(run: StudyRun, batch_size: int) -> StageKey:
    cell = trial_module.with_batches(CELL, {"finetune.batch_size": batch_size})
    return trial_module.stages_of(cell, run.data["default"]).finetune


def test_what_does_not_fit_the_gpu_is_trained_in_smaller_batches_and_says_so(
    run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = replace(CELL, finetune=replace(TINY_FINETUNE, batch_size=16))
    fits = 4
    batches = []

    def task(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        batches.append(job.settings.batch_size)
        if batches[-1] > fits:
            run_out_of_gpu_memory()
        return {"loss": 0.5}

    monkeypatch.setattr(trial_module, "run_as_task", task)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    monkeypatch.setattr(trial_module._Trial, "evaluated", lambda trial, network: have_a_bug())
    trial_module.run_trial({"cell": cell, "run": run})
    record = read_record(run.study_folder / "trials" / cell.trial_id)
    assert batches == [16, 16, 8, 8, 4]
    assert record.smaller_batches == {"finetune.batch_size": 4}
    assert record.config["finetune"]["batch_size"] == 4
    assert list(trials_table([record])["smaller_batches"]) == ["finetune.batch_size=4"]


def test_a_trial_in_smaller_batches_still_says_what_it_computed(
    run: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = replace(CELL, pretrain=TINY)
    tries = []

    def pretraining(job: Any, placement: Any, **where: Any) -> dict[str, float]:
        return {"loss": 1.0}

    def task(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        tries.append(job.settings.batch_size)
        if len(tries) <= 1 + RETRIES["gpu_memory"]:
            run_out_of_gpu_memory()
        return {"loss": 0.5}

    monkeypatch.setattr(trial_module, "pretrain_on_workers", pretraining)
    monkeypatch.setattr(trial_module, "run_as_task", task)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    monkeypatch.setattr(trial_module._Trial, "evaluated", lambda trial, network: have_a_bug())
    record = trial_module.run_cell(cell, run)
    assert tries == [3, 3, 1]
    assert [(stage.name, stage.computed) for stage in record.stages] == [
        ("pretrain", True),
        ("finetune", True),
    ]


def test_a_lost_worker_is_survived(run: StudyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def lost_twice(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        calls.append(os.getpid())
        if len(calls) <= 2:
            lose_a_worker()
        (folder / "network").write_text("trained")
        return {"loss": 0.5}

    monkeypatch.setattr(trial_module, "run_as_task", lost_twice)
    monkeypatch.setattr(trial_module.tune, "report", lambda metrics: None)
    result = trial_module._Trial(CELL, run, CELL.trial_id).finetuned(None)
    assert result.computed
    assert len(calls) == 3
    assert (result.folder / "network").read_text() == "trained"


def test_settings_that_cannot_train_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="learning_rate is -1"):
        replace(FinetuneSettings(), learning_rate=-1)
