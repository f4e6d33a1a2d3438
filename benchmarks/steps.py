"""Training steps in bfloat16 beside float32, on one core or a GPU.

    python -m benchmarks.steps [--scale evidence] [--device cpu] [--steps 10]
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1 python -m benchmarks.steps

The second as trials run it. Whole optimiser steps of DOA-wise pretraining and of fine-tuning at a
scale, on random batches, in a thread as in trials (glibc gives threads heaps of their own).
Precisions take turns in one run. ``auto``, the default of every recipe, is whichever of the two
:func:`trainables.steps.computes_bf16` expects to be the faster; this says whether it is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

import torch

from search_spaces.scales import SCALES, ScaleSettings, find_scale
from seld.classes import STARSS_CLASSES
from trainables.clips import Batch
from trainables.finetune import FinetuneSettings, finetune
from trainables.pretrain import PretrainSettings, pretrain
from trainables.steps import Metrics, Precision, TrainState, computes_bf16

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
LABEL_FRAME_RATE_HZ = 10
SPECTRA_FRAME_RATE_HZ = 50


class Clock:
    """Takes the time of every report."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, step: int, metrics: Metrics, state: TrainState | None) -> None:
        del step, metrics, state
        self.times_s.append(time.perf_counter())

    def step_ms(self) -> float:
        """Median of the steps after the first."""
        times = zip(self.times_s, self.times_s[1:], strict=False)
        return 1000.0 * statistics.median(later - earlier for earlier, later in times)


def spectra(settings: PretrainSettings | FinetuneSettings) -> torch.Tensor:
    """Random spatial spectra of a batch."""
    frames = round(settings.window_s * SPECTRA_FRAME_RATE_HZ)
    return torch.randn(settings.batch_size, 11, frames, settings.audio.features.mel_bands)


def pretraining_batches(settings: PretrainSettings, scale: ScaleSettings) -> Iterator[Batch]:
    """The same random windows again and again."""
    height, width = scale.shards.frame_height_px, scale.shards.frame_width_px
    shape = (settings.batch_size, settings.frame_count, 3, height, width)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    return repeat({"spectra": spectra(settings), "frames": frames})


def finetuning_batches(settings: FinetuneSettings) -> Iterator[Batch]:
    """The same windows in which nothing sounds."""
    frames = round(settings.window_s * LABEL_FRAME_RATE_HZ)
    target = torch.zeros(settings.batch_size, frames, len(STARSS_CLASSES), 3)
    return repeat({"spectra": spectra(settings), "target": target})


def pretraining_ms(scale: ScaleSettings, precision: Precision, device: str, steps: int) -> float:
    """Milliseconds per step."""
    settings = replace(
        scale.doa_wise, precision=precision, steps=steps, report_every=1, state_every=steps
    )
    clock = Clock()
    pretrain(settings, pretraining_batches(settings, scale), device=device, report=clock)
    return clock.step_ms()


def finetuning_ms(scale: ScaleSettings, precision: Precision, device: str, steps: int) -> float:
    """Milliseconds per step."""
    settings = replace(
        scale.finetune,
        precision=precision,
        steps=steps,
        report_every=1,
        state_every=steps,
        validate_every=0,
        select_best=False,
        output_format="accdoa",
    )
    clock = Clock()
    finetune(
        settings,
        finetuning_batches(settings),
        class_count=len(STARSS_CLASSES),
        encoder_state=None,
        device=device,
        report=clock,
    )
    return clock.step_ms()


def main() -> None:
    """Print the time of a step of each loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="evidence")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale = find_scale(arguments.scale)
    auto = "bf16" if computes_bf16(torch.device(arguments.device).type) else "float32"
    print(f"ms per step, one thread, auto is {auto} here")
    loops: dict[str, Callable[[ScaleSettings, Precision, str, int], float]] = {
        "pretraining": pretraining_ms,
        "fine-tuning": finetuning_ms,
    }
    for name, loop in loops.items():
        with ThreadPoolExecutor(max_workers=1) as pool:
            wide, narrow = (
                pool.submit(loop, scale, precision, arguments.device, arguments.steps).result()
                for precision in PRECISIONS
            )
        print(f"{name:12s} float32 {wide:7.1f}   bf16 {narrow:7.1f}   {wide / narrow:5.2f} ×")


if __name__ == "__main__":
    main()
