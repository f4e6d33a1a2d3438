"""Machines for `ray up` that are this machine: an sshd on loopback addresses of their own.

Each machine has an address in 127/8, a home folder and, where the kernel lets us, a view of the
disk without the others' homes; the network, the processes and the installed Python are shared.
What Ray would do to a whole machine (`ray stop` ends every Ray process, fixed ports) is therefore
narrowed by a `ray` command in the home's `bin`.
"""

from __future__ import annotations

import getpass
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
        address: where its sshd listens.
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
        ssh_port: of every machine's sshd.
        credentials: environment of every process on the machines, as a cloud's roles would give.
    """

    folder: Path
    head: Machine
    workers: tuple[Machine, ...]
    private_key: Path
    ssh_port: int
    head_port: int
    dashboard_port: int
    client_port: int
    credentials: Mapping[str, str]

    @property
    def launcher_environment(self) -> dict[str, str]:
        """Environment of whoever types `ray up`: a home of their own, with Ray's token."""
        return {
            "HOME": str(self.folder / "launcher"),
            "PATH": f"{self.folder}/launcher/bin:{ENVIRONMENT}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(self.folder / "tmp"),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_AUTH_MODE": "token",
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }

    def run(
        self, *command: str, timeout_s: float = 300, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the launcher, in the checkout."""
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self.launcher_environment | environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{error}\n{self.story()}") from error
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done

    def story(self) -> str:
        """The ends of the logs that tell why a machine is not there."""
        logs = [
            *self.head.home.glob("ray/session_latest/logs/monitor*"),
            *self.folder.glob("*/ray-start.log"),
            *self.folder.glob("worker*/ray/session_latest/logs/raylet.*"),
        ]
        tails = [f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(logs)]
        return "\n".join([*tails, "--- processes", *map(str, self.processes().items())])

    def processes(self, machine: Machine | None = None) -> dict[int, str]:
        """Process id → title of every Ray process of these machines, or of one of them."""
        return ray_processes(machine.home if machine else self.folder)


@contextmanager
def loopback_machines(
    *, workers: int, credentials: Mapping[str, str] | None = None
) -> Iterator[LoopbackMachines]:
    """A head and ``workers`` more machines; skips the test, with the reason, where impossible."""
    _require_sshd()
    # Sockets of Ray live below this folder, and their paths must stay under 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="seld-", dir="/tmp"))
    block = random.SystemRandom().randint(1, 254)
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
        ssh_port=free_port(),
        head_port=free_port(),
        dashboard_port=free_port(),
        client_port=free_port(),
        credentials=credentials or {},
    )
    (folder / "tmp").mkdir()
    _write_program(folder / "launcher/bin/ssh", f'exec /usr/bin/ssh -p {machines.ssh_port} "$@"')
    for machine in (head, *others):
        _furnish(machine, machines)
    server = _start_sshd(machines)
    try:
        machines.run("ray", "get-auth-token", "--generate")
        yield machines
    finally:
        sessions = _descendants({server.pid})
        server.terminate()
        server.wait()
        end(lambda: _descendants(sessions) | set(_belonging_to(folder)))
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
    config["auth"] = {
        "ssh_user": getpass.getuser(),
        "ssh_private_key": str(machines.private_key),
    }
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
    end(lambda: ray_processes(folder))


def end(find: Callable[[], Iterable[int]]) -> None:
    """Kill what ``find`` finds, again until it finds nothing: the dying start others."""
    deadline = time.monotonic() + 60
    while left := set(find()) - {os.getpid()}:
        assert time.monotonic() < deadline, f"cannot be killed: {left}"
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def ray_processes(folder: Path) -> dict[int, str]:
    """Process id → title of what Ray runs with its home or files below ``folder``."""
    titles = _belonging_to(folder)
    return {
        process: title
        for process, title in titles.items()
        if title.partition(" ")[0].rpartition("/")[2] not in ("bash", "ssh", "sshd", "sshd:")
    }


def _belonging_to(folder: Path) -> dict[int, str]:
    """Processes that name ``folder`` in their command or environment, and what those started."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    marked = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes().decode(errors="replace")
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended, or is not ours to see
            continue
        process = int(entry.name)
        if state == "Z" or process == os.getpid():
            continue
        titles[process], parents[process] = title.strip(), int(parent)
        if f"{folder}/" in f"{title} {environment}":
            marked.add(process)
    # Ray's agents overwrite their command line and environment: they count by their parent.
    return {process: titles[process] for process in _with_children(marked, parents)}


def _descendants(roots: set[int]) -> set[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    return _with_children(roots & set(parents), parents)


def _with_children(roots: set[int], parents: Mapping[int, int]) -> set[int]:
    found = set(roots)
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def free_port() -> int:
    """A TCP port that nobody listens on, and that the kernel gives to nobody who did not ask."""
    ephemeral, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    choices = random.SystemRandom()
    while True:
        port = choices.randrange(10_000, max(int(ephemeral), 11_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def _require_sshd() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to install sshd where it is missing, and for homes of our own")
    if shutil.which("sshd", path="/usr/sbin:/usr/bin") and shutil.which("rsync"):
        return
    if not shutil.which("apt-get"):
        pytest.skip("no sshd or rsync here, and no apt-get to install them")
    apt_get = "apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2"
    try:
        installed = subprocess.run(
            f"{apt_get} update; {apt_get} install -y --no-install-recommends openssh-server rsync",
            shell=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        pytest.skip("openssh-server and rsync cannot be installed: apt-get takes over 5 minutes")
    if installed.returncode != 0:
        pytest.skip(f"openssh-server and rsync cannot be installed: {installed.stderr[-300:]}")


def _furnish(machine: Machine, machines: LoopbackMachines) -> None:
    """Home folder with a `ray` that keeps to its own processes, ports and files."""
    programs = machine.home / "seld-env/bin"
    _write_program(programs / "python", f'exec {ENVIRONMENT}/python "$@"')
    options = [
        f"--node-ip-address={machine.address}",
        f"--temp-dir={machine.home}/ray",
        "--num-cpus=1",
        "--object-store-memory=100000000",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    fails_at_first = ""
    if machine != machines.head:
        # As on a busy machine, where the raylet may take longer than Ray waits for it.
        tried = machine.home / "started"
        fails_at_first = f"[ -e {tried} ] || {{ touch {tried}; echo planted; exit 1; }}"
    if machine == machines.head:
        options += [
            f"--dashboard-port={machines.dashboard_port}",
            f"--ray-client-server-port={machines.client_port}",
        ]
    _write_program(
        programs / "ray",
        f"""\
        # `ray stop` ends all Ray processes of a machine; this machine is shared.
        if [ "$1" = stop ]; then
            exec {sys.executable} {Path(__file__)} {machine.home}
        elif [ "$1" = start ]; then
            {fails_at_first}
            # A worker gives up a lost head after a minute; a test cannot wait that long.
            export RAY_gcs_rpc_server_reconnect_timeout_s=5
            export RAY_TMPDIR={machine.home}/tmp
            exec {_without_the_disks_of(machines, machine)} \\
                {ENVIRONMENT}/ray "$@" {" ".join(options)}
        fi
        exec {ENVIRONMENT}/ray "$@"
        """,
    )
    _write_program(
        programs / "ssh",
        f"""\
        # ssh looks up the `~` of a key's path in the password file, where this home is not.
        while [ "$1" = -tt ]; do terminal=-tt; shift; done
        if [ "$1" = -i ]; then key="-i ${{2/#\\~/$HOME}}"; shift 2; fi
        exec /usr/bin/ssh -p {machines.ssh_port} $terminal $key "$@"
        """,
    )
    exports = {
        # `auto` looks for any cluster of the machine; this one is meant.
        "RAY_ADDRESS": f"{machines.head.address}:{machines.head_port}",
        # What the editable installation into the machine's own environment would do.
        "PYTHONPATH": f"{machine.home}/seld",
    }
    exports |= machines.credentials
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()]
    (machine.home / ".bashrc").write_text("".join(lines))


def _without_the_disks_of(machines: LoopbackMachines, machine: Machine) -> str:
    """Start of a command that sees empty folders for the other machines' homes; '' if forbidden."""
    allowed = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    if not allowed:
        return ""
    places = (machines.head, *machines.workers)
    hidden = [other.home for other in places if other != machine]
    mounts = [f"mount -t tmpfs none {home}" for home in hidden]
    script = " && ".join([*mounts, 'exec "$@"'])
    return f"unshare --mount bash -c {shlex.quote(script)} bash"


def _write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/bash\n" + textwrap.dedent(script) + "\n")
    path.chmod(0o755)


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
        *(f"ListenAddress {machine.address}:{machines.ssh_port}" for machine in places),
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
    deadline = time.monotonic() + 60
    for machine in places:
        while not listens(machine.address, machines.ssh_port):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                said = (folder / "log").read_text()[-300:]
                shutil.rmtree(machines.folder, ignore_errors=True)
                pytest.skip(f"sshd does not start: {said}")
            time.sleep(0.05)
    return server


def listens(address: str, port: int) -> bool:
    """Whether someone takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


if __name__ == "__main__":
    end_ray_processes(Path(sys.argv[1]))
