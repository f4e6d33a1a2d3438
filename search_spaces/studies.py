"""Studies: a question, the arms that answer it, and how many budgets and seeds they get.

Each study is a function of the scale that returns a :class:`Study`; arms derive from one another
by ``dataclasses.replace``. Its docstring gives the command, the expected cost and what the result
should show. :data:`STUDIES` is what ``run_grid.py`` accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.scales import ScaleSettings, find_scale
from seld.classes import STARSS_CLASSES
from seld.errors import InputError
from seld.geometry import DoaGrid, GridKind
from seld.scenes.settings import Acoustics, SceneSettings
from seld.settings import flat_mapping, to_mapping
from trainables.cells import DEFAULT_DATA, Cell
from trainables.directions import DirectionSettings
from trainables.finetune import FinetuneSettings
from trainables.presets import with_ingredients
from trainables.pretrain import PretrainSettings

#: What torch and tables take.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting of what is compared.

    Attributes:
        pretrain: None where the encoder starts untrained.
        scenes: the embedded benchmark of this arm, where the study is about the data; test
            recordings must be the same in all arms. None for the scale's own.
    """

    name: str
    pretrain: PretrainSettings | None
    finetune: FinetuneSettings
    scenes: SceneSettings | None = None


def data_name(arm: Arm) -> str:
    """Of the data set that the arm's cells use."""
    return arm.name if arm.scenes is not None else DEFAULT_DATA


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the trials that answer it: every arm × budget × seed.

    Attributes:
        baseline: the arm that the others are compared with.
        budgets_minutes: annotated minutes to fine-tune on; each is a subset of the next.
        parameter_names: settings that trials list as their parameters; None for those in which the
            arms differ.
    """

    name: str
    question: str
    scale: ScaleSettings
    arms: tuple[Arm, ...]
    baseline: str
    budgets_minutes: tuple[float, ...]
    seeds: tuple[int, ...]
    parameter_names: frozenset[str] | None = None

    def __post_init__(self) -> None:
        where = f"study {self.name}"
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(where, "arms", names, "different names")
        if self.baseline not in names:
            raise InputError(where, "baseline", self.baseline, f"one of {', '.join(names)}")
        if not self.seeds:
            raise InputError(where, "seeds", "none", "at least one")
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise InputError(where, "seeds", self.seeds, "different numbers from 0")
        if max(self.seeds) > LARGEST_SEED:
            raise InputError(where, "seeds", max(self.seeds), f"at most {LARGEST_SEED}")
        for arm in self.arms:
            for name, pretrained, finetuned in _misfits(arm):
                expected = f"pretrain.audio.{name}, {pretrained}: what is pretrained is fine-tuned"
                raise InputError(where, f"{arm.name} finetune.audio.{name}", finetuned, expected)
            for stage, settings in (("pretrain", arm.pretrain), ("finetune", arm.finetune)):
                clip_s = self.scale.shards.clip_s
                if settings is not None and settings.window_s > clip_s + 1e-6:
                    expected = f"at most the {clip_s:g} s of a clip"
                    field = f"{arm.name} {stage}.window_s"
                    raise InputError(where, field, settings.window_s, expected)
            if arm.scenes is not None and arm.scenes.test != self.scale.scenes.test:
                raise InputError(where, f"test part of {arm.name}", arm.scenes.test, "the study's")
        budgets = self.budgets_minutes
        if not budgets or min(budgets) <= 0 or len(set(budgets)) < len(budgets):
            raise InputError(where, "budgets", budgets, "different minutes above 0")

    def cells(self) -> list[Cell]:
        """Every trial, in an order that lets neighbours compute different stages.

        Budgets vary slowest: trials that share a pretraining are far apart, so that none waits
        for a pretraining that its neighbour has only just begun.
        """
        varied = self.varied_settings()
        steps = self.scale.finetune_steps
        return [
            Cell(
                study=self.name,
                arm=arm.name,
                seed=seed,
                annotation_minutes=minutes,
                pretrain=replace(arm.pretrain, seed=seed) if arm.pretrain else None,
                finetune=replace(
                    arm.finetune, seed=seed, steps=steps.get(minutes, arm.finetune.steps)
                ),
                data=data_name(arm),
                parameters=varied[arm.name],
            )
            for minutes in self.budgets_minutes
            for seed in self.seeds
            for arm in self.arms
        ]

    def of_arms(self, names: Sequence[str]) -> Study:
        """Some of the arms; their trials list the parameters that they do in the whole study."""
        known = {arm.name: arm for arm in self.arms}
        for name in names:
            if name not in known:
                raise InputError("--arms", "arm", name, f"one of {', '.join(known)}")
        varied = (name for settings in self.varied_settings().values() for name in settings)
        return replace(
            self,
            arms=tuple(known[name] for name in names),
            baseline=self.baseline if self.baseline in names else names[0],
            parameter_names=frozenset(varied),
        )

    def varied_settings(self) -> dict[str, dict[str, Any]]:
        """Per arm, the settings in which arms differ, flat: ``pretrain.temperature`` and so on."""
        flat = {
            arm.name: flat_mapping(
                {
                    "pretrain": to_mapping(arm.pretrain) if arm.pretrain else {},
                    "finetune": to_mapping(arm.finetune),
                }
            )
            for arm in self.arms
        }
        values: dict[str, set[str]] = {}
        for settings in flat.values():
            for name, value in settings.items():
                values.setdefault(name, set()).add(str(value))
        varied = self.parameter_names
        if varied is None:
            varied = {name for name, different in values.items() if len(different) > 1}
        return {
            arm: {name: value for name, value in settings.items() if name in varied}
            for arm, settings in flat.items()
        }


def _misfits(arm: Arm) -> Iterator[tuple[str, Any, Any]]:
    """Settings in which an arm's two encoders differ: one's weights mean nothing in the other."""
    if arm.pretrain is None:
        return
    pretrained, finetuned = (
        flat_mapping(to_mapping(stage.audio)) for stage in (arm.pretrain, arm.finetune)
    )
    for name, value in pretrained.items():
        if finetuned[name] != value and name != "network.dropout":
            yield name, value, finetuned[name]


def variants(scale: ScaleSettings) -> Study:
    """Does pretraining help, and which kind?

    Command: ``python ablations/run_grid.py variants``
    Cost: at ``demo`` a quarter of an hour on 2 cores, rendering included; two to three
    times that on CPUs without.
    Reading: scratch is the bar. AVC shows what pictures give without directions; DOA-wise and
    recording-wise what directions add; recording-wise without rotated negatives can be solved
    without knowing where anything is, so it should fall back towards AVC. At ``demo`` size
    training is far too short for any of this to be significant; it shows that the path works.
    """
    return Study(
        name="variants",
        question="Does DOA-aware audio-visual pretraining lower the SELD error, and which variant?",
        scale=scale,
        arms=(
            Arm(name="scratch", pretrain=None, finetune=scale.finetune),
            Arm(name="avc", pretrain=scale.avc, finetune=scale.finetune),
            Arm(name="doa_wise", pretrain=scale.doa_wise, finetune=scale.finetune),
            Arm(name="recording_wise", pretrain=scale.recording_wise, finetune=scale.finetune),
            Arm(
                name="recording_wise_unrotated",
                pretrain=replace(scale.recording_wise, rotated_negatives=0),
                finetune=scale.finetune,
            ),
        ),
        baseline="scratch",
        budgets_minutes=scale.budgets_minutes,
        seeds=scale.seeds,
    )


def evidence(scale: ScaleSettings) -> Study:
    """Does pretraining lower the SELD error of a fine-tuning that is as good as it gets alone?

    Command: ``python ablations/run_grid.py evidence`` (at scale ``evidence`` unless another is
    asked for); on a GPU ``--scale small``; with real sounds
    ``--sound-bank ../shared/data/esc10 --results results-esc10``.
    Cost: four and a half hours on 2 cores that compute in bfloat16 and have nothing else to do,
    five where other machines share their memory (20 pretrainings of 13 to 20 minutes of a core, 25
    fine-tunings of three and 25 of five; a quarter of an hour for rendering), half as long again
    without; 13 GB of disk.
    Reading: the arms of ``variants``, at budgets from two minutes to all, over five seeds of
    pretraining, fine-tuning and choice of annotations. The fine-tuning recipe was tuned on
    validation rooms for scratch and is the same for every arm; its length is what scratch needs
    until its validation score stops improving (1500 steps with 2 minutes, 2500 with 6). The probes
    in the report say what each encoder had learnt before it saw a label.
    """
    study = variants(scale)
    return replace(
        study,
        name="evidence",
        question="Does DOA-aware pretraining lower the SELD error, and from how little annotation?",
    )


def annotation(scale: ScaleSettings) -> Study:
    """From how little annotation does pretraining help, and does the balance of classes matter?

    Command: ``python ablations/run_grid.py annotation``
    Cost: at ``demo`` about twice the ``variants`` study.
    Reading: SELD error against budget, one curve per arm. The paper found gains with much
    annotation and losses with a few unbalanced hours: curves that cross say where. The
    ``_skewed`` arms are fine-tuned on annotations whose classes follow a power law.
    """
    scenes = scale.scenes
    skewed = replace(scenes, train=replace(scenes.train, class_skew=1.0))
    largest = max(scale.budgets_minutes)
    arms = variants(scale).arms[:4]
    return Study(
        name="annotation",
        question="From how little annotation does pretraining lower the SELD error?",
        scale=scale,
        arms=(
            *arms,
            replace(arms[0], name="scratch_skewed", scenes=skewed),
            replace(arms[2], name="doa_wise_skewed", scenes=skewed),
        ),
        baseline="scratch",
        budgets_minutes=(largest / 8, largest / 4, largest / 2, largest),
        seeds=scale.seeds,
    )


def domain(scale: ScaleSettings) -> Study:
    """Does what is learnt in one kind of room, or from some classes, serve in others?

    Command: ``python ablations/run_grid.py domain``
    Cost: at ``demo`` about as much as ``variants``, and a rendering per arm.
    Reading: each arm is pretrained DOA-wise in one kind of acoustics; all are fine-tuned and
    tested in the same mixture of small, large and reverberant rooms. ``half_the_classes`` heard
    and saw only every other class: where its losses concentrate in the others, the report names
    it as domain mismatch.
    """
    scenes = scale.scenes

    def pretrained_in(acoustics: Acoustics) -> Arm:
        part = replace(scenes.unannotated, acoustics=acoustics)
        return Arm(
            name=f"pretrained_{acoustics}",
            pretrain=scale.doa_wise,
            finetune=scale.finetune,
            scenes=replace(scenes, unannotated=part),
        )

    kinds: tuple[Acoustics, ...] = ("anechoic", "reverberant", "small", "large", "outdoor")
    every_other = replace(scenes.unannotated, classes=STARSS_CLASSES[::2])
    return Study(
        name="domain",
        question="Does pretraining in one acoustic domain serve in another?",
        scale=scale,
        arms=(
            Arm(name="scratch", pretrain=None, finetune=scale.finetune),
            Arm(name="pretrained_mixed", pretrain=scale.doa_wise, finetune=scale.finetune),
            *(pretrained_in(acoustics) for acoustics in kinds),
            Arm(
                name="half_the_classes",
                pretrain=scale.doa_wise,
                finetune=scale.finetune,
                scenes=replace(scenes, unannotated=every_other),
            ),
        ),
        baseline="pretrained_mixed",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


def crowding(scale: ScaleSettings) -> Study:
    """How many events may sound at once in what is pretrained on?

    Command: ``python ablations/run_grid.py crowding``
    Cost: at ``demo`` about half of ``variants``, and two renderings.
    Reading: where one event sounds at a time, what is heard belongs to what is seen without any
    doubt, and peaks of the sound's intensity are where it is; but there is less to learn from in
    the same minutes, and nothing of how sounds mix. All arms are fine-tuned and tested in the same
    scenes of up to three at once.
    """
    part = scale.scenes.unannotated

    def with_overlap(name: str, most: int) -> Arm:
        scenes = replace(scale.scenes, unannotated=replace(part, max_overlap=most))
        return Arm(name=name, pretrain=scale.doa_wise, finetune=scale.finetune, scenes=scenes)

    return Study(
        name="crowding",
        question="How crowded may unannotated recordings be?",
        scale=scale,
        arms=(
            Arm(name="up_to_three", pretrain=scale.doa_wise, finetune=scale.finetune),
            with_overlap("one_at_a_time", 1),
            with_overlap("up_to_five", 5),
        ),
        baseline="up_to_three",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


def misalignment(scale: ScaleSettings) -> Study:
    """How many sounds without a visible source does each variant tolerate?

    Command: ``python ablations/run_grid.py misalignment``
    Cost: at ``demo`` about 1.5 times ``variants``, and three renderings.
    Reading: the paper suspects background music of having hurt. DOA-wise pairs are wrong one by
    one where nothing is seen at a sound's direction, recording-wise pairs only on average; the
    differences to the ``_0`` arms, per variant, say which degrades first.
    """
    scenes = scale.scenes
    shares = (0.0, 0.4, 0.8)

    def with_share(name: str, recipe: PretrainSettings, share: float) -> Arm:
        part = replace(scenes.unannotated, unseen_share=share, background_music_share=share / 2)
        return Arm(
            name=f"{name}_{round(100 * share)}",
            pretrain=recipe,
            finetune=scale.finetune,
            scenes=replace(scenes, unannotated=part),
        )

    recipes = {"doa_wise": scale.doa_wise, "recording_wise": scale.recording_wise}
    return Study(
        name="misalignment",
        question="How much unseen sound and background music does pretraining tolerate?",
        scale=scale,
        arms=tuple(
            with_share(name, recipe, share) for name, recipe in recipes.items() for share in shares
        ),
        baseline="doa_wise_0",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


def doa_resolution(scale: ScaleSettings) -> Study:
    """How many directions, and on which grid?

    Command: ``python ablations/run_grid.py doa_resolution``
    Cost: at ``demo`` about as much as ``variants``; the arm with the most directions costs most.
    Reading: a fixed grid is the paper's setting (its K is not public). First-order ambisonics
    resolves some tens of degrees, so gains should level off; many directions also mean many
    empty ones, which are false negatives. ``energy_peaks`` is this project's own alternative; it
    takes a head that can be asked for any direction, which all arms have therefore. They also have
    the wider crops of the other objectives. Coarse grids see less at once all the same: with crops
    of 65° (80°), 4 directions 37 % (54 %) of the sphere, 8 directions 72 % (93 %), 16 and more all
    of it, where crops overlap and neighbours nearer than ``exclusion_deg`` are no negatives. So
    a fall from 16 to 4 may be what is not seen as much as how finely directions are told apart.
    """
    recipe = replace(
        scale.doa_wise,
        head="direction_conditioned",
        field_of_view_deg=scale.recording_wise.field_of_view_deg,
    )
    own = recipe.directions

    def looking_at(name: str, directions: DirectionSettings) -> Arm:
        pretrain = replace(recipe, directions=directions)
        return Arm(name=name, pretrain=pretrain, finetune=scale.finetune)

    def with_grid(kind: GridKind, count: int) -> Arm:
        grid = DoaGrid(kind=kind, count=count)
        return looking_at(f"{kind}_{count}", replace(own, sampling="grid", grid=grid))

    return Study(
        name="doa_resolution",
        question="How do the number of directions and their grid change the SELD error?",
        scale=scale,
        arms=(
            looking_at("energy_peaks", replace(own, sampling="energy_peaks")),
            *(with_grid("fibonacci", count) for count in (4, 8, 16, 32)),
            with_grid("azimuth_elevation", 16),
        ),
        baseline="fibonacci_16",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


def temperature(scale: ScaleSettings) -> Study:
    """Which temperature, and does learning it replace choosing it?

    Command: ``python ablations/run_grid.py temperature``
    Cost: at ``demo`` about as much as ``variants``.
    Reading: a low τ looks at the hardest negatives, among them the false ones; a high τ hardly
    tells pairs apart. The middle should win, and ``learnt`` should come near the best.
    """

    def with_temperature(value: float) -> Arm:
        recipe = replace(scale.doa_wise, temperature=value, learn_temperature=False)
        return Arm(name=f"tau_{value:g}", pretrain=recipe, finetune=scale.finetune)

    return Study(
        name="temperature",
        question="Which contrastive temperature gives the lowest SELD error?",
        scale=scale,
        arms=(
            Arm(
                name="learnt",
                pretrain=replace(scale.doa_wise, learn_temperature=True),
                finetune=scale.finetune,
            ),
            *(with_temperature(value) for value in (0.03, 0.07, 0.15, 0.3)),
        ),
        baseline="learnt",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


def ingredients(scale: ScaleSettings) -> Study:
    """What makes DOA-wise pretraining learn: the recipe without, or with another, of each part.

    Command: ``python ablations/run_grid.py ingredients --scale evidence``
    Cost: at ``demo`` about three times ``variants``; at ``evidence`` two to three hours per seed on
    2 cores. ``--set pretrain.steps=1000`` shortens the pretrainings to a third; the
    probes tell most differences by then.
    Reading: first the probes of each arm (what it has learnt before any label), then whether the
    SELD error follows them. An arm no worse than ``recipe`` names an ingredient that does nothing.
    ``plain`` has none: the paper's loss on its fixed directions, with a head that knows only these.
    How many directions and which temperature are studies of their own.
    """
    recipe = with_ingredients(scale.doa_wise)
    own = recipe.directions
    grid = DirectionSettings(
        sampling="grid", grid=DoaGrid(kind="fibonacci", count=16), weighting="uniform"
    )
    changed = {
        "recipe": recipe,
        "plain": replace(
            recipe,
            directions=grid,
            field_of_view_deg=scale.recording_wise.field_of_view_deg,
            head="grid",
            windows_per_clip=1,
            own_window_share=0.0,
            listening_directions=0,
            augmentation="swaps",
        ),
        "one_window_per_clip": replace(recipe, windows_per_clip=1),
        "contrast_across_windows": replace(recipe, own_window_share=0.0, listening_directions=0),
        "no_listening": replace(recipe, listening_directions=0),
        "no_rotations": replace(recipe, augmentation="swaps"),
        "no_empty_directions": replace(
            recipe, directions=replace(own, peak_count=own.count, random_count=0)
        ),
        "refined_peaks": replace(recipe, directions=replace(own, refinements=2)),
        "uniform_weights": replace(recipe, directions=replace(own, weighting="uniform")),
        "half_the_batch": replace(recipe, batch_size=recipe.batch_size // 2),
        "negatives_of_four_earlier_steps": replace(recipe, memory_steps=4),
        "half_the_window": replace(recipe, window_s=recipe.window_s / 2),
        "near_directions_are_no_negatives": replace(
            recipe, directions=replace(own, exclusion_deg=35.0)
        ),
        "asked_by_third_order": replace(
            recipe, projection=replace(recipe.projection, harmonics_order=3)
        ),
        "narrow_crops": replace(recipe, field_of_view_deg=20.0),
        "wide_crops": replace(recipe, field_of_view_deg=50.0),
        "pictures_alone_first": replace(recipe, visual_warmup_share=0.125),
        "more_pictures": replace(recipe, frame_count=2 * recipe.frame_count + 1),
    }
    return Study(
        name="ingredients",
        question="What makes DOA-wise pretraining learn?",
        scale=scale,
        arms=tuple(
            Arm(name=name, pretrain=settings, finetune=scale.finetune)
            for name, settings in changed.items()
        ),
        baseline="recipe",
        budgets_minutes=scale.budgets_minutes[:1],
        seeds=scale.seeds,
    )


STUDIES: dict[str, Callable[[ScaleSettings], Study]] = {
    "variants": variants,
    "evidence": evidence,
    "annotation": annotation,
    "domain": domain,
    "crowding": crowding,
    "misalignment": misalignment,
    "doa_resolution": doa_resolution,
    "temperature": temperature,
    "ingredients": ingredients,
}


#: The scale of a study where none is asked for; of all others, ``demo``.
USUAL_SCALES = {"evidence": "evidence"}


def find_study(name: str, scale: str | None = None) -> Study:
    """The study called ``name`` at a scale, or at its usual one."""
    if name not in STUDIES:
        raise InputError("command line", "study", name, f"one of {', '.join(STUDIES)}")
    return STUDIES[name](find_scale(scale or USUAL_SCALES.get(name, "demo")))
