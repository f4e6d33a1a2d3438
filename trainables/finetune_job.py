"""Fine-tuning as a job: its annotated budget, validation on the way, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seld.ambisonics import FeatureSettings, FoaFeatures
from seld.checkpoints import load_audio_encoder, save_checkpoint
from seld.clip_reader import ClipReader
from seld.clips import ShardIndex, select_budget
from seld.errors import InputError
from seld.metrics import recording_counts, scores_from_counts
from seld.models.seld_network import SeldNetwork
from seld.predict import events_of
from seld.records import HISTORY_FILE
from seld.spatial_spectra import spatial_spectra, turned_features
from seld.storage import join, local_copy, written_whole
from trainables.clips import AnnotatedReader, WindowSchedule, local_batches
from trainables.finetune import FinetuneSettings, finetune
from trainables.jobs import ENCODER_FILE, NETWORK_FILE, History, Progress, ShardFolder
from trainables.stages import STATE_FILE, StageFiles
from trainables.steps import Metrics, TrainState
from trainables.work_clock import WorkClock


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
        """Train; ``folder`` receives the network, the history and how long it took."""
        clock = WorkClock()
        settings = self.settings
        index = self.shards.index()
        rooms = set(index.clips["room"]) - set(self.validation_rooms)
        # The seed of the budget's order is the trial's: spread over seeds includes the luck of
        # which recordings were annotated.
        budget = select_budget(
            index.select(rooms=sorted(rooms)), self.annotation_minutes, settings.seed
        )
        read_step = AnnotatedReader(
            reader=ClipReader(budget),
            schedule=WindowSchedule(
                seed=settings.seed, batch_size=settings.batch_size, window_s=settings.window_s
            ),
            class_count=len(self.class_names),
            output_format=settings.output_format,
            store=self.shards.store(settings.audio.features),
        )
        unfinished = Unfinished(self.unfinished_uri) if self.unfinished_uri else None
        start, history = None, History("finetune")
        if unfinished and (kept := unfinished.read()):
            start, history, clock = kept

        def on_report(step: int, metrics: Metrics, state: TrainState | None) -> None:
            history.add(step, metrics)
            if unfinished and state is not None:
                unfinished.write(state, history, clock)
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
        clock.write(folder)
        return result.metrics | {"best_step": float(result.best_step)}

    def validation(self, device: torch.device | str) -> Callable[[SeldNetwork], Metrics] | None:
        """Scores networks on the validation rooms; None where the settings never ask for it."""
        if not self.settings.validate_every:
            return None
        index = self.shards.index().select(
            splits=["train", "validation"], rooms=sorted(self.validation_rooms)
        )
        if index.clips.empty:
            raise InputError(
                "fine-tuning",
                "validate_every",
                self.settings.validate_every,
                "0 where no rooms are kept for validation",
            )
        return validation_score(index, self.settings.audio.features, len(self.class_names), device)

    def _encoder_state(self) -> dict[str, Tensor] | None:
        if self.encoder is None:
            return None
        return load_audio_encoder(self.encoder.folder / ENCODER_FILE).state_dict()


def validation_score(
    index: ShardIndex,
    feature_settings: FeatureSettings,
    class_count: int,
    device: torch.device | str,
) -> Callable[[SeldNetwork], Metrics]:
    """The SELD error of networks on annotated clips, each clip scored as one whole window.

    Features are made once, so that asking often costs little more than the network.
    """
    reader = ClipReader(index)
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
            predictions.append(events_of([vectors], network.settings.output_format))
        counts = recording_counts(references, predictions, class_count=class_count)
        scores = scores_from_counts(counts.sum(axis=0))
        return {name: float(value) for name, value in scores.items()}

    return score


@dataclass(frozen=True)
class Unfinished:
    """The last state of a fine-tuning under way with its history, in a folder or under a URI.

    They are in one file, with the seconds that went into them, so that a kill at any moment leaves
    what fits together.
    """

    uri: str

    def write(self, state: TrainState, history: History, clock: WorkClock) -> None:
        """Replace what was kept before."""
        kept = {"state": state, "history": history.rows, "worked_s": clock.seconds}
        with written_whole(join(self.uri, STATE_FILE)) as path:
            torch.save(kept, path)

    def read(self) -> tuple[TrainState, History, WorkClock] | None:
        """What was kept last; None where nothing was."""
        try:
            with local_copy(join(self.uri, STATE_FILE)) as path:
                kept = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        return kept["state"], History("finetune", kept["history"]), WorkClock(kept["worked_s"])
