"""A trial that Ray's memory monitor kills, on a real Ray with a limit just above what is used.

In a process of its own: Ray reads its limit once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

#: How much more than is used already may be used before Ray kills.
ROOM_BYTES = 1_500_000_000


def test_a_trial_killed_for_want_of_memory_ends_no_run(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_memory", str(tmp_path)],
        env={**os.environ, "RAY_memory_usage_threshold": str(_used_share(ROOM_BYTES))},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    said = [line for line in process.stdout.splitlines() if line.startswith("memory_was_short")]
    # More than once True, if what else runs here has grown meanwhile.
    assert said[0] == "memory_was_short: True"
    assert said[-1] == "memory_was_short: False"
    assert (tmp_path / "1.tries").read_text().startswith("xx")
    assert len(list(tmp_path.glob("*.done"))) == 3


def _used_share(more_bytes: int) -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    total = kilobytes["MemTotal"]
    return (total - kilobytes["MemAvailable"] + more_bytes / 1024) / total


def _take_all_memory_once(config: dict[str, Any]) -> None:
    """A trial; the second of three never ends when it is run for the first time."""
    folder, number = config["run"].study_folder, config["number"]
    with (folder / f"{number}.tries").open("a") as tries:
        tries.write("x")
    first = (folder / f"{number}.tries").read_text() == "x"
    taken = []
    while number == 1 and first:
        taken.append(b"\1" * 50_000_000)
    (folder / f"{number}.done").touch()


def _run_until_done(folder: Path) -> None:
    import ray
    from ray import tune
    from rich.console import Console

    from ablations.deadline import Deadline
    from ablations.runs import let_tune_run
    from trainables.resources import plan_placement

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    run: Any = SimpleNamespace(study_folder=folder, placement=plan_placement({"CPU": 1}))
    while missing := [n for n in range(3) if not (folder / f"{n}.done").exists()]:
        memory_was_short = let_tune_run(
            _take_all_memory_once,
            run,
            name="trials",
            trials=len(missing),
            console=Console(quiet=True),
            param_space={"number": tune.grid_search(missing)},
            deadline=Deadline(),
            callbacks=[],
        )
        print(f"memory_was_short: {memory_was_short}", flush=True)


if __name__ == "__main__":
    _run_until_done(Path(sys.argv[1]))
