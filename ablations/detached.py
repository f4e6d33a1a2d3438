"""Runs that outlive the terminal: submitted to a cluster, followed and listed from anywhere.

A detached run is a Ray job: the same command, started on the cluster's head with this checkout
shipped to it. The address is the dashboard's, ``http://127.0.0.1:8265`` through
``ray dashboard cluster.yaml``, or ``auto`` on the head itself.
"""

from __future__ import annotations

import argparse
import asyncio
import glob
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ablations.cluster import OUR_PACKAGES
from ablations.places import ROOT, results_uri
from seld.errors import InputError, first_line
from seld.storage import is_local
from trainables.provenance import COMMIT_VARIABLE, current_provenance

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

#: Where a detached run keeps what it is not told to keep elsewhere: its job's folder is removed.
HEAD_FOLDERS = {"--data": "~/seld-data", "--results": "~/seld-results"}
#: Shipped, as by ``cluster.yaml``, and nothing else: a checkout may hold gigabytes of shards and
#: results beside its code.
SHIPPED = (*OUR_PACKAGES, "README.md", "constraints.txt", "pyproject.toml")
#: Variables that a job takes from the terminal it was started in.
FORWARDED = ("MLFLOW_TRACKING_URI",)


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Whether the command line is about a run elsewhere."""
    if arguments.show is not None and arguments.address is not None:
        # Results that no bucket keeps are on the head, where a job is to look for them.
        return arguments.address != "auto" and results_uri(arguments.storage, "") is None
    return bool(arguments.detach or arguments.attach is not None or arguments.status)


def run_detached(arguments: argparse.Namespace, program: str) -> int:
    """Do what ``--detach``, ``--attach`` or ``--status`` asks; returns the exit code."""
    console, address = Console(), arguments.address
    if address is None:
        raise InputError("command line", "--address", None, "that of a cluster's dashboard")
    if arguments.attach is not None:
        return attach(address, arguments.attach, console)
    if arguments.status:
        return show_status(address, console)
    refuse_places_of_the_job(arguments, sys.argv[1:])
    job_id = submit(address, program, sys.argv[1:])
    if arguments.show is not None:
        return attach(address, job_id, console)
    console.print(f"{job_id} runs on its own now", highlight=False)
    console.print(f"follow:  python {program} --address {address} --attach {job_id}")
    console.print(f"all:     python {program} --address {address} --status")
    return 0


def refuse_places_of_the_job(arguments: argparse.Namespace, typed: Sequence[str]) -> None:
    """Refuse relative folders: they would be in the job's own, which is removed with it."""
    folders = {
        "--data": arguments.data,
        "--results": arguments.results,
        "--storage": arguments.storage,
        "--sound-bank": arguments.sound_bank,
    }
    places = [(option, place) for option, place in folders.items() if is_typed(option, typed)]
    places += [("--annotated", source.root) for source in arguments.annotated]
    places += [("--unannotated", source.root) for source in arguments.unannotated]
    for option, place in places:
        if is_local(str(place)) and not Path(str(place).removeprefix("file://")).is_absolute():
            expected = "an absolute path on the cluster's head, or a URI where one is taken"
            raise InputError("command line", option, str(place), expected)


def is_typed(option: str, typed: Sequence[str]) -> bool:
    """Whether a command line has the option, as ``--option VALUE`` or ``--option=VALUE``."""
    return any(argument.partition("=")[0] == option for argument in typed)


def submit(address: str, program: str, arguments: Sequence[str]) -> str:
    """Start ``python PROGRAM ARGUMENTS`` on the cluster and return the job's name at once.

    Args:
        address: of the cluster's dashboard.
        program: path of the entry point within the checkout.
        arguments: the command line as it was typed.

    Raises:
        InputError: there is no such cluster, or it does not take the job.
    """
    from ray.exceptions import RayError

    code = current_provenance()
    client = job_client(address)
    others = [entry.name for entry in ROOT.iterdir() if entry.name not in SHIPPED]
    try:
        return client.submit_job(
            entrypoint=detached_command(program, arguments),
            runtime_env={
                "working_dir": str(ROOT),
                "excludes": [f"/{glob.escape(name)}" for name in others],
                # The job's folder has no .git to ask.
                "env_vars": {COMMIT_VARIABLE: code.commit_label} | forwarded_environment(),
            },
            metadata={"commit": code.git_commit},
        )
    except (OSError, RuntimeError, RayError) as error:
        # What failed on the cluster comes with its traceback; the reason is in the last line.
        reason = str(error).rstrip("\n .").splitlines()[-1]
        expected = f"a cluster that takes this checkout as a job ({reason})"
        raise InputError("command line", "--address", address, expected) from error


def forwarded_environment() -> dict[str, str]:
    """What of this terminal's environment the job is to know.

    No passwords or tokens: whoever sees the dashboard sees a job's environment.
    """
    return {name: os.environ[name] for name in FORWARDED if name in os.environ}


def detached_command(program: str, arguments: Sequence[str]) -> str:
    """The command of the job: the one typed, on the head's own cluster and folders."""
    kept = [argument for argument in arguments if argument != "--detach"]
    if "--address" in kept:
        position = kept.index("--address")
        del kept[position : position + 2]
    kept = [argument for argument in kept if not argument.startswith("--address=")]
    command = ["python", program, *kept, "--address", "auto"]
    # The folders' `~` is for the head's shell to expand.
    folders = [
        f" {option} {folder}"
        for option, folder in HEAD_FOLDERS.items()
        if not is_typed(option, kept)
    ]
    return shlex.join(command) + "".join(folders)


def attach(address: str, job_id: str, console: Console) -> int:
    """Print a job's output, what there is and what comes, until it ends.

    Returns:
        0 where the job succeeded, else 1. Ctrl-C leaves the job running.
    """
    client = job_client(address)
    known = {job.submission_id for job in client.list_jobs()}
    if job_id not in known:
        raise InputError("command line", "--attach", job_id, f"one of {sorted(map(str, known))}")

    async def follow() -> None:
        async for text in client.tail_job_logs(job_id):
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    asyncio.run(follow())
    status = client.get_job_status(job_id)
    console.print(f"{job_id}: {status.value.lower()}", highlight=False)
    return 0 if status.value == "SUCCEEDED" else 1


def show_status(address: str, console: Console) -> int:
    """A table of the cluster's submitted runs, the latest last."""
    table = Table("job", "status", "started", "hours", "commit", "command")
    jobs = [job for job in job_client(address).list_jobs() if job.submission_id]
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        table.add_row(*map(escape, _row(job)))
    console.print(table)
    return 0


def _row(job: JobDetails) -> list[str]:
    started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
    ended = datetime.fromtimestamp(job.end_time / 1000, UTC) if job.end_time else datetime.now(UTC)
    return [
        str(job.submission_id),
        job.status.value.lower(),
        f"{started:%Y-%m-%d %H:%M}",
        f"{(ended - started).total_seconds() / 3600:.2f}",
        (job.metadata or {}).get("commit", "")[:10],
        job.entrypoint.removeprefix("python "),
    ]


def job_client(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Raises:
        InputError: it is no address, nothing answers there, or it refuses the token.
    """
    # Needs ray[default], which machines without a cluster can do without.
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ValueError, ConnectionError, RuntimeError, RayError) as error:
        reason = first_line(error)
        expected = f"the address of a cluster's dashboard that takes your token ({reason})"
        raise InputError("command line", "--address", address, expected) from error
