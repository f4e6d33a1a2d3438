"""What Ray Data is asked for, against what its coordinator leaves each of several streams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data import ExecutionResources
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
)

from trainables import ingest
from trainables.ingest import steps_per_task, stream_batches

Machine = dict[str, float]
#: Of a machine of the cluster.
MEMORY = {"memory": 2e10, "object_store_memory": 1e10}


def share_of_a_stream(machines: list[Machine], worker: Machine, pretrainings: int) -> Any:
    """What Ray Data counts on in each of as many streams as there are pretrainings."""
    nodes = [
        {"NodeID": str(number), "Alive": True, "Resources": machine | MEMORY, "Labels": {}}
        for number, machine in enumerate(machines)
    ]
    coordinator = _AutoscalingCoordinatorActor(
        send_resources_request=lambda *_, **__: None, get_cluster_nodes=lambda: nodes
    )
    for number in range(pretrainings):
        coordinator.request_resources(
            f"train-{number}", [worker], expire_after_s=600, priority=ResourceRequestPriority.HIGH
        )
        coordinator.request_resources(
            f"data-{number}",
            [],
            expire_after_s=600,
            request_remaining=["CPU", "GPU", "memory", "object_store_memory"],
        )
    share = ExecutionResources.zero()
    for resources in coordinator.get_reserved_resources("data-0").values():
        share = share.add(ExecutionResources.from_resource_dict(resources))
    return share


def asked_for(monkeypatch: pytest.MonkeyPatch, cpus: float) -> dict[str, Any]:
    """How a stream with so many CPUs has its steps read."""
    asked: dict[str, Any] = {}

    class Blocks:
        def map_batches(self, read: object, **options: Any) -> Blocks:
            asked.update(options)
            return self

        def iter_batches(self, **_: Any) -> list[dict[str, np.ndarray]]:
            return [{"step": np.zeros(1), "value": np.ones(1)}]

    here = SimpleNamespace(get_node_id=lambda: "0" * 56)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray.data, "from_blocks", lambda blocks: Blocks())
    monkeypatch.setattr(ingest, "_set_up_streaming", lambda cpus: None)
    batches = list(stream_batches(lambda step: {}, start_step=0, steps=1, batch_size=1, cpus=cpus))
    assert [batch.keys() for batch in batches] == [{"value"}]
    return asked


@pytest.mark.parametrize(
    ("machines", "worker", "pretrainings"),
    [
        ([{"CPU": 4.0}, *[{"CPU": 8.0, "GPU": 1.0}] * 8], {"CPU": 1.0, "GPU": 1.0}, 8),
        ([{"CPU": 8.0}], {"CPU": 0.5}, 8),
    ],
)
def test_a_stream_reads_beside_others_that_leave_it_no_whole_cpu(
    machines: list[Machine],
    worker: Machine,
    pretrainings: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share = share_of_a_stream(machines, worker, pretrainings)
    assert share.cpu == 0  # else there is nothing to get around any more
    assert share.object_store_memory > 0
    asked = asked_for(monkeypatch, cpus=7.0)
    assert ExecutionResources(cpu=asked["num_cpus"]).satisfies_limit(share)
    assert asked["compute"].size == 7


def test_a_share_of_a_cpu_reads_a_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_for(monkeypatch, cpus=0.5)["compute"].size == 1


@pytest.mark.parametrize(("step_bytes", "steps"), [(1_000, 8), (10_600_000, 6), (100_000_000, 1)])
def test_large_steps_are_read_one_to_a_task(step_bytes: int, steps: int) -> None:
    halves = {
        "spectra": np.empty(step_bytes // 4, np.float16),
        "frames": np.empty(step_bytes // 2, np.uint8),
    }
    assert steps_per_task(halves) == steps
