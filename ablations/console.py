"""What people see while a study runs: a progress display, with everyone else's chatter in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

#: Without a terminal to redraw, a line per trial and stage, and one this often in between.
PLAIN_LINE_INTERVAL_S = 30.0

# Rich takes what is in square brackets for markup: it would swallow "[take two]" of a file's name,
# and refuse a message with "[/…]". What settings, data and exceptions say is escaped.


@contextmanager
def quiet_output(log_path: Path) -> Iterator[Console]:
    """Send both standard streams of this process to ``log_path``; yield a console that is seen.

    Ray writes from Python and from C++ threads, to stdout and stderr; only a redirection of the
    file descriptors catches it all. What our own code says goes through the console yielded.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    seen_out, seen_err = os.dup(1), os.dup(2)
    with log_path.open("a", encoding="utf-8") as log, os.fdopen(os.dup(1), "w") as stream:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield Console(file=stream, width=None if stream.isatty() else 110)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(seen_out, 1)
            os.dup2(seen_err, 2)
            os.close(seen_out)
            os.close(seen_err)


@dataclass
class _Running:
    label: str
    stage: str = "starting"
    detail: str = ""
    last_line_at: float = field(default_factory=time.monotonic)


class StudyProgress(tune.Callback):
    """Shows a study's trials as they go, from what they report to Ray Tune.

    Trials report ``stage``, ``step``, ``steps`` and ``loss`` while they compute, and last their
    ``status`` (a failed trial also its ``message``).
    """

    def __init__(self, console: Console, *, planned: int, already_done: int = 0) -> None:
        self._console = console
        self._running: dict[str, _Running] = {}
        self._bar = Progress(
            TextColumn("[bold]trials"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[outcome]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("trials", total=planned, completed=already_done, outcome="")
        self._failed = 0
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=2,
            auto_refresh=console.is_terminal,
        )

    # Tune pickles and copies its callbacks to restore experiments; a display is neither.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> StudyProgress:
        return self

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running[trial.trial_id] = _Running(label=_label(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        running = self._running.setdefault(trial.trial_id, _Running(label=_label(trial)))
        stage = str(result.get("stage", ""))
        detail = _detail(result)
        due = time.monotonic() - running.last_line_at > PLAIN_LINE_INTERVAL_S
        if stage and not self._console.is_terminal and (stage != running.stage or due):
            self._say(f"  {escape(running.label)}: {escape(stage)} {detail}")
            running.last_line_at = time.monotonic()
        running.stage, running.detail = stage, detail

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        label = _label(trial)
        if result.get("status") == "failed":
            self._fail(label, str(result.get("message", "")))
        elif not self._console.is_terminal and "status" in result and "seld_error" in result:
            # What a trial reports before it has a status is a validation, at most.
            self._say(f"  {escape(label)}: SELD error {100 * result['seld_error']:.1f}")
        self._finish(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._fail(_label(trial), "the trial's process died; see the log")
        self._finish(trial)

    def _fail(self, label: str, message: str) -> None:
        self._failed += 1
        self._bar.update(self._task, outcome=f"[red]{self._failed} failed")
        self._say(f"  [red]failed[/red] {escape(label)}: {escape(message)}")

    def _say(self, markup: str) -> None:
        self._console.print(markup, highlight=False)

    def _finish(self, trial: Any) -> None:
        self._running.pop(trial.trial_id, None)
        self._bar.advance(self._task)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for running in self._running.values():
            table.add_row("", escape(running.label), escape(running.stage), running.detail)
        return Group(self._bar, table)


def _label(trial: Any) -> str:
    return str(trial.config["cell"].trial_id)


def _detail(result: dict[str, Any]) -> str:
    parts = []
    if result.get("steps"):
        parts.append(f"{result.get('step', 0)}/{result['steps']}")
    if result.get("loss") is not None:
        parts.append(f"loss {result['loss']:.3f}")
    return " ".join(parts)
