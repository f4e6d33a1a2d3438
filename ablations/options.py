"""What the commands of grids and sweeps have in common: data, results and cluster."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.cluster import ClusterOptions
from ablations.data import DataOptions
from ablations.places import STAGES_FOLDER
from seld.errors import InputError
from trainables.prepare import CorpusSource


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command says about a run beside what is run.

    Attributes:
        storage: folder or URI of finished stages; None for beside the results.
        budget_hours: when to stop; None for never.
        track: a tracker beside TensorBoard; None for no other.
    """

    data: DataOptions
    cluster: ClusterOptions
    results: Path
    storage: str | None = None
    budget_hours: float | None = None
    track: str | None = None


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which data, and where to compute and keep results."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=local_folder, default=Path("data"), help="scenes and shards (data/)"
    )
    data.add_argument("--sound-bank", type=local_folder, help="folder of <class>/*.wav|ogg|flac")
    for option, example in (
        ("--annotated", "starss22=DIR"),
        ("--unannotated", "yt360=DIR, or yt360:5000=DIR of 5000 recordings"),
    ):
        data.add_argument(
            option,
            type=corpus_source,
            action="append",
            default=[],
            metavar="NAME=PATH",
            help=f"e.g. {example}; again for each further corpus",
        )
    data.add_argument(
        "--max-bad-share",
        type=float,
        default=0.5,
        help="stop where more than this share of recordings is unusable (0.5)",
    )
    where = parser.add_argument_group("where")
    where.add_argument("--results", type=local_folder, default=Path("results"), help="(results/)")
    where.add_argument(
        "--storage",
        type=folder_or_uri,
        help="folder of finished stages (results/stages);\n"
        "a URI keeps scenes, shards and results as well, for clusters without a common disk",
    )
    where.add_argument(
        "--address", type=nonempty, help="of a running Ray cluster; 'auto' for this machine's"
    )
    where.add_argument("--cpus", type=int, help="logical CPUs of the Ray started here (all)")
    where.add_argument(
        "--train-workers",
        type=worker_counts,
        default=(1, 1),
        help="workers per pretraining (1); 1-2 goes on with 1 where a machine is lost",
    )
    where.add_argument(
        "--gpus-per-worker", type=number, help="fractions allowed (1 where there are GPUs)"
    )
    where.add_argument(
        "--trials-at-once", type=int, help="maximum number of concurrent trials (as many as fit)"
    )
    where.add_argument(
        "--track", choices=["mlflow"], help="curves and scores to MLflow as well as to TensorBoard"
    )
    remote = parser.add_argument_group(
        "runs that outlive this terminal (--address is the dashboard's, http://127.0.0.1:8265)"
    )
    remote.add_argument("--detach", action="store_true", help="start on the cluster and return")
    remote.add_argument(
        "--attach", type=nonempty, metavar="JOB", help="print a run's output until it ends"
    )
    remote.add_argument("--status", action="store_true", help="list the cluster's runs")
    kept = parser.add_argument_group("results that are there, in --results or under --storage")
    kept.add_argument(
        "--show",
        type=nonempty,
        metavar="TRIAL",
        help="print record and log of trials whose names begin so, or of 'failed' or 'all';\n"
        "with --address, of those on the cluster's head",
    )
    kept.add_argument(
        "--fetch", action="store_true", help="copy them from --storage to --results, and report"
    )


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """Options that ask what a run would cost, or limit it."""
    cost = parser.add_argument_group("cost")
    cost.add_argument("--plan", action="store_true", help="print stages and cost, run nothing")
    cost.add_argument("--calibrate", action="store_true", help="with --plan: time a few steps")
    cost.add_argument(
        "--budget-hours",
        type=positive_hours,
        help="stop after this long, rendering and decoding included; run the same command to\n"
        "continue: what is finished is kept, trainings resume from their last checkpoint",
    )


def check_cost_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse those that contradict each other."""
    if arguments.calibrate and not arguments.plan:
        parser.error("--calibrate is for --plan")
    if arguments.plan and arguments.budget_hours is not None:
        parser.error("--plan runs nothing that --budget-hours could stop")


def typed_places(arguments: argparse.Namespace) -> list[str]:
    """What was said about data, results and storage, to be said again in another command."""
    parser = argparse.ArgumentParser()
    add_place_options(parser)
    typed: list[str] = []
    for option in (
        "--data", "--sound-bank", "--annotated", "--unannotated", "--max-bad-share",
        "--results", "--storage",
    ):  # fmt: skip
        name = option.removeprefix("--").replace("-", "_")
        value = getattr(arguments, name)
        if value != parser.get_default(name):
            for one in value if isinstance(value, list) else [value]:
                typed += [option, str(one)]
    return typed


def data_options(arguments: argparse.Namespace) -> DataOptions:
    """What was said about data."""
    return DataOptions(
        folder=arguments.data,
        sound_bank=arguments.sound_bank,
        annotated=tuple(arguments.annotated),
        unannotated=tuple(arguments.unannotated),
        max_bad_share=arguments.max_bad_share,
        storage=arguments.storage,
        on_cluster=arguments.address is not None,
    )


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """What was said about a run beside what is run."""
    return RunOptions(
        data=data_options(arguments),
        cluster=cluster_options(arguments),
        results=arguments.results,
        storage=arguments.storage,
        budget_hours=arguments.budget_hours,
        track=arguments.track,
    )


def cluster_options(arguments: argparse.Namespace) -> ClusterOptions:
    """What was said about the cluster."""
    return ClusterOptions(
        address=arguments.address,
        cpus=arguments.cpus,
        train_workers=arguments.train_workers[1],
        fewest_workers=arguments.train_workers[0],
        gpus_per_worker=arguments.gpus_per_worker,
        most_trials_at_once=arguments.trials_at_once,
    )


def assignments_by_stage(assignments: Sequence[str]) -> dict[str, list[str]]:
    """``pretrain.key=value`` and ``finetune.key=value``, without the stage, by stage."""
    by_stage: dict[str, list[str]] = {"pretrain": [], "finetune": []}
    for assignment in assignments:
        name, equals, _ = assignment.partition("=")
        stage, _, rest = assignment.partition(".")
        if not equals or "." not in name:
            raise InputError("--set", "assignment", assignment, "STAGE.KEY=VALUE")
        if stage not in by_stage:
            expected = "pretrain or finetune; scenes and shards are as the scale has them"
            raise InputError("--set", "stage", stage, expected)
        if rest.partition("=")[0] == "seed":
            expected = "--seeds (of a sweep: --seed), of all stages at once"
            raise InputError("--set", f"{stage}.seed", assignment, expected)
        by_stage[stage].append(rest)
    return by_stage


def comma_separated(text: str) -> tuple[str, ...]:
    """Comma-separated names, at least one."""
    found = tuple(part for part in text.split(",") if part)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}, expected names such as a,b")
    return found


def nonempty(text: str) -> str:
    """Something rather than nothing, as an unset variable of a shell gives."""
    if not text:
        raise argparse.ArgumentTypeError(f"{text!r}, expected something")
    return text


def local_folder(text: str) -> Path:
    """A path, which nothing is not: it would be the working folder."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected a folder of this machine; --storage takes a bucket"
        )
    return Path(nonempty(text))


def folder_name(text: str) -> str:
    """The name of a study's folder in the results, beside that of the stages."""
    if text in ("", ".", "..", STAGES_FOLDER) or Path(text).name != text:
        expected = f"the name of one folder, and not {STAGES_FOLDER}"
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
    return text


def folder_or_uri(text: str) -> str:
    """A path, or a URI that says where."""
    protocol, separator, rest = text.partition("://")
    if not text or (separator and not (protocol and rest.strip("/"))):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected a folder, or a URI such as s3://BUCKET/RUN"
        )
    return text


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A reader of comma-separated numbers."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"{text!r}, expected {wanted} such as 1,2,3") from None

    return read


def worker_counts(text: str) -> tuple[int, int]:
    """Fewest and most workers: ``4``, or ``2-4``."""
    fewest, dash, most = text.partition("-")
    try:
        return int(fewest), int(most) if dash else int(fewest)
    except ValueError:
        expected = "a number, or two such as 2-4"
        raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}") from None


def positive_hours(text: str) -> float:
    """A length of time above 0."""
    try:
        length = float(text)
    except ValueError:
        length = 0.0
    if not 0 < length < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected hours above 0")
    return length


def corpus_source(text: str) -> CorpusSource:
    """``NAME=PATH`` of a corpus, or ``NAME:COUNT=PATH`` of a part of it."""
    kind, equals, root = text.partition("=")
    name, colon, count = kind.partition(":")
    if not equals or (colon and not count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=PATH or NAME:COUNT=PATH")
    try:
        return CorpusSource(name=name, root=root, most=int(count) if colon else None)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
