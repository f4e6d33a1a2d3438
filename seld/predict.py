"""DCASE predictions of any four-channel sound: ``python -m seld.predict CHECKPOINT WAV --out DIR``.

Sound of any rate and length streams through in bounded memory: blocks are read, resampled
without seams, cut into overlapping windows, and what the windows say about a label frame is
averaged, with the most weight on the window in whose middle it lies. Evaluation in studies uses
the same :func:`predict_vectors` and :func:`events_of`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from seld.annotations import decode_accdoa, decode_multi_accdoa, write_annotations
from seld.checkpoints import load_checkpoint
from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.media import MediaError, declared_length_s, foa_blocks
from seld.models.heads import OutputFormat
from seld.models.resnet_conformer import FRAMES_PER_LABEL
from seld.models.seld_network import SeldNetwork
from seld.storage import check_writable, files_within

Samples = NDArray[np.float32] | NDArray[np.int16] | Tensor


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How a recording is cut into windows and vectors become events."""

    window_s: float = 5.0
    hop_s: float = 2.5
    #: Windows per forward pass.
    batch_size: int = 16
    #: Shortest vector that counts as an active class.
    threshold: float = 0.5
    #: Multi-ACCDOA tracks of one class that are nearer than this are one source.
    unify_deg: float = 15.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.window_s < math.inf:
            raise InputError("prediction", "window_s", self.window_s, "at least 0.1")
        if not 0.1 <= self.hop_s <= self.window_s:
            raise InputError("prediction", "hop_s", self.hop_s, f"from 0.1 to {self.window_s:g}")
        if self.batch_size < 1:
            raise InputError("prediction", "batch_size", self.batch_size, "at least 1")
        if not self.threshold > 0:
            raise InputError("prediction", "threshold", self.threshold, "more than 0")
        if not 0 <= self.unify_deg <= 180:
            raise InputError("prediction", "unify_deg", self.unify_deg, "from 0 to 180")


def predict_waveform(
    network: SeldNetwork,
    sound: Samples | Iterable[Samples],
    settings: PredictionSettings | None = None,
) -> pd.DataFrame:
    """Events of one recording, as a table that :mod:`seld.annotations` writes.

    Args:
        network: put into evaluation mode; runs on its own device.
        sound: (4, time) at the network's sample rate, or consecutive blocks of it: float at full
            scale 1, or int16.
        settings: windows and thresholds.
    """
    settings = settings or PredictionSettings()
    vectors = predict_vectors(network, sound, settings)
    return events_of(vectors, network.settings.output_format, settings)


def events_of(
    pieces: Iterable[NDArray[np.float32]],
    output_format: OutputFormat,
    settings: PredictionSettings | None = None,
) -> pd.DataFrame:
    """The events that a recording's vectors stand for.

    Args:
        pieces: consecutive, as :func:`predict_vectors` gives them.
        output_format: of the network they are from.
        settings: thresholds.
    """
    settings = settings or PredictionSettings()
    # Plain numbers: a table per piece, kept between the network's large temporary arrays, breaks
    # the heap into pieces too small for these, and memory grows with the recording.
    rows: list[tuple[object, ...]] = []
    empty: pd.DataFrame | None = None
    first_frame = 0
    for vectors in pieces:
        if output_format == "accdoa":
            table = decode_accdoa(vectors, threshold=settings.threshold)
        else:
            table = decode_multi_accdoa(
                vectors, threshold=settings.threshold, unify_deg=settings.unify_deg
            )
        empty = table.iloc[:0].copy()
        table["frame"] += first_frame
        rows += table.itertuples(index=False, name=None)
        first_frame += len(vectors)
    if empty is None:
        raise InputError("prediction", "sound", "no samples", "at least one")
    return pd.DataFrame(rows, columns=empty.columns).astype(empty.dtypes.to_dict())


def predict_vectors(
    network: SeldNetwork, sound: Samples | Iterable[Samples], settings: PredictionSettings
) -> Iterator[NDArray[np.float32]]:
    """ACCDOA vectors (label frame, [track,] class, 3) of a recording, in consecutive pieces.

    A last label frame that is only partly there is filled up with silence.
    """
    network.eval()
    features = network.settings.encoder.features
    label_samples = features.hop_size * FRAMES_PER_LABEL
    label_rate_hz = features.sample_rate_hz / label_samples
    window = max(1, round(settings.window_s * label_rate_hz))
    hop = max(1, round(settings.hop_s * label_rate_hz))
    blocks = [sound] if isinstance(sound, (np.ndarray, Tensor)) else sound
    average = _OverlapAverage(window)
    windows = _windows(blocks, label_samples, window=window, hop=hop)
    while batch := list(itertools.islice(windows, settings.batch_size)):
        waveform = torch.stack([samples for _, samples in batch])
        with torch.inference_mode():
            vectors = network(waveform.to(next(network.parameters()).device)).cpu().numpy()
        for (start, _), part in zip(batch, vectors, strict=True):
            settled = average.frames_before(start)
            if len(settled):
                yield settled
            average.add(start, part)
    rest = average.frames_before(None)
    if len(rest):
        yield rest


def sound_blocks(path: Path, sample_rate_hz: int) -> Iterator[NDArray[np.float32]]:
    """As :func:`seld.media.foa_blocks`, of a file that a user names.

    Raises:
        InputError: the file cannot be read, is cut off or empty, or has not four finite channels.
    """
    try:
        yield from foa_blocks(path, sample_rate_hz=sample_rate_hz)
    except MediaError as error:
        raise InputError(
            path, "sound", f"{error.reason} ({error.detail})", "four whole channels (ACN, SN3D)"
        ) from error


#: As many as classes, so that a print without colours tells them apart.
_MARKERS = "os^Dv*PX<>hdp"


def plot_events(table: pd.DataFrame, class_names: tuple[str, ...], path: Path, title: str) -> None:
    """Draw azimuth and elevation over time, one colour per class."""
    from matplotlib.figure import Figure  # takes longer to import than all else here

    figure = Figure(figsize=(11, 6), layout="constrained")
    azimuth, elevation = figure.subplots(2, 1, sharex=True)
    for class_id, class_name in enumerate(class_names):
        events = table[table["class_id"] == class_id]
        if events.empty:
            continue
        marker = _MARKERS[class_id % len(_MARKERS)]
        style = {"s": 11, "color": f"C{class_id % 10}", "marker": marker, "linewidths": 0}
        time_s = events["frame"] / 10
        azimuth.scatter(time_s, events["azimuth_deg"], label=class_name.replace("_", " "), **style)
        elevation.scatter(time_s, events["elevation_deg"], **style)
    azimuth.set(title=title, ylabel="azimuth (°), left +", ylim=(-180, 180))
    azimuth.set_yticks(range(-180, 181, 60))
    elevation.set(xlabel="time (s)", ylabel="elevation (°), up +", ylim=(-90, 90))
    elevation.set_yticks(range(-90, 91, 30))
    for axes in (azimuth, elevation):
        axes.grid(alpha=0.3)
    if len(table):
        figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> int:
    """The command line."""
    parser = CommandLine(
        prog="python -m seld.predict",
        description="Write DCASE predictions of four-channel recordings (ACN, SN3D), any rate.",
    )
    parser.add_argument("checkpoint", type=Path, help="a network stored by fine-tuning")
    parser.add_argument("sound", type=Path, help="a sound file, or a folder searched for *.wav")
    parser.add_argument("--out", type=Path, required=True, help="folder for the csv files")
    parser.add_argument("--plot", action="store_true", help="draw the events beside each csv")
    parser.add_argument("--strict", action="store_true", help="fail if any file is set aside")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--threshold", type=float, default=PredictionSettings.threshold)
    parser.add_argument("--window-s", type=float, default=PredictionSettings.window_s)
    arguments = parser.parse_args()

    settings = PredictionSettings(
        threshold=arguments.threshold,
        window_s=arguments.window_s,
        hop_s=max(0.1, arguments.window_s / 2),
    )
    check_writable(str(arguments.out))
    checkpoint = load_checkpoint(arguments.checkpoint)
    network = checkpoint.network.to(_device(arguments.device))
    out_of = _csv_files(_sound_files(arguments.sound), arguments.sound, arguments.out)
    rate_hz = network.settings.encoder.features.sample_rate_hz

    console = Console(stderr=True)
    set_aside: list[InputError] = []
    with _progress_bar(console) as progress:
        files = progress.add_task("files", total=len(out_of), visible=len(out_of) > 1)
        for path, out in out_of.items():
            task = progress.add_task(path.name, total=None)
            try:
                blocks = _with_progress(sound_blocks(path, rate_hz), progress, task, path, rate_hz)
                table = predict_waveform(network, blocks, settings)
            except InputError as error:
                set_aside.append(error)
            else:
                write_annotations(table, out)
                if arguments.plot:
                    plot_events(table, checkpoint.class_names, out.with_suffix(".png"), path.stem)
            progress.remove_task(task)
            progress.advance(files)

    predicted = f"{len(out_of) - len(set_aside)} of {len(out_of)} files predicted"
    console.print(predicted, highlight=False)
    for error in set_aside:
        console.print(f"set aside: {error}", highlight=False, markup=False, soft_wrap=True)
    failed = len(set_aside) == len(out_of) or (arguments.strict and set_aside)
    return 2 if failed else 0


class _OverlapAverage:
    """Weighted mean of overlapping windows of ACCDOA vectors; settled frames can be taken out.

    ::

        a window   1 2 3 2 1       weights of its frames: most on its middle
        the next       1 2 3 2 1
        frames     s s h h h h h   settled (s) as no later window reaches them, or held (h)
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._start = 0
        self._sum: NDArray[np.float32] | None = None
        self._weight = np.zeros(0, np.float32)

    def add(self, start: int, vectors: NDArray[np.float32]) -> None:
        """Add a window (frame, [track,] class, 3) that begins at label frame ``start``."""
        if self._sum is None:
            self._sum = np.zeros((0, *vectors.shape[1:]), np.float32)
        offset = start - self._start
        known = len(self._sum) - offset
        grown = max(0, len(vectors) - known)
        self._sum = np.concatenate([self._sum, np.zeros((grown, *vectors.shape[1:]), np.float32)])
        self._weight = np.concatenate([self._weight, np.zeros(grown, np.float32)])
        if vectors.ndim == 4 and known > 0:
            mean = self._sum[offset : offset + known] / _spread(self._weight[offset:][:known], 4)
            vectors = vectors.copy()
            vectors[:known] = _tracks_in_order_of(mean, vectors[:known])
        frame = np.arange(len(vectors), dtype=np.float32)
        weight = np.minimum(frame + 1, len(vectors) - frame)
        covered = slice(offset, offset + len(vectors))
        self._sum[covered] += vectors * _spread(weight, vectors.ndim)
        self._weight[covered] += weight

    def frames_before(self, frame: int | None) -> NDArray[np.float32]:
        """Take out the frames before label frame ``frame`` (None: all)."""
        if self._sum is None:
            return np.zeros((0,), np.float32)
        count = len(self._sum) if frame is None else frame - self._start
        settled = self._sum[:count] / _spread(self._weight[:count], self._sum.ndim)
        self._sum, self._weight = self._sum[count:], self._weight[count:]
        self._start += count
        return settled


def _tracks_in_order_of(
    reference: NDArray[np.float32], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Permute tracks per frame and class to lie nearest to ``reference`` (frame, track, class, 3).

    A multi-ACCDOA network may give the same source to another track in the next window.
    """
    orders = list(itertools.permutations(range(vectors.shape[1])))
    candidates = np.stack([vectors[:, list(order)] for order in orders])
    errors = np.square(candidates - reference).sum((2, 4))  # (order, frame, class)
    best = errors.argmin(0)[None, :, None, :, None]
    return np.take_along_axis(candidates, best, axis=0)[0]


def _windows(
    blocks: Iterable[Samples], label_samples: int, *, window: int, hop: int
) -> Iterator[tuple[int, Tensor]]:
    """(first label frame, samples (4, window)): every ``hop`` label frames, and one to the end.

    ::

        sound    |---------------------|
        windows  |-------|                every hop, as long as they end within the sound
                     |-------|
                         |-------|
                               |-------|  the last ends with the sound, whatever the hop
    """
    window_samples, hop_samples = window * label_samples, hop * label_samples
    held = torch.zeros(4, 0)
    start = 0  # label frame at which the held samples begin
    covered = 0  # label frames that windows have reached
    for block in blocks:
        held = torch.cat([held, _as_float(block)], dim=1)
        # A window's samples are held until the next one is whole: the final one may need them.
        while held.shape[1] >= window_samples + (hop_samples if covered else 0):
            if covered:
                held = held[:, hop_samples:]
                start += hop
            yield start, held[:, :window_samples]
            covered = start + window
    missing = -held.shape[1] % label_samples
    held = torch.nn.functional.pad(held, (0, missing))
    frames = held.shape[1] // label_samples
    if start + frames > covered:
        first = max(0, frames - window)
        yield start + first, held[:, first * label_samples :]


def _as_float(block: Samples) -> Tensor:
    samples = torch.as_tensor(block)
    if samples.ndim != 2 or samples.shape[0] != 4:
        raise InputError("prediction", "sound", tuple(samples.shape), "shape (4, time)")
    if samples.dtype == torch.int16:
        return samples.float() / 32768
    return samples.float()


def _spread(weight: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    return weight.reshape(-1, *[1] * (dimensions - 1))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise InputError("--device", "device", name, f"one of {torch.cuda.device_count()} GPUs")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # unknown, or not in this build of PyTorch
        raise InputError("--device", "device", name, "cpu or cuda[:number]") from None
    return device


def _sound_files(sound: Path) -> list[Path]:
    if sound.is_file():
        return [sound]
    if not sound.is_dir():
        raise InputError(sound, "path", "missing", "a sound file or a folder of wav files")
    paths = [path for path in files_within(sound) if path.suffix.lower() == ".wav"]
    if not paths:
        raise InputError(sound, "folder", "no .wav file", "at least one")
    return paths


def _csv_files(paths: Sequence[Path], sound: Path, folder: Path) -> dict[Path, Path]:
    """Where the predictions of each sound file go."""
    root = sound if sound.is_dir() else sound.parent
    sound_of: dict[Path, Path] = {}
    for path in paths:
        out = folder / path.relative_to(root).with_suffix(".csv")
        if out in sound_of:
            both = f"{sound_of[out].name} and {path.name}"
            expected = f"names that differ before the suffix (both would be {out})"
            raise InputError(path.parent, "files", both, expected)
        sound_of[out] = path
    return {path: out for out, path in sound_of.items()}


def _with_progress(
    blocks: Iterator[NDArray[np.float32]],
    progress: Progress,
    task: TaskID,
    path: Path,
    rate_hz: int,
) -> Iterator[NDArray[np.float32]]:
    for index, block in enumerate(blocks):
        if index == 0:  # the file is readable, so its length can be asked for
            length_s = declared_length_s(path)
            progress.update(task, total=length_s and length_s * rate_hz)
        progress.advance(task, block.shape[1])
        yield block


def _progress_bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True)


if __name__ == "__main__":
    exit_on_input_error(main)
