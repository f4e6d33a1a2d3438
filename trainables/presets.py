"""Recipes of pretraining and fine-tuning at the four sizes.

The paper gives no values for any of these; ``ablations/LOG.md`` says what was tried. All arms of
a size share networks, windows, optimiser and steps. They differ by their objective and, but at
``paper``, by what each was found to need: DOA-wise looks at energy peaks and has part of its loss
within the window, the others look at a grid of the whole sphere through wider crops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from seld.geometry import DoaGrid
from seld.models.heads import ProjectionSettings
from seld.models.r2plus1d import VISUAL_ENCODER_PRESETS
from seld.models.resnet_conformer import RESNET_CONFORMER_PRESETS, AudioEncoderSettings
from trainables.directions import DirectionSettings
from trainables.finetune import FinetuneSettings
from trainables.pretrain import PretrainSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How each objective is pretrained at a size, and how every arm is fine-tuned."""

    doa_wise: PretrainSettings
    recording_wise: PretrainSettings
    avc: PretrainSettings
    finetune: FinetuneSettings


def recipe(
    doa_wise: PretrainSettings,
    finetune: FinetuneSettings,
    *,
    grid_directions: int,
    grid_field_of_view_deg: float = 65.0,
) -> Recipe:
    """All objectives from the DOA-wise one.

    ``recording_wise`` and ``avc`` look all around, on a grid that is turned at every step, through
    wide crops: 8 of 65° see 72 % of the sphere at once, 4 of 95° 73 %, 16 of 65° all of it.
    """
    grid = DirectionSettings(
        sampling="grid", grid=DoaGrid(kind="fibonacci", count=grid_directions), grid_rotation="any"
    )
    sphere = replace(doa_wise, directions=grid, field_of_view_deg=grid_field_of_view_deg)
    return Recipe(
        doa_wise=doa_wise,
        recording_wise=replace(sphere, objective="recording_wise", rotated_negatives=1),
        avc=replace(sphere, objective="avc"),
        finetune=finetune,
    )


def with_ingredients(settings: PretrainSettings) -> PretrainSettings:
    """DOA-wise pretraining with all that was found to make it learn [ours].

    The study ``ingredients`` takes them out one by one; LOG.md says what each was found to do.
    """
    return replace(
        settings,
        windows_per_clip=4,
        # Where the sound's energy comes from, and as many directions where it mostly does not.
        directions=DirectionSettings(peak_count=2, random_count=2, exclusion_deg=20.0),
        # Crops of 50° show what sounds beside them as well, and then less of the class is learnt.
        field_of_view_deg=30.0,
        head="direction_conditioned",
        # Asked by its axes alone, the head can only turn smoothly with the direction: the latents
        # then keep the direction where a linear layer reads it.
        projection=replace(settings.projection, harmonics_order=1),
        own_window_share=0.2,
        listening_directions=16,
        augmentation="swaps_and_rotations",
        augmentation_axes="vertical",
        learn_temperature=True,
    )


def demo() -> Recipe:
    """Two cores: about a minute of one core per pretraining, half a minute per fine-tuning."""
    # Without dropout, whose random numbers cost a CPU a fifth of the step; the runs are short.
    audio = AudioEncoderSettings(network=replace(RESNET_CONFORMER_PRESETS["demo"], dropout=0.0))
    visual = VISUAL_ENCODER_PRESETS["demo"]
    doa_wise = PretrainSettings(
        steps=400,
        batch_size=32,
        window_s=2.0,
        # Three pictures per window cost half as much again and taught no more (LOG, 2026-11-28).
        frame_count=1,
        crop_px=16,
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim, hidden_dim=256),
        learning_rate=1e-3,
        state_every=200,
    )
    finetune = FinetuneSettings(
        steps=400, batch_size=16, window_s=4.0, learning_rate=3e-3, audio=audio
    )
    return recipe(with_ingredients(doa_wise), finetune, grid_directions=8)


def evidence() -> Recipe:
    """Two cores for hours: long enough for pretraining to show what it is worth.

    64 windows and a learning rate of 1e-3: with 32 and 5e-4, retrieval needs three times the
    steps. Four crops of 95° on the grid see 73 % of the sphere, as much as demo's eight of 65°;
    crops are what the grid's objectives cost.
    """
    size = demo()
    doa_wise = replace(
        size.doa_wise,
        steps=3500,
        batch_size=64,
        warmup_steps=100,
        report_every=100,
        state_every=500,
    )
    # On validation rooms scratch stops improving at 1500 steps with 2 annotated minutes (the scale
    # says so), at 2500 with 6, 3000 with 9 and 4000 with 18: every arm gets what scratch needs.
    # With a warm-up of 30 steps it ends three points worse. Turned annotations do scratch no harm
    # and bring the pretrained three points.
    finetune = replace(
        size.finetune,
        steps=2500,
        batch_size=32,
        learning_rate=4.5e-3,
        rotations="vertical",
        warmup_steps=300,
        validate_every=500,
        report_every=100,
    )
    return recipe(doa_wise, finetune, grid_directions=4, grid_field_of_view_deg=95.0)


def small() -> Recipe:
    """One GPU: larger crops, networks and batches than ``evidence``; untuned."""
    audio = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["small"])
    visual = VISUAL_ENCODER_PRESETS["small"]
    doa_wise = PretrainSettings(
        steps=8000,
        batch_size=128,
        window_s=2.0,
        frame_count=4,
        crop_px=32,
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim, hidden_dim=256),
        learning_rate=5e-4,
        warmup_steps=500,
        state_every=1000,
    )
    finetune = FinetuneSettings(
        steps=6000,
        batch_size=32,
        window_s=5.0,
        rotations="vertical",
        warmup_steps=200,
        audio=audio,
    )
    return recipe(with_ingredients(doa_wise), finetune, grid_directions=16)


def paper() -> Recipe:
    """Full networks on 112×112 crops of 8 pictures, for 100 hours; K and all else are [ours].

    Pictures, temperature, learning rate and weight decay follow the nearest public recipe (Morgado
    et al., "Learning Representations from Audio-Visual Spatial Alignment", 2020).
    """
    audio = AudioEncoderSettings(network=RESNET_CONFORMER_PRESETS["paper"])
    visual = VISUAL_ENCODER_PRESETS["paper"]
    doa_wise = PretrainSettings(
        steps=100_000,
        batch_size=32,
        window_s=2.0,
        frame_count=8,
        # Sixteen crops of 65° leave little of the sphere unseen.
        field_of_view_deg=65.0,
        crop_px=112,
        directions=DirectionSettings(
            sampling="grid", grid=DoaGrid(kind="fibonacci", count=16), weighting="uniform"
        ),
        head="grid",
        audio=audio,
        visual=visual,
        projection=ProjectionSettings(embedding_dim=visual.embedding_dim, hidden_dim=256),
        temperature=0.07,
        learn_temperature=False,
        learning_rate=1e-4,
        weight_decay=1e-5,
        warmup_steps=1000,
        # Half an hour on the smallest GPU, which is what a lost spot machine costs.
        state_every=1000,
    )
    finetune = FinetuneSettings(
        steps=30_000, batch_size=32, window_s=5.0, warmup_steps=500, audio=audio
    )
    return Recipe(
        doa_wise=doa_wise,
        recording_wise=replace(doa_wise, objective="recording_wise", rotated_negatives=1),
        avc=replace(doa_wise, objective="avc"),
        finetune=finetune,
    )


#: By size, smallest first.
RECIPES = {"demo": demo, "evidence": evidence, "small": small, "paper": paper}
