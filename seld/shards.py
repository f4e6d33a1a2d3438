"""Recordings of a corpus → clip shards: ``python -m seld.shards --corpus … --root … --out …``.

Decoding runs in parallel, can be interrupted and started again, and sets unusable recordings
aside. What a shard is and how it is read: :mod:`seld.clips`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from seld.clips import (
    SAMPLE_RATE_HZ,
    SHARD_SUFFIX,
    ShardIndex,
    read_footer,
    read_footers,
    write_index,
)
from seld.corpora import CORPORA, Recording, read_classes
from seld.decoding import (
    DECODER_VERSION,
    Rejected,
    ShardJob,
    ShardResult,
    ShardSettings,
    decode_shard,
)
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.settings import flat_mapping, override, to_mapping
from seld.storage import (
    absolute,
    check_writable,
    file_system,
    files_below,
    is_local,
    join,
    remove_unfinished,
    stamps,
    written_whole,
)

EXECUTOR_GROUP = "seld.shard_executors"
_REJECTED_NAME = "rejected.csv"
#: Rejected recordings that are listed on a terminal; a web corpus has thousands.
MOST_LISTED = 20
#: Of a JPEG at quality 90: photographs of 256×128 and 512×256 pixels take 0.2 to 0.4.
JPEG_BYTES_PER_PIXEL = 0.4
#: Share of the estimated bytes without which there is no use in starting: some recordings will be
#: set aside, and pictures may be plainer than photographs.
_SURE_SHARE = 0.75

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Something that runs a function over items in parallel."""

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
    ) -> Iterator[Result]:
        """Results in the order in which they are done; closing the iterator stops the work."""
        ...


class ProcessExecutor:
    """Processes of this machine; with one worker, this very process."""

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
    ) -> Iterator[Result]:
        """See :class:`Executor`."""
        if workers == 1:
            yield from map(function, items)
            return
        # Spawned, not forked: FFmpeg's and torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(items) or 1), mp_context=context)
        try:
            for future in as_completed([pool.submit(function, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def find_executor(name: str | None) -> Executor:
    """The executor called ``name``; None: ``ray`` where it is installed, else ``processes``.

    Raises:
        InputError: there is no such executor.
    """
    registered = {entry.name: entry for entry in entry_points(group=EXECUTOR_GROUP)}
    if name is None:
        name = "ray" if "ray" in registered else "processes"
    if name == "processes":
        return ProcessExecutor()
    if name not in registered:
        known = ", ".join(["processes", *sorted(registered)])
        raise InputError("command line", "--executor", name, f"one of {known}")
    return registered[name].load()()


def plan(
    recordings: Sequence[Recording],
    settings: ShardSettings,
    out: str,
    class_count: int | None = None,
) -> list[ShardJob]:
    """Which shards to make of which recordings: the same every time.

    Recordings of one corpus whose length it fixes share shards of up to ``shard_s``; each other one
    has its own. A shard's name carries a hash of the settings, of its recordings, of the size and
    time of their files, of the number of classes that may be annotated and of the decoder's
    version, so that a shard that exists is the one wanted.
    """
    stamp_of = stamps({path for recording in recordings for path in _sources(recording)})
    refused = ("missing", "not readable")
    readable = {path for path, stamp in stamp_of.items() if not stamp.endswith(refused)}
    groups: list[list[Recording]] = []
    of_fixed_length: dict[str, list[Recording]] = {}
    for recording in sorted(recordings, key=lambda item: item.recording_id):
        if recording.duration_s is None:
            groups.append([recording])
        else:
            of_fixed_length.setdefault(recording.corpus, []).append(recording)
    for members in of_fixed_length.values():
        groups += _split(members, settings.shard_s)
    return [
        ShardJob(
            join(out, _shard_name(group, settings, stamp_of, class_count)),
            tuple(group),
            settings,
            frozenset(path for item in group for path in _sources(item) if path in readable),
            class_count,
        )
        for group in sorted(groups, key=lambda group: (group[0].corpus, group[0].recording_id))
    ]


def _split(recordings: list[Recording], shard_s: float, bit: int = 0) -> list[list[Recording]]:
    """Groups of at most ``shard_s`` (or of one recording), halved by bits of a hash of the id.

    So a recording more or less changes its own group alone, which may fall in two, or join its
    other half; were they slices of the sorted list, it would change every later one.
    """
    length_s = sum(recording.duration_s or 0.0 for recording in recordings)
    if length_s <= shard_s or len(recordings) == 1 or bit == 64:
        return [recordings]
    halves: tuple[list[Recording], list[Recording]] = ([], [])
    for recording in recordings:
        digest = hashlib.sha256(recording.recording_id.encode()).digest()
        halves[int.from_bytes(digest[:8], "little") >> bit & 1].append(recording)
    return [group for half in halves if half for group in _split(half, shard_s, bit + 1)]


def build_shards(
    recordings: Sequence[Recording],
    settings: ShardSettings,
    out: str,
    *,
    executor: Executor,
    workers: int,
    class_count: int | None = None,
    max_bad_share: float = 0.5,
    on_result: Callable[[ShardResult], None] = lambda result: None,
) -> tuple[ShardIndex, list[Rejected]]:
    """Decode what is not decoded yet, write the index and the table of rejected recordings.

    Args:
        class_count: of the corpus: a recording with other classes is bad. None: any will do.
        max_bad_share: stop once more than this share of all recordings is bad.
        on_result: called for every shard, whether it was there or has just been made.

    Raises:
        InputError: too many recordings are bad, ``out`` holds shards of something else or has no
            room for these, or another run has decoded into it meanwhile.
    """
    out = absolute(out)
    check_writable(out)
    jobs = plan(recordings, settings, out, class_count)
    present = _present_shards(out)
    _check_superseded(out, present, jobs)
    done = [job for job in jobs if PurePosixPath(job.path).name in present]
    waiting = [job for job in jobs if PurePosixPath(job.path).name not in present]
    _check_disk(out, waiting)
    results: list[ShardResult] = []
    allowed = max_bad_share * len(recordings)

    def results_as_they_come() -> Generator[ShardResult]:
        footers = read_footers([job.path for job in done])
        for job, footer in zip(done, footers, strict=True):
            yield ShardResult.from_footer(job.path, footer)
        if waiting:
            yield from executor.map(decode_shard, waiting, workers=workers)

    # Closed on leaving: what is still being decoded then is of no use.
    with closing(results_as_they_come()) as coming:
        for result in coming:
            results.append(result)
            on_result(result)
            if sum(finished.bad_count for finished in results) > allowed:
                raise _too_many_bad(out, results, len(recordings), max_bad_share)
    rejected = write_rejected(out, results)
    return finish(out, jobs, results), rejected


def check_disk(
    recordings: Sequence[Recording],
    settings: ShardSettings,
    out: str,
    *,
    class_count: int | None = None,
    further_bytes_per_s: float = 0.0,
) -> None:
    """Find out before any long work whether a local ``out`` has room for what is not decoded yet.

    ``further_bytes_per_s`` of a recording are to be written beside its shards. Recordings whose
    length their corpus does not fix are left out of the estimate.

    Raises:
        InputError: it clearly has not.
    """
    if is_local(out) and any(recording.duration_s for recording in recordings):
        out = absolute(out)
        check_writable(out)
        present = _present_shards(out)
        jobs = plan(recordings, settings, out, class_count)
        waiting = [job for job in jobs if PurePosixPath(job.path).name not in present]
        _check_disk(out, waiting, further_bytes_per_s)


def _check_disk(out: str, waiting: Sequence[ShardJob], further_bytes_per_s: float = 0.0) -> None:
    if not is_local(out):
        return
    wanted = sum(
        (recording.duration_s or 0.0)
        * (bytes_per_s(job.settings, recording.video_path is not None) + further_bytes_per_s)
        for job in waiting
        for recording in job.recordings
    )
    free = shutil.disk_usage(out).free
    if free < _SURE_SHARE * wanted:
        raise InputError(
            out,
            "free disk space (GB)",
            round(free / 1e9, 1),
            f"about {wanted / 1e9:.1f} for what is still to be decoded: another folder (--data, "
            "--out), smaller settings, or fewer recordings (CORPUS:COUNT=PATH)",
        )


def bytes_per_s(settings: ShardSettings, with_video: bool) -> float:
    """Of a recording's shards: exact but for JPEGs, of :data:`JPEG_BYTES_PER_PIXEL`."""
    sound = 4 * 2 * SAMPLE_RATE_HZ
    pixels = settings.frame_height_px * settings.frame_width_px * settings.frame_rate_hz
    picture = pixels * (3 if settings.frame_encoding == "raw" else JPEG_BYTES_PER_PIXEL)
    overlap = settings.clip_s / (settings.hop_s or settings.clip_s)
    return overlap * (sound + with_video * picture)


def _check_superseded(out: str, present: set[str], jobs: Sequence[ShardJob]) -> None:
    """Shards of recordings that have changed will go; any others are not ours to remove."""
    corpora, settings = {job.recordings[0].corpus for job in jobs}, to_mapping(jobs[0].settings)
    for name in sorted(present - {PurePosixPath(job.path).name for job in jobs}):
        footer = read_footer(join(out, name))
        if footer["corpus"] not in corpora or footer["settings"] != settings:
            found = f"{name}, of {footer['corpus']} with settings {footer['settings']}"
            raise InputError(out, "shards", found, "another folder for other corpora or settings")


def _too_many_bad(
    out: str, results: Sequence[ShardResult], recording_count: int, max_bad_share: float
) -> InputError:
    bad = [item for item in write_rejected(out, results) if item.lost == "recording"]
    counts = pd.Series([item.reason for item in bad]).value_counts()
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
    return InputError(
        out,
        "bad recordings",
        f"{len(bad)} of {recording_count}",
        f"at most {max_bad_share:.0%} (--max-bad-share); {reasons}; see {_REJECTED_NAME} there",
    )


def finish(out: str, jobs: Sequence[ShardJob], results: Sequence[ShardResult]) -> ShardIndex:
    """Write ``index.parquet`` once every shard is there; shards of an older plan are removed.

    So is what killed processes left of shards of this plan.

    Raises:
        InputError: another run has removed shards of this plan meanwhile, as of an older one.
    """
    assert sorted(job.path for job in jobs) == sorted(result.path for result in results)
    wanted = {PurePosixPath(job.path).name for job in jobs}
    files, inner = file_system(out)
    present = _present_shards(out)
    if wanted <= present:  # else the others belong to the run that has taken ours for old ones
        for name in present - wanted:
            files.rm_file(join(inner, name))
    remove_unfinished(out, wanted)
    return write_index(out, wanted)


def write_rejected(out: str, results: Sequence[ShardResult]) -> list[Rejected]:
    """Write ``rejected.csv`` (the fields of :class:`Rejected`) by recording; its rows."""
    rejected = sorted(
        (item for result in results for item in result.rejected),
        key=lambda item: item.recording_id,
    )
    columns = [field.name for field in fields(Rejected)]
    with written_whole(join(out, _REJECTED_NAME)) as temporary:
        pd.DataFrame(rejected, columns=columns).to_csv(temporary, index=False)
    return rejected


def _present_shards(out: str) -> set[str]:
    # Listed, not globbed: the folder's own name may hold what a pattern gives a meaning to.
    return {name for name in files_below(out) if name.endswith(SHARD_SUFFIX) and "/" not in name}


def _sources(recording: Recording) -> list[str]:
    paths = (recording.foa_path, recording.video_path, recording.annotation_path)
    return [path for path in paths if path is not None]


def _shard_name(
    recordings: Sequence[Recording],
    settings: ShardSettings,
    stamp_of: dict[str, str],
    class_count: int | None,
) -> str:
    # Without the paths: a corpus that has moved is still the same.
    paths = ("foa_path", "video_path", "annotation_path")
    content: dict[str, Any] = {
        "decoder": DECODER_VERSION,
        "recordings": [
            {name: value for name, value in asdict(recording).items() if name not in paths}
            for recording in recordings
        ],
        "sources": [stamp_of[path] for recording in recordings for path in _sources(recording)],
        "settings": to_mapping(settings),
    }
    if any(recording.annotation_path for recording in recordings):
        content["class_count"] = class_count
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{recordings[0].corpus}-{recordings[0].recording_id}-{digest}{SHARD_SUFFIX}"


def main() -> int:
    """Command line."""
    parser = CommandLine(
        prog="python -m seld.shards", description="Decode a corpus into clip shards."
    )
    parser.add_argument("--corpus", required=True, help=f"one of {', '.join(CORPORA)}")
    parser.add_argument("--root", required=True, help="the corpus: a folder or URI (s3://…)")
    parser.add_argument("--out", required=True, help="the shards: a folder or URI")
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting: "
        + ", ".join(
            f"{key}={value}" for key, value in flat_mapping(to_mapping(ShardSettings())).items()
        ),
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--executor", help="ray or processes (default: ray where it is installed)")
    parser.add_argument(
        "--max-bad-share", type=float, default=0.5, help="stop above this share (default 0.5)"
    )
    arguments = parser.parse_args()
    if arguments.corpus not in CORPORA:
        raise InputError("command line", "--corpus", arguments.corpus, f"one of {[*CORPORA]}")
    if arguments.workers < 1:
        raise InputError("command line", "--workers", arguments.workers, "at least 1")
    if not 0 <= arguments.max_bad_share <= 1:
        raise InputError(
            "command line", "--max-bad-share", arguments.max_bad_share, "a share from 0 to 1"
        )
    settings = override(ShardSettings(), arguments.assignments)
    executor = find_executor(arguments.executor)
    recordings = CORPORA[arguments.corpus](arguments.root)
    class_count = len(read_classes(arguments.corpus, arguments.root))

    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("decoding recordings", total=len(recordings), note="")
        rejected_count = 0

        def advance(result: ShardResult) -> None:
            nonlocal rejected_count
            rejected_count += result.bad_count
            note = f"{rejected_count} set aside" if rejected_count else ""
            progress.update(task, advance=result.recording_count, note=note)

        index, rejected = build_shards(
            recordings,
            settings,
            arguments.out,
            executor=executor,
            workers=arguments.workers,
            class_count=class_count,
            max_bad_share=arguments.max_bad_share,
            on_result=advance,
        )
    _print_summary(console, index, rejected, arguments.root)
    return 0


def rejected_table(rejected: Sequence[Rejected], folder: str, roots: Sequence[str] = ()) -> Table:
    """The recordings that were set aside, with their reasons; of very many the first few.

    Args:
        rejected: in any order.
        folder: of their shards.
        roots: of their corpora; files are named as they are called there.
    """
    rejected = sorted(rejected, key=lambda item: item.lost == "picture")
    reasons = [
        f"{item.reason} (picture only: sound and annotations are used)"
        if item.lost == "picture"
        else item.reason
        for item in rejected
    ]
    bad_count = sum(item.lost == "recording" for item in rejected)
    titles = [f"{bad_count} recordings set aside"] if bad_count else []
    if bad_count < len(rejected):
        titles.append(f"{len(rejected) - bad_count} used without their picture")
    table = Table(
        "recording",
        "reason",
        Column("detail", overflow="fold"),
        title=f"{', '.join(titles)} ({escape(join(folder, _REJECTED_NAME))})",
        caption=", ".join(f"{reason}: {count}" for reason, count in Counter(reasons).most_common()),
    )
    for item, reason in list(zip(rejected, reasons, strict=True))[:MOST_LISTED]:
        table.add_row(*map(escape, (item.recording_id, reason, _detail(item, roots))))
    if len(rejected) > MOST_LISTED:
        table.add_row(f"… and {len(rejected) - MOST_LISTED} more", "", "")
    return table


def _detail(item: Rejected, roots: Sequence[str]) -> str:
    detail = item.detail if item.path in item.detail else f"{item.path}: {item.detail}"
    for root in roots:
        detail = detail.replace(f"{absolute(root).rstrip('/')}/", "")
    return detail


def _print_summary(
    console: Console, index: ShardIndex, rejected: Sequence[Rejected], root: str
) -> None:
    if rejected:
        console.print(rejected_table(rejected, index.folder, [root]))
    table = Table("split", "recordings", "rooms", "clips", "minutes", title=index.folder)
    for split, clips in index.clips.groupby("split"):
        table.add_row(
            str(split),
            str(clips["recording_id"].nunique()),
            str(clips["room"].nunique()),
            str(len(clips)),
            f"{clips['duration_s'].sum() / 60:.1f}",
        )
    console.print(table)
    console.print(f"data fingerprint {index.fingerprint}")


if __name__ == "__main__":
    exit_on_input_error(main)
