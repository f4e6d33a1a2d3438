"""Search the settings of pretraining and fine-tuning with Optuna, on the validation rooms.

    python ablations/run_sweep.py                         thirty trials on the embedded benchmark
    python ablations/run_sweep.py --trials 60             thirty more: the study continues
    python ablations/run_sweep.py --plan --calibrate      what it would cost; runs nothing
    python ablations/run_sweep.py --objectives recording_wise
    python ablations/run_sweep.py --name tau --objectives doa_wise --budgets 6 \\
        --search pretrain.temperature,finetune.learning_rate    these and nothing else
    python ablations/run_sweep.py --budgets 1.5,6 --minimise seld_error,annotation_minutes

Trials begin with few steps and only the better ones, by their loss, go on to all (asynchronous
successive halving). Loss and scores are those of rooms held out of the training part; the test is
for the grid that compares what was found, and the command for that is printed at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ablations.commands import carry_out
from ablations.options import (
    add_cost_options,
    add_place_options,
    assignments_by_stage,
    check_cost_options,
    comma_separated,
    folder_name,
    number,
    numbers,
    typed_places,
)
from ablations.plan import plan_study
from ablations.searcher import REDUCTION
from ablations.sweep import GOALS, Sweep, as_study, expected_trials, run_sweep
from ablations.wording import counted
from search_spaces.scales import SCALES, find_scale
from search_spaces.spaces import LEARN_TEMPERATURE, OBJECTIVE, OBJECTIVES, TEMPERATURE
from search_spaces.studies import STUDIES
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.settings import override


def main() -> int:
    """Command line."""
    arguments = parse_arguments()
    sweep = sweep_of(arguments)

    def plan(**options: Any) -> int:
        trials = expected_trials(sweep)
        trainings = f", about {sum(map(len, trials))} trainings of {sweep.rungs} lengths"
        heading = counted(sweep.trials, "trial") + (trainings if sweep.rungs > 1 else "")
        return plan_study(as_study(sweep), trials=trials, heading=heading, **options)

    return carry_out(
        arguments,
        program="ablations/run_sweep.py",
        study=sweep.name,
        plan=plan,
        run=partial(
            run_sweep,
            sweep,
            grid_options=grid_options(arguments),
            mix_code=arguments.mix_code,
        ),
    )


def parse_arguments() -> argparse.Namespace:
    """The command line, read."""
    parser = CommandLine(
        prog="run_sweep.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--name", type=own_folder, default="sweep", help="name of the results folder (sweep)"
    )
    parser.add_argument("--scale", default="demo", help=f"one of {', '.join(SCALES)}")
    what = parser.add_argument_group("what to search")
    what.add_argument(
        "--trials", type=int, default=30, help="total number of trials, including earlier runs (30)"
    )
    what.add_argument(
        "--objectives", type=comma_separated, default=OBJECTIVES, help="of pretraining (all)"
    )
    what.add_argument(
        "--search",
        type=comma_separated,
        help="only these settings of the space (all);\n"
        "objective and budget vary, too, unless --objectives and --budgets name one each",
    )
    what.add_argument(
        "--budgets",
        type=numbers(number),
        help="annotated minutes (the scale's);\n--plan says how long each is fine-tuned",
    )
    what.add_argument("--seed", type=int, default=0, help="seed for proposals and trainings (0)")
    what.add_argument(
        "--minimise",
        type=comma_separated,
        default=("seld_error",),
        help=",\n".join(f"{name} ({what})" for name, what in GOALS.items())
        + ",\nor several of them (seld_error)",
    )
    what.add_argument(
        "--rungs",
        type=int,
        help=f"lengths of training, each {REDUCTION} times the last (3; 1 with several goals)",
    )
    what.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="a setting of every trial, which is not searched then, such as pretrain.steps=500",
    )
    what.add_argument(
        "--mix-code",
        action="store_true",
        help="go on though the code has changed since earlier trials: theirs and later scores\n"
        "are ranked together, and the report says so",
    )
    add_place_options(parser)
    add_cost_options(parser)
    arguments = parser.parse_args()
    check_cost_options(parser, arguments)
    return arguments


def own_folder(text: str) -> str:
    """A name for a folder in the results that is no study's and not that of the stages."""
    if text in STUDIES:
        raise argparse.ArgumentTypeError(f"{text!r}, expected none of {', '.join(STUDIES)}")
    return folder_name(text)


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """The sweep asked for."""
    scale = find_scale(arguments.scale)
    by_stage = assignments_by_stage(arguments.assignments)
    recipe = replace(
        scale.recipe,
        **{
            name: override(getattr(scale.recipe, name), by_stage["pretrain"], "--set pretrain")
            for name in OBJECTIVES
            if name in arguments.objectives
        },
        finetune=override(scale.recipe.finetune, by_stage["finetune"], "--set finetune"),
    )
    set_names = frozenset(text.partition("=")[0] for text in arguments.assignments)
    scale = replace(scale, recipe=recipe)
    if "finetune.steps" in set_names:
        scale = replace(scale, finetune_steps={})
    rungs = arguments.rungs
    several_goals = len(arguments.minimise) > 1
    sweep = Sweep(
        name=arguments.name,
        scale=scale,
        objectives=arguments.objectives,
        budgets_minutes=arguments.budgets or scale.budgets_minutes,
        trials=arguments.trials,
        goals=arguments.minimise,
        rungs=rungs if rungs is not None else (1 if several_goals else 3),
        seed=arguments.seed,
    )
    search = frozenset(arguments.search or ())
    fixed = fixed_names(sweep.searched, set_names, search)
    refuse_search(sweep, fixed, set_names, arguments.search or ())
    return replace(sweep, fixed=fixed)


def fixed_names(
    space: frozenset[str], set_names: frozenset[str], search: frozenset[str]
) -> frozenset[str]:
    """What of the space is not searched: all that is set, or that ``--search`` leaves out."""
    fixed = space & set_names
    if not search:
        return fixed
    # A temperature that is learnt would only begin where it is searched.
    return fixed | space - search - ({LEARN_TEMPERATURE} if TEMPERATURE in search else set())


def refuse_search(
    sweep: Sweep, fixed: frozenset[str], set_names: frozenset[str], search: Sequence[str]
) -> None:
    """Refuse to search for nothing, or for what cannot be searched.

    Args:
        sweep: of the whole space.
        fixed: what of it is not to be searched.
        set_names: of the settings that ``--set`` sets.
        search: the settings that ``--search`` names.
    """
    if OBJECTIVE in set_names:
        raise InputError("--set", "setting", OBJECTIVE, "--objectives, which says what is tried")
    space, left = sweep.searched, replace(sweep, fixed=fixed).searched
    for name in search:
        if name not in space:
            raise InputError("--search", "setting", name, f"some of {', '.join(sorted(space))}")
        if name in set_names:
            raise InputError("--search", "setting", name, "one that --set does not set")
        if name not in left:
            expected = f"one that changes {' or '.join(sweep.objectives)} as what is fixed has it"
            raise InputError("--search", "setting", name, expected)
    if len(sweep.objectives) == 1 and left <= {LEARN_TEMPERATURE}:
        raise InputError("command line", "--set", "every setting", "something left to search")


def grid_options(arguments: argparse.Namespace) -> list[str]:
    """What a grid must be told to do as the sweep did, but for what was searched."""
    settings = [part for text in arguments.assignments for part in ("--set", text)]
    return ["--scale", arguments.scale, *settings, *typed_places(arguments)]


if __name__ == "__main__":
    exit_on_input_error(main)
