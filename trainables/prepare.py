"""From corpora to clip shards that trials can read, and what trials must know of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pandas as pd

from seld.clips import ShardIndex
from seld.corpora import CORPORA, Recording, read_classes
from seld.decoding import Rejected, ShardResult, ShardSettings
from seld.errors import InputError
from seld.scenes.render import plan_recordings
from seld.scenes.settings import SceneSettings
from seld.settings import to_mapping
from seld.shards import Executor, build_shards
from seld.storage import absolute
from trainables.jobs import ShardFolder
from trainables.pretrain_job import unannotated_clips

#: Share of the training minutes that measures progress where a corpus has no such split, and the
#: most that it may be.
VALIDATION_SHARE = 1 / 5
MOST_VALIDATION_SHARE = 1 / 4


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """A corpus on disk or in a bucket, by the name of its reader.

    Attributes:
        most: so many of its recordings at most, to pretrain on; None for all.
    """

    name: str
    root: str
    most: int | None = None

    def __post_init__(self) -> None:
        if self.name not in CORPORA:
            raise InputError("corpus", "name", self.name, f"one of {', '.join(CORPORA)}")
        if not self.root:
            raise InputError("corpus", "path", self.root, "a folder or URI")
        if self.most is not None and self.most < 1:
            raise InputError("corpus", "recordings", self.most, "at least 1")

    def __str__(self) -> str:
        """As the command line takes it."""
        return f"{self.name}{'' if self.most is None else f':{self.most}'}={self.root}"

    @property
    def place(self) -> str:
        """``root`` as it is called from any working folder, in one spelling."""
        return absolute(self.root).rstrip("/")

    def recordings(self) -> list[Recording]:
        """All of the corpus, or ``most`` of those that can be pretrained on.

        A part is the same every time, and is contained in every larger part.

        Raises:
            InputError: a part is asked for of a corpus of which nothing can be pretrained on.
        """
        found = CORPORA[self.name](self.root)
        if self.most is None:
            return found
        pool = [recording for recording in found if recording.split == "unannotated"]
        pool = pool or [recording for recording in found if recording.split == "train"]
        if not pool:
            expected = "unannotated or training recordings"
            raise InputError(self.root, "recordings", "only those that test", expected)
        return sorted(pool, key=_shuffling_key)[: self.most]


def _shuffling_key(recording: Recording) -> str:
    """Sorting by it shuffles recordings, the same way every time."""
    return hashlib.sha256(recording.recording_id.encode()).hexdigest()


#: What serves one purpose: a corpus, or several as one.
Corpora: TypeAlias = tuple[CorpusSource, ...]


def recordings_of(corpora: Corpora) -> list[Recording]:
    """All recordings, by id.

    Raises:
        InputError: a corpus has none, or two have a recording in common.
    """
    found: dict[str, Recording] = {}
    for source in corpora:
        for recording in source.recordings():
            other = found.setdefault(recording.recording_id, recording)
            if other is not recording:
                both = f"{other.foa_path} and {recording.foa_path}"
                expected = "in one of the corpora only"
                raise InputError(title_of(corpora), recording.recording_id, both, expected)
    return [found[name] for name in sorted(found)]


def title_of(corpora: Corpora) -> str:
    """The corpora's names, for people."""
    return "+".join(source.name for source in corpora)


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Shards and what trials must know of them.

    ``unannotated`` may be the same folder as ``annotated``; splits tell clips apart.
    ``unannotated_classes`` are the classes that sound in the unannotated part, where known;
    ``notes`` are what a report must say of the data.
    """

    unannotated: ShardFolder
    annotated: ShardFolder
    class_names: tuple[str, ...]
    validation_rooms: tuple[str, ...]
    unannotated_fingerprint: str
    annotated_fingerprint: str
    test_fingerprint: str
    trainable_minutes: float
    unannotated_classes: list[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of all parts together."""
        parts = (self.unannotated_fingerprint, self.annotated_fingerprint, self.test_fingerprint)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    @property
    def validation_fingerprint(self) -> str:
        """Of the rooms that measure progress."""
        parts = (self.annotated_fingerprint, *self.validation_rooms)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def build_clip_shards(
    corpora: Corpora,
    settings: ShardSettings,
    folder: str,
    *,
    executor: Executor,
    workers: int,
    max_bad_share: float,
    progress: Callable[[int, int], None],
) -> tuple[ShardIndex, list[Rejected]]:
    """Decode corpora into ``folder``; what is decoded already is kept.

    Args:
        progress: told recordings done and recordings in all.

    Raises:
        InputError: no recordings, or more than ``max_bad_share`` of them unusable.
    """
    recordings = recordings_of(corpora)
    done = 0

    def count(result: ShardResult) -> None:
        nonlocal done
        done += result.recording_count
        progress(done, len(recordings))

    return build_shards(
        recordings,
        settings,
        folder,
        executor=executor,
        workers=workers,
        class_count=class_count_of(corpora),
        max_bad_share=max_bad_share,
        on_result=count,
    )


@dataclass(frozen=True, kw_only=True)
class AnnotatedData:
    """Annotated shards, and what they tell before there are others to pretrain on."""

    annotated: ShardFolder
    train: ShardIndex
    test: ShardIndex
    validation_rooms: tuple[str, ...]
    trainable_minutes: float


def describe_annotated(annotated: ShardFolder, class_names: tuple[str, ...]) -> AnnotatedData:
    """Open the shards and check that there is something to fine-tune and test on."""
    annotated_index = ShardIndex.open(annotated.path)
    train = annotated_index.select(splits=["train", "validation"])
    test = annotated_index.select(splits=["test"])
    _check_some(annotated, train, "training clips")
    _check_some(annotated, test, "test clips")
    clips = annotated_index.clips
    for recording, frames in zip(clips["recording_id"], clips["class_frames"], strict=True):
        highest = max(frames, default=0)
        if highest >= len(class_names):
            where = f"{annotated.path}, annotations of {recording}"
            raise InputError(where, "class_id", highest, f"0 to {len(class_names) - 1}")
    _check_untested(annotated, train, test, "training")
    validation_rooms = _validation_rooms(train, test)
    return AnnotatedData(
        annotated=replace(annotated, fingerprint=annotated_index.fingerprint),
        train=train,
        test=test,
        validation_rooms=validation_rooms,
        trainable_minutes=_trainable_minutes(train, validation_rooms),
    )


def trainable_minutes_of_scenes(settings: SceneSettings) -> float:
    """What the embedded benchmark will have for budgets, before any of it is rendered."""
    planned = pd.DataFrame(
        {
            "corpus": "embedded",
            "split": recording.part,
            "room": f"room{recording.room}",
            "duration_s": recording.duration_s,
        }
        for recording in plan_recordings(settings)
        if recording.part != "unannotated"
    )
    train, test = (
        ShardIndex("planned", planned).select(splits=[part]) for part in ("train", "test")
    )
    return _trainable_minutes(train, _validation_rooms(train, test))


def _trainable_minutes(train: ShardIndex, validation_rooms: Sequence[str]) -> float:
    rooms = sorted(set(train.clips["room"]) - set(validation_rooms))
    return train.select(splits=["train"], rooms=rooms).minutes


def describe_data(
    unannotated: ShardFolder,
    annotated: ShardFolder,
    class_names: tuple[str, ...],
) -> PreparedData:
    """Open the shards and check that there is something to pretrain, fine-tune and test on."""
    known = describe_annotated(annotated, class_names)
    pretraining_index = ShardIndex.open(unannotated.path)
    unannotated_index = unannotated_clips(pretraining_index, known.validation_rooms)
    _check_some(unannotated, unannotated_index, "unannotated clips with pictures")
    _check_untested(unannotated, unannotated_index, known.test, "pretraining")
    return PreparedData(
        unannotated=replace(unannotated, fingerprint=pretraining_index.fingerprint),
        annotated=known.annotated,
        class_names=class_names,
        validation_rooms=known.validation_rooms,
        unannotated_fingerprint=unannotated_index.fingerprint,
        annotated_fingerprint=known.train.fingerprint,
        test_fingerprint=known.test.fingerprint,
        trainable_minutes=known.trainable_minutes,
    )


def _check_some(folder: ShardFolder, index: ShardIndex, part: str) -> None:
    if index.clips.empty:
        raise InputError(folder.path, part, 0, "at least one")


def _check_untested(folder: ShardFolder, index: ShardIndex, test: ShardIndex, purpose: str) -> None:
    shared_rooms = set(index.clips["room"]) & set(test.clips["room"])
    if shared_rooms:
        field = f"rooms in {purpose} and test"
        raise InputError(folder.path, field, sorted(shared_rooms), "none in both")


def unprepared_data(
    unannotated: ShardFolder, annotated: ShardFolder, class_names: tuple[str, ...], *, name: str
) -> PreparedData:
    """A stand-in for a plan made before the data are: its fingerprints match nothing."""
    return PreparedData(
        unannotated=unannotated,
        annotated=annotated,
        class_names=class_names,
        validation_rooms=(),
        unannotated_fingerprint=f"not prepared: {name}",
        annotated_fingerprint=f"not prepared: {name}",
        test_fingerprint=f"not prepared: {name}",
        trainable_minutes=0.0,
    )


def class_names_of(corpora: Corpora) -> tuple[str, ...]:
    """The corpora's own classes where they list them (``classes.txt``), else those of STARSS.

    Raises:
        InputError: they have different classes.
    """
    first, *others = ((each, read_classes(each.name, each.root)) for each in corpora)
    for source, names in others:
        if names != first[1]:
            expected = f"those of {first[0].root}: {', '.join(first[1])}"
            raise InputError(source.root, "classes", ", ".join(names), expected)
    return first[1]


def class_count_of(corpora: Corpora) -> int:
    """The most classes of any of the corpora: of those that only pretrain they may differ."""
    return max(len(read_classes(source.name, source.root)) for source in corpora)


def folder_name(corpora: Corpora, settings: ShardSettings) -> str:
    """A name that tells shards of other corpora or settings apart."""
    places = [part for source in corpora for part in (source.name, source.place)]
    places += [f"{each.name}:{each.most}={each.place}" for each in corpora if each.most is not None]
    text = json.dumps([*places, to_mapping(settings)], sort_keys=True)
    return f"{title_of(corpora)}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _validation_rooms(train: ShardIndex, test: ShardIndex) -> tuple[str, ...]:
    """The rooms that measure progress, by name: those of a validation split, or training rooms.

    Of the corpora that are tested: synthetic rooms say little of progress on real ones. Training
    rooms are withheld from the smallest on, until a fifth of the minutes is; a room that makes it
    more than a quarter, or leaves a class less than half of its frames, is passed by. Where no room
    is left, the one that breaks least of this goes, and of one room nothing. The embedded
    benchmark's rooms are all alike: there it is every fifth.
    """
    alike = train.select(corpora=sorted(set(test.clips["corpus"])))
    train = train if alike.clips.empty else alike
    own = sorted(set(train.clips.loc[train.clips["split"] == "validation", "room"]))
    if own:
        return tuple(own)
    by_room = {room: train.select(rooms=[room]) for room in sorted(set(train.clips["room"]))}
    if len(by_room) < 2:
        return ()
    if set(train.clips["corpus"]) == {"embedded"}:
        return tuple(by_room)[:: round(1 / VALIDATION_SHARE)]
    all_frames = _class_frames(train)

    def share(rooms: Sequence[str]) -> float:
        return sum(by_room[room].minutes for room in rooms) / train.minutes

    def leaves_classes(rooms: Sequence[str]) -> bool:
        withheld = _class_frames(train.select(rooms=rooms))
        return all(2 * withheld[class_id] <= all_frames[class_id] for class_id in withheld)

    smallest_first = sorted(by_room, key=lambda room: by_room[room].minutes)
    chosen: list[str] = []
    for room in smallest_first:
        more = [*chosen, room]
        if share(more) <= MOST_VALIDATION_SHARE and leaves_classes(more):
            chosen = more
        if share(chosen) >= VALIDATION_SHARE:
            break
    if not chosen:

        def breaks(room: str) -> tuple[bool, bool]:
            return share([room]) > MOST_VALIDATION_SHARE, not leaves_classes([room])

        chosen = [min(smallest_first, key=breaks)]
    return tuple(sorted(chosen))


def _class_frames(index: ShardIndex) -> Counter[int]:
    """Labelled 100 ms frames of each class."""
    counts: Counter[int] = Counter()
    for frames in index.clips["class_frames"]:
        counts.update(frames)
    return counts
