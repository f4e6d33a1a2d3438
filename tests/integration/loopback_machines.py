"""Machines for `ray up` that are this machine: an sshd on loopback addresses of their own.

Each machine has an address in 127/8, a home folder, and nothing else of its own; the network,
the processes and the installed Python are shared. What Ray would do to a whole machine
(`ray stop` ends every Ray process, fixed ports) is therefore narrowed by a `ray` command in the
home's `bin`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One pretended machine.

    Attributes:
        address: where its sshd listens, on port 22.
        home: the home folder of whoever logs in there.
    """

    address: str
    home: Path


@dataclass(frozen=True, kw_only=True)
class LoopbackMachines:
    """The machines, and what a person needs to reach them.

    Attributes:
        folder: holds everything; its path marks every process that belongs here.
        private_key: logs in to every machine.
    """

    folder: Path
    head: Machine
    workers: tuple[Machine, ...]
    private_key: Path
    head_port: int
    dashboard_port: int

    @property
    def launcher_environment(self) -> dict[str, str]:
        """Environment of whoever types `ray up`: a home of their own, with Ray's token."""
        return {
            "HOME": str(self.folder / "launcher"),
            "PATH": f"{ENVIRONMENT}:/usr/local/bin:/usr/bin:/bin",
            "RAY_TMPDIR": str(self.folder / "tmp"),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_AUTH_MODE": "token",
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }

    def run(
        self, *command: str, timeout_s: float = 180, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the launcher, in the checkout."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.launcher_environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done

    def processes(self) -> dict[int, str]:
        """Process id → command line of every Ray process of these machines."""
        return _ray_processes(self.folder)


@contextmanager
def loopback_machines(*, workers: int) -> Iterator[LoopbackMachines]:
    """A head and ``workers`` more machines; skips the test, with the reason, where impossible."""
    _require_sshd()
    # Sockets of Ray live below this folder, and their paths must stay under 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="seld-", dir="/tmp"))
    block = os.getpid() % 250 + 1
    names = ["head", *(f"worker{number}" for number in range(1, workers + 1))]
    head, *others = (
        Machine(address=f"127.77.{block}.{number}", home=folder / name)
        for number, name in enumerate(names, start=1)
    )
    machines = LoopbackMachines(
        folder=folder,
        head=head,
        workers=tuple(others),
        private_key=folder / "launcher/key",
        head_port=free_port(),
        dashboard_port=free_port(),
    )
    (folder / "tmp").mkdir()
    (folder / "launcher").mkdir()
    for machine in (head, *others):
        _furnish(machine, machines)
    server = _start_sshd(machines)
    try:
        machines.run("ray", "get-auth-token", "--generate")
        yield machines
    finally:
        end_ray_processes(folder)
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def local_config(machines: LoopbackMachines, cluster_file: Path) -> Path:
    """``cluster_file`` for these machines: other places to run on, everything else as it is."""
    config: dict[str, Any] = yaml.safe_load(cluster_file.read_text())
    for name in ("available_node_types", "head_node_type", "max_workers"):
        config.pop(name, None)
    config["cluster_name"] = machines.folder.name
    config["provider"] = {
        "type": "local",
        "head_ip": machines.head.address,
        "worker_ips": [worker.address for worker in machines.workers],
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(machines.private_key)}
    # The pinned environment is the one this test runs in; building it again would download
    # gigabytes and show what any installation of the project shows.
    config["setup_commands"] = [
        command
        for command in config["setup_commands"]
        if not any(tool in command for tool in ("apt-get", ".uv/bin/uv"))
    ]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = [
            command.replace("6379", str(machines.head_port)) for command in config[name]
        ]
    path = machines.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def end_ray_processes(folder: Path) -> None:
    """Kill what Ray runs with its home or files below ``folder``, drivers of jobs included."""
    for process in _ray_processes(folder):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _ray_processes(folder: Path) -> dict[int, str]:
    found = {}
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name)):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        program = command.partition(" ")[0].rpartition("/")[2]
        if program in ("bash", "ssh", "sshd", "sshd:") or int(entry.name) == os.getpid():
            continue
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        # Ray's agents overwrite their command line and environment: they count by their parent.
        if f"{folder}/" in f"{command} {environment}" or parent in found:
            found[int(entry.name)] = command
    return found


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _require_sshd() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: an sshd on port 22 of a loopback address")
    if shutil.which("sshd", path="/usr/sbin:/usr/bin") and shutil.which("rsync"):
        return
    if not shutil.which("apt-get"):
        pytest.skip("no sshd or rsync here, and no apt-get to install them")
    installed = subprocess.run(
        "apt-get update -qq; apt-get install -y -qq openssh-server rsync",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if installed.returncode != 0:
        pytest.skip(f"openssh-server and rsync cannot be installed: {installed.stderr[-300:]}")


def _furnish(machine: Machine, machines: LoopbackMachines) -> None:
    """Home folder with a `ray` that keeps to its own processes and ports."""
    program = machine.home / "seld-env/bin/ray"
    program.parent.mkdir(parents=True)
    python = program.with_name("python")
    python.write_text(f'#!/bin/bash\nexec {ENVIRONMENT}/python "$@"\n')
    python.chmod(0o755)
    options = [
        f"--node-ip-address={machine.address}",
        f"--temp-dir={machine.home}/ray",
        "--num-cpus=1",
        "--object-store-memory=100000000",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    if machine == machines.head:
        options += [
            f"--dashboard-port={machines.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
        ]
    program.write_text(
        textwrap.dedent(f"""\
            #!/bin/bash
            # `ray stop` ends all Ray processes of a machine; this machine is shared.
            if [ "$1" = stop ]; then
                exec {sys.executable} {Path(__file__)} {machine.home}
            elif [ "$1" = start ]; then
                # A worker gives up a lost head after a minute; a test cannot wait that long.
                export RAY_gcs_rpc_server_reconnect_timeout_s=5
                export RAY_TMPDIR={machine.home}/tmp
                exec {ENVIRONMENT}/ray "$@" {" ".join(options)}
            fi
            exec {ENVIRONMENT}/ray "$@"
            """)
    )
    program.chmod(0o755)
    login = program.with_name("ssh")
    login.write_text(
        textwrap.dedent("""\
            #!/bin/bash
            # ssh looks up the `~` of a key's path in the password file, where this home is not.
            while [ "$1" = -tt ]; do terminal=-tt; shift; done
            if [ "$1" = -i ]; then key="-i ${2/#\\~/$HOME}"; shift 2; fi
            exec /usr/bin/ssh $terminal $key "$@"
            """)
    )
    login.chmod(0o755)
    # `auto` looks for any cluster of the machine; this one is meant.
    address = f"{machines.head.address}:{machines.head_port}"
    (machine.home / ".bashrc").write_text(f"export RAY_ADDRESS={address}\n")


def _start_sshd(machines: LoopbackMachines) -> subprocess.Popen[bytes]:
    """An sshd with keys of its own, on the machines' addresses."""
    folder = machines.folder / "sshd"
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    for path in (folder / "host_key", machines.private_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    shutil.copy(f"{machines.private_key}.pub", folder / "authorized_keys")
    places = (machines.head, *machines.workers)
    settings = [
        *(f"ListenAddress {machine.address}:22" for machine in places),
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "PidFile none",
        "StrictModes no",  # the keys lie below /tmp, which others may write to
        "UsePAM no",
        "MaxStartups 100",
    ]
    for machine in places:
        settings += [f"Match LocalAddress {machine.address}", f"  SetEnv HOME={machine.home}"]
    (folder / "config").write_text("\n".join(settings) + "\n")
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [
            shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd",
            "-D",
            "-e",
            "-f",
            folder / "config",
        ],
        stdout=log,
        stderr=log,
    )
    deadline = time.monotonic() + 20
    for machine in places:
        while not _listens(machine.address, 22):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"sshd does not start: {(folder / 'log').read_text()[-300:]}")
    return server


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


if __name__ == "__main__":
    end_ray_processes(Path(sys.argv[1]))
