"""The grid as people run it: on few and many CPUs, extended, interrupted, and given bad input."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import ray

from ablations.cluster import ClusterOptions, ray_cluster
from ablations.run_grid import main
from seld.errors import exit_on_input_error
from seld.records import read_record
from tests.integration.tiny_study import (
    Command,
    FinishedStudy,
    committed,
    networks_of,
    table_of,
)
from trainables.ingest import RayDataExecutor


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)  # whichever is first runs the study
def test_the_study_shares_its_pretraining(finished: FinishedStudy) -> None:
    """Two arms, one of them pretrained: P × S is 1."""
    assert len(committed(finished.results, "pretrain")) == 1
    assert len(committed(finished.results, "finetune")) == 2
    assert "stages: 2 finetune for 2 trials" in finished.output
    assert (table_of(finished.results)["status"] == "finished").all()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_an_unreadable_recording_among_good_ones_is_set_aside(finished: FinishedStudy) -> None:
    assert "1 recordings set aside" in finished.output
    assert "fold3_room4_mix001" in finished.output


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_one_cpu_is_enough_and_gives_the_same_table(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    # Two pretrainings at once would leave Ray Data without its share of the CPU.
    arguments = [*finished.arguments(results), "--cpus", "1", "--arms", "scratch,avc,doa_wise"]
    with Command(arguments, tmp_path / "output.log") as command:
        output = command.finish()
    assert "1 CPUs: 1 trial at once" in output
    assert len(table_of(results)) == 3
    assert_has_all_of(results, finished.results)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(2400)
def test_four_cpus_interrupted_and_extended_give_the_same_table(
    finished: FinishedStudy, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    arguments = [*finished.arguments(results), "--cpus", "4", "--seeds", "0,1"]
    with Command(arguments, tmp_path / "interrupted.log") as command:
        command.reach(lambda: finished_trials(results), "a finished trial")
        command.interrupt()
        command.vanish()
    assert command.process.returncode == 130
    output = (tmp_path / "interrupted.log").read_text()
    assert "4 CPUs: 4 trials at once" in output
    assert "interrupted" in output
    history = finished_trials(results)
    assert 1 <= len(history) < 4

    # Extended by a budget, it runs what is missing and nothing else.
    longer = [*arguments, "--budgets", "0.2,0.3"]
    with Command(longer, tmp_path / "rest.log") as command:
        output = command.finish()
    assert f"{len(history)} of 8 trials finished already" in output
    assert finished_trials(results).items() >= history.items()
    assert len(finished_trials(results)) == 8
    # P × S pretrainings for P × S × B trials; scratch has none.
    assert len(committed(results, "pretrain")) == 2
    assert len(committed(results, "finetune")) == 8
    assert_has_all_of(results, finished.results)


def finished_trials(results: Path) -> dict[str, bytes]:
    """The records of the trials that have finished, by trial, as they are on disk."""
    found = {}
    for path in (results / "variants/trials").glob("*/record.json"):
        record = read_record(path.parent)
        if record.status == "finished":
            found[record.trial_id] = path.read_bytes()
    return found


def assert_has_all_of(results: Path, expected: Path) -> None:
    """The same rows and the same networks, to the last bit, perhaps among others."""
    table, wanted = table_of(results), table_of(expected)
    table = table[table["trial_id"].isin(wanted["trial_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[wanted.columns], wanted, check_dtype=False)
    assert networks_of(results).items() >= networks_of(expected).items()


def test_bad_input_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = f"embedded={tmp_path}"
    occupied = tmp_path / "file"
    occupied.write_text("")
    empty_bank = tmp_path / "bank"
    empty_bank.mkdir()
    elsewhere = ("--data", str(tmp_path / "data"), "--results", str(tmp_path / "results"))
    refused: dict[tuple[str, ...], str] = {
        ("no_such_study",): "study is 'no_such_study', expected one of variants",
        ("--no-such-option",): "--no-such-option",
        ("--scale", "huge"): "--scale is 'huge'",
        ("--arms", "scratch,avcc"): "arm is 'avcc'",
        ("--seeds", "0,x"): "whole numbers",
        ("--seeds", "0,1,0"): "different numbers from 0",
        ("--budgets", "-1"): "minutes above 0",
        ("--budgets", "1000"): "annotation budget (minutes) is 1000.0, expected at most the",
        ("--cpus", "0"): "--cpus is 0, expected at least 1",
        ("--trials-at-once", "0"): "--trials-at-once is 0",
        ("--budget-hours", "-2"): "hours above 0",
        ("--set", "pretrain.temprature=0.1"): "did you mean 'temperature'?",
        ("--set", "finetune.steps=many"): "steps is 'many'",
        ("--set", "evaluate.steps=1"): "pretrain or finetune",
        ("--sound-bank", str(empty_bank)): str(empty_bank),
        ("--annotated", corpus): "--unannotated",
        ("--annotated", "nothing=/x", "--unannotated", corpus): "corpus: name is 'nothing'",
        ("--annotated", corpus, "--unannotated", corpus): str(tmp_path),
        ("--results", str(occupied / "below")): "a folder that can be written",
    }
    for arguments, words in refused.items():
        monkeypatch.setattr(sys, "argv", ["run_grid.py", *elsewhere, *arguments])
        with pytest.raises(SystemExit) as exited:
            exit_on_input_error(main)
        printed = capfd.readouterr()
        assert exited.value.code == 2
        assert words in printed.err, arguments
        assert printed.err.startswith("error: ")
        assert len(printed.err.strip().splitlines()) == 1
        assert not ray.is_initialized()


def test_a_raylet_that_is_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def late_twice(**settings: object) -> None:
        started.append(settings)
        if len(started) < 3:
            raise Exception("The current node timed out during startup. This could happen …")

    monkeypatch.setattr(ray, "init", late_twice)
    with ray_cluster(ClusterOptions(cpus=2)):
        pass
    assert len(started) == 3

    def out_of_ports(**settings: object) -> None:
        raise RuntimeError("no port is free")

    monkeypatch.setattr(ray, "init", out_of_ports)
    with pytest.raises(RuntimeError, match="no port"), ray_cluster(ClusterOptions(cpus=2)):
        pass


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_here_joins_no_cluster_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    @ray.remote(num_cpus=0)
    def of_a_trial() -> list[str]:
        assert os.environ["RAY_ADDRESS"]
        return sorted(RayDataExecutor().map(str, [1, 2], workers=1))

    with ray_cluster(ClusterOptions(cpus=2)):
        assert ray.cluster_resources()["CPU"] == 2
        assert ray.get(of_a_trial.remote()) == ["1", "2"]
