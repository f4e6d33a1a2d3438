"""Results that are kept elsewhere: shown by one command, fetched, and not copied twice."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pandas as pd
import pytest
import ray
from rich.console import Console

from ablations import detached, grid, places, run_grid, run_sweep, sweep
from ablations.deadline import Deadline
from ablations.places import (
    JOURNAL_FILE,
    fetch_kept,
    keep_journal,
    keep_results,
    only_head,
    stages_root,
)
from ablations.results import show
from ablations.searcher import OptunaSearcher
from search_spaces.scales import find_scale
from search_spaces.studies import find_study
from seld.errors import InputError, exit_on_input_error
from seld.records import (
    LOG_FILE,
    Failure,
    StageUse,
    Status,
    StudyRecord,
    TrialRecord,
    read_record,
    read_study,
    trial_folder,
    write_record,
    write_study,
)
from seld.storage import fetch_folder, files_below, upload_folder
from tests.simulated_study import ArmTruth, SimulatedStudy, write_simulated_study
from trainables import stages, trial
from trainables.cells import DEFAULT_DATA
from trainables.stage_keys import StageKey
from trainables.stages import StageStore
from trainables.trial import keep_record

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; its exit code and what it printed."""

    def call(main: Callable[[], int], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as ended:
            exit_on_input_error(main)
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, printed.out + printed.err

    return call


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[str]:
    yield f"memory://{tmp_path.name}"
    files = fsspec.filesystem("memory")
    if files.exists(f"/{tmp_path.name}"):
        files.rm(f"/{tmp_path.name}", recursive=True)


def write_trials(study_folder: Path) -> None:
    """One that finished, one that failed, one under way."""
    cell = {"study": study_folder.name, "seed": 0, "annotation_minutes": 2.0}
    finished = TrialRecord(
        **cell,  # type: ignore[arg-type]
        trial_id="scratch-2min-seed0-aaaaaa",
        arm="scratch",
        status="finished",
        metrics={"seld_error": 0.5},
        stages=[StageUse(name="finetune", key="0123", computed=True, duration_s=12.5)],
    )
    failed = TrialRecord(
        **cell,  # type: ignore[arg-type]
        trial_id="avc-2min-seed0-bbbbbb",
        arm="avc",
        status="failed",
        failure=Failure(
            kind="lost_node",
            message="the node died",
            traceback="Traceback (most recent call last):\n  RayActorError",
            stage="pretrain",
            policy="tried 3 more times",
            attempts=4,
        ),
    )
    logs = {
        finished.trial_id: "finetune/0123: computes, try 1",
        failed.trial_id: "failed in pretrain: lost_node\nTraceback: of the fourth try",
        "doa_wise-2min-seed0-cccccc": "pretrain/4567: computes, try 1",
    }
    for name, log in logs.items():
        trial_folder(study_folder, name).mkdir(parents=True)
        (trial_folder(study_folder, name) / LOG_FILE).write_text(log)
    for record in (finished, failed):
        write_record(record, study_folder)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_one_command_shows_log_and_failure_of_any_trial(
    place: str, tmp_path: Path, bucket: str, run: Run
) -> None:
    write_trials(tmp_path / "results/variants")
    where = ["--results", str(tmp_path / "results")]
    if place == "bucket":
        upload_folder(tmp_path / "results", f"{bucket}/results")
        where = ["--results", str(tmp_path / "nowhere"), "--storage", bucket]
    store = StageStore(f"{bucket}/stages" if place == "bucket" else tmp_path / "results/stages")
    store.obtain(StageKey(name="finetune", digest="0123"), lambda folder: {})
    code, shown = run(run_grid.main, *where, "--show", "avc")
    assert code == 0
    assert "the node died (try 4; tried 3 more times)" in shown
    assert "lost_node in pretrain: a machine or worker process died" in shown
    assert "of the fourth try" in shown
    assert "scratch" not in shown
    assert run(run_grid.main, *where, "--show", "failed") == (0, shown)
    code, shown = run(run_grid.main, *where, "--show", "all")
    assert f"finetune 0123: computed, 12.5 s\n    {store.root}/finetune/0123/attempt-" in shown
    assert "seld_error 0.500" in shown
    assert "no record: under way" in shown
    (tmp_path / "results/variants/trials/doa_wise-2min-seed0-cccccc/record.json").write_text("{")
    if place == "bucket":
        upload_folder(tmp_path / "results", f"{bucket}/results")
    code, shown = run(run_grid.main, *where, "--show", "failed")
    assert (code, "the node died" in shown) == (0, True)
    assert "a record that cannot be read" in shown
    code, shown = run(run_grid.main, *where, "--show", "x")
    assert code == 2
    assert "--show is 'x'" in shown
    assert "there: avc-2min-seed0-bbbbbb, doa_wise" in shown
    assert len(shown.strip().splitlines()) == 1
    sweep_folder = tmp_path / "results/sweep"
    for wanted in ("all", "failed", "x"):  # a name mistyped, or a run that has not come so far
        code, shown = run(run_sweep.main, *where, "--name", "sweep", "--show", wanted)
        there = f"{bucket}/results/sweep" if place == "bucket" else f"{sweep_folder}"
        said = f"error: {there}: study.json is 'missing', expected the folder of a study"
        assert (code, shown.startswith(said), shown.count("\n")) == (2, True, 1)
    sweep_folder.mkdir()
    (sweep_folder / "study.json").write_text("{}")
    if place == "bucket":
        upload_folder(tmp_path / "results", f"{bucket}/results")
    code, shown = run(run_sweep.main, *where, "--name", "sweep", "--show", "failed")
    assert (code, shown.strip()) == (0, "no trial has begun")


def test_results_are_fetched_from_where_a_run_has_kept_them(
    tmp_path: Path, bucket: str, run: Run
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    write_trials(there / "variants")
    study = StudyRecord(
        name="variants", question="Which?", arms=["scratch", "avc"], baseline="scratch",
        budgets_minutes=[2.0], seeds=[0], scale="demo", command="",
    )  # fmt: skip
    write_study(study, there / "variants")
    upload_folder(there / "variants", f"{bucket}/results/variants")
    code, printed = run(run_grid.main, "--storage", bucket, "--results", str(here), "--fetch")
    assert code == 0
    assert "report: " in printed
    for path in (path for path in there.rglob("*") if path.is_file()):
        assert (here / path.relative_to(there)).read_bytes() == path.read_bytes()
    assert json.loads((here / "variants/study.json").read_text())["question"] == "Which?"
    code, printed = run(run_grid.main, "--results", str(here), "--fetch")
    assert (code, "--storage is None" in printed) == (2, True)
    code, printed = run(run_grid.main, "failures", "--storage", bucket, "--fetch")
    assert code == 2


def test_what_a_run_has_done_so_far_is_fetched_and_reported(
    tmp_path: Path, bucket: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there/variants", tmp_path / "here"
    study = replace(find_study("variants", "demo"), seeds=(0,), budgets_minutes=(1.5,))
    scratch, *others = study.cells()
    study_run: Any = SimpleNamespace(
        study_folder=there,
        data={DEFAULT_DATA: SimpleNamespace(trainable_minutes=2.0, test_fingerprint="t", notes=())},
        kept_in=f"{bucket}/results/variants",
    )
    page = here / "variants/report/index.html"

    def fetched_and_missing() -> list[str]:
        fetch = ("--storage", bucket, "--results", str(here), "--fetch")
        code, printed = run(run_grid.main, *fetch)
        assert (code, f"report: {page}" in printed, page.exists()) == (0, True, True)
        return pd.read_csv(page.parent / "tables/missing.csv")["trial"].tolist()

    def one_trial_and_ctrl_c(*_: object, **__: object) -> None:
        assert fetched_and_missing() == [cell.trial_id for cell in study.cells()]
        write_simulated_study(
            there,
            SimulatedStudy(arms={"scratch": ArmTruth()}, budgets_minutes=(1.5,), seeds=(0,)),
            lambda record: replace(record, trial_id=scratch.trial_id),
        )
        keep_record(read_record(trial_folder(there, scratch.trial_id)), study_run)
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "let_tune_run", one_trial_and_ctrl_c)
    there.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        grid.run_missing_trials(
            study, study_run, Console(file=io.StringIO()), deadline=Deadline(), callbacks=[]
        )
    assert fetched_and_missing() == [cell.trial_id for cell in others]
    assert study.question in page.read_text()
    assert (page.parent / "figures/confusion.svg").exists()  # of predictions and references


def head(folder: Path, bucket: str, study: str) -> Any:
    """What a run on a head has whose disk is ``folder``."""
    (folder / study).mkdir(parents=True)
    data = SimpleNamespace(
        trainable_minutes=9.0,
        test_fingerprint="t",
        fingerprint="f",
        validation_rooms=("r",),
        notes=(),
    )
    return SimpleNamespace(
        study_folder=folder / study,
        data={DEFAULT_DATA: data},
        kept_in=f"{bucket}/results/{study}",
    )


def test_a_grid_outlives_its_head(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(find_study("variants", "demo"), seeds=(0,), budgets_minutes=(1.5,))
    one, other = (replace(study, arms=(arm,), baseline=arm.name) for arm in study.arms[:2])
    (first,), (second,) = one.cells(), other.cells()
    heads = [head(tmp_path / name, bucket, "variants") for name in "ab"]

    def one_trial(*_: object, **__: object) -> None:
        record = TrialRecord(
            study="variants", trial_id=first.trial_id, arm=first.arm, seed=0,
            annotation_minutes=1.5, status="finished", test_fingerprint="t",
        )  # fmt: skip
        keep_record(record, heads[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "let_tune_run", one_trial)
    for part, run in zip((one, other), heads, strict=True):
        with pytest.raises(KeyboardInterrupt):
            grid.run_missing_trials(
                part, run, Console(file=io.StringIO()), deadline=Deadline(), callbacks=[]
            )
    assert read_record(trial_folder(heads[1].study_folder, first.trial_id)).status == "finished"
    fetch_folder(heads[1].kept_in, tmp_path / "c")
    planned = [cell["trial_id"] for cell in read_study(tmp_path / "c").cells]
    assert planned == [first.trial_id, second.trial_id]


def test_heads_that_take_turns_add_to_one_plan(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a folder of its own, and goes on from what the bucket has learnt since."""
    study = replace(find_study("variants", "demo"), budgets_minutes=(1.5,))
    study = replace(study, arms=study.arms[:1], baseline=study.arms[0].name)
    kept = f"{bucket}/results/variants"
    heads = {name: head(tmp_path / name, bucket, "variants") for name in "ab"}
    console = Console(file=io.StringIO(), width=200)

    def go_on(name: str, *seeds: int, at: str, fails: int | None = None) -> None:
        """A command from its start to its end, at this time of the day."""
        part, run = replace(study, seeds=seeds), heads[name]

        def trials(*_: object, param_space: dict[str, Any], **__: object) -> None:
            for cell in param_space["cell"]["grid_search"]:
                failure = Failure(
                    kind="lost_node", message="m", traceback="", stage="", policy="", attempts=1
                )
                record = TrialRecord(
                    study="variants", trial_id=cell.trial_id, arm=cell.arm, seed=cell.seed,
                    annotation_minutes=1.5, test_fingerprint="t", finished_at=at,
                    status="failed" if cell.seed == fails else "finished",
                    failure=failure if cell.seed == fails else None,
                )  # fmt: skip
                keep_record(record, run)

        with monkeypatch.context() as patched:
            patched.setattr(grid, "let_tune_run", trials)
            patched.setattr(grid, "is_finished", lambda cell, run: finished(run, cell.trial_id))
            grid.run_missing_trials(part, run, console, deadline=Deadline(), callbacks=[])
        keep_results(run.study_folder, bucket, console)

    def finished(run: Any, trial_id: str) -> bool:
        try:
            return read_record(trial_folder(run.study_folder, trial_id)).status == "finished"
        except InputError:
            return False

    def planned(folder: Path) -> list[int]:
        return [cell["seed"] for cell in read_study(folder).cells]

    go_on("a", 0, 1, at="10:00", fails=1)
    go_on("b", 1, 2, 3, at="11:00")
    go_on("a", 4, at="12:00")
    for folder in (heads["a"].study_folder, tmp_path / "c"):
        if folder.name == "c":
            fetch_folder(kept, folder)
        assert planned(folder) == read_study(folder).seeds == [0, 1, 2, 3, 4]
        records = [read_record(path.parent) for path in folder.glob("trials/*/record.json")]
        # What failed on one head has finished on the other.
        assert sorted((record.seed, record.status, record.finished_at) for record in records) == [
            (seed, "finished", at)
            for seed, at in enumerate(("10:00", "11:00", "11:00", "11:00", "12:00"))
        ]
    # Nor is anything lost of a head that has begun and ended while the other was at work.
    begin = grid.plan_what_is_missing

    def meanwhile(*arguments: Any) -> Any:
        missing = begin(*arguments)
        if arguments[2] is heads["a"]:
            go_on("b", 6, at="13:00")
        return missing

    monkeypatch.setattr(grid, "plan_what_is_missing", meanwhile)
    go_on("a", 5, at="14:00")
    fetch_folder(kept, tmp_path / "d")
    assert sorted(planned(tmp_path / "d")) == [0, 1, 2, 3, 4, 5, 6]
    assert len(list((heads["a"].study_folder / "trials").glob("*/record.json"))) == 7


def test_a_grid_goes_on_to_its_report_while_its_bucket_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> tuple[Any, str]:
        def raise_refusal(path: str) -> bool:
            raise PermissionError("no entry")

        return SimpleNamespace(exists=raise_refusal), path

    monkeypatch.setattr("seld.storage.file_system", refused)
    console = Console(file=io.StringIO(), width=200)
    run: Any = SimpleNamespace(study_folder=tmp_path, kept_in="memory://nowhere")
    grid.take_in_others(find_study("variants"), run, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "is left out: memory://nowhere: files is 'no entry'" in printed
    with pytest.raises(InputError, match="a folder or bucket that can be read"):
        show("memory://nowhere", StageStore(tmp_path / "stages"), "all", console)


def test_a_sweep_outlives_its_head(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = sweep.Sweep(
        name="s", scale=find_scale("demo"), objectives=("avc",), budgets_minutes=(1.5,), trials=6
    )
    proposed: list[list[str]] = []

    def two_trials(*_: object, search_alg: OptunaSearcher, **__: object) -> None:
        proposed.append([])
        for number in "01":
            proposed[-1].append(search_alg.suggest(number)["cell"].trial_id)
            outcome = {"status": "finished", "seld_error": 0.5}
            search_alg.on_trial_complete(number, outcome)
        proposed[-1].append(search_alg.suggest("2")["cell"].trial_id)
        raise KeyboardInterrupt  # the end of the head, as far as the bucket learns

    monkeypatch.setattr(sweep, "let_tune_run", two_trials)
    console = Console(file=io.StringIO())
    for name in "ab":
        run = head(tmp_path / name, bucket, "s")
        fetch_kept(run.study_folder, run.kept_in, console)
        with pytest.raises(KeyboardInterrupt):
            sweep.run_missing_trials(searched, run, console, deadline=Deadline(), callbacks=[])
    assert isinstance(console.file, io.StringIO)
    assert "2 of 6 trials done already" in console.file.getvalue()
    assert proposed[1][0] == proposed[0][2]
    assert not set(proposed[1]) & set(proposed[0][:2])
    # What is on the disk is newer than what could be kept.
    journal = run.study_folder / "optuna.journal"
    newer = journal.read_text() + '{"op": "more"}\n'
    journal.write_text(newer)
    fetch_kept(run.study_folder, run.kept_in, console)
    assert journal.read_text() == newer


@pytest.mark.parametrize("killed_at_work", [False, True])
def test_a_sweep_that_has_gone_on_elsewhere_loses_nothing_where_it_began(
    killed_at_work: bool, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = sweep.Sweep(
        name="s", scale=find_scale("demo"), objectives=("avc",), budgets_minutes=(1.5,), trials=9
    )
    proposed: list[list[str]] = []

    def go_on(run: Any, *trials: str, rungs: int = 0) -> None:
        """A run of these trials, which all finish, and of one more that passes so many rungs."""

        def kept(trial_id: str, status: Status) -> str:
            record = TrialRecord(
                study="s", trial_id=trial_id, arm="avc", seed=0, annotation_minutes=1.5,
                status=status, metrics={"seld_error": 0.5},
            )  # fmt: skip
            keep_record(record, run)
            return trial_id

        def some_trials(*_: object, search_alg: OptunaSearcher, **__: object) -> None:
            proposed.append([])
            for number in trials:
                trial_id = search_alg.suggest(number)["cell"].trial_id
                proposed[-1].append(kept(trial_id, "finished"))
                outcome = {"status": "finished", "seld_error": 0.5}
                search_alg.on_trial_complete(number, outcome)
            proposed[-1].append(search_alg.suggest("last")["cell"].trial_id)
            for rung in range(1, rungs + 1):
                result = {"rung": rung, "rungs": 3, "status": "finished", "loss": 0.1}
                kept(proposed[-1][-1], "stopped")
                search_alg.should_stop("last", result)
            raise KeyboardInterrupt

        monkeypatch.setattr(sweep, "let_tune_run", some_trials)
        fetch_kept(run.study_folder, run.kept_in, console)
        with pytest.raises(KeyboardInterrupt):
            sweep.run_missing_trials(searched, run, console, deadline=Deadline(), callbacks=[])

    console = Console(file=io.StringIO(), width=300)
    one, other = (head(tmp_path / name, bucket, "s") for name in "ab")
    for run in (one, other):
        (run.study_folder / "reference").mkdir()
    # What the bucket does not learn of the trial under way: that it has passed a rung.
    go_on(one, "0", "1", rungs=int(killed_at_work))
    before = (one.study_folder / "optuna.journal").read_bytes()
    go_on(other, "0", "1", "2")
    go_on(one, "0")
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "5 of 9 trials done already" in printed
    assert proposed[2][0] == proposed[1][3]  # the one that was under way
    trials = [*proposed[0][:2], *proposed[1][:3], proposed[2][0]]
    assert len(set(trials)) == 6
    for trial_id in trials:
        assert read_record(trial_folder(one.study_folder, trial_id)).status == "finished"
    aside = [path.read_bytes() for path in one.study_folder.glob("optuna.journal.??????")]
    assert aside == ([before] if killed_at_work else [])
    assert ("the sweep has gone on elsewhere" in printed) == killed_at_work


def test_a_second_head_leaves_the_first_alone(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(stages, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(stages, "REMOTE_POLL_S", 0.01)
    ran: list[str] = []
    monkeypatch.setattr(sweep, "run_and_report", lambda *_, **__: ran.append("a run") or 0)

    def second(*arguments: str) -> tuple[int, str]:
        return run(run_sweep.main, "--results", str(tmp_path), "--name", "s", *arguments)

    with only_head(bucket, "s", Console()):
        code, printed = second("--storage", bucket)
        assert (code, ran) == (2, [])
        assert f"error: {bucket}/results/s: a run is '" in printed
        assert "expected none at the same time" in printed
        assert second("--storage", f"{bucket}/other")[0] == 0
        assert second()[0] == 0
    assert second("--storage", bucket)[0] == 0
    assert len(ran) == 3


def test_a_sweep_goes_on_while_its_bucket_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no entry")

    (tmp_path / "optuna.journal").touch()
    monkeypatch.setattr(places, "written_whole", refused)
    console = Console(file=io.StringIO(), width=200)
    keep_journal(tmp_path, "memory://nowhere", console)
    assert isinstance(console.file, io.StringIO)
    assert "optuna.journal is not kept yet: no entry" in console.file.getvalue()


@pytest.mark.parametrize(
    ("error", "outages", "tries", "said"),
    [
        (ConnectionError("no route"), 2, 3, "storage_unreachable, is tried again"),
        (ConnectionError("no route"), 99, 7, "storage_unreachable, is left to the end of the run"),
        (PermissionError("no entry"), 99, 1, "code_error, is left to the end of the run"),
    ],
)
def test_a_trial_with_its_scores_does_not_fail_for_a_bucket_that_is_away(
    error: Exception,
    outages: int,
    tries: int,
    said: str,
    tmp_path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "variants"
    write_trials(folder)
    record = read_record(trial_folder(folder, "scratch-2min-seed0-aaaaaa"))
    kept = f"{bucket}/results/variants"
    tried: list[str] = []

    def upload(source: Path, uri: str) -> None:
        if source.name == "reference":
            tried.append(uri)
            if len(tried) <= outages:
                raise error
        upload_folder(source, uri)

    monkeypatch.setattr(trial, "upload_folder", upload)
    monkeypatch.setattr(trial, "BACKOFF_S", 0.0)
    run: Any = SimpleNamespace(study_folder=folder, kept_in=kept)
    keep_record(record, run)
    assert len(tried) == tries
    log = (trial_folder(folder, record.trial_id) / LOG_FILE).read_text()
    assert said in log
    assert str(error) in log
    there = f"trials/{record.trial_id}/record.json" in files_below(kept)
    assert there == (outages < tries)


def test_what_a_run_cannot_keep_in_the_end_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no entry")

    monkeypatch.setattr(places, "upload_folder", refused)
    with pytest.raises(InputError, match=rf"is 'no entry', .* in {tmp_path}, the same command"):
        keep_results(tmp_path, "memory://nowhere", Console(file=io.StringIO()))


def test_what_a_bucket_has_is_not_copied_again(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "folder/below").mkdir(parents=True)
    for name in ("a.txt", "below/b.txt"):
        (tmp_path / "folder" / name).write_text(name)
    upload_folder(tmp_path / "folder", bucket)
    (tmp_path / "folder/a.txt").write_text("other")
    upload_folder(tmp_path / "folder", bucket)
    assert set(files_below(bucket)) == {"a.txt", "below/b.txt"}
    fetch_folder(bucket, tmp_path / "again")
    assert (tmp_path / "again/a.txt").read_text() == "other"


def test_stages_are_kept_where_every_process_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = Path("results")
    assert stages_root("stages", results) == str(tmp_path / "stages")
    assert stages_root(f"file://{tmp_path}/a/../b", results) == str(tmp_path / "b")
    assert stages_root("s3://bucket/run", results) == "s3://bucket/run/stages"
    assert stages_root(None, results) == str(tmp_path / "results/stages")


def test_options_are_not_abbreviated(run: Run) -> None:
    """A job started by ``--det`` would keep the word, and start the next."""
    code, printed = run(run_grid.main, "--det", "--address", "http://127.0.0.1:1")
    assert (code, "unrecognized arguments: --det" in printed) == (2, True)


def test_addresses_that_are_none_are_refused_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import job_submission
    from ray.exceptions import AuthenticationError

    dashboard = ("--address", "http://127.0.0.1:8265")
    refused: dict[tuple[str, ...], str] = {
        ("--plan", *dashboard): "a dashboard's address goes with --detach",
        ("--plan", "--address", "foo"): "Invalid address format: foo",
        ("--plan", "--address", "127.0.0.1:1"): "Connection refused",
        ("--plan", "--address", "auto", "--cpus", "4"): "a running cluster has the CPUs it has",
        ("--calibrate",): "--calibrate is for --plan",
        ("--plan", "--budget-hours", "1"): "--plan runs nothing that --budget-hours could stop",
        ("--status", "--address", "foo"): "Invalid address format: foo",
    }
    for arguments, words in refused.items():
        code, printed = run(run_grid.main, *arguments, "--data", str(tmp_path))
        assert (code, words in printed) == (2, True), printed
        assert len(printed.strip().splitlines()) == 1

    def without_token(*_: object, **__: object) -> None:
        raise AuthenticationError("no token")

    monkeypatch.setattr(job_submission, "JobSubmissionClient", without_token)
    monkeypatch.setattr(ray, "init", without_token)
    for action in ("--status", "--plan"):
        code, printed = run(run_grid.main, action, "--address", "auto", "--data", str(tmp_path))
        assert (code, "no token" in printed) == (2, True), printed


def test_a_job_that_is_not_taken_is_refused_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def submit_job(self, **job: object) -> str:
            raise RuntimeError(
                "Request failed with status code 500: Traceback (most recent call last):\n"
                "  File ...\nValueError: Package size (600MiB) exceeds the maximum size\n."
            )

    monkeypatch.setattr(detached, "job_client", lambda address: Client())
    code, printed = run(run_grid.main, "--detach", "--address", "http://127.0.0.1:8265")
    assert (code, "ValueError: Package size (600MiB) exceeds" in printed) == (2, True)
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--results", "results-esc10"),
        ("--data", "data"),
        ("--storage", "stages"),
        ("--sound-bank", "../esc10"),
        ("--unannotated", "yt360=corpora/yt360"),
    ],
)
def test_folders_that_would_go_with_the_job_are_refused(
    option: str, place: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(_: str) -> None:
        raise AssertionError("the job was submitted")

    monkeypatch.setattr(detached, "job_client", taken)
    for typed in ((option, place), (f"{option}={place}",)):
        code, printed = run(run_grid.main, "--detach", "--address", "http://127.0.0.1:8265", *typed)
        assert (code, option in printed) == (2, True), printed
        assert "an absolute path on the cluster's head" in printed
        assert len(printed.strip().splitlines()) == 1


def test_a_grid_is_not_mixed_with_a_sweep(run: Run, tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / JOURNAL_FILE).touch()
    places = ("--data", str(tmp_path / "data"), "--results", str(tmp_path))
    code, printed = run(run_grid.main, "--name", "found", *places)
    assert (code, "another --name: this is a sweep's folder" in printed) == (2, True)


@pytest.mark.parametrize("storage", ["{occupied}", "{occupied}/below", "nothing://there"])
@pytest.mark.parametrize("action", [("--plan",), ("--show", "all")])
def test_a_store_that_cannot_be_is_refused_before_any_work(
    storage: str, action: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    places = ("--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"))
    storage = storage.format(occupied=occupied)
    code, printed = run(run_grid.main, *action, *places, "--storage", storage)
    refused = storage if action == ("--plan",) or "://" in storage else "results/variants"
    assert (code, refused in printed, len(printed.strip().splitlines())) == (2, True, 1)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (run_grid.main, ("--show", "")),
        (run_grid.main, ("--attach", "", "--address", "http://127.0.0.1:1")),
        (run_grid.main, ("--arms", "")),
        (run_grid.main, ("--scale", "")),
        (run_grid.main, ("--data", "")),
        (run_grid.main, ("--results", "")),
        (run_grid.main, ("--results", "s3://bucket/run")),
        (run_grid.main, ("--data", "s3://bucket/data")),
        (run_grid.main, ("--name", "stages")),
        (run_grid.main, ("--name", "a/b")),
        (run_grid.main, ("--sound-bank", "")),
        (run_grid.main, ("--annotated", "starss22=")),
        (run_grid.main, ("--storage", "s3://")),
        (run_grid.main, ("--storage", "://runs")),
        (run_grid.main, ("--budgets", "nan")),
        (run_grid.main, ("--budgets", "1,inf")),
        (run_grid.main, ("--gpus-per-worker", "nan")),
        (run_grid.main, ("--budget-hours", "inf")),
        (run_sweep.main, ("--objectives", "")),
        (run_sweep.main, ("--minimise", ",")),
        (run_sweep.main, ("--name", "")),
        (run_sweep.main, ("--name", "..")),
        (run_sweep.main, ("--name", "a/b")),
        (run_sweep.main, ("--name", "stages")),
        (run_sweep.main, ("--name", "variants")),
    ],
)
def test_values_that_say_nothing_are_refused(
    main: Callable[[], int], arguments: tuple[str, ...], run: Run
) -> None:
    code, printed = run(main, *arguments, "--plan")  # lest one that is taken should run
    assert code == 2
    assert f"argument {arguments[0]}: " in printed
    assert len(printed.strip().splitlines()) == 1
