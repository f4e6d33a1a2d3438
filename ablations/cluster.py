"""The cluster a run is on: connected to or started here, and what of it a trial gets."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray._common.utils import get_system_memory  # psutil's total, or a container's limit
from ray.data._internal.stats import get_or_create_stats_actor
from ray.exceptions import RayError

from ablations.places import ROOT
from search_spaces.studies import Study
from seld.errors import InputError, first_line
from trainables.resources import Placement, plan_placement

OUR_PACKAGES = ("seld", "trainables", "search_spaces", "ablations", "analysis")

#: Of all processes that trials run in.
TRIAL_ENVIRONMENT = {
    # Tune gives up a process for the next trial, and that trial with it, where the last one's
    # function has not ended after 2 s, as on a busy machine.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    # Tensors in large pages: to map fresh memory for every one of them in pieces of 4 KiB takes a
    # tenth to a quarter of a step on a CPU. One arena for all threads: the others', which training
    # threads would use, give memory back and take it anew at every step, another tenth. Glibc reads
    # this from 2.35 on.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
}

#: How long a cluster may take to take a connection.
ANSWER_WITHIN_S = 10.0
#: How often Ray is started here before its failure to start in time is believed.
RAY_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where Ray runs and how trials are laid out on it.

    Attributes:
        address: of a running cluster (``auto`` for this machine's); None starts one here.
        cpus: logical CPUs of a cluster started here; None for all.
        train_workers, fewest_workers: of one pretraining, and how few it may go on with.
    """

    address: str | None = None
    cpus: int | None = None
    train_workers: int = 1
    fewest_workers: int | None = None
    gpus_per_worker: float | None = None
    most_trials_at_once: int | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.address.startswith(("http://", "https://")):
            raise InputError(
                "command line",
                "--address",
                self.address,
                "auto or HOST:PORT; a dashboard's address goes with --detach, --attach, --status "
                "or --show",
            )
        if self.address is not None and self.cpus is not None:
            expected = "no --address: a running cluster has the CPUs it has"
            raise InputError("command line", "--cpus", self.cpus, expected)
        for option, count in (
            ("--cpus", self.cpus),
            ("--train-workers", self.train_workers),
            ("--trials-at-once", self.most_trials_at_once),
        ):
            if count is not None and count < 1:
                raise InputError("command line", option, count, "at least 1")


def placement_of(
    study: Study, machines: Sequence[Mapping[str, float]], cluster: ClusterOptions, *, trials: int
) -> Placement:
    """How the study's trials, so many, are laid out on these machines.

    Raises:
        InputError: one trial does not fit, or its batch cannot be shared out to the workers.
    """
    placement = plan_placement(
        *machines,
        train_workers=cluster.train_workers,
        fewest_workers=cluster.fewest_workers,
        gpus_per_worker=cluster.gpus_per_worker,
        most_lanes=cluster.most_trials_at_once,
    ).for_trials(trials)
    for arm in study.arms:
        for workers in range(placement.fewest_workers, placement.train_workers + 1):
            if arm.pretrain is not None:
                arm.pretrain.rank_batch_size(workers)
    return placement


def machines_of(cluster: ClusterOptions) -> list[Mapping[str, float]]:
    """What the cluster has: asked of a running one, counted on this machine otherwise."""
    if cluster.address is not None:
        with ray_cluster(cluster):
            return connected_machines(cluster)
    cpus = float(cluster.cpus or os.cpu_count() or 1)
    gpus = float(torch.cuda.device_count())
    return [{"CPU": cpus, "GPU": gpus, "memory": get_system_memory()}]


def connected_machines(cluster: ClusterOptions) -> list[Mapping[str, float]]:
    """Resources of each machine of the connected cluster, or that its autoscaler may bring."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if cluster.address is None:
        # All of this machine's, as its plan counts it: Ray says what was free at its start, less
        # the object store's part.
        return [{**machine, "memory": get_system_memory()} for machine in alive]
    on_head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
    config = ray.get(on_head(_autoscaling_config).remote(ray.get_runtime_context().gcs_address))
    if config is None:
        return alive
    may_come = autoscaled_machines(config, with_gpus=cluster.gpus_per_worker != 0)
    # Machines of one's own say what they have when they have joined.
    return may_come if all(may_come) else alive


def autoscaled_machines(config: Mapping[str, Any], *, with_gpus: bool) -> list[Mapping[str, float]]:
    """The head and as many workers as there can be together; those with most GPUs first.

    Ray Train and Ray Data would ask ``get_max_resources_from_cluster_config``, which knows
    nothing: Ray 2.60 never tells it.

    Args:
        config: of ``ray up``, as the autoscaler has it.
        with_gpus: without, only groups count that Ray starts for work that asks for none.
    """
    groups = dict(config["available_node_types"])
    machines = [groups.pop(config["head_node_type"])["resources"]]
    left = config["max_workers"]
    for group in sorted(groups.values(), key=_gpus_of, reverse=True):
        if with_gpus or not _gpus_of(group):
            count = min(group.get("max_workers", 0), left)
            machines += [group["resources"]] * count
            left -= count
    return machines


def _gpus_of(group: Mapping[str, Any]) -> float:
    return group["resources"].get("GPU", 0.0)


def _autoscaling_config(gcs_address: str) -> dict[str, Any] | None:
    """What the cluster's autoscaler, a process of this machine, was started with."""
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            words = command_line.read_text(errors="replace").split("\0")
            options = dict(
                word.split("=", 1) for word in words if word.startswith("--") and "=" in word
            )
            config = options.get("--autoscaling-config")
            if config and options.get("--gcs-address") == gcs_address:
                return yaml.safe_load(Path(config).expanduser().read_text(encoding="utf-8"))
    return None


def driver_resource() -> str:
    """What only the driver's machine has."""
    return f"node:{ray.util.get_node_ip_address()}"


def _start_ray_here(cpus: int | None) -> None:
    """Start Ray on this machine, again where other work kept its raylet from starting in time."""
    for attempt in range(1, RAY_STARTS + 1):
        try:
            ray.init(
                # Not the cluster that RAY_ADDRESS names, nor one that runs here already.
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                # By default Ray ends a worker that is idle for a second while there are more
                # workers than CPUs; with the actors of a few trials there always are, and every
                # batch would wait for a process to start and import again.
                # Nobody reads the metrics and task events of a cluster without a dashboard.
                _system_config={
                    "idle_worker_killing_time_threshold_ms": 60_000,
                    "enable_metrics_collection": False,
                    "task_events_report_interval_ms": 0,
                },
            )
            return
        except Exception as error:
            # Ray 2.60 waits for 30 s, raises plain Exception, and has no setting for either.
            if "timed out during startup" not in str(error) or attempt == RAY_STARTS:
                raise
            ray.shutdown()


def _connect(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        InputError: there is none, or it refuses the token.
    """
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for a minute and longer
            socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
        ray.init(
            address=address,
            # What this process imports is what every worker imports, edits included.
            runtime_env={
                "py_modules": [str(ROOT / package) for package in OUR_PACKAGES],
                "env_vars": TRIAL_ENVIRONMENT,
            },
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ValueError, OSError, RayError) as error:
        reason = first_line(error)
        expected = f"the address of a running cluster that takes your token ({reason})"
        raise InputError("command line", "--address", address, expected) from error
    # Whoever runs Ray Data first starts this actor, which stays on its node until the cluster ends:
    # where all is decoded already, on a node of train workers, which then never counts as idle
    # (Ray issue #42253).
    get_or_create_stats_actor()


@contextmanager
def ray_cluster(options: ClusterOptions) -> Iterator[None]:
    """Connect to a cluster or start one here, quietly; it ends with the block, Ctrl-C included."""
    # Tune would catch Ctrl-C itself, carry on for a while and swallow it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Its own loggers write what records, histories and trackers hold already, under other names.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ |= TRIAL_ENVIRONMENT
    try:
        if options.address is None:
            # One machine is not preempted apart from itself; a process less per pretraining.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            _start_ray_here(options.cpus)
        else:
            _connect(options.address)
        yield
    finally:
        ray.shutdown()
