"""The groups of cluster.yaml under Ray's fake provider: work brings workers, idleness ends them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.util import get_node_ip_address

from tests.integration.loopback_machines import ENVIRONMENT, ROOT, end_ray_processes, free_port

IDLE_S = 3

# Two trials, each of which stays until both are running: neither's machine is idle before.
TRIALS_THAT_WAIT_FOR_GPUS = """
import json, time, ray
from ablations.cluster import ClusterOptions, connected_machines
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Meeting:
    def __init__(self):
        self.nodes, self.over = set(), False
    def join(self, node):
        self.nodes.add(node)
    def size(self):
        return len(self.nodes)
    def end(self):
        self.over = True
    def is_over(self):
        return self.over

@ray.remote(num_cpus=1, num_gpus=1)
def trial(meeting):
    ray.get(meeting.join.remote(ray.get_runtime_context().get_node_id()))
    while not ray.get(meeting.is_over.remote()):
        time.sleep(0.2)

def gpus():
    return sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])

def wait(condition):
    deadline = time.monotonic() + 240
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)

before = gpus()
may_come = connected_machines(ClusterOptions(address="auto"))
meeting = Meeting.remote()
trials = [trial.remote(meeting) for _ in range(2)]
wait(lambda: ray.get(meeting.size.remote()) == 2)
nodes, during = ray.get(meeting.size.remote()), gpus()
ray.get(meeting.end.remote())
ray.get(trials, timeout=60)
wait(lambda: not gpus())
seen = {"before": before, "nodes": nodes, "during": during, "after": gpus()}
print("SEEN", json.dumps(seen | {"may_come": [machine["CPU"] for machine in may_come]}))
"""


@pytest.fixture
def autoscaling_head() -> Iterator[dict[str, str]]:
    """Environment of a driver on a head whose workers, as in cluster.yaml, are processes here."""
    folder = Path(tempfile.mkdtemp(prefix="seld-", dir="/tmp"))  # sockets need short paths
    port = free_port()
    config_file = folder / "cluster.yaml"
    config_file.write_text(yaml.safe_dump(_fake_config(port)))
    environment = {
        "HOME": str(folder),
        "PATH": f"{ENVIRONMENT}:/usr/bin:/bin",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    start = [
        "ray", "start", "--head", f"--port={port}", f"--temp-dir={folder}/ray",
        f"--autoscaling-config={config_file}", "--num-cpus=4", "--include-dashboard=false",
        f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000",
        "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    try:
        started = subprocess.run(start, env=environment, capture_output=True, text=True)
        assert started.returncode == 0, started.stdout + started.stderr
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        end_ray_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _fake_config(port: int) -> dict[str, Any]:
    """cluster.yaml with its own groups and limits, but machines that cost nothing."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    node_types = config["available_node_types"]
    node_types[FAKE_HEAD_NODE_TYPE] = node_types.pop(config["head_node_type"])
    config["head_node_type"] = FAKE_HEAD_NODE_TYPE
    for node_type in node_types.values():
        node_type["node_config"] = {}
    for name in ("gpu-spot", "gpu-on-demand"):
        node_types[name]["max_workers"] = 1
    config["provider"] = {
        # By its class: under its name Ray wants an example file that its wheel does not contain.
        "type": "external",
        "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "gcs_address": f"{get_node_ip_address()}:{port}",
    }
    config |= {"idle_timeout_minutes": IDLE_S / 60, "auth": {}, "file_mounts": {}}
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        config[name] = []
    for name in ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"):
        config[name] = []
    config |= {"initialization_commands": [], "docker": {}, "rsync_filter": []}
    return config


@pytest.mark.slow
@pytest.mark.ray
def test_waiting_trials_bring_gpu_workers_which_go_when_idle(
    autoscaling_head: dict[str, str],
) -> None:
    driver = subprocess.run(
        [sys.executable, "-c", TRIALS_THAT_WAIT_FOR_GPUS],
        env=autoscaling_head, capture_output=True, text=True, timeout=570,
    )  # fmt: skip
    assert driver.returncode == 0, driver.stderr[-3000:]
    seen = json.loads(driver.stdout.partition("SEEN ")[2])
    # A run is laid out for what cluster.yaml's autoscaler may bring, not for the head alone.
    assert seen.pop("may_come") == [4, 8, 8, *[16] * 8]
    # One spot worker and, as that group is full, one on demand; neither is left.
    assert seen == {"before": 0, "nodes": 2, "during": 2, "after": 0}
