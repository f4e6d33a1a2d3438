"""Nothing hangs and nothing is held: silent stages end, stopped trials give their CPUs back."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray import tune

from ablations import watchdog
from ablations.cluster import ClusterOptions, ray_cluster
from ablations.watchdog import Watchdog
from trainables import workers
from trainables.failures import describe_failure
from trainables.in_trial import InTrialTrainer, TrialReports, give_back_orphans
from trainables.provenance import current_provenance
from trainables.resources import plan_placement

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

# Ray's workers cannot import this module: they get what they need of it by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PLACEMENT = plan_placement({"CPU": 2})
CELL = SimpleNamespace(trial_id="trial")


@dataclass(frozen=True)
class Endless:
    """Reports for ever, or hangs after so many reports."""

    reports: float = float("inf")

    def run(
        self, folder: Path, *, device: str, report: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        step = 0
        while True:
            step += 1
            if step <= self.reports:
                report({"stage": "finetune", "step": step})
            time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(ClusterOptions(cpus=2)):
        yield


def run_endless(config: Mapping[str, Any]) -> None:
    """A trial of one stage."""
    workers.SILENT_FOR_S = config["silent_for_s"]
    try:
        workers.run_as_task(
            config["job"],
            PLACEMENT,
            provenance=current_provenance(),
            folder=Path(),
            report=tune.report,
        )
    except TimeoutError as error:
        failure = describe_failure(error, stage="finetune", attempts=1)
        tune.report({"status": "failed", "kind": failure.kind, "message": failure.message})


def fit(
    job: Endless,
    folder: Path,
    *callbacks: tune.Callback,
    silent_for_s: float,
    stop: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The last report of a trial of this job."""
    results = tune.Tuner(
        tune.with_resources(run_endless, {"CPU": 0.001}),
        param_space={"job": job, "cell": CELL, "silent_for_s": silent_for_s},
        run_config=tune.RunConfig(
            storage_path=str(folder), stop=stop, callbacks=list(callbacks), verbose=0
        ),
    ).fit()
    assert results[0].metrics is not None
    return results[0].metrics


def wait_for_free_cpus(limit_s: float = 600.0) -> None:
    """Return when every CPU is free again; says how long it took (10 s at most, if unhindered)."""
    started = time.monotonic()
    while ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() - started < limit_s, ray.available_resources()
        time.sleep(0.1)
    print(f"free after {time.monotonic() - started:.1f} s")


def test_a_stopped_trial_gives_its_cpus_back(tmp_path: Path) -> None:
    assert fit(Endless(), tmp_path, silent_for_s=600.0, stop={"step": 5})["step"] == 5
    wait_for_free_cpus()


def train_endlessly(config: Mapping[str, Any]) -> None:
    """What a worker of a pretraining without end does."""
    for step in itertools.count(1):
        ray.train.report({"step": step})
        time.sleep(0.02)


def run_endless_workers(config: Mapping[str, Any]) -> None:
    """A trial whose Train run has no end."""
    InTrialTrainer(
        train_endlessly,
        train_loop_config={},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            name="train", storage_path=config["storage"], callbacks=[TrialReports()]
        ),
    ).fit()


def test_a_stopped_trial_gives_its_train_workers_back(tmp_path: Path) -> None:
    # Its process goes on living: Tune keeps it for the next trial.
    results = tune.Tuner(
        tune.with_resources(run_endless_workers, {"CPU": 0.001}),
        param_space={"storage": tune.grid_search([str(tmp_path / name) for name in "ab"])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), stop={"step": 5}, verbose=0),
    ).fit()
    assert [result.metrics and result.metrics["step"] for result in results] == [5, 5]
    wait_for_free_cpus()


def test_a_stage_that_hangs_is_seen_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "STALLED_AFTER_S", 1.0)
    said: list[str] = []
    last = fit(Endless(reports=3), tmp_path, Watchdog(PLACEMENT, said.append), silent_for_s=5.0)
    assert any("the workers have said nothing; last heard: trial: " in line for line in said), said
    assert (last["kind"], last["message"]) == ("timeout", "said nothing for 5 s")
    # The process that hung is gone, or it would hold them still.
    wait_for_free_cpus()


@ray.remote(num_cpus=0)
class Holder:
    """Holds a CPU in a placement group, as the controller of a Train run does."""

    def hold(self) -> tuple[int, str]:
        self.group = ray.util.placement_group([{"CPU": 0.5}])
        assert self.group.wait(60)
        return os.getpid(), self.group.id.hex()


def test_what_a_killed_trial_held_is_given_back_and_nothing_else() -> None:
    def held(group: str) -> bool:
        return ray.util.placement_group_table()[group]["state"] == "CREATED"

    ours = ray.util.placement_group([{"CPU": 0.1}])
    assert ours.wait(60)
    killed, living = Holder.remote(), Holder.remote()
    (pid, orphan), (_, kept) = ray.get([killed.hold.remote(), living.hold.remote()])
    assert give_back_orphans() == 0
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not give_back_orphans():  # Ray notices the death first
        assert time.monotonic() < deadline
    assert not held(orphan)
    assert held(kept)
    assert held(ours.id.hex())
    assert give_back_orphans() == 0
    ray.kill(living)
    while not give_back_orphans():
        assert time.monotonic() < deadline
    ray.util.remove_placement_group(ours)
