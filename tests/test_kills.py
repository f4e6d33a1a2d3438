"""A trial whose process is killed again and again ends like one that never was.

Real processes with real training, stages, checkpoints and records; only Ray is left out (with Ray:
``tests/integration/test_resume.py``). Each process is killed before it touches a file of the
results for the n-th time, n drawn anew: in the middle of commits, of records, of leases.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from seld.classes import STARSS_CLASSES
from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.records import LOG_FILE, read_record, trial_folder, trials_table
from seld.shards import ProcessExecutor, build_shards
from tests import corpus_writers as writers
from tests.integration.tiny_study import OF_ONE_RUN
from tests.test_stages import FILE_EVENTS, JOIN_S, PROCESSES
from tests.tiny_training import TINY_FINETUNE
from trainables import stages
from trainables import trial as trial_module
from trainables.cells import STAGE_CODE, Cell, stages_of
from trainables.jobs import NETWORK_FILE, ShardFolder
from trainables.prepare import PreparedData, describe_data
from trainables.provenance import Provenance
from trainables.resources import plan_placement
from trainables.stage_keys import code_fingerprint
from trainables.stages import StageStore
from trainables.trial import StudyRun

NAMES = [f"dev-train-sony/fold3_room{room}_mix001" for room in (1, 2, 3)]
NAMES += ["dev-test-sony/fold4_room4_mix001"]
CELL = Cell(
    study="s",
    arm="scratch",
    seed=0,
    annotation_minutes=0.15,
    pretrain=None,
    finetune=replace(TINY_FINETUNE, steps=100, report_every=1, state_every=1),
)
#: Touches of the disk that a process gets: a whole trial takes some hundred.
LIVES = (4, 30)
LEAST_KILLS = 20

# Where this module is loaded before the processes are forked, none of them reads the code again.
for module in STAGE_CODE.values():
    code_fingerprint(module)
code_fingerprint(*STAGE_CODE.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    PROCESSES.set_forkserver_preload(["tests.test_kills"])
    root = writers.write_starss(tmp_path_factory.mktemp("corpus"), NAMES, with_video=True)
    out = str(tmp_path_factory.mktemp("shards"))
    build_shards(
        CORPORA["starss23"](str(root)),
        ShardSettings(clip_s=2.0),
        out,
        executor=ProcessExecutor(),
        workers=1,
    )
    return describe_data(ShardFolder(path=out), ShardFolder(path=out), STARSS_CLASSES)


def run_until_killed(root: Path, data: PreparedData, killed_before: int, touches: Any) -> None:
    """One process's life: the trial, until it touches a file of the results once too often."""
    stages.LEASE_EXPIRY_S = 0.3  # of a lease whose writer died before it wrote its name
    stages.POLL_S = 0.05
    trial_module.tune.report = lambda metrics: None  # type: ignore[assignment]

    def run_here(
        job: Any, placement: Any, *, provenance: Any, folder: Path, report: Any
    ) -> dict[str, Any]:
        return job.run(folder, device="cpu", report=report)

    trial_module.run_as_task = run_here

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not any(
            str(part).startswith(str(root)) for part in arguments
        ):
            return
        if touches.value == killed_before:
            os.kill(os.getpid(), signal.SIGKILL)
        touches.value += 1

    run = StudyRun(
        study_folder=root / "study",
        store=StageStore(root / "stages"),
        placement=plan_placement({"CPU": 1}),
        data={"default": data},
        provenance=Provenance(git_commit="", git_dirty=False, versions={}),
    )
    sys.addaudithook(on_event)
    trial_module.run_trial({"cell": CELL, "run": run})


def live(root: Path, data: PreparedData, killed_before: int) -> tuple[int, int]:
    """Exit code and touches of one process."""
    touches = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=run_until_killed, args=(root, data, killed_before, touches))
    process.start()
    process.join(JOIN_S)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, touches.value


def tables_of(root: Path) -> dict[str, bytes]:
    """Curves, counts, predictions and references that the trial left."""
    files = {path for path in (root / "study").rglob("*") if path.is_file()}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        # The record is compared as the table's row; the log tells every try, with its time.
        if path.name not in ("record.json", LOG_FILE)
    }


def scores_of(root: Path) -> pd.DataFrame:
    """The trial's row in the table, without when and how fast it was made."""
    table = trials_table([read_record(trial_folder(root / "study", CELL.trial_id))])
    return table.drop(columns=table.filter(regex=OF_ONE_RUN).columns)


def weights_of(root: Path, data: PreparedData) -> dict[str, torch.Tensor]:
    """Of the fine-tuned network that was committed."""
    stage = StageStore(root / "stages").find(stages_of(CELL, data).finetune)
    assert stage is not None
    return load_file(stage.folder / NETWORK_FILE)


@pytest.mark.slow
def test_killed_at_twenty_moments_a_trial_ends_like_a_whole_one(
    data: PreparedData, tmp_path: Path
) -> None:
    code, touches = live(tmp_path / "whole", data, killed_before=-1)
    assert code == 0
    draw = random.Random(0)
    kills = 0
    root = tmp_path / "killed"
    while (code := live(root, data, killed_before=draw.randint(*LIVES))[0]) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 500, "a trial that is killed must get on all the same"
    assert kills >= LEAST_KILLS, f"{kills} kills of a trial that touches the disk {touches} times"
    assert set(scores_of(root)["status"]) == {"finished"}
    pd.testing.assert_frame_equal(scores_of(root), scores_of(tmp_path / "whole"))
    assert tables_of(root) == tables_of(tmp_path / "whole")
    expected = weights_of(tmp_path / "whole", data)
    for name, tensor in weights_of(root, data).items():
        assert torch.equal(tensor, expected[name]), name
    assert not list((root / "stages").glob("*/*/partial")), "checkpoints of finished stages"
