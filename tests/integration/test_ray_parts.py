"""Ray's own part in one trial: which process a task runs in, in which order batches come."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from trainables import ingest, workers
from trainables.ingest import stream_batches
from trainables.provenance import current_provenance
from trainables.resources import plan_placement

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

# Ray's workers cannot import this module: they get what they need of it by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

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
