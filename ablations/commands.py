"""What a command line may ask of a grid or a sweep beside running it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ablations import detached, results
from ablations.options import RunOptions, cluster_options, data_options, run_options


def carry_out(
    arguments: argparse.Namespace,
    *,
    program: str,
    study: str,
    plan: Callable[..., int],
    run: Callable[[RunOptions], int],
) -> int:
    """Do the one thing that is asked for; returns the exit code.

    Args:
        program: the command, from the checkout's root.
        study: name of the folder in the results.
        plan: takes the further arguments of :func:`ablations.plan.plan_study`.
        run: what is done where nothing else is asked for.
    """
    if detached.is_asked_for(arguments):
        return detached.run_detached(arguments, program)
    if results.is_asked_for(arguments):
        return results.run(arguments, study)
    if arguments.plan:
        return plan(
            data=data_options(arguments),
            cluster=cluster_options(arguments),
            results=arguments.results,
            storage=arguments.storage,
            calibrate=arguments.calibrate,
        )
    return run(run_options(arguments))
