"""Optuna as Ray Tune's searcher: what is proposed next, what stops at a rung, what is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from seld.errors import InputError
from trainables.failures import NOT_OF_THE_TRIAL

#: What decides whether a trial goes on, where it is not the goal itself. A network that trained
#: briefly finds nothing, whatever it has learnt, and its SELD error is that of all others; its loss
#: tells them apart. Rank correlation with the final SELD error over the 49 settings of
#: ``benchmarks/surface.csv``: 0.87 after a ninth of the steps and 0.91 after a third, the SELD
#: error's own 0.18 and 0.67.
RUNG_GOALS: dict[str, str] = {"seld_error": "loss"}
#: Successive halving: a rung trains for this many times the steps of the one below, and one in
#: so many trials of a rung goes on to the next.
REDUCTION = 3
STARTUP_TRIALS = 10
#: So many trials in a row that end for what is not of the trial, and no more are begun: a full disk
#: would end each at once, and their settings would have been chosen without learning anything.
LONGEST_BAD_LUCK = 3
#: How many seeds Optuna's samplers take, from 0.
SAMPLER_SEEDS = 2**32


def require_same(study: optuna.Study, folder: Path, what: dict[str, Any]) -> None:
    """Refuse to go on with a study on other terms: its trials could not be compared.

    Args:
        study: remembers ``what`` where nothing of it is known yet.
        folder: named in the refusal.
        what: plain values by the name a person knows them by.
    """
    known = study.user_attrs.get("terms", {})
    for name, value in what.items():
        if known.get(name, value) != value:
            raise InputError(folder, name, value, f"{known[name]} as it began, or another --name")
    if not what.keys() <= known.keys():
        study.set_user_attr("terms", known | what)


def mend_journal(path: Path) -> None:
    """Cut off a line that a full disk has left unfinished: the next would be joined to it.

    Raises:
        InputError: another line is damaged.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    *lines, unfinished = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError as error:
            expected = "an entry of Optuna's journal as JSON; go on from a copy, or another --name"
            raise InputError(
                path, f"line {number}", line.decode(errors="replace"), expected
            ) from error
    if unfinished:
        os.truncate(path, len(content) - len(unfinished))


def propose_again(study: optuna.Study, *, but: Collection[int] = ()) -> None:
    """Let trials that nobody runs any more be asked for before any new one.

    They go on with their settings and the rungs they have passed. Copies of them would compete
    with the originals at every rung.

    Args:
        study: whose trials.
        but: numbers of trials that are left for a later command.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.number not in but:
            # Optuna's public interface lets only new trials wait.
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def ask(study: optuna.Study, seed: int) -> optuna.Trial:
    """The next trial, a function of the seed, its number and what is known by now.

    A sampler seeded once would propose its first random points again after every restart.
    """
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(
        seed=(seed * 1_000_003 + number) % SAMPLER_SEEDS,
        n_startup_trials=STARTUP_TRIALS,
        multivariate=True,
        group=True,
        constant_liar=True,
    )
    return study.ask()


def done_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that need not be run again: finished, stopped early, or failed by their own fault."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "failure" in trial.user_attrs
    ]


class OptunaSearcher(Searcher):
    """Lets Ray Tune ask an Optuna study for trials and tell it what came of them.

    Ray's own OptunaSearch counts a trial that was stopped early as a complete one of that value,
    and proposes its first points again when a study is continued.

    Args:
        study: where trials are kept.
        ask: gives the next trial.
        config_of: a trial → what Tune runs.
        goals: keys of the results that are minimised.
        decided: called with a trial, its rung, and whether it stops there.
        changed: called when a trial has been proposed or has ended.

    Attributes:
        put_off: number of each trial that ended for what is not of the trial → the kind of failure,
            empty where its process died. They stay open, for a later command to propose again.
    """

    def __init__(
        self,
        study: optuna.Study,
        ask: Callable[[], optuna.Trial],
        config_of: Callable[[optuna.Trial], dict[str, Any]],
        goals: Sequence[str],
        decided: Callable[[optuna.Trial, int, bool], None] = lambda trial, rung, stops: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        # Without a metric: Tune would insist that every report has it.
        super().__init__()
        self._study = study
        self._ask = ask
        self._config_of = config_of
        self._goals = goals
        self._decided = decided
        self._changed = changed
        self._trials: dict[str, optuna.Trial] = {}
        self._stopped: set[str] = set()
        self._bad_luck = 0  # trials put off since one was not
        self.put_off: dict[int, str] = {}

    # Tune pickles its searchers to restore them; this one continues from Optuna's storage.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: every step is in the storage already."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""

    @property
    def gives_up(self) -> bool:
        """Whether no more trials are begun until somebody has looked after the machines."""
        return self._bad_luck >= LONGEST_BAD_LUCK

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Called by Tune when there is room for a trial."""
        if self.gives_up:
            no_more: Any = Searcher.FINISHED  # a word, whatever the signature says
            return no_more
        self._trials[trial_id] = self._ask()
        config = self._config_of(self._trials[trial_id])
        self._changed()
        return config

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Tune's stopper: called with every report, tells Optuna of finished rungs."""
        if (
            "rung" not in result
            or result["rung"] == result["rungs"]
            or result["status"] == "failed"
            or len(self._goals) > 1
        ):
            return False
        trial = self._trials[trial_id]
        decisive = RUNG_GOALS.get(self._goals[0], self._goals[0])
        trial.report(result[decisive], REDUCTION ** (result["rung"] - 1))
        stops = trial.should_prune()
        if stops:
            # At once: should the run die, the trial would go on as one that has passed.
            self._study.tell(trial, state=TrialState.PRUNED)
            self._stopped.add(trial_id)
        self._decided(trial, result["rung"], stops)
        return stops

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Called by Tune when a trial has ended, however."""
        trial = self._trials.pop(trial_id)
        result = result or {}
        failure_kind = str(result.get("failure_kind", ""))
        unlucky = False
        if trial_id in self._stopped:
            pass  # Optuna knows
        elif result.get("status") == "finished":
            self._study.tell(trial, [result[goal] for goal in self._goals])
        elif error or failure_kind in NOT_OF_THE_TRIAL:
            # A trial's process computes nothing that its settings could make it die of.
            self.put_off[trial.number] = failure_kind
            unlucky = True
        elif result.get("status") == "failed":
            trial.set_user_attr("failure", str(result["message"]))
            self._study.tell(trial, state=TrialState.FAIL)
        # Else the run was stopped at its time limit: the trial stays open for the next run.
        self._bad_luck = self._bad_luck + 1 if unlucky else 0
        self._changed()
