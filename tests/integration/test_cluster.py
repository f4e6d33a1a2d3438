"""cluster.yaml: valid, closed to the outside, and launched for real over ssh on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from loopback_machines import (
    ROOT,
    LoopbackMachines,
    end_ray_processes,
    local_config,
    loopback_machines,
)
from moto import mock_aws
from packaging.requirements import Requirement
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from ablations.detached import detached_command
from seld.records import read_records
from seld.scenes.render import render_corpus
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings

AWS_FILE = ROOT / "cluster.yaml"
LOCAL_FILE = ROOT / "cluster-local.yaml"
ACCOUNT_FILE = ROOT / "aws-account.yaml"


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


# --- what the files say -------------------------------------------------------------------------


@pytest.mark.parametrize("path", [AWS_FILE, LOCAL_FILE], ids=lambda path: path.name)
def test_cluster_files_are_valid_by_the_installed_ray(path: Path) -> None:
    validate_config(prepare_config(_read(path)))


def test_a_misspelt_key_would_be_found() -> None:
    config = prepare_config(_read(AWS_FILE)) | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(config)


def test_the_local_example_differs_in_its_machines_only() -> None:
    aws, local = _read(AWS_FILE), _read(LOCAL_FILE)
    for config in (aws, local):
        config["setup_commands"] = [
            command for command in config["setup_commands"] if "apt-get" not in command
        ]
        config["head_start_ray_commands"] = [
            re.sub(r"RAY_enable_autoscaler_v2=\d", "", command)
            for command in config["head_start_ray_commands"]
        ]
    shared = set(local) - {"cluster_name", "provider", "auth", "upscaling_speed"}
    assert {name: local[name] for name in shared} == {name: aws[name] for name in shared}


def test_what_is_shipped_is_the_code_and_the_token() -> None:
    config = _read(AWS_FILE)
    mounts = dict(config["file_mounts"])
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    tracked = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert set(mounts.values()) <= {*tracked, "README.md", ".git"}
    assert all(remote == f"~/seld/{local}" for remote, local in mounts.items())
    # .git/config may hold the token of a remote's address.
    assert "/config" in config["rsync_exclude"]
    packages = re.findall(
        r'^    "(\w+)(?:\.\w+)?",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE
    )
    ours = {package for package in packages if (ROOT / package / "__init__.py").exists()}
    assert {"seld", "trainables", "ablations"} <= ours <= set(mounts.values())


def test_every_package_of_a_node_is_pinned() -> None:
    pinned = {
        _normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = Requirement("seld-ablations[cluster]")
    unpinned = {name for name in _closure(project) if name not in pinned} - {"seld-ablations"}
    assert unpinned == set()


def _closure(root: Requirement) -> set[str]:
    found: dict[str, set[str]] = {}
    pending = [root]
    while pending:
        requirement = pending.pop()
        name, extras = _normal(requirement.name), {"", *requirement.extras}
        if extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        for text in metadata.requires(requirement.name) or []:
            child = Requirement(text)
            marker = child.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(child)
    return set(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", [AWS_FILE, LOCAL_FILE], ids=lambda path: path.name)
def test_ray_starts_with_its_token_and_a_dashboard_on_loopback(path: Path) -> None:
    config = _read(path)
    starts = [
        command
        for name in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[name]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


# --- on AWS, as far as moto knows it ------------------------------------------------------------


@pytest.fixture
def aws_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An account in which aws-account.yaml has been deployed."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair it makes to ~/.ssh
    with mock_aws():
        region = _read(AWS_FILE)["provider"]["region"]
        boto3.client("cloudformation", region_name=region).create_stack(
            StackName="seld",
            TemplateBody=ACCOUNT_FILE.read_text(),
            Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": "198.51.100.7/32"}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield


def _bootstrapped() -> dict[str, Any]:
    config = prepare_config(_read(AWS_FILE))
    for node_type in config["available_node_types"].values():
        image = node_type["node_config"]["ImageId"]
        assert re.fullmatch(r"resolve:ssm:/aws/service/[\w/.-]+/ami-id", image)
        node_type["node_config"]["ImageId"] = "ami-12c6146b"  # moto resolves no SSM parameters
    return bootstrap_aws(config)


def test_only_ssh_from_one_address_reaches_the_nodes(aws_account: None) -> None:
    config = _bootstrapped()
    groups = {
        group
        for node_type in config["available_node_types"].values()
        for group in node_type["node_config"]["SecurityGroupIds"]
    }
    (group,) = groups
    rules = boto3.resource("ec2", config["provider"]["region"]).SecurityGroup(group).ip_permissions
    outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in outside] == [(22, 22)]
    assert outside[0]["IpRanges"] == [{"CidrIp": "198.51.100.7/32"}]
    inside = [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]]
    assert inside == [group]


def test_every_group_launches(aws_account: None) -> None:
    config = _bootstrapped()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        created = provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
        (instance,) = created.values()
        assert instance.instance_type == node_type["node_config"]["InstanceType"]
        profile = "head" if name == "head" else "worker"
        assert instance.iam_instance_profile["Arn"].endswith(f"seld-cluster-{profile}")
        is_spot = instance.instance_lifecycle == "spot"
        assert is_spot == (name in ("gpu-spot", "cpu"))


# --- which group a demand starts, by the scheduler of autoscaler 2 --------------------------------


def _launched(demand: dict[str, float], count: int, failed: tuple[str, ...] = ()) -> dict[str, int]:
    config = AutoscalingConfig(prepare_config(_read(AWS_FILE)), skip_content_hash=True)
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make(demand) for _ in range(count)]
            ),
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    launched = {request.instance_type: request.count for request in reply.to_launch}
    launched.pop("head", None)
    return launched


def test_gpu_work_starts_spot_and_on_demand_where_spot_has_just_failed() -> None:
    demand = {"GPU": 1.0, "CPU": 1.0}
    assert _launched(demand, 3) == {"gpu-spot": 3}
    assert _launched(demand, 3, failed=("gpu-spot",)) == {"gpu-on-demand": 3}


def test_cpu_work_starts_no_gpu_node() -> None:
    assert _launched({"CPU": 16.0}, 2) == {"cpu": 2}


def test_no_demand_starts_nothing_and_no_demand_passes_the_limit() -> None:
    assert _launched({"CPU": 1.0}, 0) == {}
    config = _read(AWS_FILE)
    launched = _launched({"GPU": 1.0}, 1000)
    assert sum(launched.values()) <= config["max_workers"] + 1  # one is the head's


# --- what a detached run is told -----------------------------------------------------------------


def test_a_detached_run_gets_the_command_as_typed_with_places_of_the_head() -> None:
    typed = ["variants", "--detach", "--address", "http://127.0.0.1:8265", "--set", "a.b=c d"]
    assert detached_command("ablations/run_grid.py", typed) == (
        "python ablations/run_grid.py variants --set 'a.b=c d' --address auto"
        " --data ~/seld-data --results ~/seld-results"
    )
    placed = ["--address=http://127.0.0.1:8265", "--data=/shared/data", "--results", "/shared/r"]
    assert detached_command("ablations/run_grid.py", placed) == (
        "python ablations/run_grid.py --data=/shared/data --results /shared/r --address auto"
    )


# --- launched for real ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines() -> Iterator[LoopbackMachines]:
    with loopback_machines(workers=1) as found:
        yield found


@pytest.fixture(scope="module")
def launched(machines: LoopbackMachines) -> Iterator[Path]:
    """The local example on a head and a worker, after ``ray up``; the file to speak to it with."""
    path = local_config(machines, LOCAL_FILE)
    machines.run("ray", "up", "--yes", "--no-config-cache", str(path))
    yield path
    machines.run("ray", "down", "--yes", str(path), check=False)


def _until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} has not happened in {timeout_s:g} s"
        time.sleep(0.5)
    return value


def _on_head(machines: LoopbackMachines, path: Path, command: str) -> str:
    return machines.run("ray", "exec", "--no-config-cache", str(path), command).stdout


def _submit(machines: LoopbackMachines, *command: str, **environment: str) -> Any:
    return machines.run(
        "ray", "job", "submit", "--working-dir", str(ROOT), "--", *command,
        RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{machines.dashboard_port}",
        **environment,
        check=False,
    )  # fmt: skip


WHERE_TASKS_RUN = """
import json, subprocess, ray
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=1)
def report():
    import os, trainables
    commit = subprocess.run(["git", "-C", os.environ["HOME"] + "/seld", "rev-parse", "HEAD"],
                            capture_output=True, text=True).stdout.strip()
    return {"home": os.environ["HOME"], "commit": commit, "code": trainables.__file__}

nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
found = ray.get([report.options(scheduling_strategy=pinned(node, soft=False)).remote()
                 for node in nodes])
print("FOUND", json.dumps(found))
"""


def _nodes(machines: LoopbackMachines, path: Path) -> list[dict[str, str]]:
    script = machines.folder / "where.py"
    script.write_text(WHERE_TASKS_RUN)
    output = _on_head(machines, path, f"cd ~/seld && PYTHONPATH=. python {script}")
    return json.loads(output.partition("FOUND ")[2].splitlines()[0])


@pytest.mark.slow
@pytest.mark.ray
def test_ray_up_brings_the_code_and_the_token_to_every_machine(
    machines: LoopbackMachines, launched: Path
) -> None:
    found = _until(
        lambda: len(nodes := _nodes(machines, launched)) == 2 and nodes, 120, "the worker's joining"
    )
    homes = {str(machine.home) for machine in (machines.head, *machines.workers)}
    assert {node["home"] for node in found} == homes
    assert all(node["code"].startswith(str(machines.folder)) for node in found)
    (commit,) = {node["commit"] for node in found}
    known = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT)
    assert known.returncode == 0
    token = (machines.folder / "launcher/.ray/auth_token").read_bytes()
    for machine in (machines.head, *machines.workers):
        carried = machine.home / ".ray/auth_token"
        assert carried.read_bytes() == token
        assert carried.stat().st_mode & 0o077 == 0
        assert not (machine.home / "seld/.git/config").exists()
        assert not (machine.home / "seld/tests").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_without_the_token_nothing_answers(machines: LoopbackMachines, launched: Path) -> None:
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    none = {"RAY_AUTH_MODE": "disabled"}
    hello = ("python", "-c", "print('ran')")
    for environment in (wrong, none):
        refused = _submit(machines, *hello, **environment)
        assert refused.returncode != 0
        assert "ran" not in refused.stdout.splitlines()
        connect = f"import ray; ray.init('{machines.head.address}:{machines.head_port}')"
        driver = machines.run(sys.executable, "-c", connect, check=False, **environment)
        assert driver.returncode != 0
    assert "ran" in _submit(machines, *hello).stdout.splitlines()


@pytest.mark.slow
@pytest.mark.ray
def test_the_dashboard_is_on_loopback_only(machines: LoopbackMachines, launched: Path) -> None:
    listening = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True).stdout
    addresses = {
        line.split()[3].rpartition(":")[0]
        for line in listening.splitlines()
        if line.split()[3].endswith(f":{machines.dashboard_port}")
    }
    assert addresses == {"127.0.0.1"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three minutes of scenes: unannotated, annotated and test."""
    folder = tmp_path_factory.mktemp("scenes")
    minute = PartSettings(minutes=1, rooms=1)
    picture = PictureSettings(height_px=32, width_px=64, frame_rate_hz=5)
    settings = SceneSettings(unannotated=minute, train=minute, test=minute, picture=picture)
    render_corpus(settings, folder, workers=1)
    return folder


def _tiny_grid(scenes: Path, shared: Path, *options: str) -> tuple[str, ...]:
    corpus = f"embedded={scenes}"
    return (
        "python", "ablations/run_grid.py", "--address", "auto",
        "--annotated", corpus, "--unannotated", corpus, "--data", str(shared / "data"),
        "--results", str(shared / "results"), "--storage", str(shared / "stages"),
        "--arms", "scratch,avc", "--seeds", "0", "--budgets", "0.5",
        "--set", "pretrain.steps=4", "--set", "pretrain.batch_size=4",
        "--set", "finetune.steps=4", *options,
    )  # fmt: skip


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_a_submitted_grid_survives_the_loss_of_a_machine(
    machines: LoopbackMachines, launched: Path, scenes: Path
) -> None:
    shared = machines.folder / "shared"
    _until(lambda: len(_nodes(machines, launched)) == 2, 120, "the worker's joining")
    job = subprocess.Popen(
        [
            "ray", "job", "submit", "--working-dir", str(ROOT), "--",
            *_tiny_grid(scenes, shared),
        ],
        cwd=ROOT,
        env=machines.launcher_environment
        | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{machines.dashboard_port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        stages = shared / "stages"
        _until(
            lambda: job.poll() is not None or list(stages.glob("*/*/lease-*.json")), 240, "a stage"
        )
        end_ray_processes(machines.workers[0].home)
        output, _ = job.communicate(timeout=420)
    finally:
        job.kill()
    assert job.returncode == 0, output[-6000:]
    records = list(read_records(shared / "results/variants"))
    assert {record.arm: record.status for record in records} == {
        "scratch": "finished",
        "avc": "finished",
    }
    assert (shared / "results/variants/report/index.html").stat().st_size > 10_000


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_a_detached_run_is_listed_and_followed(
    machines: LoopbackMachines, launched: Path, scenes: Path
) -> None:
    address = ("--address", f"http://127.0.0.1:{machines.dashboard_port}")
    _, program, _, _, *options = _tiny_grid(scenes, machines.folder / "shared")
    run = (sys.executable, program)
    started = machines.run(*run, *options, *address, "--detach")
    job = started.stdout.split()[0]
    followed = machines.run(*run, *address, "--attach", job, timeout_s=400)
    # What the submitted run of the test before has finished is not computed again.
    assert "all 2 trials are finished already" in followed.stdout
    listed = machines.run(*run, *address, "--status", COLUMNS="300").stdout
    (row,) = [line for line in listed.splitlines() if job in line]
    assert "succeeded" in row
    unknown = machines.run(*run, *address, "--attach", "nothing", check=False)
    assert unknown.returncode == 2
    assert "--attach is 'nothing'" in unknown.stdout + unknown.stderr


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_ray_down_leaves_nothing_running(machines: LoopbackMachines, launched: Path) -> None:
    assert machines.processes()
    machines.run("ray", "down", "--yes", str(launched))
    deadline = time.monotonic() + 60
    while (left := machines.processes()) and time.monotonic() < deadline:
        time.sleep(1)
    assert left == {}
