"""From settings to a corpus on disk: wav, mp4 and csv per recording, in the STARSS22 layout.

Each recording is drawn from (seed, part, number) alone, so neither the number of processes nor
an interruption changes a byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import soundfile
from numpy.typing import NDArray

from seld.annotations import POLAR_COLUMNS, write_annotations
from seld.clips import LABEL_FRAME_S, SAMPLE_RATE_HZ
from seld.errors import InputError
from seld.geometry import azimuth_elevation
from seld.scenes.pictures import PanoramaPainter, draw_background, draw_look
from seld.scenes.rooms import (
    CONTROL_RATE_HZ,
    Room,
    diffuse_noise,
    draw_room,
    render_source,
    surround,
)
from seld.scenes.script import Script, Source, write_script
from seld.scenes.settings import PART_NAMES, PartName, PictureSettings, SceneSettings
from seld.scenes.sounds import Side, SoundBank, active_frames, open_bank
from seld.scenes.synthesis import SYNTHESISERS
from seld.settings import to_mapping
from seld.shards import Executor
from seld.storage import (
    absolute,
    check_writable,
    file_system,
    files_below,
    is_local,
    join,
    local_copy,
    written_whole,
)

#: Changes whenever the same settings give other bytes.
RENDERER_VERSION = "2"
LISTING = "corpus.json"

_FOLDERS = {
    "unannotated": "unannotated",
    "train": "dev-train-embedded",
    "test": "dev-test-embedded",
}
_FOLDS = {"unannotated": 1, "train": 3, "test": 4}
_FIRST_ROOM = {"unannotated": 3001, "train": 1001, "test": 2001}
_SOUND_SIDES: dict[PartName, Side] = {"unannotated": "train", "train": "train", "test": "test"}
_PEAK = 0.95
_MUSIC_DB = -6.0
#: Streams of random numbers, so that e.g. the picture's size changes no sound.
_ROOM_STREAM, _SCRIPT_STREAM, _SOUND_STREAM, _PICTURE_STREAM = range(4)

_ENCODER_OPTIONS = {"preset": "veryfast", "crf": "18", "threads": "1"}


@dataclass(frozen=True, kw_only=True)
class PlannedRecording:
    """One recording that the corpus will hold; ``number`` counts within its part."""

    part: PartName
    number: int
    room: int
    name: str
    duration_s: float

    def path(self, root: Path, kind: str, suffix: str) -> Path:
        """Where one of its files is: ``kind`` is "foa", "metadata" or "video"."""
        return root / f"{kind}_dev" / _FOLDERS[self.part] / f"{self.name}{suffix}"

    def is_finished(self, present: Collection[str]) -> bool:
        """Whether all its files are among those of a corpus. The sound is written last."""
        return self.path(Path(), "foa", ".wav").as_posix() in present


@dataclass(frozen=True, kw_only=True)
class RenderedCorpus:
    """What :func:`render_corpus` leaves: the folder, its classes, and what tells it from others."""

    folder: str
    class_names: tuple[str, ...]
    fingerprint: str
    recordings: tuple[PlannedRecording, ...]


def plan_recordings(settings: SceneSettings) -> tuple[PlannedRecording, ...]:
    """All recordings of the corpus; each part's rooms in turn, no room in two parts."""
    planned = []
    for part_name in PART_NAMES:
        part = settings.part(part_name)
        count = math.ceil(round(part.minutes * 60 / settings.recording_s, 6))
        for number in range(count):
            room = _FIRST_ROOM[part_name] + number % part.rooms
            mix = number // part.rooms + 1
            planned.append(
                PlannedRecording(
                    part=part_name,
                    number=number,
                    room=room,
                    name=f"fold{_FOLDS[part_name]}_room{room}_mix{mix:03d}",
                    duration_s=settings.recording_s,
                )
            )
    return tuple(planned)


def corpus_fingerprint(settings: SceneSettings, bank: SoundBank) -> str:
    """Equal exactly where settings, sounds and renderer are; not where the bank's folder is."""
    mapping = to_mapping(replace(settings, sound_bank=None))
    for part in PART_NAMES:
        # What was rendered before parts could say it is not rendered again.
        if mapping[part]["max_overlap"] is None:
            del mapping[part]["max_overlap"]
    text = json.dumps([RENDERER_VERSION, mapping, bank.digest, bank.class_names], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def render_corpus(
    settings: SceneSettings,
    out_dir: str | Path,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RenderedCorpus:
    """Render what is not rendered yet; ``progress(done, total)`` counts recordings.

    Args:
        out_dir: folder or URI.
        workers: processes, or the executor's tasks at once; None: one per CPU of this machine.
        executor: where recordings are rendered; None: in processes of this machine.

    Raises:
        InputError: the sound bank cannot be used, a part names unknown classes, or ``out_dir``
            cannot be written or holds another corpus. Nothing is rendered then.
    """
    out_dir = absolute(str(out_dir))
    bank = open_bank(settings.sound_bank)
    _check_classes(settings, bank)
    planned = plan_recordings(settings)
    fingerprint = corpus_fingerprint(settings, bank)
    corpus = RenderedCorpus(
        folder=out_dir, class_names=bank.class_names, fingerprint=fingerprint, recordings=planned
    )
    _claim_folder(corpus, settings)
    present = files_below(out_dir)
    missing = [recording for recording in planned if not recording.is_finished(present)]
    done = len(planned) - len(missing)
    progress(done, len(planned))
    workers = workers or os.cpu_count() or 1
    with ExitStack() as stack:
        rendering: Iterable[None]
        if executor is None:
            own = _render_all(missing, settings, bank, out_dir, workers)
            rendering = stack.enter_context(closing(own))
        else:
            render = partial(render_to, settings=settings, bank=bank, root=out_dir)
            rendering = executor.map(render, missing, workers=workers) if missing else ()
        for _ in rendering:
            done += 1
            progress(done, len(planned))
    _write_listing(corpus, settings, complete=True)
    return corpus


def _render_all(
    recordings: list[PlannedRecording],
    settings: SceneSettings,
    bank: SoundBank,
    root: str,
    workers: int,
) -> Generator[None]:
    """Render ``recordings``, yielding once for each; a single worker is this process itself."""
    workers = min(workers, len(recordings))
    if workers <= 1:
        for recording in recordings:
            render_to(recording, settings=settings, bank=bank, root=root)
            yield
        return
    # Spawned, as forking a process that runs threads (Ray, torch) may deadlock.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(settings, bank),
    )
    try:
        futures = [pool.submit(_render_in_worker, entry, root) for entry in recordings]
        for future in as_completed(futures):
            future.result()
            yield
    finally:
        # Not by ``with``, whose own shutdown takes the cancelling back: Ctrl-C would then wait
        # until everything is rendered.
        pool.shutdown(cancel_futures=True)


def render_to(
    recording: PlannedRecording, *, settings: SceneSettings, bank: SoundBank, root: str
) -> None:
    """Render one recording into the corpus at ``root``, a folder or URI."""
    if is_local(root):
        render_recording(recording, settings, bank, Path(root))
        return
    with tempfile.TemporaryDirectory(prefix="seld-scene-") as folder:
        render_recording(recording, settings, bank, Path(folder))
        files, inner = file_system(root)
        for kind, suffix in (("video", ".mp4"), ("metadata", ".csv"), ("foa", ".wav")):
            path = recording.path(Path(folder), kind, suffix)
            if path.is_file():
                files.put_file(str(path), join(inner, path.relative_to(folder).as_posix()))


def render_recording(
    recording: PlannedRecording, settings: SceneSettings, bank: SoundBank, out_dir: Path
) -> None:
    """Render one recording and write its files."""
    part = settings.part(recording.part)
    room_generator = _generator(settings, recording.room, _ROOM_STREAM)
    room = draw_room(part.acoustics, room_generator)
    script = write_script(
        settings,
        part,
        bank.class_names,
        _generator(settings, recording.room, recording.number, _SCRIPT_STREAM),
    )
    sounds = _draw_sounds(script, recording, settings, bank)
    foa = _render_sound(script, sounds, room, recording, settings)
    video_path = recording.path(out_dir, "video", ".mp4")
    with written_whole(str(video_path)) as temporary:
        _write_video(script, sounds, room, recording, settings, bank, temporary)
    if recording.part != "unannotated":
        with written_whole(str(recording.path(out_dir, "metadata", ".csv"))) as temporary:
            write_annotations(_annotate(script, sounds, settings), temporary)
    with written_whole(str(recording.path(out_dir, "foa", ".wav"))) as temporary:
        soundfile.write(temporary, foa.T, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")


def _generator(settings: SceneSettings, *key: int) -> np.random.Generator:
    # With its length, as numpy takes a seed that ends in zeros for the shorter one.
    return np.random.default_rng([settings.seed, len(key), *key])


def _draw_sounds(
    script: Script, recording: PlannedRecording, settings: SceneSettings, bank: SoundBank
) -> list[NDArray[np.float32] | None]:
    """The dry sound of every source at its own level, None where it is silent."""
    sounds: list[NDArray[np.float32] | None] = []
    for source_id, source in enumerate(script.sources):
        generator = _generator(settings, recording.room, recording.number, _SOUND_STREAM, source_id)
        if not source.sounds:
            sounds.append(None)
            continue
        side = _SOUND_SIDES[recording.part]
        sound = bank.draw(source.class_id, side, source.duration_s, generator)
        sounds.append(sound * np.float32(10 ** (source.level_db / 20)))
    return sounds


def _render_sound(
    script: Script,
    sounds: list[NDArray[np.float32] | None],
    room: Room,
    recording: PlannedRecording,
    settings: SceneSettings,
) -> NDArray[np.float32]:
    """The recording as FOA (4, time)."""
    generator = _generator(settings, recording.room, recording.number, _ROOM_STREAM)
    sample_count = round(settings.recording_s * SAMPLE_RATE_HZ)
    level_dbfs = settings.ambient_noise_dbfs + script.noise_offset_db
    foa = diffuse_noise(sample_count, level_dbfs, generator)
    if script.background_music:
        music = SYNTHESISERS["music"](settings.recording_s, generator)
        loudness = 10 ** (_MUSIC_DB / 20) * 0.05 / np.std(music)
        foa += surround((music * loudness).astype(np.float32)[:sample_count], generator)
    for source, sound in zip(script.sources, sounds, strict=True):
        if sound is None:
            continue
        first = round(source.start_s * SAMPLE_RATE_HZ)
        count = int(len(sound) / SAMPLE_RATE_HZ * CONTROL_RATE_HZ) + 2 * CONTROL_RATE_HZ
        time_s = source.start_s + np.arange(count) / CONTROL_RATE_HZ
        offsets_m = source.trajectory.offsets_m(
            time_s if source.trajectory.moves else time_s[0], room
        )
        heard = render_source(sound, offsets_m, room, generator)[:, : sample_count - first]
        foa[:, first : first + heard.shape[1]] += heard
    peak = float(np.abs(foa).max())
    return foa * np.float32(_PEAK / peak) if peak > _PEAK else foa


def _annotate(
    script: Script, sounds: list[NDArray[np.float32] | None], settings: SceneSettings
) -> pd.DataFrame:
    """DCASE rows: whoever sounds in a 100 ms frame, and from where at its middle."""
    frame_count = round(settings.recording_s / LABEL_FRAME_S)
    rows = []
    for source_id, (source, sound) in enumerate(zip(script.sources, sounds, strict=True)):
        if sound is None:
            continue
        frames = _sounding_frames(source, sound)
        frames = frames[frames < frame_count]
        directions = source.trajectory.directions((frames + 0.5) * LABEL_FRAME_S)
        azimuth, elevation = (np.rint(angle).astype(int) for angle in azimuth_elevation(directions))
        azimuth = (azimuth + 180) % 360 - 180
        rows.append(
            pd.DataFrame(
                {
                    "frame": frames,
                    "class_id": source.class_id,
                    "source_id": source_id,
                    "azimuth_deg": azimuth,
                    "elevation_deg": elevation,
                }
            )
        )
    table = pd.concat(rows) if rows else pd.DataFrame(columns=list(POLAR_COLUMNS), dtype=int)
    return table.sort_values(["frame", "source_id"], ignore_index=True)


def _sounding_frames(source: Source, sound: NDArray[np.float32]) -> NDArray[np.intp]:
    """Numbers of the recording's 100 ms frames in which a source sounds."""
    frame_samples = round(LABEL_FRAME_S * SAMPLE_RATE_HZ)
    first_frame, offset_samples = divmod(round(source.start_s * SAMPLE_RATE_HZ), frame_samples)
    return first_frame + np.flatnonzero(active_frames(sound, offset_samples))


def _write_video(
    script: Script,
    sounds: list[NDArray[np.float32] | None],
    room: Room,
    recording: PlannedRecording,
    settings: SceneSettings,
    bank: SoundBank,
    path: Path,
) -> None:
    picture: PictureSettings = settings.picture
    key = (recording.room, recording.number, _PICTURE_STREAM)
    background = draw_background(
        picture.height_px,
        _generator(settings, recording.room, _PICTURE_STREAM),
        _generator(settings, *key),
    )
    painter = PanoramaPainter(picture.height_px)
    class_count = len(bank.class_names)
    looks = [
        draw_look(source.class_id, class_count, _generator(settings, *key, source_id))
        for source_id, source in enumerate(script.sources)
    ]
    sounding = [
        set() if sound is None else set(_sounding_frames(source, sound).tolist())
        for source, sound in zip(script.sources, sounds, strict=True)
    ]
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libx264", rate=picture.frame_rate_hz, options=_ENCODER_OPTIONS
        )
        stream.width, stream.height = picture.width_px, picture.height_px
        stream.pix_fmt = "yuv420p"
        for number in range(round(settings.recording_s * picture.frame_rate_hz)):
            time_s = number / picture.frame_rate_hz
            frame = background.copy()
            for source, look, frames in zip(script.sources, looks, sounding, strict=True):
                if source.seen_s is None or not source.seen_s[0] <= time_s <= source.seen_s[1]:
                    continue
                offset_m = source.trajectory.offsets_m(np.array(time_s), room)
                distance_m = float(np.linalg.norm(offset_m))
                is_sounding = int(time_s / LABEL_FRAME_S + 1e-6) in frames
                sounding_s = time_s - source.start_s if is_sounding else None
                painter.paint(frame, look, offset_m / distance_m, distance_m, sounding_s)
            pixels = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _check_classes(settings: SceneSettings, bank: SoundBank) -> None:
    for part_name in PART_NAMES:
        unknown = sorted(set(settings.part(part_name).classes or ()) - set(bank.class_names))
        if unknown:
            known = ", ".join(bank.class_names)
            raise InputError(f"scenes.{part_name}", "classes", unknown[0], f"some of {known}")


def _claim_folder(corpus: RenderedCorpus, settings: SceneSettings) -> None:
    """Make sure that the folder can be written and holds this corpus or nothing."""
    folder = corpus.folder
    listing = join(folder, LISTING)
    try:
        with local_copy(listing) as path:
            found = json.loads(path.read_text(encoding="utf-8")).get("fingerprint")
        if found != corpus.fingerprint:
            expected = f"{corpus.fingerprint} (an empty folder, or the settings it was made with)"
            raise InputError(listing, "fingerprint", found, expected)
        return
    except json.JSONDecodeError as error:
        raise InputError(listing, "content", str(error), "the listing of a corpus") from error
    except FileNotFoundError:
        pass
    if any(name.partition("/")[0].endswith("_dev") for name in files_below(folder)):
        raise InputError(folder, LISTING, "missing beside recordings", "an empty folder")
    check_writable(folder)
    _write_listing(corpus, settings, complete=False)


def _write_listing(corpus: RenderedCorpus, settings: SceneSettings, *, complete: bool) -> None:
    content: dict[str, Any] = {
        "renderer_version": RENDERER_VERSION,
        "fingerprint": corpus.fingerprint,
        "complete": complete,
        "class_names": corpus.class_names,
        "settings": to_mapping(settings),
        "recordings": [
            {
                "recording_id": recording.name,
                "part": recording.part,
                "room": f"room{recording.room}",
                "acoustics": _room_of(recording, settings).kind,
                "rt60_s": _room_of(recording, settings).rt60_s,
                "duration_s": recording.duration_s,
            }
            for recording in corpus.recordings
        ],
    }
    with written_whole(join(corpus.folder, LISTING)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _room_of(recording: PlannedRecording, settings: SceneSettings) -> Room:
    generator = _generator(settings, recording.room, _ROOM_STREAM)
    return draw_room(settings.part(recording.part).acoustics, generator)


_worker_state: tuple[SceneSettings, SoundBank] | None = None


def _start_worker(settings: SceneSettings, bank: SoundBank) -> None:
    global _worker_state
    _worker_state = (settings, bank)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; one decides


def _render_in_worker(recording: PlannedRecording, root: str) -> None:
    assert _worker_state is not None
    settings, bank = _worker_state
    render_to(recording, settings=settings, bank=bank, root=root)
