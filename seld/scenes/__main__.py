"""``python -m seld.scenes --out DIR``: render the embedded benchmark."""

from __future__ import annotations

from dataclasses import replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seld.errors import CommandLine, InputError, exit_on_input_error
from seld.scenes.render import render_corpus
from seld.scenes.settings import SceneSettings, with_minutes
from seld.settings import override


def main() -> None:
    """Read the command line and render."""
    parser = CommandLine(prog="python -m seld.scenes", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the corpus")
    parser.add_argument("--minutes", type=float, help="length of all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sound-bank", help="folder of <class>/*.wav|ogg|flac")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, e.g. train.acoustics=anechoic or picture.frame_rate_hz=10",
    )
    arguments = parser.parse_args()
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError("command line", "--workers", arguments.workers, "at least 1")
    settings = replace(SceneSettings(), seed=arguments.seed, sound_bank=arguments.sound_bank)
    settings = override(settings, arguments.set)
    if arguments.minutes is not None:
        settings = with_minutes(settings, arguments.minutes)
    with Progress(
        TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as display:
        task = display.add_task("rendering", total=None)
        corpus = render_corpus(
            settings,
            arguments.out,
            workers=arguments.workers,
            progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    print(
        f"{len(corpus.recordings)} recordings, {len(corpus.class_names)} classes, "
        f"fingerprint {corpus.fingerprint}: {corpus.folder}"
    )


if __name__ == "__main__":
    exit_on_input_error(main)
