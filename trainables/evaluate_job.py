"""Evaluation as a job: predictions for whole recordings, and their score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from seld.annotations import accdoa_targets, multi_accdoa_targets, write_annotations
from seld.checkpoints import load_checkpoint
from seld.clip_reader import ClipReader
from seld.clips import LABEL_FRAME_S, ShardIndex
from seld.elevation import elevation_correlation
from seld.errors import InputError
from seld.losses import accdoa_loss, adpit_loss
from seld.metrics import COUNT_COLUMNS, SCORE_NAMES, recording_counts, score_from_recordings
from seld.models.heads import OutputFormat
from seld.predict import PredictionSettings, events_of, predict_vectors
from seld.records import COUNTS_FILE, PREDICTIONS_FOLDER, REFERENCE_FOLDER
from trainables.jobs import NETWORK_FILE, Progress, ShardFolder
from trainables.stages import StageFiles
from trainables.work_clock import WorkClock


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Predictions for every test recording, or all of some training rooms, and their score."""

    shards: ShardFolder
    network: StageFiles
    class_names: tuple[str, ...]
    rooms: tuple[str, ...] | None = None

    def run(
        self, folder: Path, *, device: torch.device | str, report: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Score; ``folder`` receives predictions, references, counts and how long it took.

        Returns:
            ``metrics``, ``per_class`` and ``per_room`` as a trial record holds them.
        """
        clock = WorkClock()
        index = scored_clips(self.shards.index(), self.rooms)
        checkpoint = load_checkpoint(
            self.network.folder / NETWORK_FILE, class_names=self.class_names
        )
        network = checkpoint.network.to(device)
        output_format = network.settings.output_format
        names, references, predictions = [], [], []
        losses, lengths = [], []
        recordings = index.clips.sort_values("start_s").groupby("recording_id")
        for done, (name, clips) in enumerate(recordings, start=1):
            recording = RecordingClips(ClipReader(ShardIndex(index.folder, clips)))
            reference = recording.annotations()
            vectors = list(predict_vectors(network, recording.blocks(), PredictionSettings()))
            prediction = events_of(vectors, output_format)
            for table, kind in ((reference, REFERENCE_FOLDER), (prediction, PREDICTIONS_FOLDER)):
                path = folder / kind / f"{name}.csv"
                path.parent.mkdir(exist_ok=True)
                write_annotations(table, path)
            names.append(str(name))
            references.append(reference)
            predictions.append(prediction)
            losses.append(regression_loss(np.concatenate(vectors), reference, output_format))
            lengths.append(sum(map(len, vectors)))
            report({"stage": "evaluate", "step": done, "steps": len(recordings)})
        counts = recording_counts(references, predictions, class_count=len(self.class_names))
        counts_table(names, counts).to_parquet(folder / COUNTS_FILE, index=False)
        result = score_from_recordings(names, counts, class_names=self.class_names)
        per_class = result.per_class.rename_axis("class_name").reset_index()
        per_room = result.per_room.reset_index()
        metrics = {name: getattr(result, name) for name in SCORE_NAMES}
        metrics["loss"] = float(np.average(losses, weights=lengths))
        heard = elevation_correlation(references, predictions)
        if heard is not None:
            metrics["elevation_correlation"] = heard
        clock.write(folder)
        return {
            "metrics": metrics,
            "per_class": per_class.to_dict("records"),
            "per_room": per_room.to_dict("records"),
        }


def scored_clips(index: ShardIndex, rooms: Sequence[str] | None) -> ShardIndex:
    """Those of the test, or all of some training rooms."""
    if rooms is None:
        return index.select(splits=["test"])
    return index.select(splits=["train", "validation"], rooms=list(rooms))


def regression_loss(
    vectors: NDArray[np.float32], reference: pd.DataFrame, output_format: OutputFormat
) -> float:
    """What fine-tuning minimises, of a whole recording.

    It tells networks apart that find nothing yet, whose vectors are all below the threshold.

    Args:
        vectors: (label frame, [track,] class, 3).
        reference: the recording's events.
        output_format: of the network.
    """
    frame_count, class_count = len(vectors), vectors.shape[-2]
    targets, loss = (
        (accdoa_targets, accdoa_loss)
        if output_format == "accdoa"
        else (multi_accdoa_targets, adpit_loss)
    )
    target = targets(reference, frame_count=frame_count, class_count=class_count)
    return loss(torch.from_numpy(vectors)[None], torch.from_numpy(target)[None]).item()


@dataclass(frozen=True)
class RecordingClips:
    """A whole recording out of its clips, in order of time.

    Raises:
        InputError: they overlap (``hop_s`` of the shards), so that some sound would count twice.
    """

    reader: ClipReader

    def __post_init__(self) -> None:
        clips = self.reader.index.clips
        starts_s = clips["start_s"].to_numpy()
        ends_s = starts_s + clips["duration_s"].to_numpy()
        if (ends_s[:-1] > starts_s[1:] + 1e-3).any():
            where = f"{self.reader.index.folder}, {clips['recording_id'].iloc[0]}"
            raise InputError(where, "clips", "overlapping", "none before the end of another")

    def blocks(self) -> Iterator[NDArray[np.int16]]:
        """Its sound, int16 (4, time), clip by clip."""
        clips = self.reader.index.clips
        for clip_id, duration_s in zip(clips["clip_id"], clips["duration_s"], strict=True):
            yield self.reader.read([clip_id], window_s=duration_s)["foa"][0]

    def annotations(self) -> pd.DataFrame:
        """Its events, frames counted from the recording's start."""
        tables = []
        clips = self.reader.index.clips
        for clip_id, start_s in zip(clips["clip_id"], clips["start_s"], strict=True):
            events = self.reader.events(clip_id)
            tables.append(events.assign(frame=events["frame"] + round(start_s / LABEL_FRAME_S)))
        return pd.concat(tables, ignore_index=True)


def counts_table(names: list[str], counts: NDArray[np.float64]) -> pd.DataFrame:
    """Counts (recording, class, column) as the rows of ``counts.parquet``."""
    recordings, classes, columns = counts.shape
    table = pd.DataFrame(counts.reshape(-1, columns), columns=list(COUNT_COLUMNS))
    table.insert(0, "recording", np.repeat(names, classes))
    table.insert(1, "class_id", np.tile(np.arange(classes), recordings))
    return table
