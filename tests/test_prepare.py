"""What is checked of shards before anything trains on them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import pandas as pd
import pytest
import torch
from rich.console import Console

from ablations import data as data_module
from ablations.data import (
    DataOptions,
    data_for_plan,
    folder_of_shards,
    prepare_corpora,
    prepare_data,
)
from ablations.options import corpus_source
from search_spaces.scales import SCALES, find_scale
from search_spaces.studies import STUDIES, find_study, variants
from seld.annotations import read_annotations
from seld.classes import STARSS_CLASSES
from seld.clips import ShardIndex, select_budget
from seld.corpora import CORPORA
from seld.decoding import ShardSettings
from seld.errors import InputError
from seld.scenes.render import render_corpus
from seld.scenes.settings import PartSettings, SceneSettings
from seld.shards import ProcessExecutor, build_shards
from tests import corpus_writers as writers
from tests.tiny_training import TINY
from trainables import pretrain_job
from trainables.cells import DEFAULT_DATA, Cell, stages_of
from trainables.contrast import PretrainNetworks
from trainables.finetune import FinetuneSettings
from trainables.jobs import ShardFolder
from trainables.prepare import (
    CorpusSource,
    PreparedData,
    _validation_rooms,
    build_clip_shards,
    class_names_of,
    describe_data,
    folder_name,
    recordings_of,
    trainable_minutes_of_scenes,
)
from trainables.pretrain_job import PretrainJob, probe_windows
from trainables.probes import ProbeWindows
from trainables.resources import plan_placement

NAMES = (
    "dev-train-sony/fold3_room1_mix001",
    "dev-train-sony/fold3_room2_mix001",
    "dev-test-sony/fold4_room3_mix001",
)


def test_a_class_the_corpus_does_not_have_is_found_before_training(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    rows = writers.annotation_rows(6.0, class_id=5)
    writers.write_csv(root / f"metadata_dev/{NAMES[1]}.csv", rows)
    folder = str(tmp_path / "shards")
    recordings = CORPORA["starss23"](str(root))
    build_shards(
        recordings, ShardSettings(clip_s=2.0), folder, executor=ProcessExecutor(), workers=1
    )
    shards = ShardFolder(path=folder)
    assert describe_data(shards, shards, tuple("abcdef")).class_names == tuple("abcdef")
    expected = r"fold3_room2_mix001: class_id is 5, expected 0 to 4"
    with pytest.raises(InputError, match=expected):
        describe_data(shards, shards, tuple("abcde"))


def test_recordings_with_classes_that_their_corpus_does_not_list_are_set_aside(
    tmp_path: Path,
) -> None:
    root = writers.write_starss(tmp_path / "own", NAMES)  # of classes 0, 1 and 2
    (root / "classes.txt").write_text("dog\ncat")
    rest = writers.write_starss(tmp_path / "rest", ["part/fold3_room7_mix001"])
    own, other = (CorpusSource(name="starss22", root=str(path)) for path in (root, rest))
    # Of what only pretrains, lists may differ.
    for corpora, refused in (((own,), ["fold4_room3_mix001"]), ((own, other), [])):
        _, rejected = build_clip_shards(
            corpora,
            ShardSettings(clip_s=2.0),
            str(tmp_path / folder_name(corpora, ShardSettings())),
            executor=ProcessExecutor(),
            workers=1,
            max_bad_share=0.5,
            progress=lambda done, total: None,
        )
        assert [item.recording_id for item in rejected] == refused


def test_classes_of_scenes_in_a_bucket_are_read_there(tmp_path: Path) -> None:
    """Thirteen others would count as never found, in every mean over classes."""
    root = f"memory://{tmp_path.name}"
    with fsspec.open(f"{root}/corpus.json", "w") as listing:
        listing.write('{"class_names": ["dog", "rain"]}')
    assert class_names_of((CorpusSource(name="embedded", root=root),)) == ("dog", "rain")
    elsewhere = CorpusSource(name="embedded", root=f"{root}/nothing")
    assert class_names_of((elsewhere,)) == STARSS_CLASSES


def test_a_test_recording_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of the others are not those of the corpus."""
    monkeypatch.setattr(data_module, "RayDataExecutor", ProcessExecutor)
    names = (*NAMES, "dev-test-sony/fold4_room3_mix002")
    root = writers.write_starss(tmp_path / "starss23", names, with_video=True)
    corpora = (CorpusSource(name="starss23", root=str(root)),)
    options = DataOptions(folder=tmp_path, annotated=corpora, unannotated=corpora)
    placement: Any = SimpleNamespace(cluster_cpus=1, worker_gpus=1)
    told = "1 of 2 test recordings could be used"

    def prepare() -> tuple[tuple[str, ...], str]:
        console = Console(file=io.StringIO(), width=200)
        study = replace(find_study("variants", "demo"), budgets_minutes=(0.05,))
        prepared = prepare_corpora(corpora, corpora, options, study, placement, console)
        assert isinstance(console.file, io.StringIO)
        return prepared.notes, console.file.getvalue()

    writers.break_starss(root, names[3], "lost mp4")  # not needed for the score
    notes, printed = prepare()
    assert notes == ()
    assert "1 used without their picture" in printed
    writers.break_starss(root, names[3], "cut wav")
    (note,), printed = prepare()
    assert told in note
    assert told in printed
    (root / f"metadata_dev/{NAMES[2]}.csv").write_text("")
    notes, printed = prepare()
    assert notes[0] == note
    assert "without events: 1 (fold4_room3_mix001)" in notes[1]
    assert notes[1] in printed


def test_a_part_of_a_corpus_is_among_every_larger_one(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)

    def part(most: int | None) -> list[str]:
        source = CorpusSource(name="starss23", root=str(root), most=most)
        return [recording.recording_id for recording in recordings_of((source,))]

    whole = part(None)
    assert len(whole) == 3
    assert len(part(1)) == 1
    assert set(part(1)) < set(part(2)) < set(whole)
    # Nothing is pretrained on what is tested.
    assert part(5) == part(2) == [name for name in whole if name.startswith("fold3")]
    settings = ShardSettings()
    folders = {
        folder_name((CorpusSource(name="starss23", root=str(root), most=most),), settings)
        for most in (None, 1, 2)
    }
    assert len(folders) == 3


def test_however_a_corpus_is_spelt_it_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folders(*roots: str, most: int | None = None) -> set[str]:
        sources = [CorpusSource(name="yt360", root=root, most=most) for root in roots]
        return {folder_name((source,), ShardSettings()) for source in sources}

    monkeypatch.chdir(tmp_path)
    spellings = ("YT", "YT/", "./YT", f"{tmp_path}/YT", f"file://{tmp_path}/YT/")
    assert len(folders(*spellings)) == len(folders(*spellings, most=5)) == 1
    assert len(folders("s3://bucket/YT", "s3://bucket/YT/")) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not folders("YT") & folders(f"{tmp_path}/YT")
    assert folders("../YT") == folders(f"{tmp_path}/YT")


def test_a_part_of_a_corpus_with_nothing_to_pretrain_on_is_refused(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES[2:], with_video=True)
    source = CorpusSource(name="starss23", root=str(root), most=5)
    with pytest.raises(InputError, match="expected unannotated or training recordings"):
        recordings_of((source,))


def test_part_of_a_corpus_is_typed_as_it_is_read() -> None:
    assert corpus_source("yt360:20=/data/x=y:3") == CorpusSource(
        name="yt360", root="/data/x=y:3", most=20
    )
    for text in ("yt360:20=s3://b/yt", "starss22=/data/a:b"):
        assert str(corpus_source(text)) == text
    for text, words in (("yt360:x=/y", "NAME:COUNT=PATH"), ("yt360:0=/y", "at least 1")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            corpus_source(text)
    part = corpus_source("starss22:3=/s")
    with pytest.raises(InputError, match=r"--annotated is 'starss22:3=/s', expected no number"):
        DataOptions(folder=Path("data"), annotated=(part,), unannotated=(part,))


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_corpus_may_bring_classes_of_its_own(kind: str, tmp_path: Path) -> None:
    root = str(tmp_path) if kind == "folder" else f"memory://{tmp_path.name}"
    source = CorpusSource(name="starss23", root=root)
    assert class_names_of((source,)) == STARSS_CLASSES
    for text, names in (("drone\n\nsiren \n", ("drone", "siren")), ("a b\nc", ("a b", "c"))):
        with fsspec.open(f"{root}/classes.txt", "w") as listing:
            listing.write(text)
        assert class_names_of((source,)) == names
    for text, message in (("\n", "classes is 'none'"), ("dog\ncat\ndog", "classes is 'dog'")):
        with fsspec.open(f"{root}/classes.txt", "w") as listing:
            listing.write(text)
        with pytest.raises(InputError, match=f"{root}/classes.txt: {message}"):
            class_names_of((source,))


def test_synthetic_and_real_scenes_are_one_corpus(tmp_path: Path) -> None:
    """As the paper fine-tunes: Synth1 adds to STARSS22's training part, whose rooms validate."""
    real = writers.write_starss(tmp_path / "starss22", NAMES)
    # Room 3 of Synth1 is another than the room 3 that is tested on.
    synthetic = writers.write_synth1(
        tmp_path / "synth1", ("fold1_room3_mix001", "fold2_room2_mix001")
    )
    corpora = (
        CorpusSource(name="starss22", root=str(real)),
        CorpusSource(name="synth1", root=str(synthetic)),
    )
    settings = ShardSettings(clip_s=2.0)
    folder = str(tmp_path / folder_name(corpora, settings))
    for _ in range(2):  # and again, where all is decoded already
        index, rejected = build_shards(
            recordings_of(corpora), settings, folder, executor=ProcessExecutor(), workers=1
        )
    assert rejected == []
    pictures = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    pretraining = str(tmp_path / "pretraining")
    build_shards(
        CORPORA["starss23"](str(pictures)),
        settings,
        pretraining,
        executor=ProcessExecutor(),
        workers=1,
    )
    data = describe_data(
        ShardFolder(path=pretraining), ShardFolder(path=folder), class_names_of(corpora)
    )
    assert data.validation_rooms == ("room1",)
    rooms = index.clips.groupby("split")["room"].unique().map(sorted).to_dict()
    assert rooms == {
        "train": ["room1", "room2", "synth1-room2", "synth1-room3"],
        "test": ["room3"],
    }
    # Pretraining on STARSS23 does not see the room either: it is the same one.
    job = PretrainJob(settings=TINY, shards=data.unannotated, validation_rooms=("room1",))
    assert set(job.reader().reader.index.clips["room"]) == {"room2"}
    # Three recordings of 6 s: one of STARSS22 and both of Synth1.
    assert data.trainable_minutes == pytest.approx(3 * 6 / 60)
    trainable = index.select(rooms=["room2", "synth1-room2", "synth1-room3"])
    assert select_budget(trainable, data.trainable_minutes, seed=0).minutes == pytest.approx(0.3)


@pytest.mark.parametrize("purpose", ["pretraining", "training"])
def test_nothing_is_learnt_in_the_rooms_that_are_tested(purpose: str, tmp_path: Path) -> None:
    recordings = CORPORA["starss23"](str(writers.write_starss(tmp_path, NAMES, with_video=True)))
    tested = next(recording for recording in recordings if recording.split == "test")
    split = "unannotated" if purpose == "pretraining" else "train"
    also = replace(tested, recording_id="again", split=split)
    folder = str(tmp_path / "shards")
    build_shards(
        [*recordings, also], ShardSettings(clip_s=2.0), folder,
        executor=ProcessExecutor(), workers=1,
    )  # fmt: skip
    shards = ShardFolder(path=folder)
    with pytest.raises(InputError, match=rf"rooms in {purpose} and test is \['room3'\]"):
        describe_data(shards, shards, STARSS_CLASSES)


def test_corpora_with_a_recording_in_common_are_refused(tmp_path: Path) -> None:
    """STARSS23 has all of STARSS22: its test would be trained on, or counted twice."""
    corpora = tuple(
        CorpusSource(
            name=name,
            root=str(writers.write_starss(tmp_path / name, NAMES, with_video=name == "starss23")),
        )
        for name in ("starss22", "starss23")
    )
    expected = r"starss22\+starss23: fold3_room1_mix001 is .*expected in one of the corpora only"
    with pytest.raises(InputError, match=expected):
        recordings_of(corpora)


def test_rooms_of_validation_are_not_pretrained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a corpus without an unannotated part; scratch has not seen them either."""
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    folder = str(tmp_path / "shards")
    recordings = CORPORA["starss23"](str(root))
    build_shards(
        recordings, ShardSettings(clip_s=2.0), folder, executor=ProcessExecutor(), workers=1
    )
    shards = ShardFolder(path=folder)
    data = describe_data(shards, shards, STARSS_CLASSES)
    assert data.validation_rooms == ("room1",)
    job = PretrainJob(
        settings=TINY, shards=shards, probes=shards, validation_rooms=data.validation_rooms
    )
    seen = job.reader().reader.index
    assert set(seen.clips["room"]) == {"room2"}
    assert seen.fingerprint == data.unannotated_fingerprint
    windows = probe_windows(shards, TINY, rooms=data.validation_rooms)
    assert windows is not None
    assert len(windows.spectra) == 3  # clips of room1
    probed: list[ProbeWindows] = []

    def note(_: object, windows: ProbeWindows, __: object) -> dict[str, float]:
        probed.append(windows)
        return {}

    monkeypatch.setattr(pretrain_job, "probe_pretraining", note)
    probe = job.probe()
    assert probe is not None
    probe(PretrainNetworks(TINY))
    assert torch.equal(probed[0].spectra, windows.spectra)  # and no clip that was pretrained on


def test_probes_know_all_sources_of_a_frame(tmp_path: Path) -> None:
    """Two talkers of one class are two sources; a row that the file repeats is none."""
    (name,) = NAMES[:1]
    root = writers.write_starss(tmp_path / "starss23", [name], duration_s=2.0, with_video=True)
    rows = []
    for frame in range(20):
        rows += [(frame, 0, 0, 0, 0)] * 2
        rows += [(frame, 0, 1, 90, 0)] * (frame % 2)
    writers.write_csv(root / f"metadata_dev/{name}.csv", rows)
    folder = str(tmp_path / "shards")
    recordings = CORPORA["starss23"](str(root))
    build_shards(
        recordings, ShardSettings(clip_s=2.0), folder, executor=ProcessExecutor(), workers=1
    )
    windows = probe_windows(ShardFolder(path=folder), TINY)
    assert windows is not None
    assert windows.source_count.tolist() == [[1, 2, 1, 2]]
    expected = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] * 2
    assert torch.allclose(windows.row_direction, torch.tensor(expected), atol=1e-6)


def clips_of(minutes: dict[str, float], classes: dict[str, dict[int, int]], **common: str) -> Any:
    """Rows of an index, one clip per room."""
    return [
        {"room": room, "duration_s": 60 * length, "class_frames": classes.get(room, {}), **common}
        for room, length in minutes.items()
    ]


def rooms_kept_out(clips: list[dict[str, Any]], tested: str) -> tuple[str, ...]:
    index = ShardIndex("shards", pd.DataFrame(clips))
    test = ShardIndex("shards", pd.DataFrame([{"room": "tested", "corpus": tested}]))
    return _validation_rooms(index, test)


def test_real_rooms_that_validate_leave_most_minutes_of_every_class(
    shared_data: Path, tmp_path: Path
) -> None:
    """Every fifth by name of STARSS22's is nearly half of its minutes and all of its bells."""
    clips = []
    root = writers.write_starss_annotated(tmp_path, shared_data / "starss22/metadata_dev")
    for recording in CORPORA["starss22"](str(root)):
        assert recording.annotation_path is not None
        events = read_annotations(recording.annotation_path)
        sounding = events.drop_duplicates(["frame", "class_id"])["class_id"].value_counts()
        clips.append(
            {
                "corpus": "starss22",
                "split": "train",
                "room": recording.room,
                "duration_s": events["frame"].max() / 10,
                "class_frames": dict(sounding),
            }
        )
    rooms = rooms_kept_out(clips, "starss22")
    assert rooms == ("room22",) == rooms_kept_out(clips[::-1], "starss22")
    table = pd.DataFrame(clips)
    withheld = table["room"].isin(rooms)
    minutes = table.groupby(withheld)["duration_s"].sum() / 60
    assert minutes[True] <= 0.25 * minutes.sum()
    assert minutes[False] > 120  # the largest budget of docs/cluster.md
    frames = pd.DataFrame(table["class_frames"].tolist()).fillna(0)
    assert (frames[withheld].sum() <= frames.sum() / 2).all()
    # Of synthetic rooms beside them there is no use.
    synthetic = clips_of({f"s{number}": 1.0 for number in range(90)}, {}, corpus="synth1")
    synthetic = [clip | {"split": "train"} for clip in synthetic]
    assert rooms_kept_out(clips + synthetic, "starss22") == rooms


@pytest.mark.parametrize(
    ("minutes", "classes", "expected"),
    [
        ([1.0], {}, []),
        ([30, 10], {}, [1]),
        # Two equal ones, of which one has all of a class.
        ([10, 10], {0: {4: 50}, 1: {5: 50}}, [0]),
        ([10, 10, 10], {0: {4: 50}}, [1]),
        # A quarter is the most.
        ([10, 10, 10, 10], {}, [0]),
        ([1, 2, 40, 40], {}, [0, 1]),
        # A fifth is enough, of ten.
        ([10] * 10, {}, [0, 1]),
        # Each has half of the class, both all of it.
        ([10] * 10, {0: {4: 50}, 1: {4: 50}}, [0, 2]),
        # All have all of some class: no more minutes than must be.
        ([20, 5, 75], {0: {0: 1}, 1: {1: 1}, 2: {2: 1}}, [1]),
    ],
)
def test_small_rooms_validate_where_no_class_is_lost(
    minutes: list[float], classes: dict[int, dict[int, int]], expected: list[int]
) -> None:
    clips = clips_of(
        {f"room{number}": length for number, length in enumerate(minutes)},
        {f"room{number}": frames for number, frames in classes.items()},
        corpus="starss23",
        split="train",
    )
    assert rooms_kept_out(clips, "starss23") == tuple(f"room{number}" for number in expected)


def test_of_the_embedded_benchmark_every_fifth_room_validates() -> None:
    """As of all its results so far."""
    clips = clips_of(
        {f"room{1000 + number}": 1.0 + number % 3 for number in range(15)},
        {},
        corpus="embedded",
        split="train",
    )
    assert rooms_kept_out(clips, "embedded") == ("room1000", "room1005", "room1010")


@pytest.mark.parametrize("scale", SCALES)
def test_every_study_has_budgets_that_its_scenes_can_fill(scale: str, tmp_path: Path) -> None:
    options = DataOptions(folder=tmp_path)
    for name in STUDIES:
        study = find_study(name, scale)
        for scenes in options.scenes(study).values():
            assert trainable_minutes_of_scenes(scenes) >= max(study.budgets_minutes)


def test_what_scenes_have_for_budgets_is_known_before_they_are_rendered(tmp_path: Path) -> None:
    """Of 8 minutes in 15 rooms, those of three rooms validate."""
    assert trainable_minutes_of_scenes(find_scale("evidence").scenes) == pytest.approx(19 / 3)
    # And is what is found once they are: recordings of 2 s, as rendering them takes no less.
    scenes = SceneSettings(
        recording_s=2.0,
        unannotated=PartSettings(minutes=4 / 60, rooms=2),
        train=PartSettings(minutes=14 / 60, rooms=6),
        test=PartSettings(minutes=2 / 60, rooms=1),
    )
    render_corpus(scenes, tmp_path / "scenes", workers=1)
    source = (CorpusSource(name="embedded", root=str(tmp_path / "scenes")),)
    folder = str(tmp_path / "shards")
    settings = ShardSettings(clip_s=2.0)
    build_shards(recordings_of(source), settings, folder, executor=ProcessExecutor(), workers=1)
    shards = ShardFolder(path=folder)
    data = describe_data(shards, shards, class_names_of(source))
    assert data.validation_rooms == ("room1001", "room1006")
    assert data.trainable_minutes == pytest.approx(8 / 60)
    assert trainable_minutes_of_scenes(scenes) == pytest.approx(8 / 60)


class WatchedExecutor(ProcessExecutor):
    """Remembers which corpora it decodes."""

    decoded: ClassVar[list[str]] = []

    def map(self, function: Any, items: Sequence[Any], *, workers: int) -> Iterator[Any]:
        self.decoded += [item.recordings[0].corpus for item in items]
        return super().map(function, items, workers=1)


def test_what_is_annotated_is_judged_before_anything_else_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pretrains takes hours to decode."""
    monkeypatch.setattr("ablations.data.RayDataExecutor", WatchedExecutor)
    decoded = WatchedExecutor.decoded
    real = writers.write_starss(tmp_path / "starss22", NAMES)
    wild = writers.write_yt360(tmp_path / "yt360", ["-abc_DEF-12-30"])
    options = DataOptions(
        folder=tmp_path / "data",
        annotated=(CorpusSource(name="starss22", root=str(real)),),
        unannotated=(CorpusSource(name="yt360", root=str(wild)),),
    )
    study = replace(variants(find_scale("demo")), budgets_minutes=(0.05, 0.15))
    placement = plan_placement({"CPU": 1.0}, train_workers=1)

    def prepare() -> PreparedData:
        console = Console(file=io.StringIO())
        return prepare_data(options, study, placement, console)[DEFAULT_DATA]

    expected = (
        r"is 0.15, expected at most the 0.1 that .* has beside its validation rooms \(room1\)"
    )
    with pytest.raises(InputError, match=expected):
        prepare()
    assert set(decoded) == {"starss22"}
    decoded.clear()
    # So is the disk's room for all of it, before what is annotated is decoded.
    options = replace(options, folder=tmp_path / "full")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(InputError, match="free disk space"):
        prepare()
    monkeypatch.undo()
    monkeypatch.setattr("ablations.data.RayDataExecutor", WatchedExecutor)
    assert decoded == []
    study = replace(study, budgets_minutes=(0.05, 0.1))
    assert prepare().trainable_minutes == pytest.approx(0.1)
    assert decoded[-1] == "yt360"


@pytest.mark.parametrize(
    ("annotated", "unannotated", "refused"),
    [
        (NAMES[:2], "starss23", "--annotated is 'starss22=.*to test on; there are none"),
        (NAMES[2:], "starss23", "--annotated is 'starss22=.*to train on; there are none"),
        (NAMES, "starss22", "--unannotated is 'starss22=.*recordings with pictures.*none"),
        (NAMES, "starss23", None),
    ],
)
def test_corpora_that_cannot_serve_their_purpose_are_refused_before_any_work(
    annotated: Sequence[str], unannotated: str, refused: str | None, tmp_path: Path
) -> None:
    for name, names in (("annotated", annotated), ("unannotated", NAMES)):
        writers.write_starss(tmp_path / name, names, duration_s=0.1)
    options = DataOptions(
        folder=tmp_path / "data",
        annotated=(CorpusSource(name="starss22", root=str(tmp_path / "annotated")),),
        unannotated=(CorpusSource(name=unannotated, root=str(tmp_path / "unannotated")),),
    )
    study = find_study("variants", "demo")
    if refused is None:
        options.check(study)
        return
    with pytest.raises(InputError, match=refused):
        options.check(study)
    assert not options.folder.exists()


def test_data_are_judged_before_their_spectra_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "RayDataExecutor", ProcessExecutor)
    monkeypatch.setattr(ShardFolder, "store", lambda *_: pytest.fail("too early"))
    root = writers.write_starss(tmp_path / "starss23", NAMES)  # whose pictures are all lost
    corpora = (CorpusSource(name="starss23", root=str(root)),)
    options = DataOptions(folder=tmp_path, annotated=corpora, unannotated=corpora)
    placement: Any = SimpleNamespace(cluster_cpus=1, worker_gpus=0)
    study = replace(find_study("variants", "demo"), budgets_minutes=(0.05,))
    console = Console(file=io.StringIO())
    with pytest.raises(InputError, match="unannotated clips with pictures is 0"):
        prepare_corpora(corpora, corpora, options, study, placement, console)


def test_a_plan_passes_by_what_is_not_decoded_and_nothing_else(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES)  # whose pictures are all lost
    corpora = (CorpusSource(name="starss23", root=str(root)),)
    options = DataOptions(folder=tmp_path, annotated=corpora, unannotated=corpora)
    study = find_study("variants", "demo")

    def decode(count: int) -> Path:
        folder = folder_of_shards(options, corpora, study)
        recordings, settings = recordings_of(corpora)[:count], study.scale.shards
        build_shards(recordings, settings, folder, executor=ProcessExecutor(), workers=1)
        return Path(folder)

    def trainable_minutes() -> float:
        return data_for_plan(options, study)[DEFAULT_DATA].trainable_minutes

    assert trainable_minutes() == 0.0
    (decode(1) / "index.parquet").unlink()  # as while it is under way
    assert trainable_minutes() == 0.0
    decode(3)
    with pytest.raises(InputError, match="unannotated clips with pictures is 0"):
        trainable_minutes()


def test_each_corpus_is_pretrained_on_by_what_it_has(tmp_path: Path) -> None:
    """An unannotated corpus beside an annotated one does not make that one's pictures unseen."""
    annotated = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    recordings = CORPORA["starss23"](str(annotated))
    settings, folder = ShardSettings(clip_s=2.0), str(tmp_path / "shards")
    wild = [
        replace(recording, corpus="yt360", recording_id=f"wild{number}", split="unannotated")
        for number, recording in enumerate(recordings)
    ]
    build_shards([*recordings, *wild], settings, folder, executor=ProcessExecutor(), workers=1)
    shards = ShardFolder(path=folder)
    job = PretrainJob(settings=TINY, shards=shards, probes=shards, validation_rooms=("room1",))
    seen = job.reader().reader.index.clips
    assert set(seen.loc[seen["corpus"] == "starss23", "room"]) == {"room2"}
    assert set(seen.loc[seen["corpus"] == "yt360", "split"]) == {"unannotated"}


def test_data_that_have_changed_since_the_study_was_planned_are_refused(tmp_path: Path) -> None:
    root = writers.write_starss(tmp_path / "starss23", NAMES, with_video=True)
    recordings = CORPORA["starss23"](str(root))
    settings, folder = ShardSettings(clip_s=2.0), str(tmp_path / "shards")

    def decode(count: int) -> None:
        build_shards(recordings[:count], settings, folder, executor=ProcessExecutor(), workers=1)

    decode(3)
    shards = ShardFolder(path=folder)
    planned = describe_data(shards, shards, STARSS_CLASSES)
    job = PretrainJob(settings=TINY, shards=planned.unannotated)
    assert len(job.reader().reader.index.clips)
    decode(2)  # by another run, of a corpus that has changed meanwhile
    with pytest.raises(InputError, match=r"shards: fingerprint of the clips is .*start it again"):
        job.reader()


def test_stages_follow_the_rooms_and_classes_that_they_are_trained_with() -> None:
    finetune = FinetuneSettings()
    cell = Cell(
        study="s", arm="a", seed=0, annotation_minutes=1.0, pretrain=TINY, finetune=finetune
    )
    data = PreparedData(
        unannotated=ShardFolder(path="u"),
        annotated=ShardFolder(path="a"),
        class_names=("bell", "door"),
        validation_rooms=("room1",),
        unannotated_fingerprint="1",
        annotated_fingerprint="2",
        test_fingerprint="3",
        trainable_minutes=5.0,
    )
    own = stages_of(cell, data)
    for changed in ({"class_names": ("bell", "drawer")}, {"validation_rooms": ("room2",)}):
        other = stages_of(cell, replace(data, **changed))
        assert other.pretrain == own.pretrain
        assert other.finetune != own.finetune
        assert other.evaluate != own.evaluate
