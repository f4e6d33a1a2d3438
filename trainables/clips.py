"""Which windows of which clips a step sees, and how windows become a batch.

A step's batch is a pure function of seed and step, so that every way of feeding the loops (Ray
Data on a cluster, :func:`local_batches` here) gives the same batches, and a resumed run goes on
with those it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seld.annotations import accdoa_targets, multi_accdoa_targets
from seld.clip_reader import ClipReader
from seld.clips import LABEL_FRAME_S, ShardIndex
from seld.errors import InputError
from seld.models.heads import OutputFormat
from seld.models.resnet_conformer import AudioEncoder
from seld.spatial_spectra import SpectraStore, spatial_spectra

Batch = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Window(NamedTuple):
    """A stretch of one clip; ``clip`` is its row number in the shard index."""

    clip: int
    start_s: float


class LongClips(NamedTuple):
    """Clips at least as long as a window: row numbers (clip,) in the index, and how long each is.

    Found once: looking through a large index takes longer than drawing a step's windows.
    """

    rows: NDArray[np.int64]
    durations_s: NDArray[np.float64]


def clip_schedule(
    clips: NDArray[np.int64],
    durations_s: NDArray[np.float64],
    *,
    seed: int,
    step: int,
    batch_size: int,
    window_s: float,
    windows_per_clip: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> list[Window]:
    """The windows that ``rank`` sees at ``step``.

    A step's clips are drawn without replacement over all ranks, as long as there are enough: a
    clip that met itself in a batch would be a false negative. Windows start on the label clock;
    several windows of one clip do not overlap, as far as they fit.

    Args:
        clips: (clip,) row numbers to draw from.
        durations_s: (clip,) how long each is, at least ``window_s``.
        batch_size: windows per rank, a multiple of ``windows_per_clip``.
    """
    assert batch_size % windows_per_clip == 0, (batch_size, windows_per_clip)
    generator = np.random.default_rng([seed, step])
    total = batch_size * world_size // windows_per_clip
    drawn = generator.choice(len(clips), total, replace=len(clips) < total)
    # Each window starts within its own equal part of what is free before the last start. That is
    # 24 of 81 starts of four windows of 2 s in 10 s; all of them taught no more (LOG, 2026-11-28).
    part_s = durations_s[drawn] / windows_per_clip
    free_frames = np.maximum(np.floor((part_s - window_s) / LABEL_FRAME_S + 1e-6), 0.0)
    last_start_s = np.floor((durations_s[drawn] - window_s) / LABEL_FRAME_S + 1e-6) * LABEL_FRAME_S
    offsets = np.floor(generator.random((windows_per_clip, total)) * (free_frames + 1.0))
    firsts_s = np.floor(np.arange(windows_per_clip)[:, None] * part_s / LABEL_FRAME_S + 1e-6)
    starts_s = np.minimum((firsts_s + offsets) * LABEL_FRAME_S, last_start_s).T.ravel()
    rows = clips[drawn].repeat(windows_per_clip)
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    return [
        Window(int(clip), round(float(start_s), 6))
        for clip, start_s in zip(rows[mine], starts_s[mine], strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class WindowSchedule:
    """Everything :func:`clip_schedule` needs but the step; small enough to send anywhere."""

    seed: int
    batch_size: int
    window_s: float
    windows_per_clip: int = 1
    rank: int = 0
    world_size: int = 1

    def clips(self, index: ShardIndex) -> LongClips:
        """The clips to draw from.

        Raises:
            InputError: none is as long as a window.
        """
        table = index.clips
        longest_s = table["duration_s"].max()
        table = table.loc[table["duration_s"] >= self.window_s - 1e-6]
        if table.empty:
            expected = f"at most the {longest_s:g} of the longest clip"
            raise InputError(index.folder, "window_s", self.window_s, expected)
        return LongClips(table.index.to_numpy(), np.asarray(table["duration_s"]))

    def windows(self, clips: LongClips, step: int) -> list[Window]:
        """The windows of ``step`` among these clips."""
        return clip_schedule(
            clips.rows,
            clips.durations_s,
            seed=self.seed,
            step=step,
            batch_size=self.batch_size,
            window_s=self.window_s,
            windows_per_clip=self.windows_per_clip,
            rank=self.rank,
            world_size=self.world_size,
        )


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Step number → sound and pictures, for pretraining.

    With a ``store`` the sound comes as ``spectra`` float16 (window, 11, frame, mel), else as
    ``foa`` int16 (window, 4, time); ``frames`` are uint8 (window, time, 3, height, width).
    """

    reader: ClipReader
    schedule: WindowSchedule
    frame_count: int
    store: SpectraStore | None = None

    @cached_property
    def _clips(self) -> LongClips:
        return self.schedule.clips(self.reader.index)

    def __call__(self, step: int) -> Arrays:
        """The batch of ``step``."""
        windows = self.schedule.windows(self._clips, step)
        return _sound(self.reader, self.store, windows, self.schedule.window_s, self.frame_count)


@dataclass(frozen=True, kw_only=True)
class AnnotatedReader:
    """Step number → sound and SELD targets, for fine-tuning.

    ``target`` is (window, label frame, class, 3), or (window, label frame, 6, 4, class) for
    ``multi_accdoa``.
    """

    reader: ClipReader
    schedule: WindowSchedule
    class_count: int
    output_format: OutputFormat = "accdoa"
    store: SpectraStore | None = None
    _clip_targets: dict[int, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @cached_property
    def _clips(self) -> LongClips:
        return self.schedule.clips(self.reader.index)

    def __call__(self, step: int) -> Arrays:
        """The batch of ``step``."""
        windows = self.schedule.windows(self._clips, step)
        arrays = _sound(self.reader, self.store, windows, self.schedule.window_s, 0)
        frames = round(self.schedule.window_s / LABEL_FRAME_S)
        firsts = [round(window.start_s / LABEL_FRAME_S) for window in windows]
        targets = [
            self._targets_of(window.clip)[first : first + frames]
            for window, first in zip(windows, firsts, strict=True)
        ]
        return arrays | {"target": np.stack(targets)}

    def _targets_of(self, clip: int) -> NDArray[np.float32]:
        """The targets of a whole clip, made when it is first asked for.

        A target depends on its own frame alone, and making those of every window anew would cost
        a third of a step on a CPU.
        """
        if clip not in self._clip_targets:
            duration_s = float(self.reader.index.clips["duration_s"].loc[clip])
            encode = accdoa_targets if self.output_format == "accdoa" else multi_accdoa_targets
            self._clip_targets[clip] = encode(
                self.reader.events(clip),
                frame_count=math.ceil(duration_s / LABEL_FRAME_S - 1e-6),
                class_count=self.class_count,
            )
        return self._clip_targets[clip]


def local_batches(
    read_step: Callable[[int], Arrays], *, start_step: int, steps: int
) -> Iterator[Batch]:
    """Batches of steps ``start_step`` … ``steps - 1``, read by a thread one ahead of the loop."""
    if start_step >= steps:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(read_step, start_step)
        for following in range(start_step + 1, steps + 1):
            arrays = waiting.result()
            if following < steps:
                waiting = pool.submit(read_step, following)
            yield {name: torch.from_numpy(values) for name, values in arrays.items()}


def batches_on(device: torch.device | str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches on ``device``; a GPU's next one is copied from pinned memory during a step."""
    source, device = iter(batches), torch.device(device)
    if device.type != "cuda":
        yield from source
        return

    def copied() -> Batch | None:
        with torch.cuda.device(device):  # each thread has its own
            return next(
                (
                    {
                        name: values.pin_memory().to(device, non_blocking=True)
                        for name, values in batch.items()
                    }
                    for batch in source
                ),
                None,
            )

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting = pool.submit(copied)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(copied)
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batch_spectra(batch: Batch, encoder: AudioEncoder, device: torch.device | str) -> Tensor:
    """A batch's spectra (window, 11, frame, mel) as float32 on ``device``."""
    if "spectra" in batch:
        return batch["spectra"].to(device, non_blocking=True).float()
    waveform = batch["foa"].to(device, non_blocking=True).float() / 32768.0
    return spatial_spectra(waveform, encoder.features)


def _sound(
    reader: ClipReader,
    store: SpectraStore | None,
    windows: list[Window],
    window_s: float,
    frame_count: int,
) -> Arrays:
    clips = [window.clip for window in windows]
    starts_s = [window.start_s for window in windows]
    if store is None:
        return reader.read(
            clips, window_start_s=starts_s, window_s=window_s, frame_count=frame_count
        )
    arrays: Arrays = {"spectra": store.read(clips, starts_s, window_s)}
    if frame_count:
        arrays["frames"] = reader.read_frames(
            clips, window_start_s=starts_s, window_s=window_s, frame_count=frame_count
        )
    return arrays
