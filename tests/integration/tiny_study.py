"""A study small enough for tests, run as people run it: the real command in a real process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests import corpus_writers as writers

ROOT = Path(__file__).parents[2]
#: Set in the command's environment, which everything it starts inherits.
MARK = "SELD_TEST_RUN"

#: For what takes half a minute, on a machine that has other things to do.
LONGEST_S = 600

#: Columns of the table of trials that differ between two runs of the same study.
OF_ONE_RUN = r"duration_s\..*|started_at|finished_at|stages_.*|git_commit"


def write_corpus(root: Path) -> Path:
    """Three rooms to train on, one to test on, one without annotations; 10 s recordings.

    One more training recording is unreadable.
    """
    writers.write_starss(
        root,
        [f"dev-train-embedded/fold3_room{room}_mix001" for room in (1, 2, 3, 4)]
        + ["dev-test-embedded/fold4_room7_mix001"],
        duration_s=10.0,
        with_video=True,
    )
    (root / "foa_dev/dev-train-embedded/fold3_room4_mix001.wav").write_bytes(b"no sound" * 99)
    for take in (1, 2):
        name = f"unannotated-embedded/fold3_room11_mix{take:03d}"
        writers.write_wav(root / f"foa_dev/{name}.wav", writers.foa_noise(10.0, seed=take))
        writers.write_media(
            root / f"video_dev/{name}.mp4", pictures=writers.moving_pictures(10.0, 10)
        )
    return root


def study_arguments(
    corpus: Path, data: Path, results: Path, *, where: Sequence[str] = ("--cpus", "2")
) -> list[str]:
    """Scratch and one pretrained arm, each a second or two of training."""
    return [
        *("--annotated", f"embedded={corpus}", "--unannotated", f"embedded={corpus}"),
        *("--data", str(data), "--results", str(results)),
        *("--arms", "scratch,doa_wise", "--budgets", "0.3", "--seeds", "0", *where),
        *("--set", "pretrain.steps=48", "--set", "pretrain.batch_size=4"),
        *("--set", "pretrain.windows_per_clip=2"),
        *("--set", "pretrain.state_every=4", "--set", "pretrain.report_every=4"),
        *("--set", "finetune.steps=40", "--set", "finetune.batch_size=4"),
        *("--set", "finetune.state_every=4", "--set", "finetune.report_every=4"),
    ]


@dataclass(frozen=True)
class FinishedStudy:
    """A corpus, its shards, and the results of one uninterrupted run."""

    corpus: Path
    data: Path
    results: Path
    output: str

    def arguments(self, results: Path, *, where: Sequence[str] = ("--cpus", "2")) -> list[str]:
        """The same study with its results, or its cluster, elsewhere."""
        return study_arguments(self.corpus, self.data, results, where=where)


def hear_interrupts() -> None:
    """Ctrl-C as in a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """``run_grid.py``, or another command of ours, under way."""

    def __init__(
        self, arguments: list[str], log: Path, program: str = "ablations/run_grid.py"
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        with log.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / program), *arguments],
                cwd=ROOT,
                env=os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
                preexec_fn=hear_interrupts,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.processes()]:
            kill(pid)
        self.process.wait()

    def processes(self, title: str = "") -> list[int]:
        """Everything that this command started and that runs under a title beginning so."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command_line = (folder / "cmdline").read_bytes()
                # A process that has ended but was not waited for has no command line.
                if not command_line or not command_line.startswith(title.encode()):
                    continue
                environment = (folder / "environ").read_bytes()
            except OSError:  # it has ended since
                continue
            if f"{MARK}={self.mark}".encode() in environment:
                found.append(int(folder.name))
        return [pid for pid in found if pid != self.process.pid]

    def finish(self, timeout_s: float = LONGEST_S) -> str:
        """Wait for a good end; what it printed."""
        code = self.process.wait(timeout_s)
        assert code == 0, f"exit code {code}:\n{self.log.read_text()[-3000:]}"
        return self.log.read_text()

    def reach(
        self, condition: Callable[[], object], what: str, timeout_s: float = LONGEST_S
    ) -> None:
        """Wait until ``condition`` holds while the command runs."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
            time.sleep(0.02)

    def interrupt(self, timeout_s: float = LONGEST_S) -> None:
        """Ctrl-C, and again where it came while Python could not be interrupted; wait for its end.

        Python drops an interrupt that arrives within a finalizer.
        """
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"no end within {timeout_s} s of an interrupt"
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s / 5)

    def vanish(self, timeout_s: float = LONGEST_S) -> None:
        """Wait until nothing that the command started is left."""
        deadline = time.monotonic() + timeout_s
        while self.processes():
            assert time.monotonic() < deadline, (
                f"still there after {timeout_s} s: {self.processes()}"
            )
            time.sleep(0.1)

    def kill_worker(self, title: str) -> None:
        """SIGKILL to one worker process of this title, once there is one."""
        found: list[int] = []
        self.reach(lambda: found.extend(self.processes(title)[:1]) or found, f"worker {title}")
        kill(*found)

    def kill_driver(self) -> None:
        """SIGKILL to the command itself."""
        kill(self.process.pid)
        self.process.wait()


def kill(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def table_of(results: Path, study: str = "variants") -> pd.DataFrame:
    """The table of trials without what differs between two runs."""
    table = pd.read_csv(results / study / "trials.csv").sort_values("trial_id", ignore_index=True)
    return table.drop(columns=table.filter(regex=OF_ONE_RUN).columns)


def files_of(results: Path, pattern: str) -> dict[str, bytes]:
    """Content of the trials' files, by trial and name."""
    folder = results / "variants/trials"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def networks_of(results: Path) -> dict[str, bytes]:
    """The weights of the fine-tuned networks that count, by the key of their stage."""
    return {path.parts[-3]: _weights(path.read_bytes()) for path in _committed(results, "finetune")}


def _weights(safetensors: bytes) -> bytes:
    # The header before them holds metadata in whatever order a hash table gave.
    header_size = int.from_bytes(safetensors[:8], "little")
    return safetensors[8 + header_size :]


def _committed(results: Path, stage: str) -> Iterator[Path]:
    for commit in (results / "stages" / stage).glob("*/committed.json"):
        yield from commit.parent.glob("attempt-*/seld_network.safetensors")


def committed(results: Path, stage: str) -> set[str]:
    """Keys of the finished stages of a kind."""
    return {path.parent.name for path in (results / "stages" / stage).glob("*/committed.json")}
