"""Which data a study runs on, and making shards of it: rendered first where nothing is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ablations.deadline import NEVER, Deadline, StoppedInTime
from search_spaces.studies import Study, data_name
from seld.clips import INDEX_NAME, ShardIndex
from seld.decoding import Rejected
from seld.errors import InputError
from seld.scenes.render import corpus_fingerprint, render_corpus
from seld.scenes.settings import SceneSettings
from seld.scenes.sounds import SoundBank, open_bank
from seld.shards import check_disk, rejected_table
from seld.spatial_spectra import bytes_per_s
from seld.storage import absolute, check_writable, files_below, is_local, join
from trainables.cells import DEFAULT_DATA
from trainables.ingest import RayDataExecutor
from trainables.jobs import ShardFolder
from trainables.prepare import (
    AnnotatedData,
    Corpora,
    CorpusSource,
    PreparedData,
    build_clip_shards,
    class_count_of,
    class_names_of,
    describe_annotated,
    describe_data,
    folder_name,
    recordings_of,
    title_of,
    trainable_minutes_of_scenes,
    unprepared_data,
)
from trainables.resources import Placement


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What the user said about data; nothing said means the embedded benchmark.

    Attributes:
        folder: where rendered scenes, shards and spectra are kept.
        storage: a URI keeps scenes and shards below itself, where all machines of a cluster read
            them.
        on_cluster: the work is done by machines that may not be this one.
        sound_bank: folder of ``<class>/*.wav|ogg|flac`` for the embedded benchmark's sounds.
        annotated, unannotated: corpora; both or neither.
        max_bad_share: stop where more recordings than this are unusable.
    """

    folder: Path
    sound_bank: Path | None = None
    annotated: Corpora = ()
    unannotated: Corpora = ()
    max_bad_share: float = 0.5
    storage: str | None = None
    on_cluster: bool = False

    def __post_init__(self) -> None:
        if bool(self.annotated) != bool(self.unannotated):
            given, missing = (
                ("--annotated", "--unannotated")
                if self.annotated
                else ("--unannotated", "--annotated")
            )
            raise InputError("command line", missing, None, f"a corpus, as {given} is given")
        if self.annotated and self.sound_bank:
            raise InputError(
                "command line", "--sound-bank", str(self.sound_bank), "no corpora given beside it"
            )
        for source in self.annotated:
            if source.most is not None:
                expected = "no number: scores of other test recordings cannot be compared"
                raise InputError("command line", "--annotated", str(source), expected)
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise InputError("command line", "--max-bad-share", self.max_bad_share, "0 to 1")

    @property
    def root(self) -> str:
        """Of what all machines read: a folder or URI."""
        if self.storage is not None and not is_local(self.storage):
            return self.storage
        return str(self.folder.resolve())

    def scenes(self, study: Study) -> dict[str, SceneSettings]:
        """The embedded benchmarks a study's cells use, with the sound bank asked for."""
        bank = str(self.sound_bank.resolve()) if self.sound_bank else None
        return {
            data_name(arm): replace(arm.scenes or study.scale.scenes, sound_bank=bank)
            for arm in study.arms
        }

    def _check_purposes(self) -> None:
        """Refuse corpora that cannot be what they are given as, however well they decode."""
        annotated = recordings_of(self.annotated)
        trains = any(each.split in ("train", "validation") for each in annotated)
        tests = any(each.split == "test" for each in annotated)
        pretrains = any(
            each.split in ("unannotated", "train") and each.video_path is not None
            for each in recordings_of(self.unannotated)
        )
        for holds, option, corpora, wanted in (
            (trains, "--annotated", self.annotated, "annotated recordings to train on"),
            (tests, "--annotated", self.annotated, "annotated recordings to test on"),
            (
                pretrains,
                "--unannotated",
                self.unannotated,
                "recordings with pictures, not of a test",
            ),
        ):
            if not holds:
                given = ", ".join(map(str, corpora))
                raise InputError("command line", option, given, f"some {wanted}; there are none")

    def check(self, study: Study) -> None:
        """Find out what can be wrong with the data before any long work."""
        if self.annotated:
            self._check_purposes()
            class_names_of(self.annotated)
            class_count_of(self.unannotated)
        own_scenes = [arm.name for arm in study.arms if arm.scenes is not None]
        if not self.annotated:
            for settings in self.scenes(study).values():
                minutes = trainable_minutes_of_scenes(settings)
                which = "the scenes' annotated part has beside its validation rooms"
                _check_budget(study, minutes, which)
                bank_of(settings.sound_bank)
        elif own_scenes:
            raise InputError(
                "command line",
                "--annotated",
                title_of(self.annotated),
                f"none with study {study.name}, whose arms {own_scenes} change rendered scenes",
            )
        make_writable(self.folder, "--data")
        if self.storage is not None and is_local(self.storage):
            make_writable(Path(absolute(self.storage)), "--storage")
        if not is_local(self.root):
            check_writable(self.root)


def check_budgets(study: Study, data: AnnotatedData | PreparedData) -> None:
    """Refuse a budget that is larger than what is there to train on."""
    folder = data.annotated.path
    rooms = ", ".join(data.validation_rooms) or "none"
    which = f"{folder} has beside its validation rooms ({rooms})"
    _check_budget(study, data.trainable_minutes, which)


def _check_budget(study: Study, minutes: float, which: str) -> None:
    """Refuse a budget that is larger than the minutes there are."""
    largest = max(study.budgets_minutes)
    if largest > minutes + 1e-6:
        expected = f"at most the {minutes:.5g} that {which}"
        raise InputError(f"study {study.name}", "annotation budget (minutes)", largest, expected)


def make_writable(folder: Path, option: str) -> None:
    """Create the folder that an option names, or say why it cannot be written."""
    try:
        check_writable(str(folder))
    except InputError as error:
        expected = f"a folder that can be written ({error.value})"
        raise InputError("command line", option, str(folder), expected) from error


def prepare_data(
    options: DataOptions,
    study: Study,
    placement: Placement,
    console: Console,
    deadline: Deadline = NEVER,
) -> dict[str, PreparedData]:
    """Every data set of a study by the name its cells use, made ready and kept.

    Nothing said about data means the embedded benchmark: the scale's where an arm uses it, and one
    for every arm that brings scenes of its own.

    Raises:
        OutOfTimeError: the deadline came first. Recordings rendered and shards decoded by then are
            found the next time.
    """
    if options.annotated:
        corpora = (options.unannotated, options.annotated)
        data = prepare_corpora(*corpora, options, study, placement, console, deadline)
        return {DEFAULT_DATA: data}
    prepared = {}
    for name, settings in options.scenes(study).items():
        scenes = (render(settings, options, placement, console, deadline),)
        prepared[name] = replace(
            prepare_corpora(scenes, scenes, options, study, placement, console, deadline),
            unannotated_classes=list(settings.unannotated.classes or class_names_of(scenes)),
        )
    tests = {data.test_fingerprint for data in prepared.values()}
    assert len(tests) == 1, "arms with scenes of their own share the test recordings"
    return prepared


def data_for_plan(options: DataOptions, study: Study) -> dict[str, PreparedData]:
    """The data sets as far as they are prepared already; nothing is rendered or decoded."""
    if options.annotated:
        sources = {DEFAULT_DATA: (options.unannotated, options.annotated)}
    else:
        embedded = {
            name: (embedded_source(settings, options),)
            for name, settings in options.scenes(study).items()
        }
        sources = {name: (scenes, scenes) for name, scenes in embedded.items()}
    prepared = {}
    for name, (unannotated, annotated) in sources.items():
        pretraining = ShardFolder(path=folder_of_shards(options, unannotated, study))
        finetuning = ShardFolder(path=folder_of_shards(options, annotated, study))
        class_names = class_names_of(annotated)
        if _is_decoded(pretraining.path) and _is_decoded(finetuning.path):
            prepared[name] = describe_data(pretraining, finetuning, class_names)
        else:
            prepared[name] = unprepared_data(pretraining, finetuning, class_names, name=name)
    return prepared


def _is_decoded(folder: str) -> bool:
    """Whether all is there: before, an index is missing, or is one of other shards."""
    with suppress(InputError):
        ShardIndex.open(folder)
        return INDEX_NAME in files_below(folder)
    return False


def prepare_corpora(
    unannotated: Corpora,
    annotated: Corpora,
    options: DataOptions,
    study: Study,
    placement: Placement,
    console: Console,
    deadline: Deadline = NEVER,
) -> PreparedData:
    """Decode what pretrains and what is annotated into shards, once where it is the same.

    What is annotated comes first and is checked: what pretrains may take hours.
    """
    settings = study.scale.shards
    places = {
        corpora: folder_of_shards(options, corpora, study) for corpora in (annotated, unannotated)
    }
    # On a GPU features are made from the waveform; on CPUs they cost more than the network.
    spectra = None if placement.worker_gpus else str((options.folder / "spectra").resolve())
    features = study.scale.finetune.audio.features
    further = bytes_per_s(features) if spectra else 0.0
    for corpora, folder in places.items():
        check_disk(
            recordings_of(corpora),
            settings,
            folder,
            class_count=class_count_of(corpora),
            further_bytes_per_s=further,
        )
    class_names = class_names_of(annotated)
    shards = {
        corpora: ShardFolder(path=folder, spectra=spectra) for corpora, folder in places.items()
    }
    notes: tuple[str, ...] = ()
    for corpora, folder in places.items():
        with progress_bar(console, f"decoding {title_of(corpora)}") as progress:
            _, rejected = build_clip_shards(
                corpora,
                settings,
                folder,
                executor=StoppedInTime(RayDataExecutor(), deadline),
                workers=max(1, int(placement.cluster_cpus)),
                max_bad_share=options.max_bad_share,
                progress=progress,
            )
        if rejected:
            roots = [source.root for source in corpora]
            console.print(rejected_table(rejected, folder, roots))
        if corpora == annotated:
            known = describe_annotated(shards[annotated], class_names)
            check_budgets(study, known)
            notes = _notes_of_test(annotated, rejected, known.test)
            for note in notes:
                console.print(note, highlight=False)
    data = describe_data(shards[unannotated], shards[annotated], class_names)
    for shard_folder in shards.values():
        with progress_bar(console, "computing spectra") as progress:
            shard_folder.store(features, deadline.keeps_from_starting(progress))
    return replace(data, notes=notes)


def _notes_of_test(
    annotated: Corpora, rejected: Sequence[Rejected], test: ShardIndex
) -> tuple[str, ...]:
    """What must be said where scores are not those of the whole test part."""
    bad = {item.recording_id for item in rejected if item.lost == "recording"}
    tests = {each.recording_id for each in recordings_of(annotated) if each.split == "test"}
    notes = []
    if bad & tests:
        used = len(tests - bad)
        notes.append(f"{used} of {len(tests)} test recordings could be used: scores are of those.")
    if eventless := _recordings_without_events(test):
        names = ", ".join(eventless[:3]) + (", …" if len(eventless) > 3 else "")
        notes.append(
            f"Test recordings without events: {len(eventless)} ({names}). Nothing of them is "
            "counted, false alarms included."
        )
    return tuple(notes)


def _recordings_without_events(index: ShardIndex) -> list[str]:
    clips = index.clips
    with_events = {
        name
        for name, frames in zip(clips["recording_id"], clips["class_frames"], strict=True)
        if frames
    }
    return sorted(set(clips["recording_id"]) - with_events)


def render(
    settings: SceneSettings,
    options: DataOptions,
    placement: Placement,
    console: Console,
    deadline: Deadline,
) -> CorpusSource:
    """The embedded benchmark; recordings that exist are kept."""
    source = embedded_source(settings, options)
    with progress_bar(console, "rendering scenes") as progress:
        render_corpus(
            settings,
            source.root,
            workers=max(1, int(placement.cluster_cpus)),
            executor=RayDataExecutor() if options.on_cluster else None,
            progress=deadline.stops(progress),
        )
    return source


@lru_cache(maxsize=1)
def bank_of(folder: str | None) -> SoundBank:
    """The sounds of this folder, decoded once in the life of a command."""
    return open_bank(folder)


def embedded_source(settings: SceneSettings, options: DataOptions) -> CorpusSource:
    """Where the embedded benchmark of these settings is, or will be."""
    fingerprint = corpus_fingerprint(settings, bank_of(settings.sound_bank))
    return CorpusSource(name="embedded", root=join(options.root, f"scenes/{fingerprint}"))


def folder_of_shards(options: DataOptions, corpora: Corpora, study: Study) -> str:
    """Where the shards of corpora are, or will be."""
    return join(options.root, f"shards/{folder_name(corpora, study.scale.shards)}")


@contextmanager
def progress_bar(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that says how much is done of how much."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        console.print(f"{description} …")  # a bar that cannot move is drawn only when it is full
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
