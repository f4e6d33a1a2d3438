"""A stage's computation as a value: settings and data in, files out. No Ray here.

A job can be sent to a Ray worker, run in a test or on a machine that has torch and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seld.ambisonics import FeatureSettings, FoaFeatures
from seld.annotations import (
    accdoa_targets,
    decode_accdoa,
    decode_multi_accdoa,
    write_annotations,
)
from seld.checkpoints import load_checkpoint, save_checkpoint
from seld.clips import LABEL_FRAME_S, ClipReader, ShardIndex, select_budget
from seld.errors import InputError
from seld.metrics import (
    COUNT_COLUMNS,
    SCORE_NAMES,
    recording_counts,
    score_from_recordings,
    scores_from_counts,
)
from seld.models.seld_network import SeldNetwork
from seld.predict import predict_waveform
from seld.spatial_spectra import SpectraStore, spatial_spectra, turned_features
from seld.storage import join, local_copy, written_whole
from trainables.clips import AnnotatedReader, PairReader, WindowSchedule, local_batches
from trainables.finetune import FinetuneSettings, finetune
from trainables.pretrain import PretrainNetworks, PretrainSettings
from trainables.probes import ProbeWindows, probe_pretraining
from trainables.stages import StageFiles
from trainables.steps import Metrics, TrainState

#: What a computation says while it runs: ``stage``, ``step``, ``steps`` and metrics.
Progress = dict[str, Any]

ENCODER_FILE = "audio_encoder.pt"
NETWORK_FILE = "seld_network.safetensors"
HISTORY_FILE = "history.csv"
STATE_FILE = "state.pt"
COUNTS_FILE = "counts.parquet"
PREDICTIONS_FOLDER = "predictions"
REFERENCE_FOLDER = "reference"

#: Windows that pretraining is probed on.
PROBE_WINDOWS = 96


@dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """Clip shards to train from.

    Attributes:
        path: folder or URI.
        spectra: local folder of their precomputed spectra, or None to compute features from the
            waveform on the training device: the better choice on a GPU.
    """

    path: str
    spectra: str | None = None

    def reader(self, index: ShardIndex) -> ClipReader:
        return ClipReader(self.path, index)

    def store(
        self,
        features: FeatureSettings,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> SpectraStore | None:
        """Spectra of all clips of the folder, built by whoever asks first."""
        if self.spectra is None:
            return None
        return SpectraStore.open_or_build(
            Path(self.spectra), ClipReader(self.path), features, progress
        )


def unannotated_clips(index: ShardIndex) -> ShardIndex:
    """What pretraining may see: the unannotated part, or the training part of a corpus without.

    Annotations are not read either way; STARSS23, say, is annotated but has pictures.
    """
    unannotated = index.select(splits=["unannotated"])
    found = unannotated if len(unannotated.clips) else index.select(splits=["train"])
    return ShardIndex(index.folder, found.clips.loc[found.clips["frame_count"] > 0])


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Pretraining on the unannotated clips.

    ``probes`` is the folder of annotated clips whose training windows measure what has been
    learnt; annotations are used for nothing else.
    """

    settings: PretrainSettings
    shards: ShardFolder
    probes: ShardFolder | None = None

    def reader(self, *, rank: int = 0, world_size: int = 1) -> PairReader:
        """Step number → batch of this rank."""
        settings = self.settings
        index = unannotated_clips(ShardIndex.open(self.shards.path))
        return PairReader(
            reader=self.shards.reader(index),
            schedule=WindowSchedule(
                seed=settings.seed,
                batch_size=settings.rank_batch_size(world_size),
                windows_per_clip=settings.windows_per_clip,
                window_s=settings.window_s,
                rank=rank,
                world_size=world_size,
            ),
            frame_count=settings.frame_count,
            store=self.shards.store(settings.audio.features),
        )

    def probe(self) -> Callable[[PretrainNetworks], Metrics] | None:
        """Measures networks on annotated windows; None where those have no pictures."""
        if self.probes is None:
            return None
        windows = probe_windows(self.probes, self.settings)
        if windows is None:
            return None
        return lambda networks: probe_pretraining(networks, windows, self.settings)


def probe_windows(shards: ShardFolder, settings: PretrainSettings) -> ProbeWindows | None:
    """The middles of :data:`PROBE_WINDOWS` annotated training clips, with what sounds in them."""
    index = ShardIndex.open(shards.path).select(
        splits=["train", "validation"], minimum_s=settings.window_s
    )
    clips = index.clips.loc[index.clips["frame_count"] > 0]
    if clips.empty:
        return None
    clips = clips.sample(min(PROBE_WINDOWS, len(clips)), random_state=0).sort_index()
    reader = shards.reader(ShardIndex(index.folder, clips))
    rows = clips.index.to_list()
    middle_s = (np.asarray(clips["duration_s"]) - settings.window_s) / 2
    starts_s = np.floor(middle_s / LABEL_FRAME_S + 1e-6) * LABEL_FRAME_S
    arrays = reader.read(
        rows,
        window_start_s=starts_s,
        window_s=settings.window_s,
        frame_count=settings.frame_count,
    )
    frame_count = round(settings.window_s / LABEL_FRAME_S)
    class_count = 1 + max((max(counts, default=0) for counts in clips["class_frames"]), default=0)
    events = [
        reader.events(row, window_start_s=start_s, window_s=settings.window_s)
        for row, start_s in zip(rows, starts_s.tolist(), strict=True)
    ]
    activity = np.stack(
        [
            accdoa_targets(table, frame_count=frame_count, class_count=class_count)
            for table in events
        ]
    )
    # A class that sounds for half of the window has been there to be seen; its mean direction.
    sounding = (np.linalg.norm(activity, axis=-1) > 0.5).mean(axis=1) >= 0.5
    event_window, event_class = np.nonzero(sounding)
    direction = activity.sum(axis=1)[event_window, event_class]
    waveform = torch.from_numpy(arrays["foa"]).float() / 32768.0
    with torch.no_grad():
        spectra = spatial_spectra(waveform, FoaFeatures(settings.audio.features))
    return ProbeWindows(
        spectra=spectra,
        pictures=torch.from_numpy(arrays["frames"]),
        group=torch.from_numpy(np.unique(clips["recording_id"], return_inverse=True)[1]),
        activity=torch.from_numpy(activity),
        event_window=torch.from_numpy(event_window),
        event_class=torch.from_numpy(event_class),
        event_direction=torch.nn.functional.normalize(torch.from_numpy(direction), dim=-1),
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Fine-tuning on ``annotation_minutes`` of the annotated training clips.

    ``encoder`` is a finished pretraining, or None for scratch. Clips of
    ``validation_rooms`` are kept out of the budget and measure progress where the settings ask.
    ``unfinished_uri`` is where states are kept while it runs, for a killed one to go on from.
    """

    settings: FinetuneSettings
    shards: ShardFolder
    annotation_minutes: float
    class_names: tuple[str, ...]
    encoder: StageFiles | None
    validation_rooms: tuple[str, ...] = ()
    unfinished_uri: str | None = None

    def run(
        self, folder: Path, *, device: torch.device | str, report: Callable[[Progress], None]
    ) -> Metrics:
        """Train; ``folder`` receives the network and the history."""
        settings = self.settings
        index = ShardIndex.open(self.shards.path)
        rooms = set(index.clips["room"]) - set(self.validation_rooms)
        # The seed of the budget's order is the trial's: spread over seeds includes the luck of
        # which recordings were annotated.
        budget = select_budget(
            index.select(rooms=sorted(rooms)), self.annotation_minutes, settings.seed
        )
        read_step = AnnotatedReader(
            reader=self.shards.reader(budget),
            schedule=WindowSchedule(
                seed=settings.seed, batch_size=settings.batch_size, window_s=settings.window_s
            ),
            class_count=len(self.class_names),
            output_format=settings.output_format,
            store=self.shards.store(settings.audio.features),
        )
        unfinished = Unfinished(self.unfinished_uri) if self.unfinished_uri else None
        start, history = (unfinished and unfinished.read()) or (None, History("finetune"))

        def on_report(step: int, metrics: Metrics, state: TrainState | None) -> None:
            history.add(step, metrics)
            # The last state is not kept: what follows it needs the metrics that came with it.
            if unfinished and state is not None and step < settings.steps:
                unfinished.write(state, history)
            report(metrics | {"stage": "finetune", "step": step, "steps": settings.steps})

        result = finetune(
            settings,
            local_batches(
                read_step, start_step=start["step"] if start else 0, steps=settings.steps
            ),
            class_count=len(self.class_names),
            encoder_state=self._encoder_state(),
            device=device,
            report=on_report,
            start=start,
            validate=self.validation(device),
        )
        save_checkpoint(folder / NETWORK_FILE, result.network, class_names=self.class_names)
        history.write(folder / HISTORY_FILE)
        return result.metrics | {"best_step": float(result.best_step)}

    def validation(self, device: torch.device | str) -> Callable[[SeldNetwork], Metrics] | None:
        """Scores networks on the validation rooms; None where the settings never ask for it."""
        if not self.settings.validate_every:
            return None
        index = ShardIndex.open(self.shards.path).select(
            splits=["train", "validation"], rooms=sorted(self.validation_rooms)
        )
        if index.clips.empty:
            raise InputError(
                "fine-tuning",
                "validate_every",
                self.settings.validate_every,
                "0 where no rooms are kept for validation",
            )
        return validation_score(
            self.shards, index, self.settings.audio.features, len(self.class_names), device
        )

    def _encoder_state(self) -> dict[str, Tensor] | None:
        if self.encoder is None:
            return None
        return torch.load(self.encoder.folder / ENCODER_FILE, weights_only=True)


def validation_score(
    shards: ShardFolder,
    index: ShardIndex,
    feature_settings: FeatureSettings,
    class_count: int,
    device: torch.device | str,
) -> Callable[[SeldNetwork], Metrics]:
    """The SELD error of networks on annotated clips, each clip scored as one whole window.

    Features are made once, so that asking often costs little more than the network.
    """
    reader = shards.reader(index)
    features = FoaFeatures(feature_settings)
    inputs, references = [], []
    eye = torch.eye(3)[None]
    for row, duration_s in zip(index.clips.index, index.clips["duration_s"], strict=True):
        foa = reader.read([row], window_s=duration_s)["foa"]
        with torch.no_grad():
            spectra = spatial_spectra(torch.from_numpy(foa).float() / 32768.0, features)
        inputs.append(turned_features(spectra, eye).half())
        references.append(reader.events(row))

    def score(network: SeldNetwork) -> Metrics:
        predictions = []
        for feature in inputs:
            with torch.inference_mode():
                encoder = network.encoder
                normalised = encoder.normalisation(feature.to(device).float())
                vectors = network.head(encoder.network(normalised))[0].cpu().numpy()
            decode = (
                decode_accdoa if network.settings.output_format == "accdoa" else decode_multi_accdoa
            )
            predictions.append(decode(vectors))
        counts = recording_counts(references, predictions, class_count=class_count)
        scores = scores_from_counts(counts.sum(axis=0))
        return {name: float(value) for name, value in scores.items()}

    return score


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
        """Score; ``folder`` receives predictions, references and the metric's counts.

        Returns:
            ``metrics``, ``per_class`` and ``per_room`` as a trial record holds them.
        """
        index = ShardIndex.open(self.shards.path)
        if self.rooms is None:
            index = index.select(splits=["test"])
        else:
            index = index.select(splits=["train", "validation"], rooms=list(self.rooms))
        checkpoint = load_checkpoint(
            self.network.folder / NETWORK_FILE, class_names=self.class_names
        )
        network = checkpoint.network.to(device)
        names, references, predictions = [], [], []
        recordings = index.clips.sort_values("start_s").groupby("recording_id")
        for done, (name, clips) in enumerate(recordings, start=1):
            recording = RecordingClips(self.shards.reader(ShardIndex(index.folder, clips)))
            reference = recording.annotations()
            prediction = predict_waveform(network, recording.blocks())
            for table, kind in ((reference, REFERENCE_FOLDER), (prediction, PREDICTIONS_FOLDER)):
                path = folder / kind / f"{name}.csv"
                path.parent.mkdir(exist_ok=True)
                write_annotations(table, path)
            names.append(str(name))
            references.append(reference)
            predictions.append(prediction)
            report({"stage": "evaluate", "step": done, "steps": len(recordings)})
        counts = recording_counts(references, predictions, class_count=len(self.class_names))
        counts_table(names, counts).to_parquet(folder / COUNTS_FILE, index=False)
        result = score_from_recordings(names, counts, class_names=self.class_names)
        per_class = result.per_class.rename_axis("class_name").reset_index()
        per_room = result.per_room.reset_index()
        return {
            "metrics": {name: getattr(result, name) for name in SCORE_NAMES},
            "per_class": per_class.to_dict("records"),
            "per_room": per_room.to_dict("records"),
        }


@dataclass(frozen=True)
class RecordingClips:
    """A whole recording out of its consecutive clips."""

    reader: ClipReader

    def blocks(self) -> Iterator[np.ndarray]:
        """Its sound, int16 (4, time), clip by clip."""
        clips = self.reader.index.clips
        for row, duration_s in zip(clips["clip_id"], clips["duration_s"], strict=True):
            yield self.reader.read([row], window_s=duration_s)["foa"][0]

    def annotations(self) -> pd.DataFrame:
        """Its events, frames counted from the recording's start."""
        tables = []
        clips = self.reader.index.clips
        for row, start_s in zip(clips["clip_id"], clips["start_s"], strict=True):
            events = self.reader.events(row)
            tables.append(events.assign(frame=events["frame"] + round(start_s / LABEL_FRAME_S)))
        return pd.concat(tables, ignore_index=True)


def counts_table(names: list[str], counts: np.ndarray) -> pd.DataFrame:
    """Counts (recording, class, column) as the rows of ``counts.parquet``."""
    recordings, classes, columns = counts.shape
    table = pd.DataFrame(counts.reshape(-1, columns), columns=list(COUNT_COLUMNS))
    table.insert(0, "recording", np.repeat(names, classes))
    table.insert(1, "class_id", np.tile(np.arange(classes), recordings))
    return table


class History:
    """Curves of one stage, as rows ``stage, step, name, value``."""

    def __init__(self, stage: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        self._stage = stage
        self._rows = rows or []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step."""
        self._rows += [(self._stage, step, name, float(value)) for name, value in metrics.items()]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """What has been recorded so far."""
        return self._rows

    def write(self, path: Path) -> None:
        """Write ``history.csv``."""
        table = pd.DataFrame(self._rows, columns=["stage", "step", "name", "value"])
        table.to_csv(path, index=False)

    @classmethod
    def read(cls, stage: str, path: Path) -> History:
        """What an interrupted run had recorded."""
        return cls(stage, list(pd.read_csv(path).itertuples(index=False, name=None)))


@dataclass(frozen=True)
class Unfinished:
    """The last state of a fine-tuning under way with its history, in a folder or under a URI.

    Both are in one file, so that a kill at any moment leaves a pair that fits.
    """

    uri: str

    def write(self, state: TrainState, history: History) -> None:
        """Replace what was kept before."""
        with written_whole(join(self.uri, STATE_FILE)) as path:
            torch.save({"state": state, "history": history.rows}, path)

    def read(self) -> tuple[TrainState, History] | None:
        """What was kept last; None where nothing was."""
        try:
            with local_copy(join(self.uri, STATE_FILE)) as path:
                kept = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        return kept["state"], History("finetune", kept["history"])
