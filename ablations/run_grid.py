"""Run a study: every arm × annotation budget × seed, to a table of SELD scores and a report.

    python ablations/run_grid.py                     the demo study on the embedded benchmark
    python ablations/run_grid.py --sound-bank DIR    the same with recordings of your own
    python ablations/run_grid.py --plan              what would run, and what it would cost
    python ablations/run_grid.py --scale small --annotated starss22=/data/STARSS22 \\
        --unannotated yt360=/data/YT-360             the study on real scenes

The same command again computes only what is missing.
"""

from __future__ import annotations

import gc

# Imports make a million objects that stay: to look for garbage among them takes a second.
gc.disable()

import argparse
import itertools
from dataclasses import replace
from functools import partial

from ablations.commands import carry_out
from ablations.options import (
    RunOptions,
    add_cost_options,
    add_place_options,
    assignments_by_stage,
    check_cost_options,
    comma_separated,
    folder_name,
    nonempty,
    number,
    numbers,
)
from ablations.plan import plan_study
from search_spaces.scales import SCALES
from search_spaces.studies import STUDIES, Study, find_study
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.settings import override


def main() -> int:
    """Command line."""
    gc.freeze()
    gc.enable()
    arguments = parse_arguments()
    study = study_of(arguments)

    def run(options: RunOptions) -> int:
        # Ray Tune takes a second to import, and plans run nothing.
        from ablations.grid import run_study

        return run_study(study, options)

    return carry_out(
        arguments,
        program="ablations/run_grid.py",
        study=study.name,
        plan=partial(plan_study, study),
        run=run,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = CommandLine(
        prog="run_grid.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="variants", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument(
        "--scale",
        type=nonempty,
        help=f"one of {', '.join(SCALES)} (demo; the study evidence: evidence)",
    )
    parser.add_argument(
        "--name", type=folder_name, help="name of the results folder (default: the study's name)"
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--arms", type=comma_separated, help="only these arms, comma-separated")
    what.add_argument("--seeds", type=numbers(int), help="for example 0,1,2")
    what.add_argument(
        "--budgets",
        type=numbers(number),
        help="annotated minutes, for example 1.5,6;\n--plan says how long each is fine-tuned",
    )
    what.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="a setting of every arm, such as pretrain.steps=500 or finetune.learning_rate=3e-4",
    )
    add_place_options(parser)
    add_cost_options(parser)
    arguments = parser.parse_args()
    check_cost_options(parser, arguments)
    return arguments


def study_of(arguments: argparse.Namespace) -> Study:
    """The study asked for, with what the command line changes."""
    study = find_study(arguments.study, arguments.scale)
    if arguments.name is not None:
        study = replace(study, name=arguments.name)
    if arguments.arms is not None:
        study = study.of_arms(arguments.arms)
    if arguments.seeds is not None:
        study = replace(study, seeds=arguments.seeds)
    if arguments.budgets is not None:
        study = replace(study, budgets_minutes=arguments.budgets)
    return with_assignments(study, arguments.assignments)


def with_assignments(study: Study, assignments: list[str]) -> Study:
    """Every arm with ``pretrain.key=value`` and ``finetune.key=value`` applied."""
    by_stage = assignments_by_stage(assignments)
    if by_stage["pretrain"] and not any(arm.pretrain for arm in study.arms):
        value = " ".join(by_stage["pretrain"])
        raise InputError("--set", "pretrain", value, "nothing where no arm pretrains")
    arms = tuple(
        replace(
            arm,
            pretrain=arm.pretrain
            and override(arm.pretrain, by_stage["pretrain"], "--set pretrain"),
            finetune=override(arm.finetune, by_stage["finetune"], "--set finetune"),
        )
        for arm in study.arms
    )
    assigned = replace(study, arms=arms)
    if any(assignment.partition("=")[0] == "steps" for assignment in by_stage["finetune"]):
        assigned = replace(assigned, scale=replace(study.scale, finetune_steps={}))
    settings = {arm.name: (arm.pretrain, arm.finetune, arm.scenes) for arm in arms}
    before = {arm.name: (arm.pretrain, arm.finetune, arm.scenes) for arm in study.arms}
    for one, other in itertools.combinations(settings, 2):
        if settings[one] == settings[other] and before[one] != before[other]:
            expected = f"settings in which {one} and {other} do not differ; it makes them the same"
            raise InputError("--set", "settings", " ".join(assignments), expected)
    return assigned


if __name__ == "__main__":
    exit_on_input_error(main)
