"""One smoke test of all studies: rendered, trained, scored and reported, at ``demo`` settings.

Everything but Ray: stages that it would send to workers run in this process, on a corpus of
seconds and for a step or two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablations.data import DataOptions, prepare_data
from ablations.grid import plan_of, report_on
from analysis.load import load_studies
from search_spaces.scales import ScaleSettings, find_scale
from search_spaces.studies import STUDIES, Study
from seld.checkpoints import save_audio_encoder
from seld.records import HISTORY_FILE, write_record, write_study
from seld.shards import ProcessExecutor
from trainables import trial
from trainables.clips import local_batches
from trainables.jobs import ENCODER_FILE, History
from trainables.pretrain import pretrain
from trainables.pretrain_job import PretrainJob
from trainables.provenance import current_provenance
from trainables.resources import plan_placement
from trainables.stages import StageStore
from trainables.trial import StudyRun, run_cell


def pretrain_here(job: PretrainJob, *_: object, folder: Path, **__: object) -> dict[str, float]:
    settings = job.settings
    history = History("pretrain")
    result = pretrain(
        settings,
        local_batches(job.reader(), start_step=0, steps=settings.steps),
        report=lambda step, metrics, state: history.add(step, metrics),
        probe=job.probe(),
    )
    save_audio_encoder(folder / ENCODER_FILE, result.audio_encoder, settings.audio)
    history.write(folder / HISTORY_FILE)
    return result.probes


def run_here(job: Any, *_: object, folder: Path, report: Callable[..., None], **__: object) -> Any:
    return job.run(folder, device="cpu", report=report)


def seconds_instead_of_minutes(scale: ScaleSettings) -> ScaleSettings:
    """The same scale on recordings of 4 s: three rooms to train on, one to test on."""
    part = scale.scenes.unannotated
    scenes = replace(
        scale.scenes,
        recording_s=4.0,
        unannotated=replace(part, minutes=8 / 60, rooms=2),
        train=replace(scale.scenes.train, minutes=12 / 60, rooms=3),
        test=replace(scale.scenes.test, minutes=8 / 60, rooms=1),
    )
    return replace(scale, scenes=scenes, shards=replace(scale.shards, clip_s=4.0))


def short(study: Study) -> Study:
    """Every arm as it is, but for the number of steps and the size of batches."""

    def shortened(settings: Any) -> Any:
        few = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "report_every": 1, "state_every": 1}
        return replace(settings, **few)

    arms = tuple(
        replace(
            arm,
            pretrain=arm.pretrain and shortened(arm.pretrain),
            finetune=shortened(arm.finetune),
        )
        for arm in study.arms
    )
    return replace(study, arms=arms, seeds=(0,), budgets_minutes=(0.06,))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered scenes and shards, shared by studies that need the same."""
    return tmp_path_factory.mktemp("data")


# The arms of ``evidence`` are those of ``variants``.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "evidence"])
def test_a_study_runs_from_its_definition_to_its_report(
    name: str, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.data.RayDataExecutor", ProcessExecutor)
    monkeypatch.setattr(trial, "pretrain_on_workers", pretrain_here)
    monkeypatch.setattr(trial, "run_as_task", run_here)
    monkeypatch.setattr(trial.tune, "report", lambda *_: None)
    console = Console(file=(tmp_path / "output.txt").open("w"), width=200)
    study = short(STUDIES[name](seconds_instead_of_minutes(find_scale("demo"))))
    placement = plan_placement({"CPU": 1.0}, train_workers=1)
    folder = tmp_path / "results" / study.name
    folder.mkdir(parents=True)
    run = StudyRun(
        study_folder=folder,
        store=StageStore(tmp_path / "stages"),
        placement=placement,
        data=prepare_data(DataOptions(folder=corpora), study, placement, console),
        provenance=current_provenance(),
    )
    cells = study.cells()
    write_study(plan_of(study, cells, folder), folder)
    for cell in cells:
        write_record(run_cell(cell, run), folder)

    assert report_on(folder, console) == 0
    results = load_studies([folder])
    assert not results.unreadable
    assert not results.missing
    assert [trial.record.status for trial in results.trials] == ["finished"] * len(study.arms)
    by_arm = {trial.arm: trial.record for trial in results.trials}
    for arm in study.arms:
        assert bool(by_arm[arm.name].probes) == (arm.pretrain is not None)
    # The report knows which classes an arm has never heard in pretraining.
    heard = {arm: len(record.unannotated_classes or ()) for arm, record in by_arm.items()}
    assert set(heard.values()) == ({7, 13} if name == "domain" else {13})
    figures = {path.stem for path in (folder / "report/figures").glob("*.svg")}
    assert {"budget", "localisation_detection", "rooms", "confusion", "tracks"} <= figures
    assert "responses" in figures or name not in ("temperature", "doa_resolution")
