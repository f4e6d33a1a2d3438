"""Pretraining as a job: which clips it sees, and what it is probed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seld.ambisonics import FoaFeatures
from seld.annotations import accdoa_targets
from seld.clip_reader import ClipReader
from seld.clips import LABEL_FRAME_S, ShardIndex
from seld.geometry import unit_vectors
from seld.spatial_spectra import spatial_spectra
from trainables.clips import PairReader, WindowSchedule
from trainables.contrast import PretrainNetworks
from trainables.jobs import ShardFolder
from trainables.pretrain import PretrainSettings
from trainables.probes import ProbeWindows, probe_pretraining
from trainables.steps import Metrics

#: Windows that pretraining is probed on.
PROBE_WINDOWS = 96


def unannotated_clips(index: ShardIndex, validation_rooms: Sequence[str]) -> ShardIndex:
    """What pretraining may see: each corpus's unannotated part, or training part where it has none.

    Annotations are not read either way; STARSS23, say, is annotated but has pictures. Rooms that
    arms are validated on stay unseen, as scratch has not seen them either.
    """
    clips = index.clips
    unannotated = clips["split"] == "unannotated"
    without = ~unannotated.groupby(clips["corpus"]).transform("any")
    training = (clips["split"] == "train") & ~clips["room"].isin(list(validation_rooms))
    seen = (unannotated | (without & training)) & (clips["frame_count"] > 0)
    return ShardIndex(index.folder, clips.loc[seen])


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Pretraining on the unannotated clips.

    ``probes`` is the folder of annotated clips whose training windows measure what has been
    learnt; annotations are used for nothing else. ``validation_rooms`` are kept out of a corpus
    without an unannotated part; only they are probed on then.
    """

    settings: PretrainSettings
    shards: ShardFolder
    probes: ShardFolder | None = None
    validation_rooms: tuple[str, ...] = ()

    def reader(self, *, rank: int = 0, world_size: int = 1) -> PairReader:
        """Step number → batch of this rank."""
        settings = self.settings
        index = unannotated_clips(self.shards.index(), self.validation_rooms)
        return PairReader(
            reader=ClipReader(index),
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
        seen = unannotated_clips(self.shards.index(), self.validation_rooms).clips
        held_out = None if set(seen["split"]) == {"unannotated"} else self.validation_rooms
        windows = probe_windows(self.probes, self.settings, rooms=held_out)
        if windows is None:
            return None
        return lambda networks: probe_pretraining(networks, windows, self.settings)


def probe_windows(
    shards: ShardFolder, settings: PretrainSettings, *, rooms: Sequence[str] | None = None
) -> ProbeWindows | None:
    """The middles of :data:`PROBE_WINDOWS` annotated training clips, with what sounds in them.

    Args:
        shards: the annotated clips.
        settings: whose windows are probed.
        rooms: of the clips; None: any.
    """
    index = shards.index().select(
        splits=["train", "validation"], rooms=rooms, minimum_s=settings.window_s
    )
    clips = index.clips.loc[index.clips["frame_count"] > 0]
    if clips.empty:
        return None
    clips = clips.sample(min(PROBE_WINDOWS, len(clips)), random_state=0).sort_index()
    reader = ClipReader(ShardIndex(index.folder, clips))
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
    # Files repeat rows; a repeated one is no second source.
    tables = [table.drop_duplicates() for table in events]

    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([table[name].to_numpy(float) for table in tables]))

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
        row_window=torch.from_numpy(np.repeat(np.arange(len(tables)), list(map(len, tables)))),
        row_frame=column("frame").long(),
        row_direction=unit_vectors(column("azimuth_deg"), column("elevation_deg")).float(),
    )
