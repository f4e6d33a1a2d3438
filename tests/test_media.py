"""Decoding of sound and pictures, and the MP4 boxes."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soxr

from seld import mp4
from seld.media import MediaError, PictureReader, read_foa
from tests import corpus_writers as writers

RATE_HZ = 24_000
FREQUENCIES_HZ = (300, 600, 1200, 2400)


def loudest_hz(foa: np.ndarray) -> list[int]:
    """Frequency of each channel's strongest component, over one second in the middle."""
    middle = foa[:, RATE_HZ // 2 : RATE_HZ // 2 + RATE_HZ].astype(float)
    return np.abs(np.fft.rfft(middle)).argmax(axis=1).tolist()


def rejection(path: Path) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        read_foa(path, sample_rate_hz=RATE_HZ)
    return caught.value.reason, caught.value.detail


def pictures_of(
    path: Path, times_s: list[float], height_px: int = 64, width_px: int = 128
) -> tuple[np.ndarray, float]:
    reader = PictureReader(path, times_s)
    frames = np.stack([picture.rgb(height_px, width_px) for picture in reader])
    assert reader.duration_s is not None
    return frames, reader.duration_s


def test_16_bit_sound_at_the_rate_keeps_every_bit(tmp_path: Path) -> None:
    samples = writers.foa_noise(7.3)
    foa = read_foa(writers.write_wav(tmp_path / "a.wav", samples), sample_rate_hz=RATE_HZ)
    assert foa.dtype == np.int16
    assert np.array_equal(foa, samples.T)


def test_floats_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    samples = np.zeros((RATE_HZ, 4), np.float32)
    samples[:20] = [1.5, -1.5, 0.25, 0.0]
    path = writers.write_wav(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert read_foa(path, sample_rate_hz=RATE_HZ)[:, 0].tolist() == [32767, -32768, 8192, 0]


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 48_000])
def test_sound_that_clipping_would_turn_is_refused(tmp_path: Path, rate_hz: int) -> None:
    """W alone is enough: what is left of the others says another direction."""
    samples = (writers.foa_noise(2.0, rate_hz) / 32768).astype(np.float32)
    samples[:, 0] *= 8  # full scale is one standard deviation
    path = writers.write_wav(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    assert rejection(path)[0] == "overloaded"
    samples = writers.foa_noise(2.0, rate_hz).astype(np.float32)
    path = writers.write_wav(tmp_path / "b.wav", samples, rate_hz, subtype="FLOAT")
    assert rejection(path) == ("overloaded", "beyond full scale for 100.0% of the time")


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 48_000])
def test_integers_at_full_scale_stay(tmp_path: Path, rate_hz: int) -> None:
    """However loud it was: between its samples, resampling finds more than full scale."""
    samples = np.where(writers.foa_noise(2.0, rate_hz) > 0, 32767, -32768).astype(np.int16)
    path = writers.write_wav(tmp_path / "a.wav", samples, rate_hz)
    assert read_foa(path, sample_rate_hz=RATE_HZ).shape == (4, 2 * RATE_HZ)


@pytest.mark.parametrize("rate_hz", [44_100, 48_000, 16_000])
def test_resampled_tones_are_the_tones(tmp_path: Path, rate_hz: int) -> None:
    """Against the sines themselves, which know nothing of any resampler."""
    path = writers.write_wav(
        tmp_path / "a.wav", writers.tones(5.0, rate_hz, FREQUENCIES_HZ), rate_hz, subtype="FLOAT"
    )
    foa = read_foa(path, sample_rate_hz=RATE_HZ) / 32768
    assert foa.shape == (4, 5 * RATE_HZ)
    expected = writers.tones(5.0, RATE_HZ, FREQUENCIES_HZ).T
    error = (foa - expected)[:, 2400:-2400]
    assert np.abs(error).max() < 1e-4


def test_what_lies_above_the_new_band_is_removed(tmp_path: Path) -> None:
    sound = writers.tones(2.0, 48_000, (13_000, 15_000, 18_000, 22_000))
    path = writers.write_wav(tmp_path / "a.wav", sound, 48_000, subtype="FLOAT")
    foa = read_foa(path, sample_rate_hz=RATE_HZ) / 32768
    assert np.abs(foa[:, 2400:-2400]).max() < 1e-4


def test_resampling_in_blocks_leaves_no_seams(tmp_path: Path) -> None:
    samples = writers.foa_noise(6.0, 44_100)
    path = writers.write_wav(tmp_path / "a.wav", samples, 44_100)
    whole = soxr.resample(samples / np.float32(32768), 44_100, RATE_HZ)
    foa = read_foa(path, sample_rate_hz=RATE_HZ)
    assert np.abs(foa.T - whole * 32768).max() <= 1.0


def test_a_stretch_of_a_longer_file(tmp_path: Path) -> None:
    samples = writers.foa_noise(9.0)
    path = writers.write_wav(tmp_path / "a.wav", samples)
    foa = read_foa(path, sample_rate_hz=RATE_HZ, start_s=3.5, duration_s=4.0)
    assert np.array_equal(foa.T, samples[84_000:180_000])


@pytest.mark.parametrize("codec", ["aac", "libopus", "pcm_s16le", "flac"])
def test_sound_of_containers(tmp_path: Path, codec: str) -> None:
    suffix = {"aac": ".m4a", "libopus": ".webm", "pcm_s16le": ".mkv", "flac": ".mkv"}[codec]
    sound = writers.tones(2.0, 48_000, FREQUENCIES_HZ)
    path = writers.write_media(tmp_path / f"a{suffix}", sound=sound, sound_codec=codec)
    foa = read_foa(path, sample_rate_hz=RATE_HZ)
    assert loudest_hz(foa) == list(FREQUENCIES_HZ)
    assert abs(foa.shape[1] / RATE_HZ - 2.0) < 0.05
    assert np.abs(foa / 32768).max() == pytest.approx(0.25, rel=0.2)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_a_cut_webm_is_known_by_the_length_it_declares(tmp_path: Path, share: float) -> None:
    """Matroska's streams declare no length of their own; picture and sound may differ in theirs."""
    pictures = writers.moving_pictures(4.0, 10)
    sound = writers.tones(3.0, 48_000, FREQUENCIES_HZ)
    path = writers.write_media(
        tmp_path / "a.webm",
        pictures=pictures,
        video_codec="libvpx-vp9",
        sound=sound,
        sound_codec="libopus",
    )
    times_s = [0.0, 1.0, 2.0]
    reader = PictureReader(path, times_s)
    assert len(list(reader)) == 3
    assert read_foa(path, sample_rate_hz=RATE_HZ).shape[1] / RATE_HZ == pytest.approx(3.0, abs=0.05)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    for read in (lambda: read_foa(path, sample_rate_hz=RATE_HZ), lambda: list(reader)):
        with pytest.raises(MediaError) as caught:
            read()
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("channel_map", "expected"),
    [
        ((0, 2, 3, 1), [300, 1200, 2400, 600]),  # W, X, Y, Z on disk
        ((0, 1, 2, 3), [300, 600, 1200, 2400]),
        ((3, 0, 1, 2), [2400, 300, 600, 1200]),
    ],
)
def test_the_sa3d_box_orders_the_channels(
    tmp_path: Path, channel_map: tuple[int, ...], expected: list[int]
) -> None:
    sound = writers.tones(2.0, 48_000, FREQUENCIES_HZ)
    path = writers.write_media(tmp_path / "a.m4a", sound=sound)
    assert mp4.channel_maps(path) == [None]
    writers.plant_sa3d(path, channel_map)
    assert mp4.channel_maps(path) == [channel_map]
    assert loudest_hz(read_foa(path, sample_rate_hz=RATE_HZ)) == expected


def test_the_manifest_overrules_the_box(tmp_path: Path) -> None:
    path = writers.write_media(tmp_path / "a.m4a", sound=writers.tones(2, 48_000, FREQUENCIES_HZ))
    writers.plant_sa3d(path, (0, 2, 3, 1))
    foa = read_foa(path, sample_rate_hz=RATE_HZ, channel_map=(0, 1, 2, 3))
    assert loudest_hz(foa) == list(FREQUENCIES_HZ)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 1},
        {"kind": 1},
        {"order": 2},
        {"ordering": 1},
        {"normalisation": 1},
        {"count": 3},
        {"count": 5},
    ],
)
def test_other_ambisonics_are_refused(tmp_path: Path, changed: dict[str, int]) -> None:
    path = writers.write_media(tmp_path / "a.m4a", sound=writers.tones(1, 48_000, FREQUENCIES_HZ))
    writers.plant_sa3d(path, (0, 1, 2, 3), **changed)
    with pytest.raises(mp4.Mp4Error, match="SA3D"):
        mp4.channel_maps(path)
    assert rejection(path)[0] == "unreadable"


def test_a_map_that_is_no_order_is_refused(tmp_path: Path) -> None:
    path = writers.write_media(tmp_path / "a.m4a", sound=writers.tones(1, 48_000, FREQUENCIES_HZ))
    writers.plant_sa3d(path, (0, 1, 1, 3))
    with pytest.raises(mp4.Mp4Error, match=r"\(0, 1, 1, 3\)"):
        mp4.channel_maps(path)


def sound_track(sa3d: bytes, *, version: int = 0, handler: bytes = b"soun") -> bytes:
    """A ``trak`` with nothing in it but what leads to the ``SA3D`` box."""
    fixed = b"\0" * 8 + struct.pack(">H", version) + b"\0" * (18 + {0: 0, 1: 16, 2: 36}[version])
    entry = writers.box(b"mp4a", fixed + writers.box(b"esds", b"\0" * 4) + sa3d)
    stsd = writers.box(b"stsd", b"\0\0\0\0" + struct.pack(">I", 1) + entry)
    minf = writers.box(b"minf", writers.box(b"smhd", b"\0" * 8) + writers.box(b"stbl", stsd))
    hdlr = writers.box(b"hdlr", b"\0" * 8 + handler + b"\0" * 13)
    return writers.box(b"trak", writers.box(b"mdia", hdlr + minf))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_sound_descriptions_of_every_version(tmp_path: Path, version: int) -> None:
    picture = sound_track(writers.sa3d_box((3, 2, 1, 0)), handler=b"vide")
    sound = sound_track(writers.sa3d_box((0, 2, 3, 1)), version=version)
    path = tmp_path / "a.mp4"
    path.write_bytes(writers.box(b"moov", picture + sound + sound_track(b"")))
    assert mp4.channel_maps(path) == [(0, 2, 3, 1), None]


def test_long_and_open_box_sizes(tmp_path: Path) -> None:
    movie = writers.box(b"moov", sound_track(writers.sa3d_box((0, 2, 3, 1))))
    wide = struct.pack(">I4sQ", 1, b"mdat", 16 + 5) + b"12345"
    open_ended = struct.pack(">I4s", 0, b"mdat") + b"to the end"
    path = tmp_path / "a.mp4"
    path.write_bytes(wide + movie + open_ended)
    mp4.check_complete(path)
    assert mp4.channel_maps(path) == [(0, 2, 3, 1)]


def test_boxes_that_contradict_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(writers.box(b"ftyp", b"") + struct.pack(">I4s", 4, b"moov"))
    with pytest.raises(mp4.Mp4Error, match="box 'moov' at byte 8 claims 4 bytes"):
        mp4.check_complete(path)
    path.write_bytes(writers.box(b"moov", struct.pack(">I4s", 900, b"trak") + b"\0" * 8))
    with pytest.raises(mp4.Mp4Error, match="its parent 'moov'"):
        mp4.channel_maps(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><title>429</title>", b"Video unavailable"])
@pytest.mark.parametrize("name", ["a.mp4", "a.m4a"])
def test_a_web_page_is_no_mp4(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        read_foa(path, sample_rate_hz=RATE_HZ)
    begin = content[:8].decode()
    assert caught.value.args == ("unreadable", f"not an MP4 (begins with '{begin}')")


@pytest.mark.parametrize("missing", [1, 7, 9, 100])
def test_a_cut_mp4_is_known_by_its_boxes(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "a.mp4"
    movie = writers.box(b"moov", sound_track(b""))
    whole = writers.box(b"ftyp", b"isom") + movie + writers.box(b"mdat", b"\1" * 50)
    path.write_bytes(whole)
    mp4.check_complete(path)
    path.write_bytes(whole[:-missing])
    with pytest.raises(mp4.Mp4TruncatedError):
        mp4.check_complete(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_titles_may_be_in_any_encoding(tmp_path: Path, suffix: str) -> None:
    path = writers.write_media(
        tmp_path / f"a{suffix}",
        pictures=writers.moving_pictures(2.0, 10),
        sound=writers.tones(2.0, 48_000, FREQUENCIES_HZ),
        title="cafe by night",
    )
    data = path.read_bytes()
    assert data.count(b"cafe") == 1
    path.write_bytes(data.replace(b"cafe", "café".encode("latin-1")))
    assert loudest_hz(read_foa(path, sample_rate_hz=RATE_HZ)) == list(FREQUENCIES_HZ)
    assert len(pictures_of(path, [0.0, 0.5])[0]) == 2


@pytest.mark.parametrize("rate_hz", [Fraction(30000, 1001), Fraction(10), Fraction(4), Fraction(2)])
def test_frames_are_the_nearest_in_time(tmp_path: Path, rate_hz: Fraction) -> None:
    count = int(6 * rate_hz)
    path = writers.write_media(
        tmp_path / "a.mp4", pictures=writers.numbered_pictures(count), frame_rate_hz=rate_hz
    )
    wanted_s = [0.01 + 0.25 * number for number in range(int(4 * (count - 1) / rate_hz))]
    frames, duration_s = pictures_of(path, wanted_s)
    source_s = np.arange(count) / float(rate_hz)
    expected = [int(np.abs(source_s - time_s).argmin()) for time_s in wanted_s]
    assert writers.shown_numbers(frames) == expected
    assert duration_s == pytest.approx(count / float(rate_hz), abs=1e-3)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_the_last_picture_may_stay_for_long(tmp_path: Path, suffix: str, codec: str) -> None:
    """Where the frame rate varies, the mean interval says nothing of the last picture."""
    path = writers.write_media(
        tmp_path / f"a{suffix}",
        pictures=writers.numbered_pictures(96),
        video_codec=codec,
        last_picture_s=0.5,
    )
    frames, duration_s = pictures_of(path, [0.0, 5.0, 9.9])
    assert writers.shown_numbers(frames) == [0, 50, 95]
    assert duration_s == pytest.approx(10.0, abs=1e-3)
    path.write_bytes(path.read_bytes()[: round(0.9 * path.stat().st_size)])
    with pytest.raises(MediaError) as caught:
        pictures_of(path, [0.0])
    assert caught.value.reason == "truncated"


def test_frames_are_averaged_over_area(tmp_path: Path) -> None:
    """Stripes one pixel wide become even grey, where sampling would keep one of the two."""
    stripes = np.zeros((10, 128, 256, 3), np.uint8)
    stripes[:, :, ::2] = 200
    path = writers.write_media(tmp_path / "a.mp4", pictures=stripes)
    frames, _ = pictures_of(path, [0.5], height_px=16, width_px=32)
    assert np.abs(frames.astype(int) - 100).max() <= 6


def test_colours_and_sides_stay(tmp_path: Path) -> None:
    pictures = np.zeros((10, 64, 128, 3), np.uint8)
    pictures[:, :32, :64] = (220, 30, 30)
    pictures[:, 32:, 64:] = (30, 30, 220)
    path = writers.write_media(tmp_path / "a.mp4", pictures=pictures)
    frames, _ = pictures_of(path, [0.0], height_px=32, width_px=64)
    assert np.abs(frames[0, 5, 10].astype(int) - (220, 30, 30)).max() < 12
    assert np.abs(frames[0, 25, 50].astype(int) - (30, 30, 220)).max() < 12


def test_sound_that_starts_late_keeps_its_place(tmp_path: Path) -> None:
    """A track whose first packet comes later than the picture's is moved back by that much."""
    sound = writers.tones(2.0, 48_000, FREQUENCIES_HZ)
    path = writers.write_media(
        tmp_path / "a.mkv",
        pictures=writers.moving_pictures(3.0, 10),
        sound=sound,
        sound_codec="pcm_s16le",
        sound_start_s=1.0,
    )
    foa = read_foa(path, sample_rate_hz=RATE_HZ)
    assert foa.shape[1] == pytest.approx(3 * RATE_HZ, abs=200)
    assert np.abs(foa[:, : RATE_HZ - 200]).max() < 5
    assert np.abs(foa[:, RATE_HZ + 200 :]).max() > 5000


def burst(duration_s: float, at_s: float, rate_hz: int = 48_000) -> np.ndarray:
    """(time, 4) float32: faint noise, and a loud one that begins at ``at_s``."""
    noise = np.random.default_rng(0).normal(size=(round(duration_s * rate_hz), 4))
    noise[: round(at_s * rate_hz)] *= 0.001
    return (0.1 * noise).astype(np.float32)


def burst_start_s(foa: np.ndarray) -> float:
    return float((np.abs(foa[0]) > 1000).argmax()) / RATE_HZ


@pytest.mark.parametrize("start_s", [0.0, 0.8])
def test_a_late_start_in_a_file_of_its_own(tmp_path: Path, start_s: float) -> None:
    """Picture and sound apart: MP4's clock says when each begins."""
    picture = writers.write_media(
        tmp_path / "a.mp4", pictures=writers.numbered_pictures(60), picture_start_s=start_s
    )
    frames, duration_s = pictures_of(picture, [2.02, 3.02])
    first = round(10 * start_s)
    assert writers.shown_numbers(frames) == [20 - first, 30 - first]
    assert duration_s == pytest.approx(6.0 + start_s, abs=1e-3)
    sound = writers.write_media(tmp_path / "a.m4a", sound=burst(3.0, 1.0), sound_start_s=start_s)
    foa = read_foa(sound, sample_rate_hz=RATE_HZ)
    assert burst_start_s(foa) == pytest.approx(1.0 + start_s, abs=0.002)
    assert foa.shape[1] / RATE_HZ == pytest.approx(3.0 + start_s, abs=0.03)


def test_a_late_start_of_both_tracks_is_none(tmp_path: Path) -> None:
    path = writers.write_media(
        tmp_path / "a.mp4",
        pictures=writers.numbered_pictures(60),
        picture_start_s=0.8,
        sound=burst(3.0, 1.0),
        sound_start_s=1.0,
    )
    # The codec's lead-in of 21 ms is before the sound, but after the picture.
    assert burst_start_s(read_foa(path, sample_rate_hz=RATE_HZ)) == pytest.approx(1.2, abs=0.002)
    assert writers.shown_numbers(pictures_of(path, [2.02])[0]) == [20]


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "libopus"), (".mkv", "aac"), (".mkv", "flac")]
)
@pytest.mark.parametrize("gap_s", [0.2, 0.8, 2.0])
def test_a_gap_stays_a_gap(tmp_path: Path, suffix: str, codec: str, gap_s: float) -> None:
    sound = burst(9.0, 8.04)
    whole = writers.write_media(tmp_path / f"a{suffix}", sound=sound, sound_codec=codec)
    path = writers.without_sound_between(tmp_path / f"b{suffix}", whole, 3.0, 3.0 + gap_s)
    foa = read_foa(path, sample_rate_hz=RATE_HZ)
    assert burst_start_s(foa) == pytest.approx(8.04, abs=0.002)
    assert np.abs(foa[:, round(3.12 * RATE_HZ) : round((2.98 + gap_s) * RATE_HZ)]).max() == 0


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_times_in_milliseconds_leave_sound_as_it_is(tmp_path: Path, rate_hz: int) -> None:
    sound = writers.foa_noise(20.0, rate_hz) / np.float32(32767)
    path = writers.write_media(
        tmp_path / "a.mkv", sound=sound, sound_rate_hz=rate_hz, sound_codec="flac"
    )
    foa = read_foa(path, sample_rate_hz=rate_hz)
    assert np.array_equal(foa.T, np.rint(sound * 32767))


def test_a_damaged_time_is_no_gap_to_fill(tmp_path: Path) -> None:
    sound = writers.foa_noise(3.0, 48_000) / np.float32(32768)
    whole = writers.write_media(tmp_path / "a.mkv", sound=sound, sound_codec="flac")
    path = writers.without_sound_between(tmp_path / "b.mkv", whole, 2.0, 2.0, delay_s=80_000.0)
    assert rejection(path) == ("unreadable", "80000 s are missing in the sound")


def test_tracks_of_unknown_codecs(tmp_path: Path) -> None:
    """Beside four channels that can be decoded one is passed by; alone it is a reason."""
    unknown = writers.write_media(
        tmp_path / "unknown.mkv",
        pictures=writers.moving_pictures(1.0, 10),
        sound=writers.tones(1.0, 48_000, FREQUENCIES_HZ),
    )
    known = writers.write_media(
        tmp_path / "known.mkv",
        sound=writers.tones(2.0, 48_000, FREQUENCIES_HZ),
        sound_codec="pcm_s16le",
    )
    both = writers.join_media(tmp_path / "both.mkv", [unknown, known])
    for path in (unknown, both):
        data = path.read_bytes()
        for codec_id in (b"A_AAC", b"V_MPEG4/ISO/AVC"):
            assert data.count(codec_id) == 1
            data = data.replace(codec_id, codec_id[:2] + b"?" * len(codec_id[2:]))
        path.write_bytes(data)
    assert loudest_hz(read_foa(both, sample_rate_hz=RATE_HZ)) == list(FREQUENCIES_HZ)
    assert rejection(unknown) == ("unreadable", "no decoder for the audio stream's codec")
    with pytest.raises(MediaError, match="no decoder for the video stream's codec"):
        pictures_of(both, [0.0])


@pytest.mark.parametrize("length", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_open_length_is_not_truncated(tmp_path: Path, length: int) -> None:
    """Writers that stream leave the length of the data open."""
    samples = writers.foa_noise(1.0)
    path = writers.write_wav(tmp_path / "a.wav", samples)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.find(b"data") + 4, length)
    path.write_bytes(data)
    assert np.array_equal(read_foa(path, sample_rate_hz=RATE_HZ), samples.T)


def test_a_wav_without_samples(tmp_path: Path) -> None:
    path = writers.write_wav(tmp_path / "a.wav", writers.foa_noise(0.0))
    assert rejection(path) == ("unreadable", "no sound could be decoded")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.55, 0.99, 1.0])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".wav", {}),
        (".wav", {"format": "WAVEX"}),
        (".wav", {"format": "RF64"}),
        (".w64", {}),
        (".aiff", {}),
        (".caf", {"format": "CAF"}),
        (".ogg", {"format": "OGG", "subtype": "VORBIS"}),
        (".opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_a_cut_sound_file(
    tmp_path: Path, suffix: str, options: dict[str, str], share: float
) -> None:
    samples = writers.foa_noise(3.0, 48_000)
    path = writers.write_wav(tmp_path / f"a{suffix}", samples, 48_000, **options)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    if share == 1.0:
        assert read_foa(path, sample_rate_hz=RATE_HZ).shape == (4, 3 * RATE_HZ)
    else:
        # Cut within its first bytes, a file may no longer tell what it is.
        assert rejection(path)[0] in ("truncated", *["unreadable"] * (share < 0.01))


@pytest.mark.parametrize("start_s", [0.0, 0.8])
@pytest.mark.parametrize(("suffix", "codec"), [(".aac", "aac"), (".opus", "libopus")])
def test_lengths_that_are_guesses_are_not_held_against_a_file(
    tmp_path: Path, suffix: str, codec: str, start_s: float
) -> None:
    """Of ADTS, from the bit rate of its beginning; Ogg's counts what is before its beginning."""
    sound = burst(9.0, 6.0)
    path = writers.write_media(
        tmp_path / f"a{suffix}", sound=sound, sound_codec=codec, sound_start_s=start_s
    )
    foa = read_foa(path, sample_rate_hz=RATE_HZ)
    assert foa.shape[1] / RATE_HZ == pytest.approx(9.0, abs=0.03)
    assert burst_start_s(foa) == pytest.approx(6.0, abs=0.03)


def test_avi_is_riff_without_samples(tmp_path: Path) -> None:
    path = writers.write_media(tmp_path / "a.avi", pictures=writers.numbered_pictures(20))
    assert pictures_of(path, [1.0])[0].shape == (1, 64, 128, 3)
