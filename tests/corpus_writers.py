"""Small corpora in each public corpus's exact layout, and files broken in every known way."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RATE_HZ = 24_000


def foa_noise(duration_s: float, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """(time, 4) int16: loud, different in every channel."""
    generator = np.random.default_rng(seed)
    samples = generator.normal(scale=4000, size=(round(duration_s * rate_hz), 4))
    return np.clip(samples, -32000, 32000).astype(np.int16)


def tones(duration_s: float, rate_hz: int, frequencies_hz: Iterable[float]) -> np.ndarray:
    """(time, channel) float32: one sine per channel."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return np.stack(
        [0.25 * np.sin(2 * np.pi * frequency * time_s) for frequency in frequencies_hz], axis=1
    ).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **options)
    return path


def moving_pictures(
    duration_s: float, rate_hz: float, height_px: int = 64, width_px: int = 128
) -> np.ndarray:
    """(time, height, width, 3) uint8: a bright bar that moves all the time."""
    count = round(duration_s * rate_hz)
    frames = np.full((count, height_px, width_px, 3), 30, np.uint8)
    for number in range(count):
        left = number * 7 % width_px
        frames[number, :, left : left + width_px // 4] = (220, 180, 40)
    return frames


def numbered_pictures(count: int, height_px: int = 64, width_px: int = 128) -> np.ndarray:
    """Frame n shows n in eight bars, dark or bright: which source frame it was can be read off."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    bars = np.repeat(np.where(bits, 220, 30).astype(np.uint8), width_px // 8, axis=1)
    return np.broadcast_to(bars[:, None, :, None], (count, height_px, width_px, 3)).copy()


def shown_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that :func:`numbered_pictures` drew, from (time, height, width, 3)."""
    bars = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1).mean(axis=2)
    return ((bars > 125) @ (1 << np.arange(8))).tolist()


def write_media(
    path: Path,
    *,
    pictures: np.ndarray | None = None,
    frame_rate_hz: Fraction | int = 10,
    sound: np.ndarray | None = None,
    sound_rate_hz: int = 48_000,
    sound_codec: str = "aac",
    sound_start_s: float = 0.0,
    picture_start_s: float = 0.0,
    video_codec: str = "libx264",
    last_picture_s: float | None = None,
    title: str = "",
) -> Path:
    """One container with either or both of ``pictures`` and ``sound`` (time, channel) float32.

    The last picture stays for ``last_picture_s`` where that is given, else as long as the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    container_format = {".m4a": "mp4", ".opus": "ogg", ".aac": "adts"}.get(path.suffix)
    with av.open(str(path), "w", format=container_format) as container:
        container.metadata["title"] = title
        video = audio = None
        if pictures is not None:
            video = container.add_stream(video_codec, rate=frame_rate_hz)
            video.height, video.width = pictures.shape[1:3]
            video.pix_fmt = "yuv420p"
            if video_codec == "libx264":
                video.options = {"crf": "10", "preset": "ultrafast"}
            elif video_codec == "libvpx-vp9":
                video.options = {"deadline": "realtime", "cpu-used": "8", "crf": "20"}
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=sound_rate_hz)
            four = "quad" if sound_codec == "libopus" else "4.0"
            audio.layout = {1: "mono", 2: "stereo", 4: four, 6: "5.1"}[sound.shape[1]]
            audio.bit_rate = 128_000 * sound.shape[1]
        if video is not None:
            assert pictures is not None
            if last_picture_s is not None:
                video.codec_context.max_b_frames = 0  # so that the last packet is the last picture
            packets = []
            for number, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts = number + round(picture_start_s * frame_rate_hz)
                frame.time_base = 1 / Fraction(frame_rate_hz)
                packets += video.encode(frame)
            packets += video.encode(None)
            if last_picture_s is not None:
                packets[-1].duration = round(last_picture_s / packets[-1].time_base)
            container.mux(packets)
        if audio is not None:
            assert sound is not None
            frame = _audio_frame(sound, sound_rate_hz, audio.layout.name, audio.format.name)
            frame.pts = round(sound_start_s * sound_rate_hz)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def join_media(path: Path, parts: Iterable[Path]) -> Path:
    """One container with the tracks of ``parts``, one after the other."""
    with av.open(str(path), "w") as joined:
        packets = []
        for part in parts:
            with av.open(str(part)) as container:
                tracks = [joined.add_stream_from_template(track) for track in container.streams]
                for packet in container.demux():
                    if packet.dts is not None:  # none: the end of a track
                        packet.stream = tracks[packet.stream.index]
                        packets.append(packet)
        for packet in packets:
            joined.mux(packet)
    return path


def without_sound_between(
    path: Path, source: Path, start_s: float, end_s: float, delay_s: float = 0.0
) -> Path:
    """``source`` without its packets of that time; what follows comes ``delay_s`` later."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        (track,) = container.streams
        copy = out.add_stream_from_template(track)
        for packet in container.demux():
            if packet.dts is None or start_s <= packet.pts * packet.time_base < end_s:
                continue
            if packet.pts * packet.time_base >= end_s:
                packet.pts += round(delay_s / packet.time_base)
                packet.dts = packet.pts
            packet.stream = copy
            out.mux(packet)
    return path


def _audio_frame(sound: np.ndarray, rate_hz: int, layout: str, sample_format: str) -> av.AudioFrame:
    """A frame of the encoder's sample format (``s16``, ``fltp``…)."""
    samples = sound
    if sample_format.startswith("s16"):
        samples = np.rint(sound * 32767).astype(np.int16)
    planar = sample_format.endswith("p")
    arranged = np.ascontiguousarray(samples.T if planar else samples.reshape(1, -1))
    frame = av.AudioFrame.from_ndarray(arranged, format=sample_format, layout=layout)
    frame.sample_rate = rate_hz
    frame.time_base = Fraction(1, rate_hz)
    return frame


def box(kind: bytes, payload: bytes) -> bytes:
    """An MP4 box with a 32-bit size."""
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def sa3d_box(channel_map: Iterable[int], **changed: int) -> bytes:
    """The spatial audio box; ``changed`` overrides version, kind, order, ordering,
    normalisation or count."""
    values = tuple(channel_map)
    fields = {"version": 0, "kind": 0, "order": 1, "ordering": 0, "normalisation": 0}
    fields |= {"count": len(values)} | changed
    return box(b"SA3D", struct.pack(">BBIBBI", *fields.values()) + struct.pack(">4I", *values))


def plant_sa3d(path: Path, channel_map: Iterable[int], **changed: int) -> Path:
    """Put an ``SA3D`` box into the sound track of an MP4 whose ``moov`` comes last.

    Found by searching for the names, not by parsing, so that it shares nothing with our parser.
    """
    data = bytearray(path.read_bytes())
    assert data.rfind(b"moov") > data.rfind(b"mdat"), "sample offsets would have to move"
    planted = sa3d_box(channel_map, **changed)
    entry = data.find(b"mp4a", data.find(b"stsd", data.find(b"smhd"))) - 4
    (entry_size,) = struct.unpack_from(">I", data, entry)
    at = entry + entry_size
    names = (b"mp4a", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov")
    place = entry + 8
    for name in names:
        place = data.rfind(name, 0, place)
        (size,) = struct.unpack_from(">I", data, place - 4)
        struct.pack_into(">I", data, place - 4, size + len(planted))
    data[at:at] = planted
    path.write_bytes(data)
    return path


def plant_matrix(path: Path, *values: float) -> Path:
    """Give the picture's track header the matrix (a, b, c, d)."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(value * 65536) for value in values)
    at = data.find(struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), data.find(b"tkhd"))
    struct.pack_into(">5i", data, at, a, b, 0, c, d)
    path.write_bytes(data)
    return path


def write_csv(path: Path, rows: Iterable[tuple[int, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def annotation_rows(duration_s: float, class_id: int = 0) -> list[tuple[int, ...]]:
    """Every frame but the first second: one event that turns round."""
    return [(frame, class_id, 0, frame % 180, 10) for frame in range(10, round(duration_s * 10))]


def write_starss(
    root: Path, names: Iterable[str], *, duration_s: float = 6.0, with_video: bool = False
) -> Path:
    """STARSS22 / STARSS23: ``names`` as ``dev-train-sony/fold3_room21_mix001``."""
    for number, name in enumerate(names):
        write_wav(root / f"foa_dev/{name}.wav", foa_noise(duration_s, seed=number))
        write_csv(root / f"metadata_dev/{name}.csv", annotation_rows(duration_s, number % 13))
        if with_video:
            pictures = moving_pictures(duration_s, 29.97)
            rate_hz = Fraction(30000, 1001)
            write_media(root / f"video_dev/{name}.mp4", pictures=pictures, frame_rate_hz=rate_hz)
    return root


def write_starss_annotated(root: Path, annotations: Path) -> Path:
    """STARSS with the csv files of ``annotations``; empty files stand for their sound."""
    (root / "metadata_dev").symlink_to(annotations)
    for csv in annotations.rglob("*.csv"):
        wav = root / "foa_dev" / csv.relative_to(annotations).with_suffix(".wav")
        wav.parent.mkdir(parents=True, exist_ok=True)
        wav.touch()
    return root


def write_synth1(root: Path, names: Iterable[str], *, duration_s: float = 6.0) -> Path:
    """Synth1: ``names`` as ``fold1_room1_mix001``."""
    for number, name in enumerate(names):
        write_wav(root / f"foa/{name}.wav", foa_noise(duration_s, seed=number))
        write_csv(root / f"metadata/{name}.csv", annotation_rows(duration_s, number % 13))
    return root


def write_yt360(root: Path, names: Iterable[str], *, duration_s: float = 6.0) -> Path:
    """YT-360: ``names`` as ``-abc_DEF-12-30``; W, X, Y, Z on disk, as the ``SA3D`` box says."""
    for name in names:
        sound = tones(duration_s, 48_000, (300, 600, 1200, 2400))
        plant_sa3d(write_media(root / f"audio/{name}.m4a", sound=sound), (0, 2, 3, 1))
        write_media(root / f"video/{name}.mp4", pictures=moving_pictures(duration_s, 10))
    return root


def write_sphere360(root: Path, names: Iterable[str], *, duration_s: float = 6.0) -> Path:
    """Sphere360 as its download script leaves it: WebM with VP9 and four-channel Opus."""
    for name in names:
        write_media(
            root / f"{name}.webm",
            pictures=moving_pictures(duration_s, 10),
            sound=tones(duration_s, 48_000, (300, 600, 1200, 2400)),
            sound_codec="libopus",
            video_codec="libvpx-vp9",
        )
    return root


#: Way of being broken → the reason it must be rejected for.
BREAKAGES = {
    "stereo": "wrong channel count",
    "cut wav": "truncated",
    "cut RF64": "truncated",
    "empty wav": "truncated",
    "NaN": "not finite",
    "floats to 32768": "overloaded",
    "silence": "silent",
    "frozen": "static picture",
    "upside down": "not equirectangular",
    "short picture": "different length",
    "sound only": "no video stream",
    "cut mp4": "truncated",
    "no mp4": "unreadable",
    "not a wav": "unreadable",
    "blink": "too short",
    "lost wav": "missing file",
    "lost mp4": "missing file",
    "lost csv": "missing file",
    "words in csv": "bad annotations",
    "csv of a longer one": "bad annotations",
}


def break_starss(root: Path, name: str, breakage: str) -> None:
    """Break one recording that :func:`write_starss` wrote with video."""
    wav, mp4 = root / f"foa_dev/{name}.wav", root / f"video_dev/{name}.mp4"
    csv = root / f"metadata_dev/{name}.csv"
    sound, rate_hz = soundfile.read(wav, dtype="float32")
    duration_s = len(sound) / rate_hz
    if breakage == "stereo":
        write_wav(wav, sound[:, :2], rate_hz)
    elif breakage == "cut wav":
        wav.write_bytes(wav.read_bytes()[: wav.stat().st_size // 2])
    elif breakage == "cut RF64":
        write_wav(wav, sound, rate_hz, format="RF64")
        wav.write_bytes(wav.read_bytes()[: wav.stat().st_size // 2])
    elif breakage == "empty wav":
        wav.write_bytes(b"")
    elif breakage == "NaN":
        sound[len(sound) // 2, 2] = np.nan
        write_wav(wav, sound, rate_hz, subtype="FLOAT")
    elif breakage == "floats to 32768":
        write_wav(wav, sound * 32768, rate_hz, subtype="FLOAT")
    elif breakage == "silence":
        write_wav(wav, sound * 0, rate_hz)
    elif breakage == "frozen":
        pictures = moving_pictures(duration_s, 10)
        write_media(mp4, pictures=np.repeat(pictures[:1], len(pictures), axis=0))
    elif breakage == "upside down":
        plant_matrix(mp4, -1, 0, 0, -1)
    elif breakage == "short picture":
        write_media(mp4, pictures=moving_pictures(duration_s / 2, 10))
    elif breakage == "sound only":
        write_media(mp4, sound=tones(duration_s, 48_000, (300, 600, 1200, 2400)))
    elif breakage == "cut mp4":
        mp4.write_bytes(mp4.read_bytes()[: mp4.stat().st_size // 2])
    elif breakage == "no mp4":
        mp4.write_bytes(box(b"ftyp", b"isom") + box(b"moov", b""))
    elif breakage == "not a wav":
        wav.write_bytes(b"this is no sound at all" * 100)
    elif breakage == "blink":
        write_wav(wav, sound[: rate_hz // 10], rate_hz)
    elif breakage == "words in csv":
        csv.write_text("1,0,zero,10,10\n")
    elif breakage == "csv of a longer one":
        csv.write_text(f"1,0,0,10,10\n{round(10 * duration_s) + 20},0,0,10,10\n")
    else:
        {"lost wav": wav, "lost mp4": mp4, "lost csv": csv}[breakage].unlink()
