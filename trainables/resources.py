"""What fits the cluster: how many trials compute at once and what each part of one gets.

Ray Data's tasks and Ray Train's workers draw on the same CPUs. A run whose trials hold them all
waits for ever (Ray issues #54305, #24304), so every lane is given its CPUs once, split between
the train workers, who hold theirs, and the data tasks that feed them, whose number is bounded. All
lanes together never exceed the cluster, nor what has to be on one machine a machine. Memory bounds
lanes likewise: a machine with more CPUs than memory would have Ray's memory monitor kill them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seld.errors import InputError

#: CPUs one GPU's train worker keeps busy itself (launching kernels, collating, moving batches).
GPU_WORKER_CPUS = 1.0
#: The part of a lane's CPUs that CPU workers get; the rest feeds them.
CPU_WORKER_SHARE = 0.5
#: Least CPUs for one train worker; a cluster that cannot give them is refused.
SMALLEST_CPU_SHARE = 0.1
#: What a trial's own process holds of its machine while its stages compute elsewhere; no share of
#: a CPU, however small: beside it a stage that needs a whole one would never fit one CPU.
TRIAL_SHARE = 0.001
#: Memory of a pretraining without GPUs, measured at the scale ``evidence`` (2.1 to 2.6 GB in all):
#: of its trial, the trial's process and the one where workers meet; of each of its workers, the
#: worker's, its successor's and its reader's, and what they pass on in shared memory.
TRIAL_BYTES = 0.5e9
WORKER_BYTES = 2.0e9
#: What the driver takes of its machine.
DRIVER_BYTES = 1.0e9


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The CPUs and GPUs of one lane, and how many lanes there are.

    A lane is the room one computing trial has. While it pretrains, ``train_workers`` workers
    hold ``worker_cpus`` and ``worker_gpus`` each and Ray Data has ``data_cpus``; while it
    fine-tunes, one task holds ``finetune_cpus`` and ``worker_gpus``. Where machines were lost, a
    pretraining goes on with as few as ``fewest_workers`` until there are more again. A worker
    process computes with ``worker_threads`` threads.

    Attributes:
        machines: resources of each that was divided.
        memory_is_short: whether their CPUs would have had room for more lanes.
    """

    machines: tuple[Mapping[str, float], ...]
    lanes: int
    train_workers: int
    fewest_workers: int
    worker_cpus: float
    worker_gpus: float
    data_cpus: float
    finetune_cpus: float
    worker_threads: int
    memory_is_short: bool = False

    @property
    def is_elastic(self) -> bool:
        """Whether a pretraining may go on with fewer workers."""
        return self.fewest_workers < self.train_workers

    @property
    def cluster_cpus(self) -> float:
        """CPUs of all machines."""
        return _total(self.machines, "CPU")

    @property
    def cluster_gpus(self) -> float:
        """GPUs of all machines."""
        return _total(self.machines, "GPU")

    def for_trials(self, trials: int) -> Placement:
        """The same machines for so many trials: of fewer than lanes, each has more of them."""
        if trials >= self.lanes:
            return self
        return plan_placement(
            *self.machines,
            train_workers=self.train_workers,
            fewest_workers=self.fewest_workers,
            gpus_per_worker=self.worker_gpus,
            most_lanes=trials,
        )

    def describe(self) -> str:
        """One line for the person who started the run."""
        worker = f"{self.worker_cpus:g} CPU"
        if self.worker_gpus:
            worker += f" + {self.worker_gpus:g} GPU"
        cluster = f"{self.cluster_cpus:g} CPUs"
        if self.cluster_gpus:
            cluster += f", {self.cluster_gpus:g} GPUs"
        trials = "1 trial" if self.lanes == 1 else f"{self.lanes} trials"
        workers = "1 train worker" if self.train_workers == 1 else f"{self.train_workers} workers"
        if self.is_elastic:
            workers = f"{self.fewest_workers} to {workers}"
        short = ""
        if self.memory_is_short:
            memory = _total(self.machines, "memory") / 1e9
            lane = _lane_bytes(self.train_workers) / 1e9
            short = f"; {memory:.0f} GB of memory hold no more, at {lane:g} GB a trial"
        return (
            f"{cluster}: {trials} at once, each with {workers} ({worker}) "
            f"and {self.data_cpus:g} CPU for Ray Data{short}"
        )


def plan_placement(
    *machines: Mapping[str, float],
    train_workers: int = 1,
    fewest_workers: int | None = None,
    gpus_per_worker: float | None = None,
    most_lanes: int | None = None,
) -> Placement:
    """Divide a cluster into lanes so that Ray Data always has its share.

    Args:
        machines: resources (``CPU``, ``GPU``, ``memory`` in bytes) of each that the cluster has,
            or that an autoscaling one may grow to have. A lane without GPUs needs memory, too,
            where all of them tell how much they have.
        train_workers: workers of one pretraining.
        fewest_workers: how few it may shrink to; by default none fewer.
        gpus_per_worker: GPUs of one worker, fractions allowed; by default 1 where the cluster
            has GPUs, else 0.
        most_lanes: an upper bound on trials at once.

    Raises:
        InputError: where one lane does not fit, saying what would.
    """
    cpus, gpus = _total(machines, "CPU"), _total(machines, "GPU")
    fewest_workers = train_workers if fewest_workers is None else fewest_workers
    worker_gpus = (1.0 if gpus >= 1 else 0.0) if gpus_per_worker is None else gpus_per_worker
    _refuse_impossible_workers(train_workers, fewest_workers, worker_gpus)
    fitting = _fitting_lanes(machines, train_workers, worker_gpus)
    wanted_lanes = min(fitting, most_lanes or fitting)
    # Beside a GPU, machines have memory for its trial and more.
    lanes_in_memory = math.inf if worker_gpus else _lanes_in_memory(machines, train_workers)
    lanes = max(1, int(min(wanted_lanes, lanes_in_memory)))
    lane_cpus = cpus / lanes
    workers = lanes * train_workers
    largest_cpus = max(float(machine.get("CPU", 0)) for machine in machines)
    if worker_gpus > 0 and lane_cpus >= 2 * GPU_WORKER_CPUS * train_workers:
        wanted = GPU_WORKER_CPUS
    else:
        # Half a machine at most: all of one would hardly ever be free of other lanes' data tasks.
        wanted = min(lane_cpus / train_workers, largest_cpus) * CPU_WORKER_SHARE
    worker_cpus = _fitting(machines, workers, wanted, worker_gpus)
    # A worker's data are read beside it: CPUs of other machines are no use to it.
    beside = _cpus_of_own(machines, workers, worker_gpus) - worker_cpus
    data_cpus = min(lane_cpus - worker_cpus * train_workers, beside * train_workers)
    data_cpus = max(SMALLEST_CPU_SHARE, _whole_or_share(data_cpus))
    # A train worker's CPUs; from the data share up to one, where every lane can have it at once.
    finetune_cpus = min(worker_cpus + data_cpus, max(1.0, worker_cpus))
    if _slots(machines, finetune_cpus, worker_gpus) < lanes:
        finetune_cpus = worker_cpus
    return Placement(
        machines=tuple(machines),
        lanes=lanes,
        train_workers=train_workers,
        fewest_workers=fewest_workers,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        data_cpus=data_cpus,
        finetune_cpus=finetune_cpus,
        worker_threads=max(1, math.floor(min(lane_cpus / train_workers, largest_cpus))),
        memory_is_short=lanes_in_memory < wanted_lanes,
    )


def _total(machines: Sequence[Mapping[str, float]], kind: str) -> float:
    """So many of this kind all machines have together."""
    return sum(float(machine.get(kind, 0)) for machine in machines)


def _fitting_lanes(
    machines: Sequence[Mapping[str, float]], train_workers: int, worker_gpus: float
) -> int:
    """How many trials have room to pretrain at once, at least one.

    Raises:
        InputError: not even one has.
    """
    cpus, gpus = _total(machines, "CPU"), _total(machines, "GPU")
    # A worker and its feeding need room even on one CPU; then both take fractions of it.
    smallest_lane = SMALLEST_CPU_SHARE * train_workers / CPU_WORKER_SHARE
    slots = _slots(machines, 0.0, worker_gpus) if worker_gpus else train_workers
    if slots < train_workers:
        raise InputError(
            "cluster",
            "GPUs",
            f"{gpus:g}",
            f"room for {train_workers} train workers with {worker_gpus:g} GPU each; "
            f"{f'--train-workers {slots}' if slots else '--gpus-per-worker 0'} would fit",
        )
    if cpus < smallest_lane:
        raise InputError(
            "cluster",
            "CPUs",
            f"{cpus:g}",
            f"at least {smallest_lane:g} for {train_workers} train workers and Ray Data",
        )
    if not worker_gpus:
        return max(1, math.floor(cpus / train_workers))
    return min(slots // train_workers, max(1, math.floor(cpus / smallest_lane)))


def _lanes_in_memory(machines: Sequence[Mapping[str, float]], train_workers: int) -> float:
    """For how many lanes, whose workers may be on several machines, there is memory."""
    if not all("memory" in machine for machine in machines):
        return math.inf
    left = sorted(machine["memory"] for machine in machines)
    left[-1] -= DRIVER_BYTES  # it may be on any; it would not be on one without room for it
    worker_bytes = _lane_bytes(train_workers) / train_workers
    workers = sum(max(0, math.floor(memory / worker_bytes)) for memory in left)
    return workers // train_workers


def _lane_bytes(train_workers: int) -> float:
    return TRIAL_BYTES + WORKER_BYTES * train_workers


def _refuse_impossible_workers(train_workers: int, fewest_workers: int, worker_gpus: float) -> None:
    """Refuse counts that fit no cluster."""
    if train_workers < 1:
        raise InputError("--train-workers", "count", train_workers, "at least 1")
    if not 1 <= fewest_workers <= train_workers:
        raise InputError("--train-workers", "fewest", fewest_workers, f"1 to {train_workers}")
    if worker_gpus < 0:
        raise InputError("--gpus-per-worker", "GPUs", worker_gpus, "0 or more")
    if worker_gpus > 1 and worker_gpus != int(worker_gpus):
        raise InputError("--gpus-per-worker", "GPUs", worker_gpus, "a fraction or a whole number")
    if 0 < worker_gpus < 1 and train_workers > 1:
        raise InputError(
            "--gpus-per-worker",
            "GPUs",
            f"{worker_gpus:g}",
            f"a whole GPU for each of {train_workers} train workers: NCCL joins none on one GPU",
        )


def _fitting(
    machines: Sequence[Mapping[str, float]], workers: int, wanted: float, worker_gpus: float
) -> float:
    """The most CPUs up to ``wanted`` with which so many workers have room on the machines.

    The least share where none do: then some wait for others.
    """
    hundredths = range(99, round(100 * SMALLEST_CPU_SHARE), -1)
    for cpus in (*range(math.floor(wanted), 0, -1), *(part / 100 for part in hundredths)):
        if cpus <= wanted + 1e-9 and _slots(machines, cpus, worker_gpus) >= workers:
            return float(cpus)
    return SMALLEST_CPU_SHARE


def _slots(machines: Sequence[Mapping[str, float]], worker_cpus: float, worker_gpus: float) -> int:
    """How many workers have room, each on one machine; a fraction is of one GPU, never of two."""
    slots = 0
    for machine in machines:
        cpus, gpus = float(machine.get("CPU", 0)), float(machine.get("GPU", 0))
        own = math.inf if worker_cpus == 0 else math.floor(cpus / worker_cpus + 1e-9)
        if worker_gpus >= 1:
            own = min(own, math.floor(gpus / worker_gpus))
        elif worker_gpus > 0:
            own = min(own, math.floor(gpus) * math.floor(1 / worker_gpus + 1e-9))
        slots += own
    return int(slots)


def _cpus_of_own(
    machines: Sequence[Mapping[str, float]], workers: int, worker_gpus: float
) -> float:
    """The most CPUs that a worker has, with what feeds it, on a machine that it may be on.

    Workers on GPUs are where these are, as many on one machine as it has GPUs for.
    """
    shares = [0.0]
    for machine in machines:
        slots = _slots([machine], 0.0, worker_gpus) if worker_gpus else 1
        if slots:
            shares.append(float(machine.get("CPU", 0)) / min(slots, workers))
    return max(shares)


def _whole_or_share(cpus: float) -> float:
    """Ray schedules requests above one CPU only as whole numbers."""
    return float(math.floor(cpus + 1e-9)) if cpus >= 1 else math.floor(cpus * 100 + 1e-6) / 100
