"""Placement: what one trial gets, and that Ray Data is never left without CPUs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seld.errors import InputError
from trainables.resources import SMALLEST_CPU_SHARE, plan_placement


@given(
    cpus=st.integers(1, 512),
    gpus=st.integers(0, 64),
    train_workers=st.integers(1, 8),
    gpus_per_worker=st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 2.0]),
    most_lanes=st.sampled_from([None, 1, 3, 100]),
)
def test_all_lanes_with_their_data_share_fit_the_cluster(
    cpus: int,
    gpus: int,
    train_workers: int,
    gpus_per_worker: float | None,
    most_lanes: int | None,
) -> None:
    try:
        placement = plan_placement(
            {"CPU": cpus, "GPU": gpus},
            train_workers=train_workers,
            gpus_per_worker=gpus_per_worker,
            most_lanes=most_lanes,
        )
    except InputError:
        lowest_cpus = 2 * SMALLEST_CPU_SHARE * train_workers
        wanted_gpus = gpus_per_worker or 0 if gpus_per_worker is not None else min(gpus, 1.0)
        shared = 0 < wanted_gpus < 1 and train_workers > 1
        assert cpus < lowest_cpus or wanted_gpus * train_workers > gpus or shared
        return
    lane_cpus = placement.train_workers * placement.worker_cpus + placement.data_cpus
    assert placement.lanes * lane_cpus <= cpus + 1e-9
    assert placement.lanes * placement.train_workers * placement.worker_gpus <= gpus + 1e-9
    assert placement.data_cpus >= SMALLEST_CPU_SHARE
    assert placement.worker_cpus >= SMALLEST_CPU_SHARE - 1e-9
    # While lanes fine-tune instead, they need no more than they were given.
    assert placement.finetune_cpus <= max(lane_cpus, 1.0)
    if most_lanes is not None:
        assert placement.lanes <= most_lanes
    # Ray refuses requests above one CPU that are not whole.
    for request in (placement.worker_cpus, placement.data_cpus, placement.finetune_cpus):
        assert request <= 1 or request == int(request)


@pytest.mark.parametrize(
    ("cluster", "lanes", "worker_cpus", "data_cpus"),
    [
        ({"CPU": 1}, 1, 0.5, 0.5),
        ({"CPU": 2}, 2, 0.5, 0.5),
        ({"CPU": 4}, 4, 0.5, 0.5),
        ({"CPU": 16, "GPU": 1}, 1, 1.0, 15.0),
        ({"CPU": 32, "GPU": 4}, 4, 1.0, 7.0),
    ],
)
def test_known_clusters(
    cluster: dict[str, float], lanes: int, worker_cpus: float, data_cpus: float
) -> None:
    placement = plan_placement(cluster)
    assert (placement.lanes, placement.worker_cpus, placement.data_cpus) == (
        lanes,
        worker_cpus,
        data_cpus,
    )


@given(
    machines=st.lists(
        st.fixed_dictionaries({"CPU": st.integers(1, 64), "GPU": st.sampled_from([0, 0, 1, 8])}),
        min_size=1,
        max_size=12,
    ),
    train_workers=st.integers(1, 4),
    most_lanes=st.sampled_from([None, 1, 2, 5]),
)
def test_every_worker_has_room_on_a_machine(
    machines: list[dict[str, float]], train_workers: int, most_lanes: int | None
) -> None:
    try:
        placement = plan_placement(*machines, train_workers=train_workers, most_lanes=most_lanes)
    except InputError:
        assert 0 < sum(machine["GPU"] for machine in machines) < train_workers or (
            sum(machine["CPU"] for machine in machines) < 2 * SMALLEST_CPU_SHARE * train_workers
        )
        return

    def room(cpus: float) -> int:
        gpus = placement.worker_gpus
        return sum(
            min(int(machine["CPU"] / cpus + 1e-9), int(machine["GPU"] / gpus) if gpus else 999)
            for machine in machines
        )

    # Where not even the least share has room for all, some wait for others.
    assert placement.worker_cpus == SMALLEST_CPU_SHARE or (
        room(placement.worker_cpus) >= placement.lanes * placement.train_workers
    )
    assert room(placement.finetune_cpus) >= min(placement.lanes, room(SMALLEST_CPU_SHARE))
    assert placement.worker_threads <= max(machine["CPU"] for machine in machines)


@pytest.mark.parametrize(
    ("machines", "options", "lanes", "worker_cpus", "finetune_cpus"),
    [
        # Half a machine, not half of the cluster, which no machine has.
        ([{"CPU": 8}] * 3, {"most_lanes": 1}, 1, 4.0, 4.0),
        ([{"CPU": 8}] * 4, {"most_lanes": 2}, 2, 4.0, 4.0),
        ([{"CPU": 2}] * 3, {}, 6, 0.5, 1.0),
        # CPUs of another machine do not help a GPU.
        ([{"CPU": 32}, {"CPU": 4, "GPU": 8}], {}, 8, 0.5, 0.5),
        ([{"CPU": 4}, *[{"CPU": 8, "GPU": 1}] * 24], {}, 24, 1.0, 1.0),
        # A worker's two GPUs are of one machine.
        ([{"CPU": 8, "GPU": 3}] * 2, {"gpus_per_worker": 2.0}, 2, 1.0, 1.0),
    ],
)
def test_known_clusters_of_several_machines(
    machines: list[dict[str, float]],
    options: dict[str, Any],
    lanes: int,
    worker_cpus: float,
    finetune_cpus: float,
) -> None:
    placement = plan_placement(*machines, **options)
    assert (placement.lanes, placement.worker_cpus, placement.finetune_cpus) == (
        lanes,
        worker_cpus,
        finetune_cpus,
    )


def test_several_trials_share_a_gpu_when_asked() -> None:
    placement = plan_placement({"CPU": 16, "GPU": 1}, gpus_per_worker=0.25)
    assert placement.lanes == 4
    assert placement.worker_gpus == 0.25


@pytest.mark.parametrize(
    ("gpus_per_worker", "lanes"), [(0.25, 8), (0.3, 6), (0.4, 4), (0.5, 4), (0.6, 2), (1.0, 2)]
)
def test_a_fraction_is_of_one_gpu(gpus_per_worker: float, lanes: int) -> None:
    cluster = {"CPU": 64, "GPU": 2}
    assert plan_placement(cluster, gpus_per_worker=gpus_per_worker).lanes == lanes


@given(workers=st.integers(1, 40), gpus=st.integers(0, 5))
def test_what_is_advised_fits(workers: int, gpus: int) -> None:
    cluster = {"CPU": 64, "GPU": gpus}
    try:
        plan_placement(cluster, train_workers=workers, gpus_per_worker=1.0)
    except InputError as error:
        advised = re.search(r"--(train-workers|gpus-per-worker) (\d+) would fit", error.expected)
        assert advised is not None
        options: dict[str, Any] = {"train_workers": workers, "gpus_per_worker": 1.0}
        options[advised[1].replace("-", "_")] = int(advised[2])
        assert plan_placement(cluster, **options).lanes >= 1


def test_workers_of_one_group_do_not_share_a_gpu() -> None:
    with pytest.raises(InputError, match="a whole GPU for each of 2 train workers"):
        plan_placement({"CPU": 8, "GPU": 2}, train_workers=2, gpus_per_worker=0.5)


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(InputError, match=r"room for 4 train workers.*--train-workers 2 would"):
        plan_placement({"CPU": 8, "GPU": 2}, train_workers=4)
    with pytest.raises(InputError, match="CPUs is '0'"):
        plan_placement({"CPU": 0})


@pytest.mark.parametrize(("trials", "lanes", "threads"), [(9, 8, 1), (3, 3, 2), (1, 1, 8)])
def test_fewer_trials_than_lanes_have_more_of_the_machines_each(
    trials: int, lanes: int, threads: int
) -> None:
    placement = plan_placement({"CPU": 8}).for_trials(trials)
    assert (placement.lanes, placement.worker_threads) == (lanes, threads)
    assert placement.for_trials(lanes) is placement


def test_fewer_trials_keep_the_workers_asked_for() -> None:
    placement = plan_placement({"CPU": 32, "GPU": 8}, train_workers=2, fewest_workers=1)
    fewer = placement.for_trials(1)
    assert (placement.lanes, fewer.lanes) == (4, 1)
    assert (fewer.train_workers, fewer.fewest_workers, fewer.worker_gpus) == (2, 1, 1.0)
    assert fewer.data_cpus > placement.data_cpus


@pytest.mark.parametrize(
    ("machines", "options", "lanes", "is_short"),
    [
        ([{"CPU": 8, "memory": 16e9}], {}, 6, True),
        ([{"CPU": 8, "memory": 64e9}], {}, 8, False),
        ([{"CPU": 8, "memory": 16e9}], {"most_lanes": 6}, 6, False),
        ([{"CPU": 8, "memory": 1e9}], {}, 1, True),
        ([{"CPU": 8, "memory": 16e9}], {"train_workers": 2}, 3, True),
        # What is left of one machine is no use on another, and one that does not tell has enough.
        ([{"CPU": 8, "memory": 4e9}] * 3, {}, 3, True),
        ([{"CPU": 8}, {"CPU": 8, "memory": 4e9}], {}, 16, False),
        ([{"CPU": 8, "GPU": 4, "memory": 4e9}], {}, 4, False),
    ],
)
def test_memory_bounds_the_trials_at_once(
    machines: list[dict[str, float]], options: dict[str, Any], lanes: int, is_short: bool
) -> None:
    placement = plan_placement(*machines, **options)
    assert (placement.lanes, placement.memory_is_short) == (lanes, is_short)
    assert ("of memory hold no more" in placement.describe()) == is_short


def test_what_memory_leaves_no_lane_for_is_computed_with() -> None:
    placement = plan_placement({"CPU": 8, "memory": 8e9})
    assert placement.describe() == (
        "8 CPUs: 2 trials at once, each with 1 train worker (2 CPU) and 2 CPU for Ray Data; "
        "8 GB of memory hold no more, at 2.5 GB a trial"
    )
    assert placement.worker_threads == 4


@pytest.mark.parametrize(
    ("machines", "options", "data_cpus"),
    [
        ([{"CPU": 4}, *[{"CPU": 8, "GPU": 1}] * 24], {}, 7.0),
        # Of a cluster, one trial has the CPUs beside its worker.
        ([{"CPU": 4}, *[{"CPU": 8, "GPU": 1}] * 24], {"most_lanes": 1}, 7.0),
        ([{"CPU": 8}] * 3, {"most_lanes": 1}, 4.0),
        ([{"CPU": 8}] * 3, {"most_lanes": 1, "train_workers": 3}, 12.0),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 4}], {}, 3.0),
        ([{"CPU": 32}, {"CPU": 4, "GPU": 8}], {}, SMALLEST_CPU_SHARE),
    ],
)
def test_data_are_read_with_cpus_of_the_machine_that_trains(
    machines: list[dict[str, float]], options: dict[str, Any], data_cpus: float
) -> None:
    assert plan_placement(*machines, **options).data_cpus == data_cpus
