"""The grid as people run it: on few and many CPUs, extended, interrupted, and given bad input."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
import ray

from ablations.run_grid import main
from seld.errors import exit_on_input_error
from seld.records import read_records
from tests.integration.tiny_study import (
    Command,
    FinishedStudy,
    committed,
    files_of,
    networks_of,
    table_of,
)


@pytest.mark.slow
@pytest.mark.ray
def test_the_study_shares_its_pretraining(finished: FinishedStudy) -> None:
    """Two arms, one of them pretrained: P × S is 1."""
    assert len(committed(finished.results, "pretrain")) == 1
    assert len(committed(finished.results, "finetune")) == 2
    assert "stages: 2 finetune for 2 trials" in finished.output
    assert (table_of(finished.results)["status"] == "finished").all()


@pytest.mark.slow
@pytest.mark.ray
def test_an_unreadable_recording_among_good_ones_is_set_aside(finished: FinishedStudy) -> None:
    assert "1 recordings set aside" in finished.output
    assert "fold3_room4_mix001" in finished.output


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("cpus", [1, 4])
def test_any_number_of_cpus_gives_the_same_table(
    cpus: int, finished: FinishedStudy, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    arguments = [*finished.arguments(results), "--cpus", str(cpus)]
    # Two pretrainings at once would leave Ray Data without its share of one CPU.
    arms = ["--arms", "scratch,avc,doa_wise"] if cpus == 1 else []
    with Command([*arguments, *arms], tmp_path / "output.log") as command:
        output = command.finish()
    assert f"{cpus} CPUs" in output
    table, expected = table_of(results), table_of(finished.results)
    table = table[table["trial_id"].isin(expected["trial_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected)
    assert networks_of(results).items() >= networks_of(finished.results).items()
    if cpus == 1:
        return
    # Extended by a seed and a budget and then interrupted, it runs new cells only.
    history = files_of(results, "*/record.json")
    longer = [*arguments, "--seeds", "0,1", "--budgets", "0.2,0.3"]
    with Command(longer, tmp_path / "longer.log") as command:
        command.reach(lambda: len(committed(results, "evaluate")) > 3, "a new evaluation")
        command.process.send_signal(signal.SIGINT)
        code = command.process.wait(60)
        left = command.processes()
    assert code == 130
    assert left == [], "Ray's processes are still there"
    assert "interrupted" in (tmp_path / "longer.log").read_text()
    read = list(read_records(results / "variants"))
    assert len([record for record in read if record.status == "finished"]) >= 3  # type: ignore[union-attr]
    with Command(longer, tmp_path / "rest.log") as command:
        output = command.finish()
    # P × S pretrainings for P × S × B trials; scratch has none.
    assert "4 finetune for 4" not in output
    assert len(committed(results, "pretrain")) == 2
    assert len(committed(results, "finetune")) == 8
    assert len(table_of(results)) == 8
    assert files_of(results, "*/record.json").items() >= history.items()


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
        ("--budgets", "-1"): "minutes above 0",
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
