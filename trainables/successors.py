"""The process of the next Train worker, started while this one trains.

A worker's process takes longer to start and import torch than all else that a pretraining costs
beyond its training (``benchmarks/overhead.py``), and Ray starts it when it is needed. So each
worker asks for another like itself; Ray gives the next one an idle process of the same runtime
environment that has run nothing yet.

It reaches into Ray's private parts, whose version ``constraints.txt`` pins.
"""

from __future__ import annotations

import gc
import importlib
from contextlib import closing, suppress

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.worker import global_worker
from ray.core.generated.node_manager_pb2 import (
    PrestartWorkersRequest,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

#: Ray ends an idle process after this; with the job it ends at once.
KEPT_FOR_S = 24 * 3600
ANSWER_WITHIN_S = 10.0

#: Runtime environment of workers whose processes import what they need before they have work.
IMPORTS_AHEAD = {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{__name__}.import_ahead"}}


def import_ahead() -> None:
    """What a process of :data:`IMPORTS_AHEAD` does first."""
    # Nothing of what is imported is garbage; looking for some takes a third of the time.
    gc.disable()
    importlib.import_module("trainables.workers")
    gc.freeze()
    gc.enable()


def start_successor() -> None:
    """Have a process started on this machine that can take this worker's place in the next run.

    Without one the next run only begins later, so a refusal is no error.
    """
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    request = PrestartWorkersRequest(
        num_workers=1,
        job_id=global_worker.current_job_id.binary(),
        keep_alive_duration_secs=KEPT_FOR_S,
    )
    request.runtime_env_info.serialized_runtime_env = (
        ray.get_runtime_context().get_runtime_env_string()
    )
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    with closing(channel), suppress(grpc.RpcError):
        NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_WITHIN_S)
