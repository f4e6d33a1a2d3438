"""cluster.yaml: valid, closed to the outside, and launched for real over ssh on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from zipfile import ZipFile

import boto3
import pytest
import s3fs
import yaml
from moto import mock_aws
from packaging.requirements import Requirement
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.util import get_node_ip_address
from s3_server import s3_process

from ablations import detached
from ablations.detached import SHIPPED, detached_command, submit
from seld.records import read_record
from seld.scenes.render import render_corpus
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings
from tests.integration.loopback_machines import (
    ROOT,
    LoopbackMachines,
    Machine,
    end_ray_processes,
    listens,
    local_config,
    loopback_machines,
)

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


def test_a_detached_run_ships_what_the_nodes_have_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = set(_read(AWS_FILE)["file_mounts"].values()) - {".git", "~/.ray/auth_token"}
    assert shipped == set(SHIPPED)
    root = tmp_path / "checkout"
    beside = {".git", ".venv", "results-esc10", "shards", "my [data]", "benchmarks"}
    for name in shipped | beside:
        (root / name).mkdir(parents=True)
        (root / name / "file").touch()
    (root / "weights.pt").touch()
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **job: Any) -> str:
            sent.update(job["runtime_env"])
            return "job"

    monkeypatch.setattr(detached, "ROOT", root)
    monkeypatch.setattr(detached, "job_client", lambda address: Client())
    assert submit("http://127.0.0.1:8265", "ablations/run_grid.py", []) == "job"
    package = tmp_path / "package.zip"
    create_package(sent["working_dir"], package, True, excludes=sent["excludes"])
    assert set(ZipFile(package).namelist()) == {f"{name}/file" for name in shipped}


# --- launched for real ----------------------------------------------------------------------------

BUCKET = "s3://seld-test"


@pytest.fixture(scope="module")
def credentials() -> Iterator[dict[str, str]]:
    """What opens the bucket to a process, as the roles of aws-account.yaml do on their nodes."""
    with s3_process() as environment:
        yield environment


@pytest.fixture(scope="module")
def machines(credentials: dict[str, str]) -> Iterator[LoopbackMachines]:
    with loopback_machines(workers=1, credentials=credentials) as found:
        yield found


@pytest.fixture(scope="module")
def launched(machines: LoopbackMachines) -> Path:
    """The local example on a head and a worker, after ``ray up``; the file to speak to it with."""
    path = local_config(machines, LOCAL_FILE)
    machines.run("ray", "up", "--yes", "--no-config-cache", str(path))
    return path


@pytest.fixture(scope="module")
def corpus(credentials: dict[str, str]) -> str:
    """Three minutes of scenes in the bucket: unannotated, annotated and test."""
    minute = PartSettings(minutes=1, rooms=1)
    picture = PictureSettings(height_px=32, width_px=64, frame_rate_hz=5)
    settings = SceneSettings(unannotated=minute, train=minute, test=minute, picture=picture)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        render_corpus(settings, f"{BUCKET}/scenes", workers=1)
        s3fs.S3FileSystem.clear_instance_cache()
    return f"embedded={BUCKET}/scenes"


def _until(
    condition: Callable[[], Any],
    what: str,
    timeout_s: float = 300,
    story: Callable[[], str] = str,
) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} has not happened in {timeout_s:g} s\n{story()}")
        time.sleep(0.2)
    return value


WHERE_TASKS_RUN = """
import json, subprocess, time, ray
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=1)
def report():
    import os, trainables
    commit = subprocess.run(["git", "-C", os.environ["HOME"] + "/seld", "rev-parse", "HEAD"],
                            capture_output=True, text=True).stdout.strip()
    return {"home": os.environ["HOME"], "commit": commit, "code": trainables.__file__}

while len(nodes := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.5)
pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
found = ray.get([report.options(scheduling_strategy=pinned(node, soft=False)).remote()
                 for node in nodes])
print("FOUND", json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_ray_up_brings_the_code_and_the_token_to_every_machine(
    machines: LoopbackMachines, launched: Path
) -> None:
    script = machines.head.home / "where.py"
    script.write_text(WHERE_TASKS_RUN)
    command = ("ray", "exec", "--no-config-cache", str(launched), f"python {script}")
    output = machines.run(*command).stdout
    found = json.loads(output.partition("FOUND ")[2].splitlines()[0])
    places = (machines.head, *machines.workers)
    assert {node["home"] for node in found} == {str(machine.home) for machine in places}
    assert all(node["code"].startswith(f"{node['home']}/seld/") for node in found)
    (commit,) = {node["commit"] for node in found}
    known = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT)
    assert known.returncode == 0
    token = (machines.folder / "launcher/.ray/auth_token").read_bytes()
    for machine in places:
        carried = machine.home / ".ray/auth_token"
        assert carried.read_bytes() == token
        assert carried.stat().st_mode & 0o077 == 0
        assert not (machine.home / "seld/.git/config").exists()
        assert not (machine.home / "seld/tests").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_without_the_token_nothing_answers(machines: LoopbackMachines, launched: Path) -> None:
    jobs = f"http://127.0.0.1:{machines.dashboard_port}/api/jobs/"
    hello = json.dumps({"entrypoint": "echo ran"}).encode()
    token = (machines.folder / "launcher/.ray/auth_token").read_text()
    answers = {}
    for who, headers in {
        "nobody": {},
        "someone": {"Authorization": "Bearer " + "0" * 64},
        "us": {"Authorization": f"Bearer {token}"},
    }.items():
        headers["Content-Type"] = "application/json"
        try:
            with urlopen(Request(jobs, data=hello, headers=headers), timeout=120) as answer:
                answers[who] = answer.status
        except HTTPError as error:
            answers[who] = error.code
    assert answers == {"nobody": 401, "someone": 403, "us": 200}

    # Nor does GCS, to a driver.
    driver = f"import ray; ray.init('{machines.head.address}:{machines.head_port}')"

    def connect(environment: dict[str, str]) -> int:
        return machines.run(sys.executable, "-c", driver, check=False, **environment).returncode

    with ThreadPoolExecutor() as threads:
        attempts = {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}
        assert 0 not in list(threads.map(connect, attempts))


@pytest.mark.slow
@pytest.mark.ray
def test_the_dashboard_is_not_reached_from_outside(
    machines: LoopbackMachines, launched: Path
) -> None:
    outside = get_node_ip_address()
    assert not outside.startswith("127.")
    assert listens("127.0.0.1", machines.dashboard_port)
    for address in (outside, machines.head.address):
        assert not listens(address, machines.dashboard_port)
    assert not listens(outside, machines.client_port)


def _tiny_grid(corpus: str, head: Machine) -> list[str]:
    """Two trials with nothing on a common disk: all that machines share is the bucket."""
    return [
        "--annotated", corpus, "--unannotated", corpus, "--storage", f"{BUCKET}/runs",
        "--data", str(head.home / "seld-data"), "--results", str(head.home / "seld-results"),
        "--arms", "scratch,avc", "--seeds", "0", "--budgets", "0.5",
        "--set", "pretrain.steps=4", "--set", "pretrain.batch_size=4",
        "--set", "finetune.steps=16", "--set", "finetune.batch_size=4",
    ]  # fmt: skip


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.ray
def test_a_submitted_grid_survives_the_loss_of_a_machine(
    machines: LoopbackMachines, launched: Path, corpus: str, tmp_path: Path
) -> None:
    (worker,) = machines.workers
    bucket = s3fs.S3FileSystem(client_kwargs=_client_of(machines), use_listings_cache=False)
    log = tmp_path / "job.log"
    grid = ["ablations/run_grid.py", "--address", "auto", *_tiny_grid(corpus, machines.head)]
    command = ["ray", "job", "submit", "--working-dir", str(ROOT), "--", "python", *grid]
    where = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{machines.dashboard_port}"}
    with log.open("wb") as output:
        job = subprocess.Popen(
            command,
            cwd=ROOT,
            env=machines.launcher_environment | where,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def works() -> bool:
            assert job.poll() is None, log.read_text()[-6000:]
            titles = machines.processes(worker).values()
            busy = [title for title in titles if re.match(r"ray::(?!IDLE|\w+Agent)", title)]
            return bool(busy and bucket.glob(f"{BUCKET}/runs/stages/*/*/lease-*.json"))

        _until(works, "work of a stage on the second machine")
        end_ray_processes(worker.home)
        assert job.wait(timeout=1200) == 0, log.read_text()[-6000:]
    finally:
        job.kill()
        job.wait()
    stages = bucket.glob(f"{BUCKET}/runs/stages/*/*/committed.json")
    kinds = sorted(path.split("/")[-3] for path in stages)
    assert kinds == ["evaluate", "evaluate", "finetune", "finetune", "pretrain"]
    assert not bucket.glob(f"{BUCKET}/runs/stages/*/*/partial")
    assert bucket.size(f"{BUCKET}/runs/results/variants/report/index.html") > 10_000


def _client_of(machines: LoopbackMachines) -> dict[str, str]:
    environment = machines.credentials
    return {
        "endpoint_url": environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
        "region_name": environment["AWS_DEFAULT_REGION"],
    }


#: One process for several commands: most of each one's time would go into importing.
COMMANDS = """
import contextlib, io, json, sys
from ablations.run_grid import main
from seld.errors import exit_on_input_error

outcomes, job = [], ""
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["ablations/run_grid.py", *(word.replace("{job}", job) for word in arguments)]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            exit_on_input_error(main)
        except SystemExit as ended:
            code = ended.code
    job = job or out.getvalue().split(" ")[0]
    outcomes.append((code, out.getvalue()))
print("OUTCOMES", json.dumps([job, outcomes]))
"""


@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.ray
def test_a_detached_run_is_followed_and_its_results_fetched_from_another_machine(
    machines: LoopbackMachines, launched: Path, corpus: str, tmp_path: Path
) -> None:
    address = ["--address", f"http://127.0.0.1:{machines.dashboard_port}"]
    kept = ["--storage", f"{BUCKET}/runs", "--results", str(tmp_path)]
    commands = [
        [*_tiny_grid(corpus, machines.head), *address, "--detach"],
        [*address, "--attach", "{job}"],
        [*address, "--status"],
        [*address, "--attach", "nothing"],
        [*kept, "--show", "avc"],
        [*kept, "--show", "failed"],
        [*kept, "--show", "nothing"],
        [*kept, "--fetch"],
    ]
    done = machines.run(
        sys.executable, "-c", COMMANDS, json.dumps(commands),
        timeout_s=1200, COLUMNS="300", **machines.credentials,
    )  # fmt: skip
    job, outcomes = json.loads(done.stdout.partition("OUTCOMES ")[2])
    codes, texts = zip(*outcomes, strict=True)
    assert codes == (0, 0, 0, 2, 0, 0, 2, 0), texts
    _, followed, listed, unknown, shown, failed, missing, fetched = texts
    # What the run of the test before has finished is not computed again.
    assert "all 2 trials finished already" in followed
    (row,) = [line for line in listed.splitlines() if job in line]
    assert "succeeded" in row
    assert "--attach is 'nothing'" in unknown
    assert re.search(r"finished, .*pretrain \w+: computed.*: computes, try 1", shown, re.DOTALL)
    assert "no trial has failed" in failed
    assert "--show is 'nothing'" in missing
    assert "index.html" in fetched
    records = [read_record(folder) for folder in (tmp_path / "variants/trials").iterdir()]
    assert {record.arm: record.status for record in records} == {
        "scratch": "finished",
        "avc": "finished",
    }
    assert (tmp_path / "variants/report/index.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.ray
def test_ray_down_leaves_nothing_running(machines: LoopbackMachines, launched: Path) -> None:
    (worker,) = machines.workers
    # A machine that was lost is set up again, and is to be ended like any other.
    _until(
        lambda: any("raylet" in title for title in machines.processes(worker).values()),
        "the worker's return",
        story=machines.story,
    )
    machines.run("ray", "down", "--yes", str(launched))
    _until(lambda: not machines.processes(), "the end of all of Ray's processes")
