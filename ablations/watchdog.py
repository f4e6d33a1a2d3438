"""Says when a run has stopped making progress, and why; gives back what killed trials held."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from trainables.in_trial import give_back_orphans
from trainables.resources import Placement

#: Silence of all trials after which a run counts as stalled. Loading a large corpus or compiling
#: takes minutes; reports come every few seconds in between.
STALLED_AFTER_S = 300.0

#: From look to look for what killed trials held.
GIVE_BACK_EVERY_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What can be seen of a cluster that makes no progress.

    Attributes:
        total, free: resources as Ray counts them.
        lost_nodes: that have been there and are not any more.
        trials: trial → what it last said.
    """

    total: Mapping[str, float]
    free: Mapping[str, float]
    lost_nodes: int
    trials: Mapping[str, str]


def stall_reason(situation: Situation, placement: Placement) -> str:
    """The likeliest reason that nothing happens, and what would help."""
    lane_cpus = placement.train_workers * placement.worker_cpus + placement.data_cpus
    lane_gpus = placement.train_workers * placement.worker_gpus
    # Fine-tuning and evaluation hold their CPUs by themselves.
    needs_workers = any(
        not said.startswith(("finetune", "evaluate")) for said in situation.trials.values()
    )
    for name, lane in (("CPU", lane_cpus), ("GPU", lane_gpus)):
        total, free = situation.total.get(name, 0.0), situation.free.get(name, 0.0)
        if total + 1e-6 < lane:
            lost = f" ({situation.lost_nodes} nodes lost)" if situation.lost_nodes else ""
            return (
                f"the cluster has {total:g} {name}{lost} and a trial needs {lane:g}: "
                "add nodes, or start again on what is left"
            )
        if name == "CPU" and needs_workers and free + 1e-6 < placement.worker_cpus:
            # What reads for workers holds none, so there are some left while only trials run.
            return (
                f"all {total:g} CPUs are held and none is left for train workers: something else "
                "runs on this cluster, or a worker hangs; a lower --trials-at-once leaves more"
            )
    waiting = [trial for trial, said in situation.trials.items() if said.startswith("waits for")]
    if waiting and len(waiting) == len(situation.trials):
        return (
            "every trial waits for a stage that another run computes or did until it died: its "
            "lease ends 45 s after its last heartbeat"
        )
    computing = [f"{trial}: {said}" for trial, said in situation.trials.items()]
    return "the workers have said nothing; last heard: " + "; ".join(sorted(computing))


class Watchdog(tune.Callback):
    """Tells ``say`` once per stall; a report of any trial ends the stall.

    Workers of a trial whose process was killed die with it, and their CPUs and GPUs are free again
    within seconds.

    Args:
        placement: what trials need.
        say: receives one line.
        clock: seconds.
        look: sees the cluster.
        give_back: frees what killed trials held.
    """

    def __init__(
        self,
        placement: Placement,
        say: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[Mapping[str, str]], Situation] | None = None,
        give_back: Callable[[], object] = give_back_orphans,
    ) -> None:
        self._placement = placement
        self._say = say
        self._clock = clock
        self._look = look or look_at_cluster
        self._give_back = give_back
        self._given_back_at = clock()
        self._heard_at = clock()
        self._told = False
        self._trials: dict[str, str] = {}

    # Tune pickles and copies its callbacks to restore experiments.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Watchdog:
        return self

    def on_step_begin(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Called by Tune all the time."""
        now = self._clock()
        if now - self._given_back_at >= GIVE_BACK_EVERY_S:
            self._given_back_at = now
            self._give_back()
        silent_s = now - self._heard_at
        if silent_s < STALLED_AFTER_S or self._told:
            return
        self._told = True
        reason = stall_reason(self._look(self._trials), self._placement)
        self._say(f"no progress for {silent_s / 60:.0f} minutes: {reason}")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial begins."""
        self._hear(trial, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with every report of a trial."""
        said = str(result.get("stage", result.get("status", "")))
        label = trial.config["cell"].trial_id
        # One that waits says so twice a second, which is no progress.
        if said.startswith("waits for") and self._trials.get(label) == said:
            return
        self._hear(trial, f"{said} {result['step']}" if "step" in result else said)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended."""
        self._hear(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial's process has died."""
        self._hear(trial, None)

    def _hear(self, trial: Any, said: str | None) -> None:
        self._heard_at = self._clock()
        self._told = False
        label = trial.config["cell"].trial_id
        if said is None:
            self._trials.pop(label, None)
        else:
            self._trials[label] = said


def look_at_cluster(trials: Mapping[str, str]) -> Situation:
    """What Ray says of itself."""
    return Situation(
        total=ray.cluster_resources(),
        free=ray.available_resources(),
        lost_nodes=sum(not node["Alive"] for node in ray.nodes()),
        trials=dict(trials),
    )
