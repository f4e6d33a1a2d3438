"""The plan: stages counted after sharing, what is done left out, times measured or remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from ablations import calibrate
from ablations import plan as planning
from ablations.calibrate import calibrated_durations_s
from ablations.cluster import ClusterOptions, autoscaled_machines
from ablations.data import DataOptions, data_for_plan
from ablations.places import ROOT, stages_root
from ablations.plan import (
    STAGE_NAMES,
    StagePlan,
    finetuning_lengths,
    longest_trial_s,
    plan_stages,
    plan_study,
    print_plan,
    scored_minutes,
)
from ablations.sweep import Sweep, as_study, expected_trials
from search_spaces.scales import find_scale
from search_spaces.studies import Study, find_study, variants
from seld.clips import ShardIndex
from seld.errors import InputError
from tests.tiny_training import TINY
from tests.tiny_training import TINY_FINETUNE as FINETUNE
from trainables.cells import Cell, stages_of
from trainables.clips import Batch
from trainables.pretrain import PretrainSettings, pretrain
from trainables.resources import plan_placement
from trainables.stages import StageStore

# Five arms, one of them without pretraining, three of two budgets and two seeds each.
STUDY = replace(variants(find_scale("demo")), budgets_minutes=(1.0, 2.0), seeds=(0, 1))
SECONDS = {"pretrain": 100.0, "finetune": 10.0, "evaluate": 1.0}


def committed(store: StageStore) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """What the store knows of finished stages, by name and digest."""
    return {name: store.committed(name) for name in STAGE_NAMES}


def planned(
    study: Study, folder: Path, measured: list[str] | None = None
) -> Mapping[str, StagePlan]:
    """The plan by stage; ``measured`` lists the arms that were calibrated."""

    def measure(cell: Cell) -> Mapping[str, float]:
        assert measured is not None
        measured.append(cell.arm)
        return SECONDS

    data = data_for_plan(DataOptions(folder=folder / "data"), study)
    stored = committed(StageStore(folder / "stages"))
    plans = plan_stages(study.cells(), data, stored, None if measured is None else measure)
    return {plan.name: plan for plan in plans}


def test_a_pretraining_counts_once_for_all_budgets(tmp_path: Path) -> None:
    plans = planned(STUDY, tmp_path)
    assert (plans["pretrain"].uses, plans["pretrain"].unique) == (16, 8)
    assert (plans["finetune"].uses, plans["finetune"].unique) == (20, 20)
    assert {plan.done for plan in plans.values()} == {0}
    assert {plan.expected_s for plan in plans.values()} == {None}


def test_a_stage_that_no_arm_has_costs_nothing(tmp_path: Path) -> None:
    plan = planned(replace(STUDY, arms=STUDY.arms[:1]), tmp_path)["pretrain"]
    assert (plan.uses, plan.unique, plan.expected_s, plan.result_bytes) == (0, 0, 0.0, 0.0)


def test_calibration_times_each_arm_once(tmp_path: Path) -> None:
    measured: list[str] = []
    plans = planned(STUDY, tmp_path, measured)
    assert sorted(measured) == sorted(arm.name for arm in STUDY.arms)
    assert plans["pretrain"].expected_s == 8 * SECONDS["pretrain"]
    assert plans["finetune"].expected_s == 20 * SECONDS["finetune"]


def test_a_plan_says_how_long_each_budget_is_fine_tuned() -> None:
    """A budget that the scale has no number of steps for gets the recipe's."""
    study = replace(find_study("evidence"), budgets_minutes=(1.0, 2.0, 6.0))
    assert finetuning_lengths(study) == (
        "fine-tuning: 2500 steps with 1, 1500 steps with 2, 2500 steps with 6 annotated minutes"
    )


def test_a_sweep_is_planned_with_its_rungs_and_their_steps(tmp_path: Path) -> None:
    sweep = Sweep(
        name="s",
        scale=find_scale("demo"),
        objectives=("doa_wise",),
        budgets_minutes=(1.0,),
        trials=9,
        rungs=3,
    )
    trials = expected_trials(sweep)
    assert len(trials) == 9
    cells = [cell for trial in trials for cell in trial]
    full = max(cell.finetune.steps for cell in cells)
    of_full = Counter(round(full / cell.finetune.steps) for cell in cells)
    assert of_full == {9: 9, 3: 3, 1: 1}
    first = cells[0].finetune.steps

    def measure(cell: Cell) -> Mapping[str, float]:
        assert cell is cells[0]
        return SECONDS

    data = data_for_plan(DataOptions(folder=tmp_path / "data"), as_study(sweep))
    stored = committed(StageStore(tmp_path / "stages"))
    plans = {plan.name: plan for plan in plan_stages(cells, data, stored, measure)}
    assert plans["finetune"].unique == 13
    steps = sum(cell.finetune.steps for cell in cells)
    assert plans["finetune"].expected_s == pytest.approx(SECONDS["finetune"] * steps / first)
    assert plans["evaluate"].expected_s == 13 * SECONDS["evaluate"]


def test_an_evaluation_is_as_long_as_what_is_scored() -> None:
    """Neither a corpus's test nor a sweep's validation rooms are as long as the scale's test."""
    clips = pd.DataFrame(
        [("test", "a", 600.0), ("train", "b", 120.0), ("train", "c", 60.0)],
        columns=["split", "room", "duration_s"],
    )
    data: Any = SimpleNamespace(
        annotated=SimpleNamespace(index=lambda: ShardIndex("shards", clips)),
        validation_rooms=("b",),
        trainable_minutes=1.0,
    )
    cell = STUDY.cells()[0]
    assert scored_minutes(cell, data, STUDY.scale) == 10.0
    assert scored_minutes(replace(cell, scored_on="validation"), data, STUDY.scale) == 2.0
    data.trainable_minutes = 0.0  # not prepared
    assert scored_minutes(cell, data, STUDY.scale) == STUDY.scale.scenes.test.minutes


def test_stages_in_the_store_are_done_and_time_the_others(tmp_path: Path) -> None:
    data = data_for_plan(DataOptions(folder=tmp_path / "data"), STUDY)
    store = StageStore(tmp_path / "stages")
    cell = next(cell for cell in STUDY.cells() if cell.arm == "avc")
    key = stages_of(cell, data[cell.data]).pretrain
    assert key is not None
    took_s = store.obtain(key, lambda folder: {}).duration_s
    plan = planned(replace(STUDY, arms=STUDY.arms[:2]), tmp_path)["pretrain"]
    assert (plan.uses, plan.unique, plan.done) == (4, 2, 1)
    assert plan.expected_s == took_s


@pytest.mark.parametrize("pretrain", [None, TINY])
def test_a_few_steps_tell_the_time_of_every_stage(pretrain: object) -> None:
    cell = replace(STUDY.cells()[0], pretrain=pretrain, finetune=FINETUNE)
    durations_s = calibrated_durations_s(cell, class_count=5, test_minutes=1.0, picture_px=(32, 64))
    assert durations_s.keys() == SECONDS.keys() - (set() if pretrain else {"pretrain"})
    assert min(durations_s.values()) > 0.0


def test_a_stage_takes_its_steps_and_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_finetune_step_s", lambda *_: 0.5)
    monkeypatch.setattr(calibrate, "_pretrain_step_s", lambda *_: 2.0)
    monkeypatch.setattr(calibrate, "_evaluation_share", lambda *_: 0.1)
    cell = replace(
        STUDY.cells()[0],
        pretrain=replace(TINY, steps=300),
        finetune=replace(FINETUNE, steps=40),
    )
    durations_s = calibrated_durations_s(cell, class_count=5, test_minutes=3.0, picture_px=(32, 64))
    assert durations_s == {"pretrain": 600.0, "finetune": 20.0, "evaluate": pytest.approx(18.0)}


def test_hours_are_those_of_all_lanes_together(tmp_path: Path) -> None:
    """Four trials at a time with two GPUs each, on 16 CPUs."""
    console = Console(width=100)
    placement = plan_placement({"CPU": 16.0, "GPU": 8.0}, train_workers=2)
    assert placement.lanes == 4
    stages = planned(STUDY, tmp_path, measured=[]).values()
    alone_h = sum(plan.expected_s or 0.0 for plan in stages) / 3600
    assert alone_h == pytest.approx((8 * 100.0 + 20 * 10.0 + 20 * 1.0) / 3600)
    with console.capture() as capture:
        print_plan([replace(plan, expected_s=3600.0 * n) for n, plan in enumerate(stages)],
                   placement, console)  # fmt: skip
    # Nothing is pretrained, and the other stages hold one GPU.
    assert "about 0.75 h, 4 trials at a time: 3.00 GPU hours, 12.00 CPU hours" in capture.get()


def test_hours_are_not_fewer_than_those_of_one_trial(tmp_path: Path) -> None:
    """Twelve pretrainings of 57 h are not done in 28 h, however many machines wait for them."""
    (arm,) = STUDY.arms[1:2]
    study = replace(STUDY, arms=(arm,), baseline=arm.name, seeds=tuple(range(12)))
    data = data_for_plan(DataOptions(folder=tmp_path / "data"), study)
    durations_s = {"pretrain": 57 * 3600.0, "finetune": 3600.0, "evaluate": 360.0}

    def planned_hours(trials: list[list[Cell]]) -> str:
        cells = [cell for trial in trials for cell in trial]
        stored = committed(StageStore(tmp_path / "stages"))
        plans = plan_stages(cells, data, stored, lambda cell: durations_s)
        console = Console(width=200)
        with console.capture() as capture:
            print_plan(plans, placement, console, longest_s=longest_trial_s(trials, plans))
        return capture.get()

    placement = plan_placement(*[{"CPU": 8.0, "GPU": 2.0}] * 24, train_workers=2)
    trials = [[cell] for cell in study.cells()]
    assert (len(trials), placement.lanes) == (24, 24)
    # Two GPUs for each pretraining, one for each of the others.
    gpu_hours = f"{12 * 57 * 2 + 24 * 1.1:.2f} GPU hours"
    hours = "about 58.10 h, as long as one trial needs, 24 trials at a time"
    assert f"{hours}: {gpu_hours}" in planned_hours(trials)
    # A sweep's trial trains one length after the other.
    pairs = [[*one, *other] for one, other in zip(trials[0::4], trials[2::4], strict=True)]
    assert "about 116.20 h, as long" in planned_hours(pairs)
    placement = placement.for_trials(2)
    assert f"about {(12 * 57 + 24 * 1.1) / 2:.2f} h, 2 trials at a time" in planned_hours(trials)


def test_a_worker_is_timed_on_its_share_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = replace(STUDY.cells()[0], pretrain=TINY, finetune=FINETUNE)
    windows: set[int] = set()

    def listened(settings: PretrainSettings, batches: Iterable[Batch], **options: Any) -> object:
        def heard() -> Iterator[Batch]:
            for batch in batches:
                windows.update(map(len, batch.values()))
                yield batch

        return pretrain(settings, heard(), **options)

    def timed(train_workers: int) -> None:
        calibrated_durations_s(
            cell, class_count=5, test_minutes=1.0, picture_px=(32, 64), train_workers=train_workers
        )

    monkeypatch.setattr(calibrate, "pretrain", listened)
    timed(2)
    assert windows == {TINY.batch_size // 2}

    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calibrate, "pretrain", too_large)
    with pytest.raises(InputError, match=r"step is 4, expected fewer.* more --train-workers"):
        timed(1)
    monkeypatch.setattr(calibrate, "finetune", too_large)
    with pytest.raises(InputError, match=r"expected fewer.* --set finetune\.batch_size"):
        timed(1)


def test_a_gpu_is_not_timed_on_a_machine_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "machines_of", lambda cluster: [{"CPU": 8.0, "GPU": 1.0}])
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="a GPU here"):
        plan_study(
            STUDY,
            data=DataOptions(folder=tmp_path / "data"),
            cluster=ClusterOptions(),
            results=tmp_path / "results",
            calibrate=True,
        )


def test_a_budget_that_cannot_be_trained_on_is_refused_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rooms that validate are no one's to train on: 6.3 of demo's 8 minutes are left."""

    def plan(data: DataOptions) -> int:
        return plan_study(
            replace(STUDY, budgets_minutes=(1.0, 8.0)),
            data=data,
            cluster=ClusterOptions(cpus=2),
            results=tmp_path / "results",
        )

    own = DataOptions(folder=tmp_path / "data")
    with pytest.raises(InputError, match=r"is 8.0, expected at most the 6\.3333 that the scenes'"):
        plan(own)
    # Of corpora it is known once they are decoded.
    monkeypatch.setattr(DataOptions, "check", lambda *_: None)
    unprepared = data_for_plan(own, STUDY)
    assert plan(own) == 0
    prepared = {
        name: replace(data, trainable_minutes=7.5, validation_rooms=("room22",))
        for name, data in unprepared.items()
    }
    monkeypatch.setattr(planning, "data_for_plan", lambda *_: prepared)
    expected = r"expected at most the 7.5 that .* has beside its validation rooms \(room22\)"
    with pytest.raises(InputError, match=expected):
        plan(own)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (1, "on 2 machines like this one; 16 CPUs, 2 GPUs: 1 trial at once, each with 2 workers"),
        (4, "20 trials; 8 CPUs, 4 GPUs: 2 trials at once, each with 2 workers"),
    ],
)
def test_one_machine_times_a_pretraining_that_takes_several(
    gpus: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    timed: list[int] = []

    def durations(cell: Cell, *, train_workers: int, **_: Any) -> Mapping[str, float]:
        timed.append(train_workers)
        return SECONDS

    monkeypatch.setattr(planning, "calibrated_durations_s", durations)
    monkeypatch.setattr(planning, "machines_of", lambda cluster: [{"CPU": 8.0, "GPU": gpus}])
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: True)

    def plan(calibrate: bool) -> None:
        plan_study(
            STUDY,
            data=DataOptions(folder=tmp_path / "data"),
            cluster=ClusterOptions(train_workers=2),
            results=tmp_path / "results",
            calibrate=calibrate,
        )

    plan(calibrate=True)
    assert words in " ".join(capsys.readouterr().out.split())
    assert set(timed) == {2}
    if gpus == 1:  # a run here is refused, and so is its plan
        with pytest.raises(InputError, match="room for 2 train workers"):
            plan(calibrate=False)


@pytest.mark.parametrize(
    ("with_gpus", "machines", "lanes"),
    # All groups together could hold 32 GPUs, but there are never more than 24 workers.
    [(True, [(4, 0)] + [(8, 1)] * 24, 24), (False, [(4, 0)] + [(16, 0)] * 8, 132)],
)
def test_a_run_counts_on_all_that_the_autoscaler_may_bring_at_once(
    with_gpus: bool, machines: list[tuple[int, int]], lanes: int
) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    found = autoscaled_machines(config, with_gpus=with_gpus)
    assert [(machine["CPU"], machine.get("GPU", 0)) for machine in found] == machines
    assert plan_placement(*found).lanes == lanes


def test_a_plan_divides_the_machine_among_the_trials_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "machines_of", lambda cluster: [{"CPU": 8.0}])
    own, results = DataOptions(folder=tmp_path / "data"), tmp_path / "results"
    study = replace(STUDY, arms=STUDY.arms[:2], seeds=(0,))

    def plan() -> str:
        plan_study(study, data=own, cluster=ClusterOptions(), results=results)
        return " ".join(capsys.readouterr().out.split())

    assert "4 trials; 8 CPUs: 4 trials at once, each with 1 train worker (1 CPU)" in plan()
    data = data_for_plan(own, study)
    store = StageStore(stages_root(None, results))
    for cell in study.cells()[:3]:
        store.obtain(stages_of(cell, data[cell.data]).evaluate, lambda folder: {})
    assert "4 trials; 8 CPUs: 1 trial at once, each with 1 train worker (4 CPU)" in plan()
