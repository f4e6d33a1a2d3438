"""Ray's own part in one trial: which process runs what, in which order batches come."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ray import cloudpickle

from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.shards import ProcessExecutor, build_shards, find_executor
from tests import corpus_writers as writers
from trainables import ingest, workers
from trainables.in_trial import InTrialTrainer
from trainables.ingest import stream_batches
from trainables.provenance import current_provenance
from trainables.resources import plan_placement
from trainables.successors import IMPORTS_AHEAD, start_successor

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

# Ray's workers cannot import this module: they get what they need of it by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CLUSTER = {"CPU": 2, "GPU": 2}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """With GPUs that are only counted."""
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class TellsItsProcess:
    def run(
        self, folder: Path, *, device: str, report: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        del folder, report
        return {"process": os.getpid(), "device": device}


@pytest.mark.parametrize(("gpus_per_worker", "processes"), [(1.0, 3), (0.0, 1)])
def test_tasks_on_gpus_leave_none_behind(
    gpus_per_worker: float, processes: int, tmp_path: Path
) -> None:
    """A process would keep the GPU it used first, whichever the next task is given."""
    placement = plan_placement(CLUSTER, gpus_per_worker=gpus_per_worker)
    outcomes = [
        workers.run_as_task(
            TellsItsProcess(),  # type: ignore[arg-type]
            placement,
            provenance=current_provenance(),
            folder=tmp_path,
            report=lambda progress: None,
        )
        for _ in range(3)
    ]
    assert {outcome["device"] for outcome in outcomes} == {"cuda" if gpus_per_worker else "cpu"}
    assert len({outcome["process"] for outcome in outcomes}) == processes


def test_batches_come_in_order_through_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "STEPS_PER_STREAM", 3)

    def read(step: int) -> dict[str, np.ndarray]:
        return {"value": np.full((4, 2), step)}

    batches = stream_batches(read, start_step=2, steps=10, batch_size=4, cpus=1.0)
    assert [batch["value"].unique().tolist() for batch in batches] == [[n] for n in range(2, 10)]


@pytest.mark.parametrize(("task_bytes", "tasks"), [(1e6, 1), (2.5 * 4 * 2 * 8, 3), (1.0, 5)])
def test_small_steps_are_read_several_to_a_task(
    task_bytes: float, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "TASK_BYTES", task_bytes)

    def read(step: int) -> dict[str, np.ndarray]:
        task = ray.get_runtime_context().get_task_id() or ""
        return {"value": np.array([[step, int(task[:12] or "0", 16)]] * 4)}

    batches = list(stream_batches(read, start_step=0, steps=5, batch_size=4, cpus=1.0))
    values = torch.stack([batch["value"] for batch in batches])
    assert torch.equal(values[..., 0], torch.arange(5)[:, None].expand(5, 4))
    assert len(values[..., 1].unique()) == tasks


def one_that_is_followed(config: dict[str, Any]) -> dict[str, Any]:
    """A Train worker: what it finds, and that it asks for a successor."""
    found = sorted({"torch", "trainables.workers"} & set(config["modules"]()))
    start_successor()
    return {"process": os.getpid(), "found": found}


def processes_with(variable: str) -> set[int]:
    """Processes on this machine that were started with this environment variable."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


@ray.remote(num_cpus=0)
class Trial:
    def fit(self, name: str, folder: Path, environment: dict[str, Any]) -> dict[str, Any]:
        """What the worker of a Train run returns."""
        result = InTrialTrainer(
            one_that_is_followed,
            train_loop_config={"modules": lambda: list(sys.modules)},
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=name, storage_path=str(folder), worker_runtime_env=environment
            ),
        ).fit()
        assert result.return_value is not None
        return result.return_value


def test_a_train_worker_finds_its_process_waiting(tmp_path: Path) -> None:
    """The first worker's process is started for it, the second's was there with all it imports."""
    mine = {"OF_TEST": str(tmp_path)}
    environment = {"env_vars": IMPORTS_AHEAD["env_vars"] | mine}
    trial: Any = Trial.remote()
    first: Any = ray.get(trial.fit.remote("first", tmp_path, environment))
    while not (waiting := processes_with(f"OF_TEST={tmp_path}") - {first["process"]}):
        time.sleep(0.1)
    second: Any = ray.get(trial.fit.remote("second", tmp_path, environment))
    assert {second["process"]} == waiting
    assert second["found"] == ["torch", "trainables.workers"]


def two_that_meet(config: dict[str, Any]) -> str:
    """A Train worker: what the first one says to all, unless it fails."""
    from ray.train.collective import broadcast_from_rank_zero

    rank = ray.train.get_context().get_world_rank()
    if config["name"] == "fails" and rank == 0:
        raise ValueError("planted")  # the other waits for it
    told = [broadcast_from_rank_zero(f"{config['name']} {n}, by {rank}") for n in range(2)]
    return ", ".join(told)


@ray.remote(num_cpus=0)
class Meetings:
    def fit(self, name: str, folder: Path) -> tuple[str, str]:
        """What was said in a Train run of two workers, and the actor at which they met."""
        from trainables.in_trial import MEETING_POINT

        trainer = InTrialTrainer(
            two_that_meet,
            train_loop_config={"name": name},
            scaling_config=ray.train.ScalingConfig(
                num_workers=2, resources_per_worker={"CPU": 0.5}
            ),
            run_config=ray.train.RunConfig(name=name, storage_path=str(folder)),
        )
        try:
            said = str(trainer.fit().return_value)
        except ray.train.TrainingFailedError as error:
            said = str(error)
        actor = MEETING_POINT._actor
        return said, actor._actor_id.hex() if actor else "none"


def test_workers_of_later_runs_meet_at_the_same_actor_but_after_a_failure(tmp_path: Path) -> None:
    trial: Any = Meetings.remote()
    runs = [
        ray.get(trial.fit.remote(name, tmp_path)) for name in ("first", "second", "fails", "last")
    ]
    first, second, failure, last = (said for said, _ in runs)
    assert first == "first 0, by 0, first 1, by 0"
    assert second == "second 0, by 0, second 1, by 0"
    assert "planted" in failure
    assert last == "last 0, by 0, last 1, by 0"
    actors = [actor for _, actor in runs]
    assert actors[0] == actors[1] != "none"
    assert actors[2] == "none"
    assert actors[3] not in ("none", actors[0])


def test_shards_are_the_same_by_ray_and_in_one_process(tmp_path: Path) -> None:
    names = ("dev-train-sony/fold3_room2_mix001", "dev-test-sony/fold4_room8_mix002")
    corpus = CORPORA["starss23"](
        str(writers.write_starss(tmp_path / "corpus", names, with_video=True))
    )
    settings = ShardSettings(clip_s=2.0, shard_s=4.0)
    fingerprints = set()
    for executor in (find_executor("ray"), ProcessExecutor()):
        index, rejected = build_shards(
            corpus, settings, str(tmp_path / type(executor).__name__), executor=executor, workers=2
        )
        assert rejected == []
        assert len(index.clips) > 0
        fingerprints.add(index.fingerprint)
    assert len(fingerprints) == 1


def test_an_input_error_comes_out_of_ray_as_one() -> None:
    """One line for the user, as without Ray."""

    def decode(item: int) -> int:
        if item == 2:
            raise InputError("a.wav", "file on node-7", "missing", "one that can be read")
        return item

    with pytest.raises(InputError, match=r"^a\.wav: file on node-7 is 'missing'") as caught:
        list(find_executor("ray").map(decode, [1, 2, 3], workers=2))
    assert type(caught.value) is InputError
