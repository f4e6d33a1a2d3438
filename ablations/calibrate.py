"""How long a stage will take, from a few steps on noise: for plans before anything has run.

The figures are this machine's, of one worker with as many threads as it gets. They leave out
reading, start-up, reports, validation and what workers tell one another, so they are a little low;
and lanes on two threads of one core, as the CPUs of most virtual machines are, take up to twice as
long as the one that is timed here.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from seld.clips import SAMPLE_RATE_HZ
from seld.errors import InputError
from seld.models.seld_network import SeldNetwork, SeldNetworkSettings
from seld.predict import predict_waveform
from trainables.cells import Cell
from trainables.failures import failure_kind
from trainables.finetune import FinetuneSettings, finetune
from trainables.pretrain import PretrainSettings, pretrain

#: The first step builds and warms up; the median of the others counts.
TIMED_STEPS = 4
EVALUATED_S = 20.0


def calibrated_durations_s(
    cell: Cell,
    *,
    class_count: int,
    test_minutes: float,
    picture_px: tuple[int, int],
    train_workers: int = 1,
    device: str = "cpu",
) -> dict[str, float]:
    """Expected seconds of each stage of a cell, by stage name.

    Args:
        train_workers: of its pretraining; each has its share of the batch.
        device: what trains. On a CPU the spectra of all clips are computed once, before any stage;
            a GPU computes those of each batch.

    Raises:
        InputError: the GPU has too little memory for a step.
    """
    with _within_memory(cell, "finetune", cell.finetune.batch_size, "--set finetune.batch_size"):
        step_s = _finetune_step_s(cell.finetune, class_count, device)
    durations_s = {
        "finetune": cell.finetune.steps * step_s,
        "evaluate": test_minutes * 60 * _evaluation_share(cell.finetune, class_count, device),
    }
    if cell.pretrain is not None:
        windows = cell.pretrain.rank_batch_size(train_workers)
        with _within_memory(cell, "pretrain", windows, "more --train-workers, which share them"):
            step_s = _pretrain_step_s(cell.pretrain, windows, picture_px, device)
        durations_s["pretrain"] = cell.pretrain.steps * step_s
    return durations_s


@contextmanager
def _within_memory(cell: Cell, stage: str, windows: int, way_out: str) -> Iterator[None]:
    """Names a way out where a step of so many windows is more than the GPU has memory for."""
    try:
        yield
    except RuntimeError as error:
        if failure_kind(error) != "gpu_memory":
            raise
        expected = f"fewer, for this GPU's memory: {way_out}"
        where = f"--calibrate: {stage} of {cell.arm}"
        raise InputError(where, "windows of a worker's step", windows, expected) from error


def _pretrain_step_s(
    settings: PretrainSettings, windows: int, picture_px: tuple[int, int], device: str
) -> float:
    """Of a worker with so many windows of the batch."""
    pictures = (windows, settings.frame_count, 3, *picture_px)
    frames = torch.randint(0, 256, pictures, dtype=torch.uint8)
    batch = _sound(settings, windows, device) | {"frames": frames}
    short = replace(settings, steps=TIMED_STEPS, report_every=1, state_every=TIMED_STEPS)
    clock = _StepClock()
    pretrain(short, itertools.repeat(batch), device=device, report=clock)
    # It chooses for all of its process, which does no more; this one goes on with fine-tunings.
    torch.backends.cudnn.benchmark = False
    return clock.step_s


def _finetune_step_s(settings: FinetuneSettings, class_count: int, device: str) -> float:
    shape = (settings.batch_size, round(settings.window_s * 10), class_count, 3)
    if settings.output_format == "multi_accdoa":
        shape = (*shape[:2], 6, 4, class_count)
    batch = _sound(settings, settings.batch_size, device) | {"target": torch.zeros(shape)}
    clock = _StepClock()
    short = replace(
        settings,
        steps=TIMED_STEPS,
        report_every=1,
        state_every=TIMED_STEPS,
        validate_every=0,
        select_best=False,
        patience=0,
    )
    finetune(
        short,
        itertools.repeat(batch),
        class_count=class_count,
        encoder_state=None,
        device=device,
        report=clock,
    )
    return clock.step_s


def _evaluation_share(settings: FinetuneSettings, class_count: int, device: str) -> float:
    """Seconds of computing per second of recording."""
    network = SeldNetwork(
        SeldNetworkSettings(
            encoder=settings.audio, class_count=class_count, output_format=settings.output_format
        )
    ).to(device)
    sound = _noise(1, EVALUATED_S)[0].numpy()
    predict_waveform(network, sound)  # the first call of a process starts libraries
    started = time.perf_counter()
    predict_waveform(network, sound)
    return (time.perf_counter() - started) / EVALUATED_S


def _sound(
    settings: PretrainSettings | FinetuneSettings, windows: int, device: str
) -> dict[str, torch.Tensor]:
    """The sound of so many windows, in the form it reaches the device in."""
    if device != "cpu":
        return {"foa": _noise(windows, settings.window_s)}
    features = settings.audio.features
    frames = round(settings.window_s * features.frame_rate_hz)
    return {"spectra": torch.rand(windows, 11, frames, features.mel_bands)}


def _noise(batch_size: int, duration_s: float) -> torch.Tensor:
    generator = np.random.default_rng(0)
    samples = round(duration_s * SAMPLE_RATE_HZ)
    return torch.from_numpy(
        generator.integers(-8000, 8000, (batch_size, 4, samples), dtype=np.int16)
    )


class _StepClock:
    """Notes when each step is done, as the ``report`` of a loop that reports every step.

    A report waits for a GPU to have computed what it says; a loop asks for batches before it has.
    """

    def __init__(self) -> None:
        self._done_at: list[float] = []

    def __call__(self, *_: object) -> None:
        self._done_at.append(time.perf_counter())

    @property
    def step_s(self) -> float:
        """Median over the steps after the first."""
        return statistics.median(np.diff(self._done_at))
