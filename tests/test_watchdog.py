"""The watchdog: silent while there is progress, one line with the reason when there is none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ablations.watchdog import STALLED_AFTER_S, Situation, Watchdog, stall_reason
from trainables.resources import plan_placement

PLACEMENT = plan_placement({"CPU": 2})
BUSY = Situation(
    total={"CPU": 2.0}, free={"CPU": 1.0}, lost_nodes=0, trials={"a": "pretrain 20", "b": "started"}
)


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        (replace(BUSY, total={"CPU": 0.5}, lost_nodes=1), "0.5 CPU (1 nodes lost) and a trial"),
        (replace(BUSY, free={}), "none is left for train workers"),
        (replace(BUSY, free={}, trials={"a": "finetune 20"}), "last heard: a: finetune 20"),
        (replace(BUSY, trials={"a": "waits for pretrain by vm"}), "every trial waits"),
        (BUSY, "last heard: a: pretrain 20; b: started"),
    ],
)
def test_the_reason_is_what_can_be_seen(situation: Situation, words: str) -> None:
    assert words in stall_reason(situation, PLACEMENT)


def test_missing_gpus_are_named() -> None:
    placement = plan_placement({"CPU": 8, "GPU": 1})
    situation = replace(BUSY, total={"CPU": 8.0}, free={"CPU": 8.0})
    assert "0 GPU and a trial needs 1" in stall_reason(situation, placement)


def test_one_line_per_stall() -> None:
    now = 0.0
    said: list[str] = []
    watchdog = Watchdog(
        PLACEMENT, said.append, clock=lambda: now, look=lambda trials: BUSY, give_back=lambda: None
    )
    trial: Any = SimpleNamespace(config={"cell": SimpleNamespace(trial_id="a")})

    def step(seconds: float, result: dict[str, Any] | None = None) -> int:
        nonlocal now
        now += seconds
        if result is not None:
            watchdog.on_trial_result(0, [], trial, result)
        watchdog.on_step_begin(0, [])
        return len(said)

    watchdog.on_trial_start(0, [], trial)
    assert step(STALLED_AFTER_S - 1) == 0
    assert step(0.5, {"stage": "pretrain", "step": 20}) == 0
    assert step(STALLED_AFTER_S - 1) == 0
    assert step(2) == 1
    assert step(1000) == 1
    # It goes on, and stalls again: a trial that only repeats that it waits is no progress.
    waiting = {"stage": "waits for pretrain by vm"}
    assert step(1, waiting) == 1
    assert step(STALLED_AFTER_S - 1, waiting) == 1
    assert step(2, waiting) == 2
    assert said[0].startswith("no progress for 5 minutes: ")
