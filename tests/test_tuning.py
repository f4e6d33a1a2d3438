"""How trials are given to Ray Tune: as many at once as have room, no lane kept for nobody."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablations import runs
from ablations.deadline import Deadline
from trainables.resources import plan_placement
from trainables.trial import StudyRun


@pytest.mark.parametrize(("trials", "at_once"), [(12, 8), (1, 1)])
def test_trials_that_are_fewer_than_lanes_share_out_the_cpus_of_all(
    trials: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def tuner(trainable: object, **settings: Any) -> Any:
        given.update(settings)
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr(runs.tune, "Tuner", tuner)
    monkeypatch.setattr(runs, "driver_resource", lambda: "node:here")
    absent: Any = None
    placement = plan_placement({"CPU": 8})
    run = StudyRun(
        study_folder=tmp_path, store=absent, placement=placement, data={}, provenance=absent
    )
    said = io.StringIO()
    runs.let_tune_run(
        lambda config: None,
        run,
        name="few",
        trials=trials,
        console=Console(file=said, width=200),
        param_space={},
        deadline=Deadline(),
        callbacks=[],
    )
    assert given["tune_config"].max_concurrent_trials == at_once
    # What the trials themselves go by.
    assert given["param_space"]["run"].placement.worker_threads == 8 // at_once
    assert ("8 CPUs: 1 trial at once" in said.getvalue()) == (trials == 1)
