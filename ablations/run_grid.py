"""Run a study: every arm × annotation budget × seed, to a table of SELD scores and a report.

    python ablations/run_grid.py                     the demo study on the embedded benchmark
    python ablations/run_grid.py --sound-bank DIR    the same with recordings of your own
    python ablations/run_grid.py --plan              what would run, and what it would cost
    python ablations/run_grid.py --scale small --annotated starss22=/data/STARSS22 \\
        --unannotated yt360=/data/YT-360             the study on real scenes

The same command again computes only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablations.data import DataOptions
from ablations.grid import ClusterOptions, plan_study, run_study
from search_spaces.scales import SCALES
from search_spaces.studies import STUDIES, Study, find_study
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.settings import override
from trainables.prepare import CorpusSource


def main() -> int:
    """Command line."""
    arguments = parse_arguments()
    study = study_of(arguments)
    data = DataOptions(
        folder=arguments.data,
        sound_bank=arguments.sound_bank,
        annotated=arguments.annotated,
        unannotated=arguments.unannotated,
        max_bad_share=arguments.max_bad_share,
    )
    cluster = ClusterOptions(
        address=arguments.address,
        cpus=arguments.cpus,
        train_workers=arguments.train_workers,
        gpus_per_worker=arguments.gpus_per_worker,
        most_trials_at_once=arguments.trials_at_once,
    )
    if arguments.plan:
        return plan_study(
            study,
            data=data,
            cluster=cluster,
            results=arguments.results,
            storage=arguments.storage,
            calibrate=arguments.calibrate,
        )
    return run_study(
        study,
        data=data,
        cluster=cluster,
        results=arguments.results,
        storage=arguments.storage,
        budget_hours=arguments.budget_hours,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = CommandLine(
        prog="run_grid.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="variants", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--scale", default="demo", help=f"one of {', '.join(SCALES)}")
    what = parser.add_argument_group("what to run")
    what.add_argument("--arms", type=names, help="only these arms, comma-separated")
    what.add_argument("--seeds", type=numbers(int), help="for example 0,1,2")
    what.add_argument("--budgets", type=numbers(float), help="annotated minutes, for example 2,8")
    what.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="a setting of every arm, as pretrain.steps=500 or finetune.learning_rate=3e-4",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, default=Path("data"), help="scenes and shards (data/)")
    data.add_argument("--sound-bank", type=Path, help="folder of <class>/*.wav|ogg|flac")
    data.add_argument("--annotated", type=corpus, metavar="NAME=PATH", help="e.g. starss22=DIR")
    data.add_argument("--unannotated", type=corpus, metavar="NAME=PATH", help="e.g. yt360=DIR")
    data.add_argument("--max-bad-share", type=float, default=0.5, help="stop above (0.5)")
    where = parser.add_argument_group("where")
    where.add_argument("--results", type=Path, default=Path("results"), help="(results/)")
    where.add_argument("--storage", help="folder or URI of finished stages (results/stages)")
    where.add_argument("--address", help="of a running Ray cluster; 'auto' for this machine's")
    where.add_argument("--cpus", type=int, help="logical CPUs of the Ray started here (all)")
    where.add_argument("--train-workers", type=int, default=1, help="workers per pretraining (1)")
    where.add_argument("--gpus-per-worker", type=float, help="fractions allowed")
    where.add_argument("--trials-at-once", type=int, help="at most")
    cost = parser.add_argument_group("cost")
    cost.add_argument("--plan", action="store_true", help="print stages and cost, run nothing")
    cost.add_argument("--calibrate", action="store_true", help="with --plan: time a few steps")
    cost.add_argument("--budget-hours", type=float, help="stop after this long; nothing is lost")
    return parser.parse_args()


def study_of(arguments: argparse.Namespace) -> Study:
    """The study asked for, with what the command line changes."""
    study = find_study(arguments.study, arguments.scale)
    if arguments.arms:
        known = {arm.name: arm for arm in study.arms}
        for name in arguments.arms:
            if name not in known:
                raise InputError("--arms", "arm", name, f"one of {', '.join(known)}")
        study = replace(
            study,
            arms=tuple(known[name] for name in arguments.arms),
            baseline=study.baseline if study.baseline in arguments.arms else arguments.arms[0],
        )
    if arguments.seeds:
        study = replace(study, seeds=arguments.seeds)
    if arguments.budgets:
        study = replace(study, budgets_minutes=arguments.budgets)
    return with_assignments(study, arguments.assignments)


def with_assignments(study: Study, assignments: list[str]) -> Study:
    """Every arm with ``pretrain.key=value`` and ``finetune.key=value`` applied."""
    by_stage: dict[str, list[str]] = {"pretrain": [], "finetune": []}
    for assignment in assignments:
        stage, _, rest = assignment.partition(".")
        if stage not in by_stage:
            raise InputError("--set", "stage", stage, "pretrain or finetune")
        by_stage[stage].append(rest)
    arms = tuple(
        replace(
            arm,
            pretrain=arm.pretrain
            and override(arm.pretrain, by_stage["pretrain"], "--set pretrain"),
            finetune=override(arm.finetune, by_stage["finetune"], "--set finetune"),
        )
        for arm in study.arms
    )
    return replace(study, arms=arms)


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(part for part in text.split(",") if part)


def numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A reader of comma-separated numbers."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r}, expected {wanted} as 1,2,3") from None

    return read


def corpus(text: str) -> CorpusSource:
    """``NAME=PATH`` of a corpus."""
    name, equals, root = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=PATH")
    try:
        return CorpusSource(name=name, root=root)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    exit_on_input_error(main)
