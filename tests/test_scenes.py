"""The embedded benchmark: what is heard, seen and annotated agree, and repeat to the byte."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pandas as pd
import pyroomacoustics
import pytest
import soundfile

from seld.annotations import read_annotations
from seld.classes import STARSS_CLASSES
from seld.clips import SAMPLE_RATE_HZ
from seld.corpora.embedded import read
from seld.errors import InputError
from seld.geometry import angular_distance_deg, unit_vectors
from seld.scenes import __main__ as command
from seld.scenes.pictures import PanoramaPainter, draw_look
from seld.scenes.render import (
    RENDERER_VERSION,
    corpus_fingerprint,
    plan_recordings,
    render_corpus,
    render_recording,
)
from seld.scenes.rooms import (
    CONTROL_RATE_HZ,
    SPEED_OF_SOUND_M_S,
    Room,
    diffuse_noise,
    draw_room,
    impulse_response,
    render_source,
)
from seld.scenes.script import write_script
from seld.scenes.settings import PartSettings, PictureSettings, SceneSettings, with_minutes
from seld.scenes.sounds import Side, SyntheticBank, active_frames, open_bank, split_files
from seld.storage import fetch_folder, file_system

SMALL = SceneSettings(
    seed=3,
    recording_s=4.0,
    picture=PictureSettings(height_px=32, width_px=64, frame_rate_hz=5),
    unannotated=PartSettings(minutes=4 / 60, rooms=2),
    train=PartSettings(minutes=8 / 60, rooms=2),
    test=PartSettings(minutes=4 / 60, rooms=1),
)


def intensity_direction(foa: np.ndarray) -> np.ndarray:
    """Mean intensity direction (x, y, z) of (4, time), W, Y, Z, X."""
    intensity = np.array([(foa[0] * foa[channel]).sum() for channel in (3, 1, 2)])
    return intensity / np.linalg.norm(intensity)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    render_corpus(SMALL, folder, workers=1)
    return folder


def test_layout_reads_as_corpus_with_disjoint_rooms(corpus: Path) -> None:
    recordings = read(str(corpus))
    rooms = {split: set() for split in ("unannotated", "train", "test")}
    for recording in recordings:
        rooms[recording.split].add(recording.room)
        sound = soundfile.info(recording.foa_path)
        assert (sound.channels, sound.samplerate, sound.subtype) == (4, 24_000, "PCM_16")
        assert sound.frames == 4 * 24_000
        with av.open(str(recording.video_path), "r") as video:
            stream = video.streams.video[0]
            assert (stream.width, stream.height) == (64, 32)
            assert stream.codec_context.name == "h264"
            assert sum(1 for _ in video.decode(stream)) == 20
    assert {split: len(found) for split, found in rooms.items()} == {
        "unannotated": 1,
        "train": 2,
        "test": 1,
    }
    assert len(set.union(*rooms.values())) == 4
    listing = json.loads((corpus / "corpus.json").read_text())
    assert listing["class_names"] == list(STARSS_CLASSES)
    assert listing["complete"]
    assert {entry["recording_id"] for entry in listing["recordings"]} == {
        recording.recording_id for recording in recordings
    }


def test_same_bytes_from_other_processes_and_after_an_interruption(
    corpus: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    render_corpus(SMALL, again, workers=2)
    expected = digests(corpus)
    assert digests(again) == expected
    lost = next(again.glob("foa_dev/dev-train-embedded/*.wav"))
    kept = next(again.glob("foa_dev/unannotated/*.wav"))
    kept_written_ns = kept.stat().st_mtime_ns
    lost.unlink()
    counts = []
    render_corpus(
        SMALL, again, workers=1, progress=lambda done, total: counts.append((done, total))
    )
    assert counts == [(3, 4), (4, 4)]
    assert digests(again) == expected
    assert kept.stat().st_mtime_ns == kept_written_ns


def test_an_interrupt_ends_rendering(tmp_path: Path) -> None:
    """What is being rendered is finished, nothing else is begun, and no process is left."""
    before = set(multiprocessing.active_children())
    many = replace(SMALL, train=PartSettings(minutes=200 * 4 / 60, rooms=2))

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_corpus(many, tmp_path, workers=2, progress=interrupt)
    assert 1 <= len(list(tmp_path.glob("foa_dev/*/*.wav"))) < 100
    assert set(multiprocessing.active_children()) <= before


class InTurn:
    """An executor that does one thing after the other."""

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, workers: int
    ) -> Iterator[Any]:
        yield from map(function, items)


def test_a_bucket_holds_the_same_bytes_and_gets_what_is_missing(
    corpus: Path, tmp_path: Path
) -> None:
    root = f"memory://{tmp_path.name}/corpus"
    counts = []
    render_corpus(SMALL, root, executor=InTurn())
    fetch_folder(root, tmp_path / "first")
    assert digests(tmp_path / "first") == digests(corpus)
    files, inner = file_system(root)
    files.rm_file(f"{inner}/foa_dev/unannotated/fold1_room3001_mix001.wav")
    render_corpus(
        SMALL, root, executor=InTurn(), progress=lambda done, total: counts.append((done, total))
    )
    assert counts == [(3, 4), (4, 4)]
    fetch_folder(root, tmp_path / "second")
    assert digests(tmp_path / "second") == digests(corpus)
    with pytest.raises(InputError, match="fingerprint"):
        render_corpus(replace(SMALL, seed=4), root)


def test_another_seed_gives_another_corpus_and_is_refused_in_the_same_folder(corpus: Path) -> None:
    with pytest.raises(InputError, match="fingerprint"):
        render_corpus(replace(SMALL, seed=4), corpus, workers=1)


def test_a_part_with_a_limit_of_its_own_is_another_corpus_and_without_is_the_one_before() -> None:
    """Six rendered hours are not rendered again because parts can say something new."""
    settings, bank = SceneSettings(), SyntheticBank()
    own = replace(settings, unannotated=replace(settings.unannotated, max_overlap=1))
    assert corpus_fingerprint(own, bank) != corpus_fingerprint(settings, bank)
    assert corpus_fingerprint(settings, bank) == "dec918f678849586"  # as on 2026-11-27


def test_annotations_point_at_what_is_heard(tmp_path: Path) -> None:
    """In the open, one voice: intensity of each labelled frame is along its label."""
    settings = replace(
        SMALL,
        recording_s=10.0,
        max_overlap=1,
        moving_share=1.0,
        ambient_noise_dbfs=-110,
        train=PartSettings(minutes=0.5, rooms=1, acoustics="anechoic"),
    )
    for recording in plan_recordings(settings):
        if recording.part != "train":
            continue
        render_recording(recording, settings, SyntheticBank(), tmp_path)
        foa, _ = soundfile.read(recording.path(tmp_path, "foa", ".wav"))
        table = read_annotations(recording.path(tmp_path, "metadata", ".csv"))
        assert len(table) > 20
        assert not table.duplicated(["frame", "source_id"]).any()
        labelled = np.zeros(100, bool)
        errors_deg = []
        for row in table.itertuples():
            labelled[row.frame] = True
            piece = foa[row.frame * 2400 : (row.frame + 1) * 2400].T
            if piece[0].std() > 1e-3:
                label = unit_vectors(row.azimuth_deg, row.elevation_deg)
                errors_deg.append(angular_distance_deg(intensity_direction(piece), label))
        assert np.median(errors_deg) < 1.0
        assert np.quantile(errors_deg, 0.95) < 4.0
        energy = (foa[:, 0].reshape(100, 2400) ** 2).sum(axis=1)
        assert energy[~labelled].sum() < 0.01 * energy.sum()


def test_background_music_sounds_where_nothing_is_labelled(tmp_path: Path) -> None:
    """The same scene, in the open, with and without it."""
    tables, powers = [], []
    for share in (0.0, 1.0):
        settings = replace(
            SMALL,
            recording_s=10.0,
            ambient_noise_dbfs=-110,
            train=PartSettings(
                minutes=1 / 6, rooms=1, acoustics="anechoic", background_music_share=share
            ),
        )
        (recording,) = (each for each in plan_recordings(settings) if each.part == "train")
        render_recording(recording, settings, SyntheticBank(), tmp_path)
        omni = soundfile.read(recording.path(tmp_path, "foa", ".wav"))[0][:, 0]
        table = read_annotations(recording.path(tmp_path, "metadata", ".csv"))
        quiet = np.setdiff1d(np.arange(100), table["frame"])
        assert 10 < len(quiet) < 90
        tables.append(table)
        powers.append(np.median((omni.reshape(100, 2400)[quiet] ** 2).mean(axis=1)))
    pd.testing.assert_frame_equal(*tables)
    assert 10 * np.log10(powers[1] / powers[0]) > 20


@pytest.mark.parametrize(("of_all", "of_part"), [(2, None), (3, 2), (1, 2)])
def test_overlap_stays_within_its_limit_and_shares_are_kept(
    of_all: int, of_part: int | None
) -> None:
    generator = np.random.default_rng(0)
    part = PartSettings(minutes=1, rooms=1, unseen_share=0.3, silent_share=0.5, max_overlap=of_part)
    settings = SceneSettings(recording_s=60.0, max_overlap=of_all)
    sounding = unseen = silent = most = 0
    for _ in range(20):
        script = write_script(settings, part, STARSS_CLASSES, generator)
        heard = [source for source in script.sources if source.sounds]
        time_s = np.arange(0, 60, 0.05)[:, None]
        starts = np.array([source.start_s for source in heard])
        ends = starts + [source.duration_s for source in heard]
        most = max(most, int(((starts <= time_s) & (time_s < ends)).sum(axis=1).max()))
        sounding += len(heard)
        unseen += sum(source.seen_s is None for source in heard)
        silent += len(script.sources) - len(heard)
    assert most == 2
    assert unseen / sounding == pytest.approx(0.3, abs=0.07)
    assert silent / sounding == pytest.approx(0.5, abs=0.07)


def test_sources_of_one_time_are_apart() -> None:
    """By 30°, but where forty places were tried in vain, which two at a time hardly ever need."""
    generator = np.random.default_rng(0)
    settings = SceneSettings(recording_s=60.0, max_overlap=2, moving_share=0.0)
    part = PartSettings(minutes=1, rooms=1)
    angles_deg = []
    for _ in range(20):
        sources = write_script(settings, part, STARSS_CLASSES, generator).sources
        for first, second in itertools.combinations(sources, 2):
            starts_s, ends_s = zip(first.present_s, second.present_s, strict=True)
            if max(starts_s) < min(ends_s):
                one, other = (source.trajectory.directions(np.array([max(starts_s)]))
                              for source in (first, second))  # fmt: skip
                angles_deg.append(angular_distance_deg(one, other).item())
    assert len(angles_deg) > 100
    assert np.mean(np.array(angles_deg) < 30.0) < 0.01


def test_parts_choose_their_classes_and_balance() -> None:
    generator = np.random.default_rng(0)
    settings = SceneSettings(recording_s=600.0)
    only = PartSettings(minutes=1, rooms=1, classes=("bell", "knock"))
    drawn = write_script(settings, only, STARSS_CLASSES, generator).sources
    assert {STARSS_CLASSES[source.class_id] for source in drawn} == {"bell", "knock"}
    skewed = PartSettings(minutes=1, rooms=1, class_skew=1.5)
    drawn = write_script(settings, skewed, STARSS_CLASSES, generator).sources
    counts = np.bincount([source.class_id for source in drawn], minlength=13)
    assert counts[0] > 3 * counts[4:].mean()


@pytest.mark.parametrize("kind", ["small", "large", "reverberant"])
def test_impulse_decays_with_the_rooms_rt60(kind) -> None:
    generator = np.random.default_rng(1)
    room = draw_room(kind, generator)
    response = impulse_response(np.array([0.8, 0.4, 0.1]), room, generator)[0]
    remaining_db = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1])
    remaining_db -= remaining_db[0]
    start, end = np.argmax(remaining_db < -10), np.argmax(remaining_db < -30)
    assert 3 * (end - start) / SAMPLE_RATE_HZ == pytest.approx(room.rt60_s, rel=0.08)


def early_response(offset_m: np.ndarray, room: Room) -> np.ndarray:
    """Direct sound and image sources, (4, time): the response where the tail draws zeros."""
    silence: Any = SimpleNamespace(standard_normal=lambda shape, dtype: np.zeros(shape, dtype))
    return impulse_response(offset_m, room, silence)


@pytest.mark.parametrize("kind", ["small", "large", "reverberant"])
def test_reflections_are_those_of_pyroomacoustics(kind) -> None:
    """Delays, gains and directions alike, told from spectra: no kernel of a delay between them."""
    room = draw_room(kind, np.random.default_rng(1))
    offset_m = np.array([0.8, 0.4, 0.1])
    response = early_response(offset_m, room)
    walls = pyroomacoustics.Material(room.absorption)
    box = pyroomacoustics.ShoeBox(room.size_m, SAMPLE_RATE_HZ, materials=walls, max_order=2)
    box.add_source(room.microphone_m + offset_m)
    box.add_microphone(room.microphone_m)
    box.image_source_model()
    rays_m = box.sources[0].images.T - room.microphone_m  # (path, 3)
    distances_m = np.linalg.norm(rays_m, axis=1)
    x, y, z = rays_m.T / distances_m
    gains = box.sources[0].damping[0] / distances_m * np.stack([np.ones_like(x), y, z, x])
    frequencies_hz = np.linspace(100, 8000, 50)
    arrivals = np.outer(distances_m / SPEED_OF_SOUND_M_S, frequencies_hz)
    samples = np.outer(np.arange(response.shape[1]) / SAMPLE_RATE_HZ, frequencies_hz)
    np.testing.assert_allclose(
        response @ np.exp(-2j * np.pi * samples), gains @ np.exp(-2j * np.pi * arrivals), atol=2e-3
    )


@pytest.mark.parametrize("kind", ["small", "large", "reverberant"])
def test_reverberation_has_the_energy_of_a_diffuse_field(kind) -> None:
    """Diffuse over direct energy at 1 m is (4 / R) / (1 / 4π), R = S α / (1 − α).

    Beranek, Acoustics (1954), chapter 10; Kuttruff, Room Acoustics, chapter 5. α is Eyring's.
    """
    generator = np.random.default_rng(1)
    room = draw_room(kind, generator)
    offset_m = np.array([0.8, 0.4, 0.1])
    length, width, height = room.size_m
    surface_m2 = 2 * (length * width + length * height + width * height)
    volume_m3 = length * width * height
    absorption = 1 - np.exp(
        -24 * np.log(10) / SPEED_OF_SOUND_M_S * volume_m3 / surface_m2 / room.rt60_s
    )
    expected = 16 * np.pi * (1 - absorption) / (surface_m2 * absorption)
    response = impulse_response(offset_m, room, generator)
    direct = early_response(offset_m, replace(room, kind="anechoic", rt60_s=None))
    response[:, : direct.shape[1]] -= direct
    assert 10 * np.log10((response[0] ** 2).sum() / expected) == pytest.approx(0, abs=2)


@pytest.mark.parametrize("kind", ["small", "large", "reverberant"])
def test_the_tail_comes_from_everywhere(kind) -> None:
    """SN3D: a third of W's energy in each of Y, Z and X, and no mean intensity."""
    generator = np.random.default_rng(1)
    room = draw_room(kind, generator)
    offset_m = np.array([0.8, 0.4, 0.1])
    early = early_response(offset_m, room)
    tails = np.concatenate(
        [impulse_response(offset_m, room, generator) - early for _ in range(20)], axis=1
    )
    to_each = tails @ tails[0] / (tails[0] @ tails[0])
    energies = (tails**2).sum(axis=1) / (tails[0] @ tails[0])
    np.testing.assert_allclose(energies[1:], 1 / 3, rtol=0.1)
    np.testing.assert_allclose(to_each[1:], 0, atol=0.03)


def test_direct_sound_has_its_delay_level_and_direction() -> None:
    generator = np.random.default_rng(2)
    room = draw_room("anechoic", generator)
    for azimuth_deg, elevation_deg, distance_m in ((30, 20, 1.0), (-135, -30, 2.0), (180, 0, 4.0)):
        offset_m = distance_m * unit_vectors(azimuth_deg, elevation_deg)
        response = impulse_response(offset_m, room, generator)
        delay = distance_m / SPEED_OF_SOUND_M_S * SAMPLE_RATE_HZ
        assert abs(np.argmax(response[0]) - delay) <= 0.5
        assert response[0].sum() == pytest.approx(1 / distance_m, rel=0.01)
        np.testing.assert_allclose(intensity_direction(response), offset_m / distance_m, atol=1e-4)


@pytest.mark.parametrize("kind", ["small", "large", "reverberant"])
def test_direct_sound_comes_first_and_from_its_direction_in_a_room(kind) -> None:
    generator = np.random.default_rng(2)
    room = draw_room(kind, generator)
    for azimuth_deg, elevation_deg in ((30, 20), (-135, -30), (90, 0)):
        direction = unit_vectors(azimuth_deg, elevation_deg)
        response = impulse_response(direction, room, generator)
        arrival = round(SAMPLE_RATE_HZ / SPEED_OF_SOUND_M_S)
        first = response[:, : arrival + SAMPLE_RATE_HZ // 1000]
        assert angular_distance_deg(intensity_direction(first), direction) < 1.0


@pytest.mark.parametrize("kind", ["outdoor", "reverberant"])
def test_a_moving_source_that_stands_still_sounds_as_a_static_one(kind) -> None:
    room = draw_room(kind, np.random.default_rng(3))
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    dry = np.sin(2 * np.pi * 700 * time_s).astype(np.float32)
    offset_m = np.array([1.0, -0.5, 0.2])
    still_m = np.tile(offset_m, (2 * CONTROL_RATE_HZ, 1))
    static = render_source(dry, offset_m, room, np.random.default_rng(0))
    moving = render_source(dry, still_m, room, np.random.default_rng(0))
    middle = slice(2000, 20_000)
    np.testing.assert_allclose(moving[:, middle], static[:, middle], atol=0.01)


def test_a_source_that_leaves_is_doppler_shifted() -> None:
    room = draw_room("anechoic", np.random.default_rng(0))
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    dry = np.sin(2 * np.pi * 1000 * time_s).astype(np.float32)
    control_s = np.arange(2 * CONTROL_RATE_HZ) / CONTROL_RATE_HZ
    speed_m_s = 5.0
    offsets_m = np.stack([1 + speed_m_s * control_s, 0 * control_s, 0 * control_s], axis=-1)
    heard = render_source(dry, offsets_m, room, np.random.default_rng(0))[0, 2400:21_600]
    crossings = np.count_nonzero(np.diff(np.signbit(heard))) / 2 / (len(heard) / SAMPLE_RATE_HZ)
    assert crossings == pytest.approx(1000 * (1 - speed_m_s / SPEED_OF_SOUND_M_S), abs=2)


def test_ambient_noise_is_diffuse_and_at_its_level() -> None:
    noise = diffuse_noise(10 * SAMPLE_RATE_HZ, -40.0, np.random.default_rng(0))
    assert 20 * np.log10(noise[0].std()) == pytest.approx(-40, abs=0.1)
    np.testing.assert_allclose(noise[1:].var(axis=1) / noise[0].var(), 1 / 3, rtol=0.25)


@pytest.mark.parametrize(
    "direction_deg", [(0, 0), (90, 0), (-90, 40), (179, -30), (-179, 10), (20, 85)]
)
def test_objects_are_painted_where_they_are(direction_deg: tuple[float, float]) -> None:
    painter = PanoramaPainter(180)
    look = replace(draw_look(0, 13, np.random.default_rng(0)), shape="disc")
    direction = unit_vectors(*direction_deg)
    picture = np.zeros((180, 360, 3), np.float32)
    painter.paint(picture, look, direction, 1.5, None)
    rows, columns = np.nonzero(picture.max(axis=-1) > 0)
    painted = unit_vectors(180 - (columns + 0.5), 90 - (rows + 0.5))
    weights = np.cos(np.radians(90 - (rows + 0.5)))[:, None]
    centre = (weights * painted).sum(axis=0)
    assert angular_distance_deg(centre / np.linalg.norm(centre), direction) < 0.5
    distances_deg = angular_distance_deg(painted, direction)
    expected_deg = np.clip(np.degrees(np.arctan2(look.radius_m, 1.5)), 14, 24)
    assert distances_deg.max() == pytest.approx(expected_deg, abs=1.2)


#: One voice at a time, without echoes. Its class is a disc with stripes that flow while it sounds.
ONE_VOICE = replace(
    SMALL,
    recording_s=6.0,
    max_overlap=1,
    picture=PictureSettings(height_px=64, width_px=128, frame_rate_hz=10),
    train=PartSettings(
        minutes=0.1,
        rooms=1,
        acoustics="anechoic",
        classes=("female_speech",),
        unseen_share=0.0,
        silent_share=0.0,
    ),
)


def unseen(settings: SceneSettings) -> SceneSettings:
    """The same scenes with nothing in the picture."""
    return replace(settings, train=replace(settings.train, unseen_share=1.0))


def rendered_train(settings: SceneSettings, folder: Path) -> list[tuple[np.ndarray, pd.DataFrame]]:
    """Pictures (frame, height, width, 3) and annotations of every training recording."""
    found = []
    for recording in plan_recordings(settings):
        if recording.part == "train":
            render_recording(recording, settings, SyntheticBank(), folder)
            with av.open(str(recording.path(folder, "video", ".mp4")), "r") as video:
                pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            table = read_annotations(recording.path(folder, "metadata", ".csv"))
            found.append((np.stack(pictures).astype(float), table))
    return found


def test_an_object_is_seen_where_its_sound_is_annotated(tmp_path: Path) -> None:
    settings = replace(ONE_VOICE, moving_share=1.0)
    ((pictures, table),) = rendered_train(settings, tmp_path / "seen")
    ((empty, _),) = rendered_train(unseen(settings), tmp_path / "unseen")
    rows, columns = (np.arange(size) + 0.5 for size in (64, 128))
    directions = unit_vectors(180 - columns * 360 / 128, (90 - rows * 180 / 64)[:, None])
    areas = np.cos(np.radians(90 - rows * 180 / 64))[:, None, None]
    labels = unit_vectors(table["azimuth_deg"], table["elevation_deg"])
    assert angular_distance_deg(labels[0], labels[-1]) > 30
    for number, label in zip(table["frame"], labels, strict=True):
        changed = np.abs(pictures[number] - empty[number]).max(axis=-1, keepdims=True) > 40
        centre = (changed * areas * directions).sum(axis=(0, 1))
        assert changed.sum() > 50
        assert angular_distance_deg(centre, label) < 5


def test_an_object_moves_exactly_while_its_sound_is_annotated(tmp_path: Path) -> None:
    """It changes from one picture to the next, or back to rest, where the first one is labelled."""
    settings = replace(ONE_VOICE, seed=8, moving_share=0.0)
    ((pictures, table),) = rendered_train(settings, tmp_path / "seen")
    ((empty, _),) = rendered_train(unseen(settings), tmp_path / "unseen")
    sounds = np.isin(np.arange(60), table["frame"])
    differs = np.abs(pictures - empty).max(axis=-1) > 40
    is_seen = differs.sum(axis=(1, 2)) > 50
    assert is_seen[sounds].all()
    assert (is_seen & ~sounds).sum() > 5
    steps = np.abs(np.diff(pictures, axis=0))[:, differs[is_seen][0]].mean(axis=(1, 2))
    stays = is_seen[1:] & is_seen[:-1]
    assert ((steps > 3) == sounds[:-1])[stays].all()


def test_unseen_sources_leave_only_the_background_that_is_their_rooms(tmp_path: Path) -> None:
    settings = unseen(replace(ONE_VOICE, train=replace(ONE_VOICE.train, minutes=0.3, rooms=2)))
    backgrounds = []
    for pictures, table in rendered_train(settings, tmp_path):
        assert len(table) > 0
        background = np.median(pictures, axis=0)
        assert np.abs(pictures - background).max() < 30
        backgrounds.append(background.ravel())
    # Room 1, room 2 and room 1 again: one room's pictures differ in brightness alone.
    similar = np.corrcoef(backgrounds)[0]
    assert similar[2] > 0.99
    assert similar[1] < 0.9


def test_sounds_of_test_scenes_are_the_banks_test_side(tmp_path: Path) -> None:
    drawn: list[Side] = []

    class Spy(SyntheticBank):
        def draw(
            self, class_id: int, side: Side, duration_s: float, generator: np.random.Generator
        ) -> np.ndarray:
            drawn.append(side)
            return super().draw(class_id, side, duration_s, generator)

    sides: dict[str, set[Side]] = {}
    for recording in plan_recordings(SMALL):
        drawn.clear()
        render_recording(recording, SMALL, Spy(), tmp_path)
        sides.setdefault(recording.part, set()).update(drawn)
    assert sides == {"unannotated": {"train"}, "train": {"train"}, "test": {"test"}}


def test_synthetic_classes_differ_within_and_are_sound() -> None:
    bank = SyntheticBank()
    for class_id in range(len(STARSS_CLASSES)):
        first, second = (
            bank.draw(class_id, "train", 2.0, np.random.default_rng(seed)) for seed in (0, 1)
        )
        assert len(first) == len(second) == 2 * SAMPLE_RATE_HZ
        assert np.isfinite(first).all()
        assert active_frames(first).mean() > 0.3, STARSS_CLASSES[class_id]
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_silence_within_a_sound_is_not_active() -> None:
    sound = np.zeros(SAMPLE_RATE_HZ * 2, np.float32)
    sound[:2400] = sound[-2400:] = 0.1
    assert np.flatnonzero(active_frames(sound)).tolist() == [0, 19]
    assert np.flatnonzero(active_frames(sound, 1200)).tolist() == [0, 1, 19, 20]
    sound[2 * 2400 : 3 * 2400] = 0.1  # a pause of one frame belongs to the event
    assert np.flatnonzero(active_frames(sound)).tolist() == [0, 1, 2, 19]


def write_bank(folder: Path, names: dict[str, list[str]]) -> Path:
    generator = np.random.default_rng(0)
    for class_name, files in names.items():
        (folder / class_name).mkdir(parents=True)
        for name in files:
            noise = generator.uniform(-0.5, 0.5, 16_000)
            soundfile.write(folder / class_name / name, noise, 16_000)
    return folder


def test_recorded_sounds_are_split_by_fold_and_never_shared(tmp_path: Path) -> None:
    files = [f"{fold}-{take}.wav" for fold in (1, 2, 3, 4) for take in "ab"]
    bank = open_bank(str(write_bank(tmp_path, {"rain": files, "saw": files})))
    assert bank.class_names == ("rain", "saw")
    assert split_files(files) == {name: "test" if name[0] == "4" else "train" for name in files}
    by_file = split_files(["a.wav", "b.wav", "c.wav", "4-d.wav"])
    assert sorted(by_file.values()) == ["test", "train", "train", "train"]
    sounds = getattr(bank, "sounds")  # noqa: B009 - only the recorded bank has them
    assert [len(sounds[0, side]) for side in ("train", "test")] == [6, 2]
    contents = {side: {sound.tobytes() for sound in sounds[0, side]} for side in ("train", "test")}
    assert not contents["train"] & contents["test"]


def test_corpus_of_a_recorded_bank_lists_its_classes(tmp_path: Path) -> None:
    bank = write_bank(tmp_path / "bank", {"rain": ["a.wav", "b.flac"], "saw": ["a.wav", "b.wav"]})
    settings = replace(SMALL, sound_bank=str(bank), train=PartSettings(minutes=4 / 60, rooms=1))
    render_corpus(settings, tmp_path / "out", workers=1)
    listing = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert listing["class_names"] == ["rain", "saw"]
    assert listing["renderer_version"] == RENDERER_VERSION


def test_bad_input_is_named_before_anything_is_rendered(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = write_bank(tmp_path / "broken", {"rain": ["a.wav", "b.wav"]})
    (broken / "rain" / "c.ogg").write_bytes(b"not a sound")
    single = write_bank(tmp_path / "single", {"rain": ["a.wav"]})
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    out = tmp_path / "out"
    for settings, folder, message in (
        (replace(SMALL, sound_bank=str(tmp_path / "empty")), out, "classes"),
        (replace(SMALL, sound_bank=str(tmp_path / "nowhere")), out, "no such folder"),
        (replace(SMALL, sound_bank=str(broken)), out, "c.ogg"),
        (replace(SMALL, sound_bank=str(single)), out, "recordings"),
        (replace(SMALL, train=PartSettings(minutes=1, rooms=1, classes=("bel",))), out, "'bel'"),
        (SMALL, occupied, "can be written"),
    ):
        with pytest.raises(InputError, match=message):
            render_corpus(settings, folder, workers=1)
    assert not out.exists()
    with pytest.raises(InputError, match="twice the height"):
        PictureSettings(height_px=64, width_px=100)


def test_workers_that_can_do_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["seld.scenes", "--out", str(out), "--workers", "0"])
    with pytest.raises(InputError, match="--workers is 0, expected at least 1"):
        command.main()
    assert not out.exists()


def test_minutes_keep_the_parts_proportions() -> None:
    scaled = with_minutes(SceneSettings(), 6.0)
    assert scaled.minutes == pytest.approx(6.0)
    default = SceneSettings()
    assert scaled.test.minutes / scaled.train.minutes == pytest.approx(
        default.test.minutes / default.train.minutes
    )
